"""What is read of a chunk: every structure or its reason, in order, and a key that only the content decides."""

from __future__ import annotations

import gc
import json
import os
import sqlite3
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase
import ase.db
import ase.io
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice
from pymatgen.core import Structure as Crystal

from fdcore.records import Failure, Structure
from fdcore.screening import parquet
from fdcore.screening.chunks import Chunk, Piece, list_chunks
from fdcore.screening.reading import ReadChunk, read_chunk
from fdcore.structures import Limits, Source, read_paths
from fdcore.structures import ase_database as database_module
from fdcore.structures.pool import Child, Pool
from fdcore.structures.read import read_source

CORPUS = Path(__file__).parents[1] / "corpus"
BOX = [[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 5.0]]
LIMITS = Limits()
# What a reader may take for one source: short, and long enough on a machine that does other things as well.
PATIENCE = 2.5


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    shared = Pool(1)
    yield shared
    shared.close()


def chunks_of(*paths: Path, size: int = 500) -> list[Chunk]:
    items = list(list_chunks(paths, size))
    assert not [item for item in items if isinstance(item, Failure)]
    return [item for item in items if isinstance(item, Chunk)]


def read(pool: Pool, *paths: Path, size: int = 500) -> list[ReadChunk]:
    return [read_chunk(chunk, LIMITS, pool) for chunk in chunks_of(*paths, size=size)]


def items(found: Sequence[ReadChunk]) -> list[Structure | Failure]:
    return [item for chunk in found for item in chunk.items]


def places(found: Sequence[ReadChunk]) -> list[tuple[str, int | None, bool]]:
    return [(i.file, i.index, isinstance(i, Structure)) for i in items(found)]


def salt(number: int) -> ase.Atoms:
    """Rock salt whose period tells which it is."""
    return ase.Atoms("NaCl", [[0, 0, 0], [2.8, 2.8, 2.8]], cell=[5 + number / 1000] * 3, pbc=True)


def frame(number: int) -> str:
    period = f"{5 + number / 1000:.3f}"
    lattice = f"{period} 0 0 0 {period} 0 0 0 {period}"
    return f'2\nLattice="{lattice}" pbc="T T T"\nNa 0 0 0\nCl 2.8 2.8 2.8\n'


def number_of(item: Structure | Failure) -> int:
    assert isinstance(item, Structure)
    return round((item.cell[0, 0] - 5) * 1000)


def document(number: int, **more: Any) -> dict[str, Any]:
    return {**Crystal(Lattice.cubic(5 + number / 1000), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3]).as_dict(), **more}


def cif(number: int) -> str:
    return Crystal(Lattice.cubic(5 + number / 1000), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3]).to(fmt="cif")


# --- the same as an upload ---------------------------------------------------------------------------------------------------


def test_corpus_is_read_as_uploads_are(pool: Pool) -> None:
    paths = sorted(
        p
        for folder in ("good", "broken")
        for p in (CORPUS / folder).iterdir()
        if p.suffix not in (".gz", ".zip", ".bz2")
    )
    paths = [p for p in paths if p.suffix.lower() not in (".xz", ".7z", ".tar", ".rar", ".zst")]
    found = items(read(pool, *paths))
    for path in paths:
        alone = read_paths([path], replace(LIMITS, max_files=1))
        ours = [item for item in found if item.file == path.name]
        theirs = [replace(item, file=path.name) for item in (*alone.structures, *alone.failures)]
        structures = [i for i in ours if isinstance(i, Structure)]
        assert [(s.content_id, s.index, s.warnings, dict(s.tags)) for s in structures] == [
            (s.content_id, s.index, s.warnings, dict(s.tags)) for s in theirs if isinstance(s, Structure)
        ]
        # A database is read where it lies: it says as much of a failure, and of its place more.
        told = [(f.error, f.hint) for f in theirs if isinstance(f, Failure)]
        assert [(f.error, f.hint) for f in ours if isinstance(f, Failure)] == told


