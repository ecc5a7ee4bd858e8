"""What is listed: pieces that cover every file once, in order, with boundaries that stay where they are."""

from __future__ import annotations

import json
import os
import sqlite3
import tracemalloc
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import ase
import ase.db
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fdcore.errors import UsageError
from fdcore.records import Failure
from fdcore.screening import parts
from fdcore.screening.chunks import CHUNK_BYTES, Chunk, Piece, list_chunks

WATER = "3\n\nO 0 0 0.119\nH 0 0.763 -0.477\nH 0 -0.763 -0.477\n"


def listed(paths: Sequence[Path | str], size: int = 500, root: Path | None = None) -> tuple[list[Chunk], list[Failure]]:
    items = list(list_chunks(paths, size, root))
    chunks = [item for item in items if isinstance(item, Chunk)]
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    return chunks, [item for item in items if isinstance(item, Failure)]


def pieces(chunks: Sequence[Chunk]) -> list[Piece]:
    return [piece for chunk in chunks for piece in chunk.pieces]


def many(folder: Path, n: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:05d}.cif" for i in range(n)]
    for name in names:
        (folder / name).write_text(name)
    return names


# --- folders ---------------------------------------------------------------------------------------------------------------


def test_folders_are_walked_in_sorted_order_and_names_are_relative(tmp_path: Path) -> None:
    for name in ("b.cif", "a/z.cif", "a/b/POSCAR", "c.poscar", ".hidden.cif", ".git/x.cif", "README.md", "a/plot.png", "a/INCAR", "run.log",
                 "a.log/x.cif", "notes.odd"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    chunks, failures = listed([tmp_path])
    assert failures == []
    assert [p.name for p in pieces(chunks)] == [
        "a/b/POSCAR",
        "a/z.cif",
        "a.log/x.cif",
        "b.cif",
        "c.poscar",
        "notes.odd",
    ]
    assert all(p.path == str(tmp_path / p.name) and os.path.isabs(p.path) for p in pieces(chunks))
    assert {(p.form, p.start, p.stop, p.first) for p in pieces(chunks)} == {("file", 0, 1, 0)}


def test_named_files_are_always_taken_and_called_by_their_own_name(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("x")
    (tmp_path / ".x.cif").write_text("x")
    chunks, failures = listed([tmp_path / "README.md", tmp_path / ".x.cif"])
    assert failures == [] and [p.name for p in pieces(chunks)] == ["README.md", ".x.cif"]


def test_root_names_everything_and_keeps_everything_within(tmp_path: Path) -> None:
    many(tmp_path / "root" / "set", 2)
    (tmp_path / "outside.cif").write_text("x")
    (tmp_path / "root" / "link.cif").symlink_to(tmp_path / "outside.cif")
    root = tmp_path / "root"
    chunks, failures = listed(["set", root / "set" / "00001.cif", "../outside.cif", "link.cif", tmp_path], root=root)
    assert [p.name for p in pieces(chunks)] == ["set/00000.cif", "set/00001.cif", "set/00001.cif"]
    assert [f.error for f in failures] == ["This lies outside of the folder that may be read."] * 3


def test_what_is_no_file_to_read_is_told_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.cif.gz").write_bytes(b"x")
    (tmp_path / "b.cif").write_text("x")
    os.mkfifo(tmp_path / "pipe.cif")
    (tmp_path / "broken.cif").symlink_to(tmp_path / "gone.cif")
    chunks, failures = listed([tmp_path / "missing.cif", "a\0b", tmp_path, tmp_path / "b.cif"])
    assert [p.name for p in pieces(chunks)] == ["b.cif", "b.cif"]
    told = {os.path.basename(f.file): f.error for f in failures}
    assert "no such file" in told["missing.cif"] and "no such file" in told["broken.cif"]
    assert "packed" in told["a.cif.gz"] and "ordinary file" in told["pipe.cif"] and "could not be opened" in told["ab"]
    assert len(failures) == 5 and all(f.hint for f in failures)
    assert "Unpack" in next(f.hint for f in failures if f.file == "a.cif.gz")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    many(tmp_path / "closed", 1)
    (tmp_path / "closed").chmod(0)
    try:
        assert [f.file for f in listed([tmp_path])[1]] == ["closed"]
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_links_that_lead_out_are_told_and_links_within_make_no_circle(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    many(inside / "deep", 2)
    (tmp_path / "secret.cif").write_text("secret")
    (inside / "escape.cif").symlink_to(tmp_path / "secret.cif")
    (inside / "escape").symlink_to(tmp_path, target_is_directory=True)
    (inside / "deep" / "up").symlink_to(inside, target_is_directory=True)
    (inside / "latest.cif").symlink_to(Path("deep/00001.cif"))
    (inside / "self").symlink_to(inside / "self")
    chunks, failures = listed([inside])
    assert [p.name for p in pieces(chunks)] == ["deep/00000.cif", "deep/00001.cif", "latest.cif"]
    assert pieces(chunks)[-1].path == str(inside / "deep" / "00001.cif")
    assert [f.file for f in failures] == ["escape", "escape.cif", "self"]
    assert "leads out" in failures[0].error and "leads out" in failures[1].error
    # A link that a person names is followed.
    assert [p.name for p in pieces(listed([inside / "escape.cif"])[0])] == ["escape.cif"]


def test_names_are_one_line_of_text(tmp_path: Path) -> None:
    for name in ("a\nb.cif", "\u202egnp.cif", os.fsdecode(b"\xff.cif")):
        (tmp_path / name).write_text("x")
    chunks, _ = listed([tmp_path])
    assert sorted(p.name for p in pieces(chunks)) == [".cif", "a b.cif", "gnp.cif"]
    assert all(Path(p.path).read_text() == "x" for p in pieces(chunks))
    assert [Chunk.from_json(c.to_json()) for c in chunks] == chunks


# --- packing ---------------------------------------------------------------------------------------------------------------


def test_small_files_share_chunks_of_about_the_size_that_was_asked_for(tmp_path: Path) -> None:
    names = many(tmp_path, 3000)
    chunks, _ = listed([tmp_path], 100)
    assert [p.name for p in pieces(chunks)] == names
    counts = [chunk.count for chunk in chunks]
    assert sum(counts) == 3000 and all(25 <= c <= 200 for c in counts[:-1]) and counts[-1] <= 200
    assert 60 <= sum(counts) / len(counts) <= 160
    assert [c.count for c in chunks] == [len(c.pieces) for c in chunks]


def test_a_file_that_is_added_or_taken_away_shifts_only_its_neighbourhood(tmp_path: Path) -> None:
    many(tmp_path, 3000)
    before = {chunk.pieces for chunk in listed([tmp_path], 100)[0]}
    (tmp_path / "01500b.cif").write_text("new")
    added = {chunk.pieces for chunk in listed([tmp_path], 100)[0]}
    assert 1 <= len(before - added) <= 4 and len(before & added) >= len(before) - 4
    (tmp_path / "01500b.cif").unlink()
    (tmp_path / "00010.cif").unlink()
    less = {chunk.pieces for chunk in listed([tmp_path], 100)[0]}
    assert 1 <= len(before - less) <= 4


def test_chunks_are_bounded_in_bytes(tmp_path: Path) -> None:
    for i in range(5):
        with (tmp_path / f"{i}.cif").open("wb") as stream:
            stream.truncate(CHUNK_BYTES // 2 - 1)
    chunks, _ = listed([tmp_path])
    assert [len(chunk.pieces) for chunk in chunks] == [2, 2, 1]


@pytest.mark.parametrize("size", [0, -1, 5001])
def test_sizes_that_cannot_be_are_refused(size: int) -> None:
    with pytest.raises(UsageError):
        list(list_chunks([], size))


def test_json_of_a_chunk_gives_it_back(tmp_path: Path) -> None:
    many(tmp_path, 3)
    (chunk,) = listed([tmp_path])[0]
    assert Chunk.from_json(chunk.to_json()) == chunk
    assert json.loads(chunk.to_json())["pieces"][0]["form"] == "file"


# --- files of many structures ------------------------------------------------------------------------------------------------


def cut(path: Path, found: Sequence[Piece]) -> list[bytes]:
    data = path.read_bytes()
    return [data[p.start : p.stop] for p in found]


def test_frames_are_cut_between_structures(tmp_path: Path) -> None:
    path = tmp_path / "md.extxyz"
    path.write_text("\n" + WATER * 1030 + "\n\n")
    chunks, failures = listed([path], 100)
    assert failures == [] and [c.count for c in chunks] == [100] * 9 + [130]
    found = pieces(chunks)
    assert [(p.form, p.first) for p in found] == [("frames", 100 * i) for i in range(10)]
    assert [d.count(b"O 0 0") for d in cut(path, found)] == [c.count for c in chunks]
    assert all(d.decode().strip().endswith("H 0 -0.763 -0.477") and d.startswith(b"3\n") for d in cut(path, found))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WATER * 3, [("file", 0, 3)]),
        (WATER.replace("\n", "\r\n") * 3, [("file", 0, 3)]),
        ("", [("file", 0, 1)]),
        ("words\n" * 9, [("file", 0, 1)]),
        ("999999999\n\nH 0 0 0\n", [("file", 0, 1)]),
        (WATER * 3 + "3\n\nO 0 0 0\n", [("file", 0, 4)]),
        (WATER * 14, [("file", 0, 14)]),
        (WATER * 16, [("frames", 0, 10), ("frames", 10, 6)]),
        (WATER * 15, [("file", 0, 15)]),
        (WATER * 12 + "3\n\nO 0 0 0\n", [("frames", 0, 10), ("frames", 10, 2), ("frames", 12, 1)]),
        (WATER * 31 + "H 0 0 0\n" + WATER * 50, [("frames", 0, 10), ("frames", 10, 10), ("frames", 20, 10), ("frames", 30, 1), ("frames", 31, 1)]),
    ],
)  # fmt: skip
def test_torn_and_short_files_of_frames(tmp_path: Path, text: str, expected: list[tuple[str, int, int]]) -> None:
    path = tmp_path / "x.xyz"
    path.write_bytes(text.encode())
    chunks, _ = listed([path], 10)
    assert [(c.pieces[0].form, c.pieces[0].first, c.count) for c in chunks] == expected
    found = pieces(chunks)
    assert found[-1].stop == len(text) and found[0].start == 0
    assert all(a.stop == b.start for a, b in pairwise(found))


def test_large_frames_are_cut_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 5 * len(WATER))
    path = tmp_path / "x.xyz"
    path.write_text(WATER * 12)
    assert [c.count for c in listed([path], 100)[0]] == [5, 5, 2]
    path.write_text("200\n\n" + "H 0 0 0\n" * 200 + WATER * 6)
    assert [c.count for c in listed([path], 100)[0]] == [1, 5, 1]


