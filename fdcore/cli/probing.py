"""`fdcore score --calculator`: U_Delta of any ASE calculator, by differences of its energy."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import ase
import numpy as np
import pandas as pd
from tqdm import tqdm

from fdcore import calculators, probing, services
from fdcore.cli.output import EXIT_OK, EXIT_PARTLY, print_failures, read_structures, require_writable, write
from fdcore.errors import FdcoreError, UsageError
from fdcore.export import atoms_extxyz, failure_row
from fdcore.human import three_digits
from fdcore.probing import Probed
from fdcore.records import Failure, Structure

OUTPUTS = ("json", "csv", "extxyz")
# Without a distribution of known structures a number cannot be judged.
UNKNOWN = "How large U_Delta is for structures that this calculator knows is not known, so that it ranks structures and judges none."


def run(arguments: argparse.Namespace, results: TextIO) -> int:
    """Every structure in turn; one that fails is a row with its reason."""
    for name in ("model", "weights"):
        if getattr(arguments, name) is not None:
            raise UsageError(f"--calculator and --{name} exclude each other.", "The calculator is the model.")
    if sum(getattr(arguments, name) == "-" for name in OUTPUTS) > 1:
        raise UsageError("Only one of the outputs can be standard output.", "Give the others a path.")
    for name in OUTPUTS:
        require_writable(getattr(arguments, name))
    probing.probes_needed(1, arguments.precision)
    made = calculators.made(calculators.factory(arguments.calculator), arguments.calculator)
    parsed = read_structures(arguments.files)
    structures = [services.with_charge_spin(s, arguments.charge, arguments.spin) for s in parsed.structures]
    failures, found = list(parsed.failures), []
    try:
        for structure in structures:
            item = _probed(made, arguments, structure)
            if isinstance(item, Failure):
                failures.append(item)
            else:
                found.append((structure, item))
    except KeyboardInterrupt:
        print("fdcore: stopped; what was scored is kept", file=sys.stderr)
        failures += [
            Failure(s.file, "Not scored: stopped.", "Run it again.", s.index)
            for s in structures[len(found) + len(failures) - len(parsed.failures) :]
        ]
    rows = [_row(s, p) for s, p in found]
    document = {
        "model": arguments.calculator,
        "results": rows,
        "errors": [failure_row(f) for f in failures],
        "provenance": {"calculator": arguments.calculator, "seed": arguments.seed, "step_A": probing.STEP_A},
    }
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write(arguments.json, lambda: text, results)
    write(arguments.csv, lambda: _csv(rows, failures), results)
    if found:
        write(arguments.extxyz, lambda: atoms_extxyz([_atoms(s, p, arguments.calculator) for s, p in found]), results)
    if not any(getattr(arguments, name) == "-" for name in OUTPUTS):
        _print(found, results)
    print_failures(failures)
    return EXIT_PARTLY if failures else EXIT_OK


def _probed(made: Any, arguments: argparse.Namespace, structure: Structure) -> Probed | Failure:
    asked = calculators.Asked(made, arguments.calculator, structure)
    probes = arguments.probes or probing.probes_needed(structure.n_atoms, arguments.precision)
    positions = np.array(structure.positions)
    try:
        forces = asked.forces_driving(positions)
        steps: Iterator[int | Probed] = probing.probe(
            asked.energy,
            positions,
            forces,
            probes=min(probes, 3 * structure.n_atoms),
            seed=arguments.seed,
        )
        last: int | Probed = 0
        with tqdm(
            total=probes, unit="probe", desc=structure.formula, file=sys.stderr, disable=None, leave=False
        ) as bar:
            for last in steps:
                bar.update(last - bar.n if isinstance(last, int) else 0)
    except FdcoreError as error:
        return Failure(structure.file, error.message, error.hint or "", structure.index)
    assert isinstance(last, Probed)
    return last


def _row(structure: Structure, found: Probed) -> dict[str, Any]:
    per_atom = found.force_delta_per_atom
    warnings = list(structure.warnings)
    if found.step_matters:
        warnings.append(
            f"The differences themselves are off by about {found.step_error:.2g} eV/Å (the energy is not smooth enough, or noisy): "
            "what is not much larger cannot be told from zero."
        )
    return {
        "file": structure.file,
        "index": structure.index,
        "n_atoms": structure.n_atoms,
        "formula": structure.formula,
        "energy_eV": found.energy,
        "force_delta_eV_per_A": found.force_delta,
        "force_delta_standard_error_eV_per_A": found.standard_error,
        "force_delta_ci_eV_per_A": [found.low, found.high if np.isfinite(found.high) else None],
        "force_delta_per_atom_eV_per_A": None if per_atom is None else per_atom.tolist(),
        "probes": found.probes,
        "directions": found.dimensions,
        "step_error_eV_per_A": found.step_error,
        "verdict": "unknown",
        "verdict_sentence": UNKNOWN,
        "warnings": warnings,
    }


def _csv(rows: Sequence[dict[str, Any]], failures: Sequence[Failure]) -> str:
    left_out = ("force_delta_per_atom_eV_per_A", "force_delta_ci_eV_per_A", "verdict_sentence")
    plain = [{k: v for k, v in r.items() if k not in left_out} | {"warnings": "; ".join(r["warnings"])} for r in rows]
    return pd.DataFrame([*plain, *map(failure_row, failures)]).to_csv(index=False)


def _atoms(structure: Structure, found: Probed, name: str) -> ase.Atoms:
    atoms = structure.to_atoms()
    atoms.info.update(
        energy_eV=found.energy,
        force_delta_eV_per_A=found.force_delta,
        force_delta_standard_error_eV_per_A=found.standard_error,
        model=name,
        source_file=structure.file.replace("\\", "/"),
        source_index=structure.index,
    )
    atoms.new_array("forces_direct", np.array(found.forces_direct))
    if found.forces_conservative is not None and found.force_delta_per_atom is not None:
        atoms.new_array("forces_conservative", np.array(found.forces_conservative))
        atoms.new_array("force_delta_per_atom", np.array(found.force_delta_per_atom))
    return atoms


def _print(found: Sequence[tuple[Structure, Probed]], out: TextIO) -> None:
    if not found:
        return
    width = max(9, *(len(s.file) + 4 for s, _ in found))
    print(f"{'structure':<{width}}  {'formula':<16} atoms  U_Delta eV/Å (95 %)            probes", file=out)
    for structure, p in sorted(found, key=lambda item: -item[1].force_delta):
        label = f"{structure.file}:{structure.index}" if structure.index else structure.file
        shown = f"{three_digits(p.force_delta)} ({three_digits(p.low)} to {three_digits(p.high)})"
        print(
            f"{label:<{width}}  {structure.formula:<16.16} {structure.n_atoms:5d}  {shown:<29}  {p.probes} of {p.dimensions}"
            + (f"  differences off by {p.step_error:.1g}" if p.step_matters else ""),
            file=out,
        )
    print(f"\n{UNKNOWN}", file=out)