def test_forms_agree_on_the_same_structures(pool: Pool, tmp_path: Path) -> None:
    n = 30
    for i in range(n):
        (tmp_path / "cifs").mkdir(exist_ok=True)
        (tmp_path / "cifs" / f"{i:03d}.cif").write_text(cif(i))
    (tmp_path / "x.extxyz").write_text("".join(frame(i) for i in range(n)))
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(document(i)) + "\n" for i in range(n)))
    (tmp_path / "x.json").write_text(json.dumps([document(i) for i in range(n)]))
    with ase.db.connect(tmp_path / "x.db") as rows:
        for i in range(n):
            rows.write(salt(i))
    pq.write_table(pa.table({"structure": [json.dumps(document(i)) for i in range(n)]}), tmp_path / "x.parquet")
    for name in ("cifs", "x.extxyz", "x.jsonl", "x.json", "x.db", "x.parquet"):
        found = items(read(pool, tmp_path / name, size=8))
        assert [number_of(item) for item in found] == list(range(n)), name
        assert all(isinstance(i, Structure) and i.periodic and i.numbers.tolist() == [11, 17] for i in found)
        if name != "cifs":
            assert [(i.file, i.index) for i in found] == [(name, k) for k in range(n)]


def test_a_folder_with_one_percent_broken_gives_exactly_those_failures(pool: Pool, tmp_path: Path) -> None:
    broken = {37, 138, 199}
    for i in range(300):
        (tmp_path / f"{i:03d}.cif").write_text("data_x\n_cell_length_a what\n" if i in broken else cif(i))
    found = items(read(pool, tmp_path, size=50))
    assert [i.file for i in found] == [f"{i:03d}.cif" for i in range(300)]
    assert [k for k, item in enumerate(found) if isinstance(item, Failure)] == sorted(broken)
    assert [number_of(item) for k, item in enumerate(found) if k not in broken] == [
        k for k in range(300) if k not in broken
    ]
    assert all(item.hint and item.index is None for item in found if isinstance(item, Failure))


def test_failures_stand_in_their_place_among_the_structures(pool: Pool, tmp_path: Path) -> None:
    wrong = "2\n\nNa 0 0 0\nXx 1 1 1\n"
    text = "".join(wrong if i % 7 == 3 else frame(i) for i in range(100))
    (tmp_path / "x.extxyz").write_text(text)
    for size in (10, 500):
        found = items(read(pool, tmp_path / "x.extxyz", size=size))
        assert [i.index for i in found] == list(range(100))
        assert [isinstance(i, Failure) for i in found] == [i % 7 == 3 for i in range(100)]
    # Of a part, a line is named within its frame.
    parted = items(read(pool, tmp_path / "x.extxyz", size=10))
    assert "“Xx” (line 4 of frame 32) is no element" in [i.error for i in parted if isinstance(i, Failure)][4]


def test_every_failure_is_told_however_many(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "x.xyz").write_text("1\n\nXx 0 0 0\n" * 700)
    found = items(read(pool, tmp_path, size=400))
    assert [i.index for i in found] == list(range(700)) and all(isinstance(i, Failure) for i in found)


def test_a_torn_end_is_one_failure_behind_the_good_frames(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "torn.xyz").write_text("".join(frame(i) for i in range(95)) + "9\n\nNa 0 0 0\n")
    (tmp_path / "wrong.xyz").write_text("".join(frame(i) for i in range(25)) + "H 0 0 0\n" + frame(0) * 70)
    found = places(read(pool, tmp_path, size=10))
    assert found == [("torn.xyz", i, i < 95) for i in range(96)] + [("wrong.xyz", i, i != 25) for i in range(96)]
    errors = [i.error for i in items(read(pool, tmp_path, size=10)) if isinstance(i, Failure)]
    assert "Frame 96 declares 9 atoms, but only 1 line left" in errors[0]
    assert "The first line of frame 26 should hold a number of atoms" in errors[1]


@pytest.mark.parametrize(("off", "lost"), [(1, {9, 10}), (-1, {9, 10}), (7, {9, 10, 11}), (10**6, {9})])
def test_a_wrong_count_does_not_cost_the_frames_behind_it(pool: Pool, tmp_path: Path, off: int, lost: set[int]) -> None:
    """What stands between it and the next frame that can be told is lost; every other one is there, with its own content."""
    frames = [frame(i) for i in range(60)]
    count, rest = frames[9].split("\n", 1)
    frames[9] = f"{int(count) + off}\n{rest}"
    (tmp_path / "x.extxyz").write_text("".join(frames))
    found = items(read(pool, tmp_path, size=10))
    there = {round((i.cell[0, 0] - 5) * 1000) for i in found if isinstance(i, Structure)}
    assert set(range(60)) - there <= lost and len(there) >= 57
    assert any(isinstance(i, Failure) for i in found)