def test_lines_longer_than_the_buffer_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_LINE", 16)
    path = tmp_path / "x.jsonl"
    lines = [json.dumps({"a": "x" * n}) for n in (0, 3, 5, 6, 7, 8, 20, 21, 22, 100)] * 4
    path.write_text("\n\n".join(lines) + "\n   \n")
    chunks, _ = listed([path], 3)
    assert [c.count for c in chunks] == [3] * 12 + [4]
    assert [len([x for x in d.splitlines() if x.strip()]) for d in cut(path, pieces(chunks))] == [
        c.count for c in chunks
    ]
    (tmp_path / "x.xyz").write_text(WATER.replace("3\n\n", "3\n" + "c" * 50 + "\n") * 40)
    assert [c.count for c in listed([tmp_path / "x.xyz"], 10)[0]] == [10] * 4


def test_lines_of_json_are_counted_without_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n" + '{"a": 1}\n\n' * 25)
    chunks, _ = listed([path], 10)
    assert [(p.form, p.first) for p in pieces(chunks)] == [("lines", 0), ("lines", 10)] and [
        c.count for c in chunks
    ] == [10, 15]
    # Two bytes a letter: a line's end is not where it seems to be.
    path.write_bytes(('{"a": 1}\n' * 25).encode("utf-16"))
    assert [p.form for p in pieces(listed([path], 10)[0])] == ["file"]


