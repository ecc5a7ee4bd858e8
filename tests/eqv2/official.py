"""Run by the tests in the environment of EquiformerV2: what the package itself says of a structure, and what plain backpropagation
through it gives for -dE/dR.

    PYTHONPATH=WORKER_FOLDER:ENVS_FOLDER python official.py CHECKPOINT STRUCTURES.extxyz

The last line that it prints is JSON: [{energy, forces, naive}, ...].
"""

from __future__ import annotations

import json
import sys

import ase.io
import torch
from worker import _import_package


def main(weights: str, structures: str) -> None:
    calculator_class = _import_package()
    load = torch.load
    torch.load = lambda *a, **k: load(*a, **{**k, "weights_only": False})
    calculator = calculator_class(checkpoint_path=weights, trainer="equiformerv2_forces", cpu=True, seed=0)
    rows = []
    for atoms in ase.io.read(structures, ":"):
        calculator.calculate(atoms, ["energy", "forces"], [])
        energy, forces = float(calculator.results["energy"]), calculator.results["forces"].tolist()
        rows.append({"energy": energy, "forces": forces, "naive": naive(calculator, atoms).tolist()})
    print(json.dumps(rows))


def naive(calculator, atoms) -> torch.Tensor:
    from fairchem.core.datasets import data_list_collater

    trainer = calculator.trainer
    batch = data_list_collater([calculator.a2g.convert(atoms)], otf_graph=True)
    batch.pos.requires_grad_(True)
    energy = trainer._denorm_preds("energy", trainer._forward(batch)["energy"], batch)
    (gradient,) = torch.autograd.grad(energy.sum(), batch.pos)
    return -gradient


main(*sys.argv[1:])
