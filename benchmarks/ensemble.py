"""What U_Delta costs beside U_var: the five Orb models of the paper at full size with random weights, in turn, in one run.

    python benchmarks/ensemble.py [--json PATH] [--rounds N] [--device cpu]

Quantities, each including its neighbour graph:
  U_Delta of a model   E, F_nc and F_c from one shared pass (`Model.evaluate`)
  U_var                F_nc of all five, no gradient (`Predictor.predict_each`)

Every round runs all of them in turn; ratios are medians over rounds of the ratio within the round. The paper's Table 1 averages U_Delta over
the five models, so its ratio is that of the mean; each model's own is printed, too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))

import torch
from ase.build import bulk
from measuring import machine, ratio_text, spread, timed
from orb_models.forcefield import pretrained

import fdcore
from fdcore.models.base import Model

MODELS = ("orb-d3-xs-v2", "orb-d3-sm-v2", "orb-d3-v2", "orb-v3-direct-20-mpa", "orb-v3-direct-inf-mpa")
LAYERS = {"orb-d3-xs-v2": 5, "orb-d3-sm-v2": 10, "orb-d3-v2": 15}
TARGET = ("<=", 0.5)


def load(name: str, folder: Path, device: str) -> Model:
    """The published architecture with random weights, through the official loader."""
    torch.manual_seed(0)
    path = folder / f"{name}.ckpt"
    if name in LAYERS:
        module = pretrained.orb_v2_architecture(num_message_passing_steps=LAYERS[name], device="cpu")
    else:
        module = pretrained.orb_v3_direct_architecture(device="cpu")
    torch.save(module.state_dict(), path)
    return fdcore.load_model(name, device=device, weights=path)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    atoms = bulk("NaCl", "rocksalt", a=5.7, cubic=True) * (2, 1, 1)
    atoms.rattle(0.05, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        models = {name: load(name, Path(folder), arguments.device) for name in MODELS}
    structure = next(iter(models.values())).check(atoms)
    both: dict[str, list[float]] = {name: [] for name in MODELS}
    one: dict[str, list[float]] = {name: [] for name in MODELS}
    for turn in range(arguments.rounds + 1):
        for name, model in models.items():
            a = timed(lambda model=model: model.evaluate(structure))
            b = timed(lambda model=model: list(model.predict_each([structure])))
            if turn:  # the first round compiles
                both[name].append(a)
                one[name].append(b)
    ensemble = [sum(one[n][k] for n in MODELS) for k in range(arguments.rounds)]
    mean = [statistics.mean(both[n][k] for n in MODELS) for k in range(arguments.rounds)]
    ratios = {name: spread(both[name], ensemble) for name in MODELS}
    document = {
        "machine": machine(arguments.device),
        "atoms": len(atoms),
        "seconds_both": {n: statistics.median(t) for n, t in both.items()},
        "seconds_one": {n: statistics.median(t) for n, t in one.items()},
        "U_Delta / U_var": ratios,
        "mean U_Delta / U_var": spread(mean, ensemble),
    }
    print(f"{len(atoms)} atoms; U_var of five models {1e3 * statistics.median(ensemble):.0f} ms")
    for name in MODELS:
        print(
            f"  {name:<24} F_nc {1e3 * document['seconds_one'][name]:7.1f} ms  both {1e3 * document['seconds_both'][name]:7.1f} ms  "
            f"U_Delta / U_var {ratio_text(ratios[name])}"
        )
    print(
        f"  {'mean over the five':<24} {'':<34}U_Delta / U_var {ratio_text(document['mean U_Delta / U_var'], TARGET)}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