def test_a_frame_that_is_too_large_costs_only_itself(pool: Pool, tmp_path: Path) -> None:
    large = "20001\n\n" + "".join(f"H {i} 0 0\n" for i in range(20_001))
    (tmp_path / "x.xyz").write_text(frame(0) + large + frame(2))
    found = read(pool, tmp_path)
    assert places(found) == [("x.xyz", 0, True), ("x.xyz", 1, False), ("x.xyz", 2, True)]


class Direct(Pool):
    """Reads in this process."""

    def read_each(self, sources: Iterable[Source], limits: Limits) -> Iterator[tuple[list[Structure], list[Failure]]]:
        return (read_source(source, limits) for source in sources)


FRAMES = ["good", "good", "good", "unknown element", "overlap", "no atoms", "blank line", "short row", "windows"]
LINES = ["good", "good", "broken", "other", "blank line"]


@given(
    st.lists(st.sampled_from(FRAMES), min_size=1, max_size=40),
    st.sampled_from(["", "torn", "word", "count"]),
    st.integers(1, 9),
)
@settings(max_examples=150, deadline=None)
def test_parts_of_frames_say_what_the_whole_file_says(kinds: list[str], end: str, size: int) -> None:
    texts = {
        "unknown element": "1\n\nXx 0 0 0\n",
        "overlap": "2\n\nH 0 0 0\nH 0 0 0\n",
        "no atoms": "0\n\n",
        "blank line": " \n\n",
        "short row": "1\n\nH 0 0\n",
    }
    parted = [
        texts.get(k) or (frame(i).replace("\n", "\r\n") if k == "windows" else frame(i)) for i, k in enumerate(kinds)
    ]
    parted.append({"torn": "3\n\nH 0 0 0\n", "word": "H 0 0 0\n" + frame(0), "count": "99999999\n"}.get(end, ""))
    # Behind a tear there may be frames that a reader of the whole file does not come to.
    check_parts("x.extxyz", "".join(parted), size, more=end == "word")


@given(st.lists(st.sampled_from(LINES), min_size=1, max_size=40), st.integers(1, 9), st.booleans())
@settings(max_examples=60, deadline=None)
def test_parts_of_lines_say_what_the_whole_file_says(kinds: list[str], size: int, ends: bool) -> None:
    texts = {"broken": '{"sites": [', "other": '{"a": 1}', "blank line": "  "}
    text = "\n".join(texts.get(k) or json.dumps(document(i)) for i, k in enumerate(kinds))
    check_parts("x.jsonl", text + "\n" * ends, size)


def check_parts(name: str, text: str, size: int, *, more: bool = False) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(text.encode())
        found = items(read(Direct(0), path, size=size))
        structures, failures = read_source(Source(name, text.encode()), LIMITS)
    whole = sorted([*structures, *failures], key=lambda item: item.index or 0)
    if more:
        found = found[: len(whole)]
    assert [(type(i), i.index or 0) for i in found] == [(type(i), i.index or 0) for i in whole]
    for ours, theirs in zip(found, whole, strict=True):
        if isinstance(ours, Structure) and isinstance(theirs, Structure):
            assert (ours.content_id, ours.warnings) == (theirs.content_id, theirs.warnings)
        elif isinstance(ours, Failure) and isinstance(theirs, Failure):
            # Lines are counted from where a part begins.
            assert ours.hint == theirs.hint and ours.error.split()[-3:] == theirs.error.split()[-3:]


# --- reading that goes wrong -----------------------------------------------------------------------------------------------