def test_databases_are_cut_by_rows(tmp_path: Path) -> None:
    with ase.db.connect(tmp_path / "x.db") as database:
        for _ in range(25):
            database.write(ase.Atoms("H"))
    (tmp_path / "no.db").write_text("no database")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE t (a)")
    chunks, failures = listed([tmp_path / "x.db", tmp_path / "no.db", tmp_path / "other.db"], 10)
    assert failures == []
    assert [(p.form, p.start, p.stop, p.first) for p in pieces(chunks)] == [
        ("rows", 0, 10, 0),
        ("rows", 10, 25, 10),
        ("file", 0, 11, 0),
        ("rows", 0, 1, 0),
    ]


def test_tables_are_cut_by_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"structure": ["{}"] * 25}), tmp_path / "x.parquet")
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-9])
    chunks, failures = listed([tmp_path / "x.parquet", tmp_path / "torn.parquet"], 10)
    assert failures == []
    assert [(p.form, p.start, p.stop, p.first) for p in pieces(chunks)] == [
        ("table", 0, 10, 0),
        ("table", 10, 25, 10),
        ("table", 0, 1, 0),
    ]


def test_a_large_json_is_one_file_and_its_count_a_guess(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[" + "1," * 1_000_000 + "1]")
    (chunk,) = listed([tmp_path])[0]
    assert chunk.pieces[0].form == "file" and chunk.count == 400


# --- memory ----------------------------------------------------------------------------------------------------------------


def peak(chunks: Iterator[Chunk | Failure]) -> int:
    tracemalloc.start()
    try:
        for _ in chunks:
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_of_listing_does_not_grow_with_the_file(tmp_path: Path) -> None:
    small, large = tmp_path / "small.xyz", tmp_path / "large.xyz"
    small.write_text(WATER * 2_000)
    large.write_text(WATER * 20_000)
    peak(list_chunks([small]))
    assert peak(list_chunks([large])) < 1.2 * peak(list_chunks([small])) + 20_000
    assert peak(list_chunks([large])) < 500_000


def test_memory_of_listing_does_not_grow_with_the_number_of_folders(tmp_path: Path) -> None:
    for i in range(20):
        many(tmp_path / "few" / str(i), 20)
    for i in range(200):
        many(tmp_path / "more" / str(i), 20)
    peak(list_chunks([tmp_path / "few"], 50))
    # 4,000 names of files are 400 kB; those of one folder, and of the folders, are a few.
    assert peak(list_chunks([tmp_path / "more"], 50)) < peak(list_chunks([tmp_path / "few"], 50)) + 40_000


def test_a_file_that_is_torn_everywhere_is_not_read_for_ever(tmp_path: Path) -> None:
    """Every count leads to the end of the file: each such frame would be looked for once more."""
    path = tmp_path / "x.extxyz"
    path.write_text("999999\nLattice=\nH 0 0 0\n" * 3000)
    found = pieces(listed([path], 1)[0])
    assert len(found) == parts.MOST_TORN + 1 and found[-1].stop == path.stat().st_size


# --- equal names -----------------------------------------------------------------------------------------------------------


def named(*paths: Path) -> list[str]:
    return [p.name for p in pieces(listed(list(paths))[0])]


def test_equal_names_in_several_folders_are_told_apart_and_earlier_ones_stay(tmp_path: Path) -> None:
    for folder in ("A", "B", "C/B", "A/sub"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "x.cif").write_text(folder)
    a, b, c = tmp_path / "A", tmp_path / "B", tmp_path / "C" / "B"
    assert named(a) == ["sub/x.cif", "x.cif"]
    # More is named behind it: its own names, and so its results, stay.
    assert named(a, b) == ["sub/x.cif", "x.cif", "B/x.cif"]
    parent = tmp_path.name
    assert named(a, b, c) == ["sub/x.cif", "x.cif", "B/x.cif", "C/B/x.cif"]
    # Two folders of which one holds what the other one is called by.
    (c / "sub").mkdir()
    (c / "sub" / "x.cif").write_text("C/B/sub")
    (tmp_path / "D" / "B" / "sub").mkdir(parents=True)
    (tmp_path / "D" / "B" / "sub" / "x.cif").write_text("D/B/sub")
    four = named(a, c, tmp_path / "D" / "B" / "sub", tmp_path / "D" / "B")
    assert len(set(four)) == len(four)
    # The first folder has this name already.
    (a / "B").mkdir()
    (a / "B" / "x.cif").write_text("another")
    assert sorted(named(a, b)) == sorted(["B/x.cif", "sub/x.cif", "x.cif", f"{parent}/B/x.cif"])


def test_what_is_named_behind_a_folder_leaves_its_chunks_as_they_are(tmp_path: Path) -> None:
    for folder in "AB":
        many(tmp_path / folder, 30)
    alone, _ = listed([tmp_path / "A"], 8)
    both, _ = listed([tmp_path / "A", tmp_path / "B", tmp_path / "B" / "00000.cif"], 8)
    assert both[: len(alone)] == alone and len(both) > len(alone)


def test_files_of_equal_names_are_told_apart(tmp_path: Path) -> None:
    for folder in ("A", "B"):
        (tmp_path / folder).mkdir()
        for name in ("x.cif", f"{folder}.cif"):
            (tmp_path / folder / name).write_text(folder)
    x = [tmp_path / folder / "x.cif" for folder in "AB"]
    assert named(*x, tmp_path / "A" / "A.cif") == ["x.cif", "B/x.cif", "A.cif"]
    assert named(x[0]) == named(x[0], x[0]) == ["x.cif"]
    assert named(tmp_path / "A", tmp_path / "A") == named(tmp_path / "A")
    # One that lies in the folder beside it is itself; one that does not has its own name.
    assert named(tmp_path / "A", x[0]) == ["A.cif", "x.cif", "x.cif"]
    assert named(tmp_path / "A", x[1]) == ["A.cif", "x.cif", "B/x.cif"]


def test_many_files_are_named_in_a_moment(tmp_path: Path) -> None:
    """In one pass, whatever their number: each of 5,000 pairs has its folder."""
    for folder in ("A", "B"):
        many(tmp_path / folder, 5000)
    names = named(*sorted(tmp_path.glob("*/*.cif")))
    assert len(set(names)) == len(names) == 10_000 and names[5000] == "B/00000.cif"
