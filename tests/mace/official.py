"""Run by the tests in the environment of MACE: what the package itself says of structures, and where it fetches its models from.

    python official.py CHECKPOINT STRUCTURES.extxyz

The last line that it prints is JSON: {"rows": [{"energy", "forces"}, ...], "addresses": [...]}.
"""

from __future__ import annotations

import json
import sys

import ase.io
from mace.calculators import MACECalculator, foundations_models


def main(weights: str, structures: str) -> None:
    calculator = MACECalculator(model_paths=weights, device="cpu", default_dtype="float64")
    rows = []
    for atoms in ase.io.read(structures, ":"):
        atoms.calc = calculator
        rows.append({"energy": float(atoms.get_potential_energy()), "forces": atoms.get_forces().tolist()})
    addresses = [*foundations_models.mace_mp_urls.values(), *foundations_models.mace_off_urls.values()]
    print(json.dumps({"rows": rows, "addresses": addresses}))


main(*sys.argv[1:])