def test_what_vanished_or_shrank_after_the_listing_is_a_failure_in_its_place(pool: Pool, tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.cif").write_text(cif(i))
    (tmp_path / "x.extxyz").write_text("".join(frame(i) for i in range(100)))
    (tmp_path / "y.jsonl").write_text("".join(json.dumps(document(i)) + "\n" for i in range(3)))
    found = chunks_of(tmp_path, size=40)
    (tmp_path / "1.cif").unlink()
    (tmp_path / "2.cif").unlink()
    (tmp_path / "2.cif").symlink_to(tmp_path / "3.cif")
    (tmp_path / "x.extxyz").write_text("".join(frame(i) for i in range(50)))
    got = [read_chunk(chunk, LIMITS, pool) for chunk in found]
    assert places(got[:1]) == [("0.cif", 0, True), ("1.cif", None, False), ("2.cif", None, False), ("3.cif", 0, True)]
    by_file = {(i.file, i.index): i for i in items(got)}
    assert "no such file" in by_file["1.cif", None].error  # type: ignore[union-attr]
    assert "shorter than it was" in by_file["x.extxyz", 40].error  # type: ignore[union-attr]
    assert [i.index for i in items(got) if i.file == "x.extxyz"] == [*range(40), 40]
    assert [i.index for i in items(got) if i.file == "y.jsonl"] == [0, 1, 2]


def test_a_file_that_is_too_large_is_not_read(pool: Pool, tmp_path: Path) -> None:
    with (tmp_path / "a.cif").open("wb") as stream:
        stream.truncate(10**12)
    (tmp_path / "b.cif").write_text(cif(1))
    found = read(pool, tmp_path)
    assert places(found) == [("a.cif", None, False), ("b.cif", 0, True)]
    assert "at most 20 MB" in items(found)[0].error  # type: ignore[union-attr]


def misbehaving(code: str) -> Pool:
    """A pool of one child that reads as it should, but does what `code` says with sources whose name or content holds `bad`."""
    program = (
        # As the real one: no source pays for imports.
        "import sys, os, time\nfrom fdcore.structures import cif, dicts, wire, xyz\nfrom fdcore.structures.read import read_source\n"
        f"def read(source, limits):\n    if 'bad' in source.name or b'bad' in source.data:\n        {code}\n    return read_source(source, limits)\n"
        "out = os.fdopen(os.dup(1), 'wb'); os.dup2(2, 1)\nwire.serve(sys.stdin.buffer, out, read)\n"
    )
    return Pool(1, (sys.executable, "-c", program))


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("os._exit(3)", "broke the reader"),
        ("time.sleep(60)", f"not read within {PATIENCE:g} seconds"),
        ("os.kill(os.getpid(), 11)", "broke"),
    ],
)
def test_a_file_that_breaks_or_stalls_the_reader_costs_only_itself(tmp_path: Path, code: str, error: str) -> None:
    names = [f"{i:02d}{'-bad' if i in (3, 4, 11) else ''}.cif" for i in range(30)]
    for i, name in enumerate(names):
        (tmp_path / name).write_text(cif(i))
    pool = misbehaving(code)
    try:
        (chunk,) = chunks_of(tmp_path)
        found = read_chunk(chunk, Limits(max_seconds=PATIENCE), pool)
        assert [i.file for i in found.items] == names
        assert [k for k, i in enumerate(found.items) if isinstance(i, Failure)] == [3, 4, 11]
        assert all(error in i.error for i in found.items if isinstance(i, Failure))
    finally:
        pool.close()


@pytest.mark.parametrize("code", ["os._exit(3)", "time.sleep(60)", "raise MemoryError"])
def test_a_structure_that_breaks_or_stalls_the_reader_costs_only_itself(tmp_path: Path, code: str) -> None:
    texts = [frame(i).replace("pbc", f"{'bad' if i in (3, 25) else 'good'}=1 pbc") for i in range(40)]
    (tmp_path / "x.extxyz").write_text("".join(texts))
    (tmp_path / "x.jsonl").write_text(
        "".join(json.dumps(document(i, note="bad" if i == 12 else "")) + "\n" for i in range(40))
    )
    pool = misbehaving(code)
    try:
        read = [read_chunk(chunk, Limits(max_seconds=PATIENCE), pool) for chunk in chunks_of(tmp_path, size=20)]
        assert places(read) == [("x.extxyz", i, i not in (3, 25)) for i in range(40)] + [
            ("x.jsonl", i, i != 12) for i in range(40)
        ]
    finally:
        pool.close()


