"""What the isolated worker adds to an evaluation: everything that is not the computation itself, over the whole.

    python benchmarks/isolated.py [--json PATH] [--rounds N] [--cells N]

The published 31M EquiformerV2 with random weights, both forces, in its own environment. In one run, per evaluation: the wall time of
`Model.evaluate` (checks, messages both ways, records) and, as the worker measures it, the time of the computation in it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))

from ase.build import bulk

import fdcore
from fdcore.models import envs
from fdcore.models.eqv2 import EqV2Model

TARGET = 0.02
SAVE = Path(__file__).parents[1] / "tests" / "eqv2" / "save_checkpoint.py"


def load() -> EqV2Model:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "31M.pt"
        command = [str(envs.python_of("eqv2")), str(SAVE), str(path), "31M"]
        environment = {**os.environ, "PYTHONPATH": envs.python_path("eqv2")}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return fdcore.load_model("eqV2_31M_mp", device="cpu", weights=path)  # type: ignore[return-value]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cells", type=int, default=1, help="cells of 8 atoms")
    arguments = parser.parse_args()
    model = load()
    atoms = bulk("NaCl", "rocksalt", a=5.7, cubic=True) * (arguments.cells, 1, 1)
    atoms.rattle(0.05, seed=0)
    model.evaluate(atoms)
    wholes, shares = [], []
    for _ in range(arguments.rounds):
        started = time.perf_counter()
        model.evaluate(atoms)
        wholes.append(time.perf_counter() - started)
        shares.append((wholes[-1] - model.worker.seconds) / model.worker.seconds)
    share = statistics.median(shares)
    document = {
        "atoms": len(atoms),
        "seconds": statistics.median(wholes),
        "overhead": {"median": share, "min": min(shares), "max": max(shares)},
        "overhead_ms": 1e3 * statistics.median(s * w / (1 + s) for s, w in zip(shares, wholes, strict=True)),
    }
    print(
        f"{len(atoms)} atoms, 31M, both forces: {document['seconds']:.2f} s, of which {document['overhead_ms']:.2f} ms are not computation"
    )
    print(
        f"overhead / computation   {share:.4f}  ({min(shares):.4f} to {max(shares):.4f})  target < {TARGET}: {'reached' if share < TARGET else 'MISSED'}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
