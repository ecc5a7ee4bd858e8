"""Labelled structures as files: extended xyz and an ASE database for fine-tuning, VASP inputs for those without a label, one JSON document.

`energy` and `forces` stand where ASE looks for them, and once more as REF_energy and REF_forces, where MACE does; both are those of the
reference. Where they come from goes with every frame: label_reference, label_version, label_settings, label_details, label_made_at.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ase
import ase.db
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from fdcore.errors import FdcoreError
from fdcore.export import failure_row
from fdcore.labels import Label, LabelledSet, Matching
from fdcore.records import Failure, Structure
from fdcore.structures.origin import as_info
from fdcore.vasp_inputs import DEFAULT_SET, vasp_folder


def atoms_of(structure: Structure, label: Label) -> ase.Atoms:
    """One labelled structure, with a calculator that holds energy (where it is known) and forces, and the origin of both in `info`."""
    atoms = structure.to_atoms()
    forces = np.array(label.forces_reference)
    results: dict[str, Any] = {"forces": forces}
    atoms.new_array("REF_forces", forces.copy())
    if label.energy is not None:
        results["energy"] = atoms.info["REF_energy"] = label.energy
    # What the file said of it (system, displacement): a validation groups by that.
    atoms.info |= {name: _tame(text) for name, text in structure.tags.items()}
    atoms.info |= as_info(json.loads(label.provenance.to_json()))
    atoms.info |= _source(structure)
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def as_extxyz(known: LabelledSet) -> str:
    """The labelled structures; empty where there are none. Positions and forces have eight decimals."""
    return _written([atoms_of(structure, label) for structure, label in known.labelled])


def unlabelled_extxyz(known: LabelledSet) -> str:
    """Those without a label, with the reason where one was tried for; no energies and no forces in it."""
    listed = []
    for item in known:
        if isinstance(item.label, Label):
            continue
        atoms = item.structure.to_atoms()
        atoms.info |= _source(item.structure)
        if isinstance(item.label, FdcoreError):
            atoms.info["label_error"] = _tame(item.label.message)
        listed.append(atoms)
    return _written(listed)


def as_database(known: LabelledSet) -> bytes:
    """The labelled structures as an ASE database (SQLite), as orb-models and fairchem-core read it; nothing is rounded."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labelled.db"
        opened: Any = ase.db.connect(str(path), type="db", serial=True)
        with opened as database:
            for structure, label in known.labelled:
                atoms = atoms_of(structure, label)
                # REF_forces would be an array of its own, which a database has no place for.
                del atoms.arrays["REF_forces"]
                told: dict[str, Any] = dict(as_info(json.loads(label.provenance.to_json())))
                both = {"total_charge": structure.charge, "spin_multiplicity": structure.spin}
                told |= {key: value for key, value in both.items() if value is not None}
                database.write(atoms, key_value_pairs=told, data={"source": _source(structure)})
        return path.read_bytes()


def vasp_folders(
    structures: Iterable[Structure], dft_set: str = DEFAULT_SET
) -> tuple[dict[str, dict[str, str]], list[Failure]]:
    """For each crystal a folder, named after its place and file, with the files of a static calculation and their text; molecules are refused.
    UsageError for a set that there is not."""
    folders: dict[str, dict[str, str]] = {}
    refused = []
    for number, structure in enumerate(structures):
        if not structure.periodic:
            refused.append(
                Failure(
                    structure.file,
                    f"{structure.formula} is a molecule: VASP needs a cell.",
                    "Use gfn2 or gpaw.",
                    structure.index,
                )
            )
            continue
        stem = re.sub(r"[^\w.-]+", "-", Path(structure.file).stem).strip("-.")[:40]
        folders[f"{number:04d}-{stem or 'structure'}-{structure.index}"] = vasp_folder(structure, dft_set)
    return folders, refused


def document(
    known: LabelledSet,
    failures: Sequence[Failure] = (),
    matching: Matching | None = None,
    spec: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The document of `fdcore label --json`, as plain values. `errors`: files that could not be read, structures that could not be labelled."""
    return {
        "spec": spec,
        "methods": list(known.methods),
        "results": [
            {
                **_named(structure),
                "energy_reference_eV": label.energy,
                "forces_reference_eV_per_A": label.forces_reference.tolist(),
                "provenance": json.loads(label.provenance.to_json()),
            }
            for structure, label in known.labelled
        ],
        "unlabelled": [_named(structure) for structure in known.unlabelled],
        "matching": None
        if matching is None
        else {
            "text": matching.text,
            "matches": [
                {"position": m.position, "frame": m.frame, "distance_A": m.distance_A, "reordered": m.reordered}
                for m in matching.matches
            ],
            "unused": [failure_row(f) for f in matching.unused],
        },
        "errors": [failure_row(f) for f in (*failures, *known.failed)],
    }


def document_json(*arguments: Any, **keywords: Any) -> str:
    """`document` as text; no NaN in it."""
    return json.dumps(document(*arguments, **keywords), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _named(structure: Structure) -> dict[str, Any]:
    return {
        "file": structure.file,
        "index": structure.index,
        "formula": structure.formula,
        "n_atoms": structure.n_atoms,
        "content_sha256": structure.content_id,
    }


def _source(structure: Structure) -> dict[str, Any]:
    return {"source_file": _tame(structure.file), "source_index": structure.index} if structure.file else {}


def _tame(text: str) -> str:
    """Extended xyz escapes what it writes, and reads a backslash as an escape."""
    return text.replace("\\", "/").replace('"', "'")


def _written(listed: Sequence[ase.Atoms]) -> str:
    if not listed:
        return ""
    buffer = io.StringIO()
    ase.io.write(buffer, listed, format="extxyz")
    return buffer.getvalue()


def vasp_zip(structures: Iterable[Structure], dft_set: str = DEFAULT_SET) -> bytes:
    """`vasp_folders` as a zip; what is no crystal is left out."""
    folders, _ = vasp_folders(structures, dft_set)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archived:
        for folder, files in folders.items():
            for name, text in files.items():
                archived.writestr(f"{folder}/{name}", text)
    return stream.getvalue()