def test_time_is_counted_for_each_source_and_not_while_nobody_asks(tmp_path: Path) -> None:
    pool = misbehaving("time.sleep(0.8)")
    try:
        sources = [Source("bad", frame(i).encode()) for i in range(4)]
        answers = pool.read_each(iter(sources), Limits(max_seconds=PATIENCE))
        got = []
        for structures, failures in answers:
            assert failures == []
            got += structures
            time.sleep(0.8)
        assert [number_of(s) for s in got] == [0, 1, 2, 3]
    finally:
        pool.close()


def test_time_that_the_sources_take_is_not_the_readers(tmp_path: Path) -> None:
    pool = misbehaving("pass")
    try:

        def slowly() -> Iterator[Source]:
            for i in range(4):
                time.sleep(PATIENCE + 0.5 if i == 2 else 0)
                yield Source("x.xyz", frame(i).encode())

        assert [number_of(s[0]) for s, _ in pool.read_each(slowly(), Limits(max_seconds=PATIENCE))] == [0, 1, 2, 3]
    finally:
        pool.close()


def test_rows_wait_for_no_child(tmp_path: Path) -> None:
    database(tmp_path / "x.db", 3)
    assert len(items(read(Pool(0), tmp_path / "x.db"))) == 3


def test_many_sources_go_to_a_child_in_few_turns_and_large_ones_do_not_block_it() -> None:
    child = Child()
    try:
        sizes = [10, 300_000, 5, 40_000, 40_000, 1, 1, 1, 700_000, 3]
        sources = [Source(f"{i}.xyz", (frame(i) + "\n" * size).encode()) for i, size in enumerate(sizes)]
        found = list(child.read_each(sources, LIMITS))
        assert [number_of(structures[0]) for structures, _ in found] == list(range(len(sizes)))
        assert list(child.read_each((), LIMITS)) == []
    finally:
        child.kill()


def test_a_conversation_that_is_left_early_leaves_nothing_on_the_pipe() -> None:
    pool = Pool(1)
    try:
        answers = pool.read_each([Source(f"{i}.xyz", frame(i).encode()) for i in range(20)], LIMITS)
        assert number_of(next(answers)[0][0]) == 0
        answers.close()
        assert number_of(pool.read(Source("x.xyz", frame(77).encode()), LIMITS)[0][0]) == 77
        # Threads that watched over earlier readings end with them.
        before = threading.active_count()
        for _ in range(20):
            pool.read(Source("x.xyz", frame(1).encode()), LIMITS)
        time.sleep(0.1)
        assert threading.active_count() <= before
    finally:
        pool.close()


# --- keys ------------------------------------------------------------------------------------------------------------------


