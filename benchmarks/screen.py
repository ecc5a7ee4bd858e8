"""What `fdcore screen` does in a second, what it holds in memory, and what it survives.

    python benchmarks/screen.py [--json PATH] [--count 2000] [--model ID] [--compile] [--parts rates,broken,kills,memory]

On mixed crystals of 2 to 60 atoms, all different, written as CIF and extXYZ:
  ASE loop     the peer: read each file with ASE, F_nc from the package's calculator, then F_c from a second calculation, one structure after
               the other; on a tenth of the structures, every tenth of them
  screen       `fdcore screen` with one and with two processes, start of the processes included and, as a rate of its own, left out
Then: peak memory with a tenth of the structures and with all of them; a screening that is killed three times at random moments (its whole
process group, SIGKILL) and gone on with, whose table must be the same bytes as that of an undisturbed one; one per cent of broken inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))

import ase
import ase.io
import numpy as np
from ase.build import bulk
from measuring import machine, told

TARGETS = {"screen / ASE loop": (">=", 4.0), "two / one": (">=", 1.7), "memory, all / a tenth": ("<=", 1.1)}
# Lattice constants (Å) of cells that the embedded model has seen.
CRYSTALS = (
    ("NaCl", "rocksalt", 5.64),
    ("MgO", "rocksalt", 4.21),
    ("LiF", "rocksalt", 4.03),
    ("Al", "fcc", 4.05),
    ("NaF", "rocksalt", 4.63),
)


def crystals(count: int, seed: int = 0) -> Iterator[ase.Atoms]:
    """Crystals of 2 to 60 atoms, strained and rattled, no two alike."""
    rng = np.random.default_rng(seed)
    shapes = [(a, b, c) for a in range(1, 6) for b in range(1, 6) for c in range(1, 6) if a * b * c <= 30]
    for index in range(count):
        formula, structure, a = CRYSTALS[index % len(CRYSTALS)]
        atoms = bulk(formula, structure, a=a)
        fitting = [s for s in shapes if 2 <= len(atoms) * np.prod(s) <= 60]
        atoms = atoms * fitting[rng.integers(len(fitting))]
        strain = np.eye(3) + rng.normal(0, 0.01, (3, 3))
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        yield atoms


def write_inputs(folder: Path, count: int, *, broken: int = 0, frames: bool = True) -> None:
    """Half of them one CIF each, half of them frames of extXYZ files; `broken`: so many files beside them that are none."""
    folder.mkdir(parents=True)
    several: list[ase.Atoms] = []
    for index, atoms in enumerate(crystals(count)):
        if index % 2 == 0 or not frames:
            ase.io.write(folder / f"{index:07d}.cif", atoms)
        else:
            several.append(atoms)
    if several:
        ase.io.write(folder / "frames.extxyz", several)
    for index in range(broken):
        (folder / f"broken-{index:05d}.cif").write_text("data_x\n_cell_length_a 3\nloop_\n_atom_site_label\n")


def screened(folder: Path, out: Path, model: str | None, workers: int, *extra: str) -> tuple[float, dict[str, Any]]:
    """(seconds, summary) of the command as a person gives it."""
    began = time.perf_counter()
    done = subprocess.run(command(folder, out, model, workers, *extra), capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    return seconds, json.loads(done.stdout)


def command(folder: Path, out: Path, model: str | None, workers: int, *extra: str) -> list[str]:
    words = [sys.executable, "-m", "fdcore.cli", "screen", str(folder), "--out", str(out)]
    words += ["--workers", str(workers), "--json", "-", *extra]
    return words + ([] if model is None else ["--model", model])


def ase_loop(folder: Path, every: int) -> float:
    """Structures per second of the peer over every so many of the inputs, model loaded and warm."""
    from peer import Peer

    import fdcore

    peer = Peer(fdcore.load_model())  # type: ignore[arg-type]
    files = sorted(folder.glob("*.cif"))[::every]
    peer.two_calls(ase.io.read(files[0]))  # type: ignore[arg-type]
    frames = len(ase.io.read(folder / "frames.extxyz", ":"))
    began = time.perf_counter()
    for file in files:
        peer.two_calls(ase.io.read(file))  # type: ignore[arg-type]
    for atoms in ase.io.read(folder / "frames.extxyz", ":")[::every]:
        peer.two_calls(atoms)  # type: ignore[arg-type]
    return (len(files) + len(range(0, frames, every))) / (time.perf_counter() - began)


def peak_MB(folder: Path, out: Path, model: str | None) -> float:
    """Largest resident memory of the command and of any of its processes."""
    script = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=False)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3)\n"
    )
    words = command(folder, out, model, 1)
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def _kill_family(pid: int) -> None:
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    os.kill(pid, signal.SIGKILL)
    for child in children:
        _kill_family(int(child))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", help="an id; default: the embedded model")
    parser.add_argument(
        "--flat", type=int, default=10, help="so many times more structures for the memory (default 10)"
    )
    parser.add_argument("--compile", action="store_true", help="also with --compile (a GPU)")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    arguments = parser.parse_args(argv)
    found: dict[str, Any] = {"machine": machine("cpu"), "structures": arguments.count}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_inputs(place / "inputs", arguments.count)
        for part in arguments.parts.split(","):
            found |= PARTS[part](place, place / "inputs", arguments)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1))


def _rates(place: Path, inputs: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """In turn; of the command its whole time, and that from the moment when the first of its processes has its model."""
    ways: dict[str, tuple[int, tuple[str, ...]]] = {"one": (1, ()), "two": (2, ())}
    if arguments.compile:
        ways["two, compiled"] = (2, ("--compile",))
    rates: dict[str, list[float]] = {"ASE loop": []}
    for turn in range(arguments.rounds):
        rates["ASE loop"].append(ase_loop(inputs, 10))
        for way, (workers, extra) in ways.items():
            seconds, summary = screened(inputs, place / f"{way}-{turn}", arguments.model, workers, *extra)
            rates.setdefault(f"{way}, start included", []).append(summary["structures"] / seconds)
            rates.setdefault(way, []).append(summary["structures"] / summary["working_seconds"])
    for way, values in rates.items():
        print(f"{way:<30} {statistics.median(values):8.1f} structures/s ({min(values):.1f} to {max(values):.1f})")
    pairs = {"screen / ASE loop": ("two", "ASE loop"), "two / one": ("two", "one")}
    if arguments.compile:
        pairs["compiled / ASE loop"] = ("two, compiled", "ASE loop")
    ratios = {
        pair: [b / a for a, b in zip(rates[below], rates[above], strict=True)] for pair, (above, below) in pairs.items()
    }
    found = {pair: {"median": statistics.median(v), "min": min(v), "max": max(v)} for pair, v in ratios.items()}
    for pair, v in found.items():
        print(f"{pair}: {v['median']:.2f} ({v['min']:.2f} to {v['max']:.2f}){told(v['median'], TARGETS.get(pair))}")
    return {"structures_per_second": {way: statistics.median(v) for way, v in rates.items()}, "ratios": found}


def _broken(place: Path, _inputs: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    count = min(arguments.count, 1000)
    write_inputs(place / "broken", count, broken=count // 100)
    _, summary = screened(place / "broken", place / "broken-out", arguments.model, 2)
    print(f"1 % broken: {summary['scored']} of {count} scored, {summary['failed']} of {count // 100} failed")
    return {"broken": {"scored": summary["scored"], "failed": summary["failed"], "expected": [count, count // 100]}}


def _kills(place: Path, inputs: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    seconds, _ = screened(inputs, place / "undisturbed", arguments.model, 2, "--chunk", "100")
    out = place / "killed"
    rng = random.Random(1)
    for _ in range(3):
        process = subprocess.Popen(
            command(inputs, out, arguments.model, 2, "--chunk", "100"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(rng.uniform(0.1, 0.5) * seconds)
        _kill_family(process.pid)
        process.wait()
    screened(inputs, out, arguments.model, 2, "--chunk", "100")
    same = all(
        (place / "undisturbed" / name).read_bytes() == (out / name).read_bytes()
        for name in ("results.csv", "results.parquet")
    )
    print(f"killed three times: the table is {'the same bytes' if same else 'ANOTHER ONE'}")
    return {"killed_table_is_the_same": same}


def _memory(place: Path, _inputs: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    peaks = {}
    for times in (1, arguments.flat):
        write_inputs(place / f"flat-{times}", arguments.count * times)
        peaks[times] = peak_MB(place / f"flat-{times}", place / f"flat-out-{times}", arguments.model)
        print(f"{arguments.count * times:>8,} structures: peak {peaks[times]:,.0f} MB")
    ratio = peaks[arguments.flat] / peaks[1]
    print(f"memory, all / a tenth: {ratio:.3f}{told(ratio, TARGETS['memory, all / a tenth'])}")
    return {"peak_MB": peaks, "memory_ratio": ratio}


PARTS = {"rates": _rates, "broken": _broken, "kills": _kills, "memory": _memory}


if __name__ == "__main__":
    main()
