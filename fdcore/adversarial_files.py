"""An attack as files that go straight into DFT and fine-tuning: extended xyz, an ASE database, VASP inputs, CIF, tables, one zip.

Energies and forces of the model are kept under their own names and never stand where a program looks for labels: `energy` and
`forces` of a file are those of a reference, or they are not there.
"""

from __future__ import annotations

import io
import json
import math
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ase
import ase.db
import ase.io
import numpy as np
import pandas as pd
from ase.calculators.singlepoint import SinglePointCalculator

from fdcore import adversarial, validation, validation_words
from fdcore.adversarial import Adversarial, Found, Origin
from fdcore.export import failure_row
from fdcore.records import Failure
from fdcore.spec import canonical
from fdcore.validation import Compared
from fdcore.vasp_inputs import DEFAULT_SET, DFT_SETS, vasp_folder

Truths = Mapping[str, Compared]

README = """Adversarial structures made by Force Delta (fdcore): geometries on which the two forces of one model disagree most, while its
energy, its forces and the distances between atoms stay within the bounds of provenance.json.

What they are for: reference calculations (DFT) whose results a model learns most from, and tests of how it fails.
What they are not: structures that occur in nature. Their probability is not that of any temperature, and averages over them mean nothing.

dataset.extxyz   all structures with U_Delta, u_i, both forces of the model, step, seed, model and the hash of its weights, and the model's
                 energy and U_Delta of the origin that each is measured against (origin_energy_eV, origin_force_delta_eV_per_A)
dataset.db       the same as an ASE database, as orb-models (AseSqliteDataset) and fairchem-core (AseDBDataset) read it
dataset.cif      the same as CIF, one block each (crystals only)
dataset.csv      one row per structure
parents.extxyz   the origins themselves (relaxed where that was asked for), named by parent_id of the dataset: what "times the start" and
                 "above the start" can be computed from again. They are no part of the dataset, and carry no labels
climb.csv        every structure that was visited on the way
vasp/*/          POSCAR, INCAR, KPOINTS of a static calculation with pymatgen's {dft_set} (crystals only); POTCAR.spec names the
                 potentials, which are licensed and not in here; order.json says which atom of the dataset each line of POSCAR is
provenance.json  model, weights, parameters, seed, versions, origins

content_sha256 is the SHA-256 of a structure as it stands in dataset.extxyz and dataset.db: fdcore.Structure.from_atoms(atoms).content_id

{labels}
Energies in eV, lengths in Å, each force in eV/Å. `forces_direct` is F_nc, the output of the force head; `forces_conservative` is F_c = -dE/dR.
"""
UNLABELLED = (
    "The structures carry no labels: `energy` and `forces` are absent from the extended xyz and the database until a reference calculation\n"
    "has been done. Do not train on forces_direct, forces_conservative or model_energy: they are the errors that are to be mended.\n"
)
LABELLED = "`energy` and `forces` in the extended xyz and the database are those of the reference {reference}; structures on which it failed have none.\n"


def row_of(attack: Adversarial, item: Found, truths: Truths = {}) -> dict[str, Any]:  # noqa: B006 - never changed
    """What is said of one structure, as plain values; None where a number does not exist."""
    compared, origin = truths.get(item.structure.content_id), attack.origins[item.parent]
    return {
        "id": identity(item),
        "formula": item.structure.formula,
        "n_atoms": item.structure.n_atoms,
        "force_delta_eV_per_A": item.force_delta,
        "rise": _finite(item.rise),
        "model_energy_eV": item.energy,
        "above_origin_eV_per_atom": item.above_eV_per_atom,
        "boltzmann_weight": item.weight,
        "boltzmann_weight_temperature_K": float(attack.temperature_K),
        "closest_A": _finite(item.closest_A),
        "closest_share": _finite(item.closest_share),
        "largest_force_eV_per_A": item.fmax,
        "moved_A": item.moved_A,
        "parent": attack.name_of(item.parent),
        "parent_id": parent_identity(item.parent),
        "parent_sha256": origin.structure.content_id,
        "origin_energy_eV": origin.energy,
        "origin_force_delta_eV_per_A": origin.force_delta,
        "start": item.start,
        "step": item.step,
        **_made_by(attack),
        "content_sha256": item.structure.content_id,
        **_errors(compared),
    }


