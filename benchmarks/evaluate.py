"""What two forces cost: ratios in one run, interleaved, for the embedded model and a full-size Orb v3.

    python benchmarks/evaluate.py [--json PATH] [--rounds N] [--device cpu] [--skip-full]

Quantities, each including its neighbour graph:
  direct      F_nc alone, no gradient: what direct MD pays
  delta       U_Delta: E, F_nc and F_c from one shared pass (`Model.evaluate`)
  two calls   the peer: the package's own ASE calculator for F_nc, then a second graph, forward and backward for F_c
  gradient    grad U_Delta and grad E by double backward; `low memory`: by the finite-difference fallback
Then structures per second of `Model.evaluate` on a list against an ASE loop of the package's calculator doing both forces.

Every round runs all quantities in turn, so a machine that slows down slows all of them; ratios are medians over rounds of the
ratio within the round. Peak memory is measured in a process of its own per quantity.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))

import ase
import numpy as np
import torch
from ase.build import bulk
from measuring import fresh_process, machine, print_peak_MB, ratio_text, spread, timed
from orb_models.forcefield.pretrained import orb_v3_direct_architecture
from peer import Peer

import fdcore
from fdcore.models.orb import OrbModel

QUANTITIES = ("direct", "delta", "two calls", "gradient", "low memory")
# To reach, from the project's plan.
TARGETS = {"delta / direct": ("<=", 2.1), "two calls / delta": (">=", 1.4), "batched / ASE loop": (">=", 3.0)}


def load(name: str, device: str) -> OrbModel:
    """ "embedded", or "full": the published Orb v3 architecture with random weights through the official loader."""
    if name == "embedded":
        return fdcore.load_model(device=device)  # type: ignore[return-value]
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        path = Path(folder) / "random.ckpt"
        torch.save(orb_v3_direct_architecture(device="cpu").state_dict(), path)
        return fdcore.load_model("orb-v3-direct-inf-mpa", device=device, weights=path)  # type: ignore[return-value]


def cell_for(name: str) -> ase.Atoms:
    """One rattled crystal: 64 atoms for the embedded model, 16 for the full one."""
    atoms = bulk("NaCl", "rocksalt", a=5.7, cubic=True) * ((2, 2, 2) if name == "embedded" else (2, 1, 1))
    atoms.rattle(0.05, seed=0)
    return atoms


def small_crystals(count: int) -> list[ase.Atoms]:
    """Crystals of 8 to 12 atoms, all different."""
    rng = np.random.default_rng(0)
    out = []
    for index in range(count):
        kind = index % 3
        if kind == 0:
            atoms = bulk("NaCl", "rocksalt", a=5.7, cubic=True)
        elif kind == 1:
            atoms = bulk("MgO", "rocksalt", a=4.25) * (3, 2, 1)
        else:
            atoms = bulk("Al", a=4.04) * (5, 2, 1)
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        out.append(atoms)
    return out


def quantity(name: str, model: OrbModel, atoms: ase.Atoms) -> Callable[[], object]:
    """A function of no arguments that computes the quantity once."""
    structure = model.check(atoms)
    peer = Peer(model)
    synchronise = torch.cuda.synchronize if model.device.startswith("cuda") else (lambda: None)

    def run() -> object:
        if name == "direct":
            out = model.two_forces(model.graphs([structure]), conservative=False)
        elif name == "delta":
            out = model.evaluate(structure)
        elif name == "two calls":
            out = peer.two_calls(atoms)
        else:
            method = "double-backward" if name == "gradient" else "finite-difference"
            out = model.gradients(structure, method=method)
        synchronise()
        return out

    return run


def measure(name: str, device: str, rounds: int) -> dict:
    """Seconds per quantity (median) and the ratios (median, smallest, largest over rounds)."""
    model, atoms = load(name, device), cell_for(name)
    runs = {q: quantity(q, model, atoms) for q in QUANTITIES}
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {q: [] for q in QUANTITIES}
    for _ in range(rounds):
        for q, run in runs.items():
            seconds[q].append(timed(run))
    return {
        "model": name,
        "atoms": len(atoms),
        "seconds": {q: statistics.median(v) for q, v in seconds.items()},
        "ratios": {
            "delta / direct": spread(seconds["delta"], seconds["direct"]),
            "two calls / delta": spread(seconds["two calls"], seconds["delta"]),
            "gradient / direct": spread(seconds["gradient"], seconds["direct"]),
            "low memory / direct": spread(seconds["low memory"], seconds["direct"]),
        },
    }


def measure_batching(device: str, rounds: int, count: int = 96) -> dict:
    """Structures per second of a list against an ASE loop of the package's calculator doing both forces."""
    model, crystals = load("embedded", device), small_crystals(count)
    peer = Peer(model)

    def loop() -> None:
        for atoms in crystals:
            peer.two_calls(atoms)

    def batched() -> None:
        model.evaluate(crystals)

    loop()
    batched()
    seconds: dict[str, list[float]] = {"loop": [], "batched": []}
    for _ in range(rounds):
        seconds["loop"].append(timed(loop))
        seconds["batched"].append(timed(batched))
    return {
        "structures": count,
        "per_second": {k: count / statistics.median(v) for k, v in seconds.items()},
        "ratios": {"batched / ASE loop": spread(seconds["loop"], seconds["batched"])},
    }


def report_memory(name: str, quantity_name: str, device: str) -> None:
    """The first, tiny run compiles kernels before the mark."""
    model = load(name, device)
    quantity(quantity_name, model, bulk("NaCl", "rocksalt", a=5.7))()
    print_peak_MB(quantity(quantity_name, model, cell_for(name)), device)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--skip-full", action="store_true", help="the embedded model only")
    parser.add_argument("--memory-of", nargs=2, metavar=("MODEL", "QUANTITY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        report_memory(arguments.memory_of[0], arguments.memory_of[1], arguments.device)
        return 0
    names = ["embedded"] if arguments.skip_full else ["embedded", "full"]
    results = []
    for name in names:
        result = measure(name, arguments.device, arguments.rounds)
        result["peak_MB"] = {
            q: fresh_process(__file__, "--memory-of", name, q, "--device", arguments.device) for q in QUANTITIES
        }
        results.append(result)
    batching = measure_batching(arguments.device, max(3, arguments.rounds // 2))
    document = {"machine": machine(arguments.device), "evaluate": results, "batching": batching}

    for result in results:
        print(f"\n{result['model']}, {result['atoms']} atoms")
        for q in QUANTITIES:
            print(f"  {q:<12} {1e3 * result['seconds'][q]:9.1f} ms  {result['peak_MB'][q]:8.0f} MB")
        for ratio, values in result["ratios"].items():
            print(f"  {ratio:<22} {ratio_text(values, TARGETS.get(ratio))}")
    print(f"\nbatching, {batching['structures']} crystals of 8 to 12 atoms, embedded")
    for kind, rate in batching["per_second"].items():
        print(f"  {kind:<12} {rate:9.1f} structures/s")
    for ratio, values in batching["ratios"].items():
        print(f"  {ratio:<22} {ratio_text(values, TARGETS.get(ratio))}")
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
