"""The small DFT truth that travels with the project: PBE energies and forces from GPAW, for structures from equilibrium to strongly distorted.

    python training/make_dft.py label      # about two hours on one core; goes on where it was interrupted
    python training/make_dft.py converge   # the same forces with more plane waves and denser k points
    python training/make_dft.py write      # fdcore/data/labels/pbe-gpaw.extxyz and its card

Needs GPAW's own environment, which is built on first use (see `fdcore label --reference gpaw`). The structures depend on nothing
but this file: every one is a published cell or a molecule that ASE ships, strained and displaced by a seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.collections import g2, s22
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from ase.spacegroup import crystal
from prototypes import l12
from tqdm import tqdm

from fdcore.errors import FdcoreError
from fdcore.gpaw import DATA_VERSION, VERSION, Gpaw, GpawSettings
from fdcore.label_files import as_extxyz
from fdcore.labels import Label, LabelledSet, Provenance
from fdcore.records import Structure

NAME = "pbe-gpaw"
OUT = Path(__file__).parent.parent / "fdcore" / "data" / "labels"
WORK = Path(__file__).parent / "work" / "dft"

# Standard deviation (Å) of the displacements of every atom; 0 is the published structure, strained or not.
SIGMAS_A = (0.0, 0.02, 0.04, 0.07, 0.1, 0.14, 0.18, 0.25)
# Without symmetry a metal takes minutes.
METAL_SIGMAS_A = (0.0, 0.02, 0.04, 0.1, 0.2)
MOLECULE_SIGMAS_A = (0.0, 0.02, 0.05, 0.08, 0.12, 0.16)
# Of the cell's strain, for every 0.1 Å of displacement.
STRAIN = 0.02
# No pair closer than this share of its covalent radii: pseudopotentials, and every model's training data, end there.
CLOSEST = 0.7

# Oxygen and fluorine need many plane waves; metals need many k points.
HARD = GpawSettings(cutoff_eV=700, kpoint_density_A=1.8)
SALT = GpawSettings(cutoff_eV=600, kpoint_density_A=2.2)
METAL = GpawSettings(cutoff_eV=400, kpoint_density_metal_A=4.2, smearing_eV=0.1)


@dataclass(frozen=True)
class System:
    """`copies`: how many structures there are for every sigma."""

    name: str
    group: str
    make: Callable[[], Atoms]
    settings: GpawSettings
    copies: int
    source: str
    sigmas: tuple[float, ...] = field(default=SIGMAS_A)


def molecule(name: str) -> System:
    make = (lambda: g2[name].copy()) if name in g2.names else (lambda: s22[name].copy())
    where = "G2" if name in g2.names else "S22"
    return System(name, "molecule", make, HARD, 1, f"ase.collections, {where}", MOLECULE_SIGMAS_A)


def ice(sites: list[tuple[float, float, float]], symbols: list[str], group: int, cell: list[float]) -> Atoms:
    setting = 2 if group == 141 else 1
    return crystal(symbols, sites, spacegroup=group, setting=setting, cellpar=[*cell, 90, 90, 90], primitive_cell=True)


def ice_xi() -> Atoms:
    sites = [(0.0, 0.6646, 0.0631), (0.5, 0.8255, -0.0631), (0.0, 0.6636, 0.1963), (0.0, 0.5363, 0.0183)]
    return ice([*sites, (0.6766, 0.7748, -0.0183)], ["O", "O", "H", "H", "H"], 36, [4.465, 7.859, 7.292])


def ice_viii() -> Atoms:
    return ice([(0.0, 0.25, 0.1071), (0.0, 0.4157, 0.1935)], ["O", "H"], 141, [4.656, 4.656, 6.775])


def mgal() -> Atoms:
    layers = [(0, 0, 0), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    return Atoms("Mg2Al2", scaled_positions=layers, cell=[4.2] * 3, pbc=True)


SYSTEMS: tuple[System, ...] = (
    System("ice XI", "ice", ice_xi, HARD, 3, "Cmc2_1, Leadbetter et al. 1985"),
    System("ice VIII", "ice", ice_viii, HARD, 1, "I4_1/amd, Kuhs et al. 1984"),
    System("LiF", "salt", lambda: bulk("LiF", "rocksalt", a=4.07, cubic=True), HARD, 2, "Fm-3m, a = 4.07 Å"),
    System("MgO", "salt", lambda: bulk("MgO", "rocksalt", a=4.25, cubic=True), HARD, 2, "Fm-3m, a = 4.25 Å"),
    System("NaCl", "salt", lambda: bulk("NaCl", "rocksalt", a=5.69, cubic=True), SALT, 2, "Fm-3m, a = 5.69 Å"),
    System(
        "Mg",
        "Mg-Al",
        lambda: bulk("Mg", "hcp", a=3.19, c=5.18) * (2, 1, 1),
        METAL,
        1,
        "hcp, 3.19 and 5.18 Å",
        METAL_SIGMAS_A,
    ),
    System("Al", "Mg-Al", lambda: bulk("Al", a=4.04, cubic=True), METAL, 1, "fcc, a = 4.04 Å", METAL_SIGMAS_A),
    System("MgAl", "Mg-Al", mgal, METAL, 1, "CuAu type, a = 4.20 Å", METAL_SIGMAS_A),
    System("Al3Mg", "Mg-Al", lambda: l12("Al", "Mg", 4.13), METAL, 1, "Cu3Au type, a = 4.13 Å", METAL_SIGMAS_A),
    System("Mg3Al", "Mg-Al", lambda: l12("Mg", "Al", 4.36), METAL, 1, "Cu3Au type, a = 4.36 Å", METAL_SIGMAS_A),
    *(molecule(n) for n in ("H2O", "CH4", "NH3", "CO2", "HCN", "H2CO", "CH3OH", "C2H4", "HCOOH")),
    molecule("Water_dimer"),
)


def closest(atoms: Atoms) -> float:
    """Of all pairs within reach, the smallest distance as a share of the sum of covalent radii."""
    radii = covalent_radii[atoms.numbers]
    rows, columns, distances = neighbor_list("ijd", atoms, 4.0)
    return float((distances / (radii[rows] + radii[columns])).min())


def structures() -> Iterator[tuple[System, Structure, str]]:
    """Every structure with its system and its name: the small displacements of all systems first, so that what is interrupted is balanced."""
    for step in range(max(len(s.sigmas) for s in SYSTEMS)):
        for system in SYSTEMS:
            for copy in range(system.copies if step < len(system.sigmas) else 0):
                sigma = system.sigmas[step]
                name = f"{system.name} {sigma:.2f} {copy}"
                yield (
                    system,
                    Structure.from_atoms(displaced(system, sigma, copy, name), file=system.name, index=copy),
                    name,
                )


def displaced(system: System, sigma: float, copy: int, name: str) -> Atoms:
    """The system's atoms, strained and displaced by a seed made of the name; drawn again until no pair is too close."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))
    start = system.make()
    for _ in range(1000):
        atoms = Atoms(start.numbers, positions=start.positions, cell=start.cell, pbc=start.pbc)
        if atoms.pbc.all():
            # The first copy at rest is the published structure; the others are strained at least a little.
            amount = STRAIN * sigma / 0.1 if sigma or copy == 0 else STRAIN
            strain = rng.normal(0, amount, (3, 3))
            atoms.set_cell(atoms.cell @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += rng.normal(0, sigma, atoms.positions.shape)
        if closest(atoms) >= CLOSEST:
            atoms.info = {"name": name}
            return atoms
    raise SystemExit(f"{name}: no displacement keeps the atoms apart.")


def label(work: Path) -> None:
    """One line of JSON for every structure; those that are there are not computed again."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / "labels.jsonl"
    done = {json.loads(line)["name"] for line in path.read_text().splitlines()} if path.exists() else set()
    running: dict[GpawSettings, Gpaw] = {}
    todo = [item for item in structures() if item[2] not in done]
    with path.open("a") as out:
        for system, structure, name in tqdm(todo):
            program = running.setdefault(system.settings, Gpaw(system.settings))
            row = {"name": name, "content_id": structure.content_id}
            try:
                energy, forces_reference, details = program.label(structure)
            except FdcoreError as error:
                row["failed"] = error.message
            else:
                row |= {"energy": energy, "forces_reference": forces_reference.tolist(), "details": dict(details)}
            made_at = datetime.now(UTC).isoformat(timespec="seconds")
            out.write(json.dumps({**row, "made_at": made_at}) + "\n")
            out.flush()


def converge(work: Path) -> None:
    """One displaced structure of some systems again, with 200 eV more and a denser grid, or a larger box."""
    found: dict[str, dict] = {}
    known = {row["name"]: row for row in map(json.loads, (work / "labels.jsonl").read_text().splitlines())}
    for system, structure, name in tqdm(list(structures())):
        if system.name in found or (
            structure_sigma(name) != 0.1 and not (system.group == "molecule" and structure_sigma(name) == 0.08)
        ):
            continue
        loose = system.settings
        tight = GpawSettings(
            **asdict(loose)
            | {
                "cutoff_eV": loose.cutoff_eV + 200,
                "kpoint_density_A": loose.kpoint_density_A * 1.5,
                "kpoint_density_metal_A": loose.kpoint_density_metal_A * 1.4,
                "vacuum_A": loose.vacuum_A + 2,
            }
        )
        _, forces_reference, details = Gpaw(tight).label(structure)
        tighter = {"cutoff_eV": tight.cutoff_eV, "kpoints": details["kpoints"], "vacuum_A": tight.vacuum_A}
        difference = np.array(known[name]["forces_reference"]) - forces_reference
        found[system.name] = {
            "structure": name,
            "rms_eV_per_A": round(float(np.sqrt((difference**2).mean())), 5),
            "rms_force_eV_per_A": round(float(np.sqrt((forces_reference**2).mean())), 4),
            "against": tighter,
        }
        (work / "converged.json").write_text(json.dumps(found, indent=1))


# On which displaced structure of which system the settings are held against tighter ones.
CONVERGED = {"H2O": 0.08, "ice XI": 0.1, "LiF": 0.1, "Al": 0.1}


def structure_sigma(name: str) -> float:
    return float(name.split()[-2])


def write(work: Path) -> None:
    known = {row["name"]: row for row in map(json.loads, (work / "labels.jsonl").read_text().splitlines())}
    kept: list[Structure] = []
    labels: dict[int, Label | FdcoreError] = {}
    systems: dict[str, dict] = {}
    failed = {}
    names = []
    for system, structure, name in structures():
        row = known.get(name)
        if row is None:
            continue
        if row["content_id"] != structure.content_id:
            raise SystemExit(f"{name} is not the structure that was labelled: run `label` in an empty folder.")
        if "failed" in row:
            failed[name] = row["failed"]
            continue
        settings = asdict(system.settings)
        origin = Provenance("gpaw", VERSION, settings, row["details"], row["made_at"])
        labels[len(kept)] = Label(row["energy"], np.array(row["forces_reference"]), origin)
        kept.append(structure)
        names.append((name, system))
        about = systems.setdefault(
            system.name,
            {"group": system.group, "source": system.source, "structures": 0, "cutoff_eV": system.settings.cutoff_eV},
        )
        about["structures"] += 1
    listed = list(ase.io.iread(_as_file(as_extxyz(LabelledSet.of(kept).with_labels(labels)), work), index=":"))
    for atoms, (name, system) in zip(listed, names, strict=True):
        atoms.info |= {"system": system.name, "group": system.group, "sigma_A": structure_sigma(name)}
    path = OUT / f"{NAME}.extxyz"
    ase.io.write(path, listed, format="extxyz")
    converged = work / "converged.json"
    card = {
        "id": NAME,
        "title": "PBE by plane waves, small structures",
        "about": f"Energies and forces of {len(listed)} structures from equilibrium to strongly distorted.",
        "method": f"GPAW {VERSION}, PBE, PAW data sets gpaw-data {DATA_VERSION}, no dispersion, no spin except where electrons are odd",
        "made_by": "training/make_dft.py",
        "licence": "CC0-1.0",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "count": len(listed),
        "settings": {name: asdict(s) for name, s in (("hard", HARD), ("salt", SALT), ("metal", METAL))},
        "displacements_A": {
            "crystals": list(SIGMAS_A),
            "metals": list(METAL_SIGMAS_A),
            "molecules": list(MOLECULE_SIGMAS_A),
        },
        "strain": f"normal, {STRAIN} for every 0.1 Å of displacement",
        "closest_pair": f"{CLOSEST} of the sum of covalent radii at least",
        "systems": systems,
        "convergence": json.loads(converged.read_text()) if converged.exists() else {},
        "failed": failed,
    }
    (OUT / f"{NAME}.card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(listed)} structures, {len(failed)} without a label")


def _as_file(text: str, work: Path) -> Path:
    path = work / "labels.extxyz"
    path.write_text(text)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("label", "converge", "write"))
    parser.add_argument("--work", type=Path, default=WORK)
    given = parser.parse_args()
    {"label": label, "converge": converge, "write": write}[given.what](given.work)


if __name__ == "__main__":
    main()