def origin_row(attack: Adversarial, origin: Origin, truths: Truths = {}) -> dict[str, Any]:  # noqa: B006 - never changed
    """What is said of one origin, as plain values; None where a number does not exist."""
    return {
        "id": parent_identity(origin.parent),
        "name": attack.name_of(origin.parent),
        "formula": origin.structure.formula,
        "n_atoms": origin.structure.n_atoms,
        "model_energy_eV": _finite(origin.energy),
        "force_delta_eV_per_A": _finite(origin.force_delta),
        "closest_share": _finite(origin.closest_share),
        "relaxed": origin.relaxed or None,
        "problem": origin.problem or None,
        "given_sha256": attack.structures[origin.parent].content_id,
        **_made_by(attack),
        "content_sha256": origin.structure.content_id,
        **_errors(truths.get(origin.structure.content_id)),
    }


def _made_by(attack: Adversarial) -> dict[str, Any]:
    model, result = attack.spec.model, attack.result or {}
    return {
        "seed": attack.spec.seed,
        "model": "" if model is None else model.id,
        "weights_sha256": str(result.get("weights_sha256") or (model.weights_sha256 if model else None) or "unknown"),
    }


def _errors(compared: Compared | None) -> dict[str, Any]:
    if compared is None:
        return {}
    return {
        "error_direct_eV_per_A": compared.error_direct,
        "error_conservative_eV_per_A": compared.error_conservative,
        "reference_energy_eV": compared.energy_reference,
    }


def identity(item: Found) -> str:
    """How a structure of the dataset is called: start and step, unique within an attack."""
    return f"start{item.start:03d}-step{item.step:03d}"


def parent_identity(parent: int) -> str:
    """How an origin is called."""
    return f"parent{parent:03d}"


def table(attack: Adversarial, items: Sequence[Found], truths: Truths = {}) -> pd.DataFrame:  # noqa: B006 - never changed
    """One row per structure, in the order given."""
    return pd.DataFrame([row_of(attack, item, truths) for item in items])


def dataset_csv(attack: Adversarial, truths: Truths = {}) -> str:  # noqa: B006 - never changed
    """`table` of the dataset."""
    return table(attack, adversarial.dataset(attack), truths).to_csv(index=False)


def climb_csv(attack: Adversarial) -> str:
    """Every structure that was visited, in the order of visiting."""
    chosen = set(attack.selected.rows)
    names = {k: v for k, v in attack.steps.items() if k not in ("environments", "cell_A", "first_atom", "n_atoms")}
    frame = pd.DataFrame(names)
    frame["rise"] = attack.rises if attack.n_steps else []
    frame["in_dataset"] = [k in chosen for k in range(attack.n_steps)]
    return frame.replace([np.inf, -np.inf], np.nan).to_csv(index=False)


# ---- structures ----------------------------------------------------------------------------------------------------


def atoms_of(attack: Adversarial, item: Found, truths: Truths = {}) -> ase.Atoms:  # noqa: B006 - never changed
    """One structure with everything that is known of it: per atom u_i and both forces, the rest in `info`. With a calculator that
    holds energy and forces of the reference where there is one."""
    atoms = _described(item, row_of(attack, item, truths))
    compared = truths.get(item.structure.content_id)
    if compared is not None:
        labels: dict[str, Any] = {"forces": np.array(compared.forces_reference)}
        if compared.energy_reference is not None:
            labels["energy"] = compared.energy_reference
        atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def _described(item: Found | Origin, row: Mapping[str, Any]) -> ase.Atoms:
    atoms = item.structure.to_atoms()
    atoms.new_array("forces_direct", np.array(item.forces_direct))
    atoms.new_array("forces_conservative", np.array(item.forces_conservative))
    atoms.new_array("force_delta_per_atom", np.array(item.force_delta_per_atom))
    for name, value in row.items():
        if value is not None and name not in ("formula", "n_atoms"):
            # Extended xyz escapes what it writes, and reads a backslash as an escape.
            atoms.info[name] = value.replace("\\", "/") if isinstance(value, str) else value
    return atoms