def test_key_follows_the_content_and_not_the_place(pool: Pool, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for i in range(5):
            (tmp_path / folder / f"{i}.cif").write_text(cif(i))
    (one,), (other,) = read(pool, tmp_path / "a"), read(pool, tmp_path / "b")
    assert one.key == other.key and len(one.key) == 64
    (chunk,) = chunks_of(tmp_path / "a")
    assert read_chunk(replace(chunk, number=99, count=1), LIMITS, pool).key == one.key
    (tmp_path / "b" / "3.cif").write_text(cif(30))
    assert read(pool, tmp_path / "b")[0].key != one.key
    (tmp_path / "b" / "3.cif").unlink()
    assert read_chunk(chunks_of(tmp_path / "a")[0], LIMITS, pool).key == one.key
    (tmp_path / "a" / "3.cif").rename(tmp_path / "a" / "3b.cif")
    assert read(pool, tmp_path / "a")[0].key != one.key


def test_an_added_file_leaves_the_keys_of_other_chunks(pool: Pool, tmp_path: Path) -> None:
    for i in range(400):
        (tmp_path / f"{i:03d}.xyz").write_text(frame(i))
    before = {chunk.key for chunk in read(pool, tmp_path, size=20)}
    (tmp_path / "200b.xyz").write_text(frame(999))
    after = {chunk.key for chunk in read(pool, tmp_path, size=20)}
    assert len(before) > 10 and 1 <= len(before - after) <= 4


def test_key_of_a_part_follows_its_own_rows(pool: Pool, tmp_path: Path) -> None:
    texts = {"x.extxyz": lambda i: frame(i), "x.jsonl": lambda i: json.dumps(document(i)) + "\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text("".join(text(i) for i in range(40)))
        before = [c.key for c in read(pool, tmp_path / name, size=10)]
        (tmp_path / name).write_text("".join(text(99 if i == 25 else i) for i in range(40)))
        after = [c.key for c in read(pool, tmp_path / name, size=10)]
        assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False, True], name


def test_failures_have_keys_too(pool: Pool, tmp_path: Path) -> None:
    piece = Piece(str(tmp_path / "x.cif"), "x.cif", "file", 0, 1, 0)
    gone = read_chunk(Chunk(0, (piece,), 1), LIMITS, pool)
    assert gone.key == read_chunk(Chunk(5, (piece,), 1), LIMITS, pool).key
    (tmp_path / "x.cif").write_text(cif(1))
    assert read_chunk(Chunk(0, (piece,), 1), LIMITS, pool).key != gone.key


# --- databases --------------------------------------------------------------------------------------------------------------


def database(path: Path, n: int, without: Sequence[int] = ()) -> None:
    with ase.db.connect(path) as rows:
        for i in range(n):
            atoms = salt(i)
            atoms.calc = SinglePointCalculator(atoms, energy=-float(i), forces=np.full((2, 3), 0.1 * i))
            rows.write(atoms, material_id=f"mp-x{i}")
        rows.delete([i + 1 for i in without])


@pytest.mark.parametrize("without", [(), (0, 1, 7, 20, 21, 22, 33)])
def test_rows_are_read_by_place_with_gaps_or_without(
    pool: Pool, tmp_path: Path, without: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_STRIDE", 4)
    database(tmp_path / "x.db", 40, without)
    kept = [i for i in range(40) if i not in without]
    for size in (1, 3, 10, 100):
        found = items(read(pool, tmp_path / "x.db", size=size))
        assert [number_of(i) for i in found] == kept and [i.index for i in found] == list(range(len(kept)))
    first = found[0]
    assert isinstance(first, Structure) and first.labels["energy_eV"] == -float(kept[0])
    assert first.tags == {"material_id": f"mp-x{kept[0]}"}
    alone = read_paths([tmp_path / "x.db"])
    assert [s.content_id for s in alone.structures] == [i.content_id for i in found if isinstance(i, Structure)]


def test_broken_rows_and_databases_are_told_in_their_place(pool: Pool, tmp_path: Path) -> None:
    database(tmp_path / "x.db", 20)
    with sqlite3.connect(tmp_path / "x.db") as raw:
        raw.execute("UPDATE systems SET positions = x'00' WHERE id = 8")
        raw.execute("UPDATE systems SET numbers = zeroblob(8) WHERE id = 13")
    before = [c.key for c in read(pool, tmp_path / "x.db", size=5)]
    found = items(read(pool, tmp_path / "x.db", size=5))
    assert [k for k, i in enumerate(found) if isinstance(i, Failure)] == [7, 12]
    assert [i.index for i in found] == list(range(20))
    assert "positions of this row" in found[7].error and "no element" in found[12].error  # type: ignore[union-attr]
    with sqlite3.connect(tmp_path / "x.db") as raw:
        raw.execute("UPDATE systems SET energy = 5 WHERE id = 18")
    after = [c.key for c in read(pool, tmp_path / "x.db", size=5)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, True, False]
    data = (tmp_path / "x.db").read_bytes()
    listed = chunks_of(tmp_path / "x.db", size=5)
    (tmp_path / "x.db").write_bytes(data[: len(data) // 2])
    torn = read_chunk(listed[2], LIMITS, pool)
    assert "torn" in torn.items[0].error and torn.items[0].index == 10  # type: ignore[union-attr]
    (tmp_path / "x.db").unlink()
    assert "no such file" in read_chunk(listed[2], LIMITS, pool).items[0].error  # type: ignore[union-attr]


def test_rows_that_are_gone_and_databases_without_rows_are_told(pool: Pool, tmp_path: Path) -> None:
    database(tmp_path / "x.db", 20)
    listed = chunks_of(tmp_path / "x.db", size=8)
    with ase.db.connect(tmp_path / "x.db") as rows:
        rows.delete([19, 20])
    found = items([read_chunk(chunk, LIMITS, pool) for chunk in listed])
    assert [isinstance(i, Structure) for i in found] == [True] * 18 + [False]
    assert found[-1].index == 18 and "fewer rows" in found[-1].error  # type: ignore[union-attr]
    database(tmp_path / "none.db", 1, [0])
    (only,) = items(read(pool, tmp_path / "none.db"))
    assert "fewer rows" in only.error  # type: ignore[union-attr]


def test_a_database_is_opened_for_reading_alone(pool: Pool, tmp_path: Path) -> None:
    database(tmp_path / "x.db", 3)
    state = (tmp_path / "x.db").read_bytes(), sorted(os.listdir(tmp_path))
    connection = database_module._opened(str(tmp_path / "x.db"))
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM systems")
    connection.close()
    assert len(items(read(pool, tmp_path / "x.db"))) == 3
    assert state == ((tmp_path / "x.db").read_bytes(), sorted(os.listdir(tmp_path)))
    # A name that would be options of an address is a name.
    os.rename(tmp_path / "x.db", tmp_path / "x?mode=rwc&.db")
    assert len(items(read(pool, tmp_path / "x?mode=rwc&.db"))) == 3


def test_a_view_in_the_place_of_the_table_is_not_run(pool: Pool) -> None:
    started = time.monotonic()
    (only,) = items(read(pool, CORPUS / "broken" / "endless_view.db"))
    assert "not one of ASE" in only.error  # type: ignore[union-attr]
    assert time.monotonic() - started < 5


# --- tables ------------------------------------------------------------------------------------------------------------------


def optimade(i: int) -> dict[str, Any]:
    period = 5 + i / 1000
    return {
        "id": f"entry-{i}",
        "immutable_id": f"im-{i}",
        "lattice_vectors": [[period, 0, 0], [0, period, 0], [0, 0, period]],
        "cartesian_site_positions": [[0, 0, 0], [2.8, 2.8, 2.8]],
        "species_at_sites": ["Na", "Cl"],
        "species": [{"name": s, "chemical_symbols": [s], "concentration": [1.0]} for s in ("Na", "Cl")],
        "dimension_types": [1, 1, 1],
        "nperiodic_dimensions": 3,
        "unneeded": "x" * 1000,
    }


def ase_row(i: int) -> dict[str, Any]:
    atoms = salt(i)
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.tolist(),
        "pbc": [True] * 3,
        "energy": -float(i),
        "material_id": f"entry-{i}",
    }


def without_empty(value: Any) -> Any:
    """Parquet has no object without fields."""
    if isinstance(value, dict):
        return {k: without_empty(v) for k, v in value.items() if v != {}}
    return [without_empty(v) for v in value] if isinstance(value, list) else value


TABLES = {
    "structs": lambda i: {"structure": without_empty(document(i)), "material_id": f"entry-{i}"},
    "texts": lambda i: {"structure": json.dumps(document(i)), "material_id": f"entry-{i}"},
    "bytes": lambda i: {"atoms": json.dumps(ase_row(i)).encode(), "material_id": f"entry-{i}"},
    "optimade": optimade,
    "optimade with texts": lambda i: {**optimade(i), "species": json.dumps(optimade(i)["species"])},
    "ase": ase_row,
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_of_every_kind_are_read(pool: Pool, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist([TABLES[kind](i) for i in range(57)]), path, row_group_size=20)
    for size in (7, 500):
        found = items(read(pool, path, size=size))
        assert [number_of(i) for i in found] == list(range(57)) and [i.index for i in found] == list(range(57))
        assert all(isinstance(i, Structure) and f"entry-{i.index}" in i.tags.values() for i in found)
    if kind == "ase":
        assert [i.labels["energy_eV"] for i in found if isinstance(i, Structure)] == [-float(i) for i in range(57)]


def test_broken_rows_of_a_table_are_told_in_their_place(pool: Pool, tmp_path: Path) -> None:
    rows = [TABLES["texts"](i) for i in range(30)]
    rows[4]["structure"], rows[11]["structure"], rows[12]["structure"] = "{broken", None, "[1]"
    rows[20]["structure"] = json.dumps({**document(20), "sites": []})
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = items(read(pool, path, size=10))
    assert [i.index for i in found] == list(range(30))
    errors = {i.index: i.error for i in found if isinstance(i, Failure)}
    assert list(errors) == [4, 11, 12, 20]
    assert (
        "JSON is broken" in errors[4]
        and "no atoms" in errors[20]
        and all(i.hint for i in found if isinstance(i, Failure))
    )


def test_tables_that_cannot_be_read_are_told(pool: Pool, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2], "b": [3, 4]}), tmp_path / "other.parquet")
    pq.write_table(pa.Table.from_pylist([TABLES["texts"](i) for i in range(500)]), tmp_path / "whole.parquet")
    data = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "torn.parquet").write_bytes(data[:-20])
    (tmp_path / "holes.parquet").write_bytes(data[:200] + bytes(300) + data[500:])
    (tmp_path / "foot.parquet").write_bytes(data[:-400] + b"\xff" * 392 + data[-8:])
    pq.write_table(pa.Table.from_pylist([TABLES["texts"](0)]).slice(0, 0), tmp_path / "empty.parquet")
    for name, words in (("other", "no column of structures; its columns: “a, b”"), ("torn", "cannot be read"),
                        ("holes", "cannot be read"), ("foot", "cannot be read"), ("empty", "fewer rows")):  # fmt: skip
        found = items(read(pool, tmp_path / f"{name}.parquet"))
        assert isinstance(found[-1], Failure) and words in found[-1].error and found[-1].hint, name


