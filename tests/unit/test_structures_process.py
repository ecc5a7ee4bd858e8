"""The parsing child: time, memory, crashes, other sessions, and the wire without any process."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fdcore.records import Failure, Structure
from fdcore.structures import Limits, Source, read_paths, read_sources
from fdcore.structures.pool import Child, Pool, shared_pool
from fdcore.structures.read import read_source
from fdcore.structures.wire import WireError, receive, result_of, send_request, send_result, serve

ROOT = Path(__file__).parents[2]
WATER = b"3\n\nO 0 0 0.119\nH 0 0.763 -0.477\nH 0 -0.763 -0.477\n"
CELL = (
    "data_x\n_cell_length_a 50\n_cell_length_b 50\n_cell_length_c 50\n"
    "_cell_angle_alpha 90\n_cell_angle_beta 90\n_cell_angle_gamma 90\n"
)
SITES = "loop_\n_atom_site_label\n_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n"


def child_that(code: str) -> Child:
    """A child that keeps to the start of the contract and then does what `code` says."""
    start = (
        "import sys,time,os\nfrom fdcore.structures.wire import *\nout=sys.stdout.buffer\nsend(out,{'ready':True})\n"
    )
    return Child((sys.executable, "-c", start + "message=receive(sys.stdin.buffer,1<<40)\n" + code))


# --- hostile files, through the real child ---------------------------------------------------------------------------


def grid(n: int, m: int) -> str:
    """m sites on a grid of n^3 places, none on a symmetry element."""
    places = np.array(np.unravel_index(np.arange(m), (n, n, n))).T / n * 0.9 + 0.013
    return "".join(
        f"C{i} C {x:.4f} {y * 0.97 + 0.003:.4f} {z * 0.94 + 0.007:.4f}\n" for i, (x, y, z) in enumerate(places)
    )


def fm3m() -> str:
    import gemmi

    operations = gemmi.find_spacegroup_by_name("F m -3 m").operations()
    return "loop_\n_symmetry_equiv_pos_as_xyz\n" + "".join(f"{op.triplet()}\n" for op in operations)


HOSTILE = {
    "symmetry_explosion.cif": ((CELL + fm3m() + SITES + grid(6, 200)).encode(), "more than 20,000 atoms"),
    "too_many_sites.cif": ((CELL + SITES + grid(40, 20_001)).encode(), "20,001 sites"),
    "many_operations.cif": (
        (CELL + "loop_\n_symmetry_equiv_pos_as_xyz\n" + "x,y,z\n" * 100_000 + SITES + grid(2, 4)).encode(),
        "symmetry operations",
    ),
    "huge_comment.xyz": (b"1\n" + b"x" * 5_000_000 + b"\nH 0 0 0\n", "comment line"),
    "brackets.xyz": (b"1\n" + b"a={" * 33_000 + b"\nX 0 0 0\n", "no element"),
    "quotes.xyz": (b"1\n" + b"a=\"'" * 24_000 + b"\nX 0 0 0\n", "no element"),
    "only_newlines.cif": (b"x\n" + b"\n" * 10_000_000, "broken"),
    "only_spaces.xyz": (b" " * 10_000_000 + b"x", "number of atoms"),
    "one_long_line.vasp": (b"1 " * 5_000_000, "at least 7 lines"),
    "empty_frames.xyz": (b"0\n\n" * 200_000, "more than 10,000 frames"),
    "bad_frames.xyz": (b"1\n\nX 0 0 0\n" * 5_000, "more frames could not be read"),
    "nested_quotes.cif": (b"data_x\n" + b"'" * 5_000_000, "broken"),
    "loops.cif": (b"data_x\n" + b"loop_\n" * 1_000_000, "broken"),
    "blocks.cif": ("".join(f"data_{i}\n_a 1\n" for i in range(100_000)).encode(), "100,000 data blocks"),
    "too_large.xyz": (b"1\n\nH 0 0 0\n" * 2_000_000, "at most 20 MB"),
    "bomb.cif": (gzip.compress(bytes(10_000_000)), "gzip"),
    "million_atoms.xyz": (b"1000000\n\n" + b"H 0 0 0\n" * 1_000_000, "1,000,000 atoms"),
    "counts_everywhere.vasp": (
        b"x\n1.0\n4 0 0\n0 4 0\n0 0 4\n" + b"H " * 9_000 + b"\n" + b"9999999 " * 2_000,
        "at most",
    ),
    "all_atoms_in_one_place.xyz": (b"20000\n\n" + b"H 0 0 0\n" * 20_000, "overlap"),
    "all_sites_in_one_place.cif": ((CELL + SITES + "C1 C 0.1 0.2 0.3\n" * 20_000).encode(), None),
    "needle.extxyz": (b'1\nLattice="0.6 0 0 0 0.6 0 0 0 5000" pbc="T T T"\nH 0 0 0\n', None),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_answered_in_seconds_and_the_next_one_is_read(name: str) -> None:
    data, error = HOSTILE[name]
    limits = Limits()
    started = time.monotonic()
    parsed = read_sources([Source(name, data), Source("water.xyz", WATER)], limits)
    assert time.monotonic() - started < limits.max_seconds + 5
    assert [s.file for s in parsed.structures][-1] == "water.xyz"
    if error is None:
        assert parsed.failures == ()
    else:
        # A machine that is busy with other tests may reach the limit of time first, which is an answer, too.
        answers = (error, f"not read within {limits.max_seconds:g} seconds")
        assert any(a in f.error for a in answers for f in parsed.failures), parsed.failures
        assert all(f.hint for f in parsed.failures)


def test_two_thousand_sites_of_cif_are_no_burden() -> None:
    data = (CELL + SITES + grid(13, 2000)).encode()
    read_sources([Source("warm.xyz", WATER)])
    started = time.monotonic()
    parsed = read_sources([Source("sites.cif", data)])
    assert parsed.structures[0].n_atoms == 2000
    assert time.monotonic() - started < 2


def test_a_thousand_frames_take_no_time() -> None:
    frame = '50\nLattice="10 0 0 0 10 0 0 0 10" Properties=species:S:1:pos:R:3 pbc="T T T"\n'
    frame += "".join(f"Cu {2 * (i % 5)} {2 * (i // 5 % 5)} {4 * (i // 25)}\n" for i in range(50))
    read_sources([Source("warm.xyz", WATER)])
    started = time.monotonic()
    assert len(read_sources([Source("md.extxyz", frame.encode() * 1000)]).structures) == 1000
    # Half a second on an idle core.
    assert time.monotonic() - started < 4


def test_memory_is_bounded() -> None:
    pytest.importorskip("resource")
    if sys.platform == "darwin":
        pytest.skip("macOS does not enforce RLIMIT_AS")
    # Five million short lines: 20 MB of text are several hundred MB of strings.
    data = b"1\n\nH 0 0 0\n" * 1_600_000
    parsed = read_sources([Source("big.xyz", data), Source("w.xyz", WATER)], Limits(max_memory_MB=400))
    assert [s.file for s in parsed.structures] == ["w.xyz"]
    assert "memory" in parsed.failures[0].error and parsed.failures[0].hint
    # The next request lifts the bound again.
    assert len(read_sources([Source("w.xyz", WATER)]).structures) == 1


# --- children that misbehave --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("os._exit(3)", "broke the reader"),
        ("os.kill(os.getpid(), 11)", "broke the reader"),
        ("time.sleep(60)", "within 1 seconds"),
        ("out.write(b'hello world'*100); out.flush(); time.sleep(60)", "broke the reader"),
        ("send(out, {'structures': [{'n': 10**9}], 'failures': []}); time.sleep(60)", "broke the reader"),
        ("out.write(struct.pack('<4sIQ', b'FDS1', 10, 1 << 50)); out.flush(); time.sleep(60)", "broke the reader"),
        ("send(out, {'structures': []}, b'123'); time.sleep(60)", "broke the reader"),
        ("out.write(struct.pack('<4sIQ', b'FDS1', 10, 10) + b'{}'); out.flush(); os._exit(0)", "broke the reader"),
        ("send(out, [1, 2]); time.sleep(60)", "broke the reader"),
    ],
)
def test_child_that_crashes_hangs_or_lies_becomes_a_failure(code: str, error: str) -> None:
    child = child_that(code)
    try:
        structures, failures = child.read(Source("x.cif", b"data_x"), Limits(max_seconds=1.0))
        assert structures == []
        assert error in failures[0].error and failures[0].hint and failures[0].file == "x.cif"
        assert child.process is None
    finally:
        child.kill()


def test_child_that_does_not_start_becomes_a_failure() -> None:
    for command in ((sys.executable, "-c", "raise SystemExit(1)"), ("/no/such/program",)):
        structures, failures = Child(command).read(Source("x", b"1"), Limits())
        assert structures == [] and "did not start" in failures[0].error


def test_large_request_to_a_child_that_does_not_listen_ends_in_time() -> None:
    child = child_that("")
    child.command = (*child.command[:2], child.command[2].replace("message=", "time.sleep(60)#"))
    started = time.monotonic()
    failures = child.read(Source("x.xyz", bytes(5_000_000)), Limits(max_seconds=1.0))[1]
    assert "within 1 seconds" in failures[0].error
    assert time.monotonic() - started < 15


def test_child_is_reused_and_replaced_after_its_death() -> None:
    child = Child()
    try:
        assert len(child.read(Source("w.xyz", WATER), Limits())[0]) == 1
        first = child.process
        assert len(child.read(Source("w.xyz", WATER), Limits())[0]) == 1
        assert child.process is first and first is not None
        first.kill()
        first.wait()
        assert len(child.read(Source("w.xyz", WATER), Limits())[0]) == 1
        assert child.process is not first
    finally:
        child.kill()


def test_stalled_file_leaves_the_other_child_to_others() -> None:
    pool = Pool(2)
    pool.children[1].command = child_that("time.sleep(60)").command  # the one that is taken first
    try:
        pool.children[0].read(Source("w.xyz", WATER), Limits())
        slow = threading.Thread(target=pool.read, args=(Source("slow", b"1"), Limits(max_seconds=4.0)))
        slow.start()
        time.sleep(0.5)
        assert len(pool.read(Source("w.xyz", WATER), Limits())[0]) == 1
        assert slow.is_alive()
        slow.join()
    finally:
        pool.close()


def test_many_threads_share_the_pool() -> None:
    results: list[int] = []

    def work() -> None:
        for _ in range(10):
            parsed = read_sources([Source("w.xyz", WATER), Source("bad.cif", b"data_")])
            results.append(len(parsed.structures) * 10 + len(parsed.failures))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [11] * 60
    assert len(shared_pool().children) == 2


def test_child_exits_when_its_input_ends_and_prints_nothing_of_its_own(tmp_path: Path) -> None:
    request = io.BytesIO()
    send_request(request, Source("w.xyz", WATER), Limits())
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fdcore.structures.child"],
        input=request.getvalue(),
        capture_output=True,
        timeout=60,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    answers = io.BytesIO(done.stdout)
    assert receive(answers, 0) == ({"ready": True}, b"")
    answer = receive(answers, 10_000)
    assert answer is not None and result_of(*answer)[0][0].formula == "H2O"
    assert answers.read() == b""


def test_child_never_imports_torch_or_pymatgen() -> None:
    code = "import sys, fdcore.structures.child, fdcore.structures.cif; print(*[m for m in ('torch', 'pymatgen') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60)
    assert out.stdout.strip() == ""


def test_reading_works_from_any_directory(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom fdcore.structures import Source, read_sources\n"
        f"print(read_sources([Source('w.xyz', {WATER!r})]).structures[0].formula)"
    )
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the user was imported')")
    out = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True, timeout=60
    )
    assert out.stdout.strip() == "H2O"


# --- the wire, without a process ------------------------------------------------------------------------------------------


def test_loop_answers_each_request_and_ends_with_its_input() -> None:
    stdin, stdout = io.BytesIO(), io.BytesIO()
    send_request(stdin, Source("w.xyz", WATER), Limits())
    send_request(stdin, Source("bad.xyz", b"nonsense\xff"), Limits())
    stdin.seek(0)
    serve(stdin, stdout, read_source)
    stdout.seek(0)
    assert receive(stdout, 0) == ({"ready": True}, b"")
    first, second = receive(stdout, 10_000), receive(stdout, 10_000)
    assert first is not None and second is not None and receive(stdout, 10) is None
    assert result_of(*first)[0][0].n_atoms == 3
    assert result_of(*second)[1][0].file == "bad.xyz"


def test_result_survives_the_wire_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    structure = Structure(
        numbers=[1, 118],
        positions=rng.normal(size=(2, 3)),
        cell=rng.normal(size=(3, 3)),
        pbc=(True, True, True),
        charge=-2,
        spin=3,
        file="x <b>",
        index=7,
        labels={"energy_eV": -1.5, "forces_eV_per_A": rng.normal(size=(2, 3))},
        warnings=("é",),
    )
    stream = io.BytesIO()
    send_result(stream, [structure], [Failure("f", "e", "h", 3)])
    stream.seek(0)
    message = receive(stream, 1000)
    assert message is not None
    (read,), failures = result_of(*message)
    assert read.content_id == structure.content_id
    assert (read.file, read.index, read.warnings) == ("x <b>", 7, ("é",))
    assert read.labels["energy_eV"] == -1.5
    assert np.array_equal(read.labels["forces_eV_per_A"], structure.labels["forces_eV_per_A"])
    assert failures == [Failure("f", "e", "h", 3)]


@given(st.binary(max_size=300))
def test_receive_of_garbage_raises_only_wire_errors(data: bytes) -> None:
    for start in (b"", b"FDS1"):
        try:
            message = receive(io.BytesIO(start + data), 1000)
            if message is not None:
                result_of(*message)
        except WireError:
            pass


SEEDS = [p.read_bytes() for p in sorted((ROOT / "tests" / "corpus" / "good").iterdir()) if p.stat().st_size < 5000]


@given(st.sampled_from(SEEDS), st.randoms(use_true_random=False), st.integers(1, 30))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_mutated_files_never_raise(seed: bytes, random: object, mutations: int) -> None:
    data = bytearray(seed)
    r = random  # type: ignore[assignment]
    for _ in range(mutations):
        at = r.randrange(len(data) + 1)  # type: ignore[attr-defined]
        kind = r.randrange(4)  # type: ignore[attr-defined]
        if kind == 0 and data:
            data[at % len(data)] = r.randrange(256)  # type: ignore[attr-defined]
        elif kind == 1:
            del data[at : at + r.randrange(20)]  # type: ignore[attr-defined]
        elif kind == 2:
            data[at:at] = r.choice([b"nan", b"-1", b"1e308", b"\n", b"'", b"?", b"0", b"999999999", b"loop_\n", b";"])  # type: ignore[attr-defined]
        else:
            data[at:at] = data[at : at + r.randrange(40)]  # type: ignore[attr-defined]
    structures, failures = read_source(Source("x", bytes(data)), Limits(max_atoms=2000))
    assert structures or failures
    assert not [f for f in failures if "could not be read (" in f.error]
    assert all(np.isfinite(s.positions).all() and s.n_atoms for s in structures)


# --- names, limits, paths ---------------------------------------------------------------------------------------------------


def test_names_are_shown_as_plain_bounded_text() -> None:
    names = ["<script>x</script>.xyz", "a\x00b\x1b[31m\u202egnp.xyz", "x" * 5000 + ".xyz", "", "\ud800.xyz"]
    shown = [s.file for s in read_sources([Source(name, WATER) for name in names]).structures]
    assert shown[0] == names[0]
    assert shown[1] == "ab[31mgnp.xyz"
    assert len(shown[2]) <= 100 and shown[2].endswith("x.xyz")
    assert shown[3] == "unnamed" and shown[4] == ".xyz"


def test_totals_of_one_call_are_bounded() -> None:
    sources = [Source(f"{i}.xyz", WATER) for i in range(5)]
    for limits, word in (
        (Limits(max_files=2), "files at once"),
        (Limits(max_total_bytes=2 * len(WATER)), "MB at once"),
        (Limits(max_total_atoms=6), "atoms at once"),
    ):
        parsed = read_sources(sources, limits)
        assert [s.file for s in parsed.structures] == ["0.xyz", "1.xyz"]
        assert [f.file for f in parsed.failures] == ["2.xyz", "3.xyz", "4.xyz"]
        assert all(word in f.error and f.hint for f in parsed.failures)
    assert "seconds" in read_sources(sources, Limits(max_total_seconds=-1)).failures[0].error
    assert "MB" in read_sources(sources, Limits(max_bytes=10)).failures[0].error


def test_frames_beyond_the_limit_of_atoms_are_named(tmp_path: Path) -> None:
    parsed = read_sources([Source("t.xyz", WATER * 5)], Limits(max_total_atoms=6))
    assert len(parsed.structures) == 2 and "More than 6 atoms" in parsed.failures[0].error
    parsed = read_sources([Source("t.xyz", WATER * 5)], Limits(max_frames=3))
    assert len(parsed.structures) == 3 and parsed.failures[0].index == 3


def test_unknown_format_is_refused_and_known_ones_are_obeyed() -> None:
    assert "not read here" in read_sources([Source("w.xyz", WATER, "gromacs")]).failures[0].error
    for name in ("xyz", "extxyz", "XYZ", "auto", "", None):
        assert len(read_sources([Source("paste", WATER, name)]).structures) == 1
    assert read_sources([Source("w.xyz", WATER, "poscar")]).failures


def test_paths_that_cannot_be_read_become_failures(tmp_path: Path) -> None:
    (tmp_path / "w.xyz").write_bytes(WATER)
    (tmp_path / "large.xyz").write_bytes(bytes(2000))
    paths: list[str | Path] = [tmp_path / "none.cif", tmp_path, tmp_path / "large.xyz", "a\0b", tmp_path / "w.xyz"]
    words = ["no such file", "folder", "MB", "could not be opened"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        paths.insert(4, tmp_path / "pipe")
        words.append("ordinary file")
    parsed = read_paths(paths, Limits(max_bytes=1000))
    assert len(parsed.structures) == 1
    for failure, word in zip(parsed.failures, words, strict=True):
        assert word in failure.error and failure.hint