def parents_extxyz(attack: Adversarial, truths: Truths = {}) -> str:  # noqa: B006 - never changed
    """The origins as extended xyz, never with labels: they are what the dataset is measured against, and no part of it. Empty where none
    could be evaluated."""
    good = [o for o in attack.origins.values() if not o.problem]
    return _written([_described(o, origin_row(attack, o, truths)) for o in good], "extxyz")


def dataset_extxyz(attack: Adversarial, truths: Truths = {}, items: Sequence[Found] | None = None) -> str:  # noqa: B006
    """The dataset (or these structures) as extended xyz; empty where there is none."""
    listed = adversarial.dataset(attack) if items is None else items
    return _written([atoms_of(attack, item, truths) for item in listed], "extxyz")


def dataset_cif(attack: Adversarial) -> str:
    """The crystals of the dataset, one block each in P1."""
    buffer = io.BytesIO()
    for item in adversarial.dataset(attack):
        if item.structure.periodic:
            part = io.BytesIO()
            ase.io.write(part, item.structure.to_atoms(), format="cif")
            # The first line names the block.
            _, _, rest = part.getvalue().partition(b"\n")
            buffer.write(f"data_{identity(item)}\n".encode() + rest + b"\n")
    return buffer.getvalue().decode()


def dataset_db(attack: Adversarial, truths: Truths = {}) -> bytes:  # noqa: B006 - never changed
    """The dataset as an ASE database (SQLite). Keys are searchable (`ase db dataset.db 'force_delta>1'`); arrays are in `data`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dataset.db"
        opened: Any = ase.db.connect(str(path), type="db", serial=True)
        with opened as database:
            for item in adversarial.dataset(attack):
                row = row_of(attack, item, truths)
                atoms = atoms_of(attack, item, truths)
                calculator, extra = atoms.calc, {k: atoms.arrays.pop(k) for k in _OWN_ARRAYS}
                atoms.info = {k: atoms.info[k] for k in ("charge", "spin") if k in atoms.info}
                atoms.calc = calculator
                database.write(
                    atoms,
                    key_value_pairs={
                        "force_delta": item.force_delta,
                        "above_origin": item.above_eV_per_atom,
                        "closest_share": min(item.closest_share, 1e3),
                        "model_energy": item.energy,
                        "origin_energy": attack.origins[item.parent].energy,
                        "origin_force_delta": attack.origins[item.parent].force_delta,
                        "start": item.start,
                        "step": item.step,
                        "seed": attack.spec.seed,
                        "name": identity(item),
                        "model": row["model"] or "unknown",
                    },
                    data={**extra, "fdcore": row},
                )
        return path.read_bytes()


_OWN_ARRAYS = ("forces_direct", "forces_conservative", "force_delta_per_atom")


def _written(listed: Sequence[ase.Atoms], form: str) -> str:
    if not listed:
        return ""
    buffer = io.StringIO()
    ase.io.write(buffer, listed, format=form)
    return buffer.getvalue()


# ---- documents -----------------------------------------------------------------------------------------------------


def document(
    attack: Adversarial,
    failures: Iterable[Failure] = (),
    provenance: Mapping[str, Any] | None = None,
    compared: Sequence[Compared] = (),
    reference: str = "",
) -> dict[str, Any]:
    """The document of `fdcore attack --json`, as plain values."""
    truths = validation.by_content(compared)
    items = adversarial.dataset(attack)
    return {
        "spec": json.loads(attack.spec.to_json()),
        "parameters": attack.all_parameters,
        "text": adversarial.sentence(attack),
        "shortage": adversarial.shortage(attack),
        "without": adversarial.without(attack),
        "origins": [origin_row(attack, o, truths) for o in attack.origins.values()],
        "results": [
            {**row_of(attack, item, truths), "force_delta_per_atom_eV_per_A": item.force_delta_per_atom.tolist()}
            for item in items
        ],
        "visited": attack.n_steps,
        "reached": attack.selected.reached,
        "alike": attack.selected.alike,
        "starts": [
            {
                "start": c.start,
                "parent": attack.name_of(c.parent),
                "rattled": c.rattled or None,
                "steps": int(c.columns["step"][-1]),
                "ended": c.reason or None,
                "text": c.text,
                "force_delta_eV_per_A": c.columns["force_delta_eV_per_A"].tolist(),
                "above_origin_eV_per_atom": c.columns["above_eV_per_atom"].tolist(),
            }
            for c in attack.climbs
        ],
        "reference": _reference(compared, reference),
        "errors": [failure_row(f) for f in failures],
        **({} if provenance is None else {"provenance": dict(provenance)}),
    }


def _reference(compared: Sequence[Compared], reference: str) -> dict[str, Any] | None:
    if not compared:
        return None
    found = validation.bands(compared)
    return {
        "name": reference,
        "text": validation_words.sentence(found, reference),
        "intervals": validation_words.interval_text(found),
        "bands": validation.band_rows(found),
        "structures": validation.as_rows(compared),
    }


def document_json(*arguments: Any, **keywords: Any) -> str:
    """`document` as text; no NaN in it."""
    return json.dumps(document(*arguments, **keywords), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def dataset_zip(
    attack: Adversarial,
    provenance: Mapping[str, Any] | None = None,
    compared: Sequence[Compared] = (),
    reference: str = "",
    dft_set: str = DEFAULT_SET,
) -> bytes:
    """Everything in one archive; README.txt says what is what."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in archived(attack, provenance, compared, reference, dft_set).items():
            archive.writestr(name, content)
    return buffer.getvalue()