def test_a_table_is_read_on_from_where_the_last_chunk_ended(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist([TABLES["texts"](i) for i in range(400)]), path)
    opened = []
    monkeypatch.setattr(parquet, "_Cursor", lambda *a, made=parquet._Cursor: opened.append(a[1]) or made(*a))
    listed = chunks_of(path, size=20)
    found = [read_chunk(chunk, LIMITS, pool) for chunk in listed]
    assert len(listed) == 20 and opened == [0]
    # Out of order it is opened again, with the same result.
    again = [read_chunk(chunk, LIMITS, pool) for chunk in reversed(listed)]
    assert [c.key for c in again] == [c.key for c in reversed(found)] and len(opened) == 21
    assert [number_of(i) for i in items(again[::-1])] == list(range(400))


def test_threads_may_read_the_same_table(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist([TABLES["texts"](i) for i in range(200)]), path, row_group_size=50)
    listed = chunks_of(path, size=10)
    found: dict[int, ReadChunk] = {}
    threads = [
        threading.Thread(
            target=lambda k=k: [found.update({c.number: read_chunk(c, LIMITS, pool)}) for c in listed[k::4]]
        )
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [number_of(i) for i in items([found[c.number] for c in listed])] == list(range(200))


# --- memory ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["extxyz", "parquet"])
def test_memory_does_not_grow_with_the_number_of_structures(pool: Pool, tmp_path: Path, form: str) -> None:
    path = tmp_path / f"x.{form}"
    if form == "extxyz":
        with path.open("w") as stream:
            stream.writelines(frame(i % 500) for i in range(10_000))
    else:
        table = pa.Table.from_pylist([ase_row(i % 500) for i in range(500)])
        pq.write_table(pa.concat_tables([table] * 20), path, row_group_size=10_000)
    peaks, arrow, count = {}, [], 0
    for chunk in list_chunks([path], 500):
        assert isinstance(chunk, Chunk)
        # Watching over every allocation takes ten times as long: a few chunks of the start and of the end do.
        watched = 1 <= chunk.number < 5 or chunk.number >= 16
        if watched:
            gc.collect()
            tracemalloc.start()
        count += len(read_chunk(chunk, LIMITS, pool).items)
        if watched:
            peaks[chunk.number] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        arrow.append(pa.total_allocated_bytes())
    assert count == 10_000 and len(arrow) == 20
    assert max(peaks[k] for k in range(16, 20)) < 1.3 * max(peaks[k] for k in range(1, 5)) < 20_000_000
    assert max(arrow) < 20_000_000