def archived(
    attack: Adversarial,
    provenance: Mapping[str, Any] | None = None,
    compared: Sequence[Compared] = (),
    reference: str = "",
    dft_set: str = DEFAULT_SET,
) -> dict[str, str | bytes]:
    """The files of the zip, by name."""
    truths = validation.by_content(compared)
    labels = LABELLED.format(reference=reference) if compared else UNLABELLED
    about = {
        "spec": json.loads(canonical(json.loads(attack.spec.to_json()))),
        "parameters": attack.all_parameters,
        "provenance": dict(provenance or {}),
        "dft_set": {"name": dft_set, "for": DFT_SETS[dft_set]},
        "reference": reference or None,
        "origins": [origin_row(attack, o, truths) for o in attack.origins.values()],
    }
    files: dict[str, str | bytes] = {
        "README.txt": README.format(dft_set=dft_set, labels=labels),
        "provenance.json": json.dumps(about, indent=1, allow_nan=False, ensure_ascii=False) + "\n",
        "climb.csv": climb_csv(attack),
        "attack.json": document_json(attack, (), provenance, compared, reference),
    }
    if parents := parents_extxyz(attack, truths):
        files["parents.extxyz"] = parents
    items = adversarial.dataset(attack)
    if not items:
        return files
    files["dataset.csv"] = dataset_csv(attack, truths)
    files["dataset.extxyz"] = dataset_extxyz(attack, truths, items)
    files["dataset.db"] = dataset_db(attack, truths)
    crystals = [item for item in items if item.structure.periodic]
    if crystals:
        files["dataset.cif"] = dataset_cif(attack)
    for item in crystals:
        for name, content in vasp_folder(item.structure, dft_set).items():
            files[f"vasp/{identity(item)}/{name}"] = content
    return files


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
