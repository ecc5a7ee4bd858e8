"""Write the example structures that travel with the package, and their cards.

    python training/make_examples.py --work training/work

The teachers' relaxed structures come from make_data.py (`minima.extxyz`) and make_molecule_data.py (`molecules/`, with the water
box). Everything written here is our own: CC0.
"""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk, surface

OUT = Path(__file__).resolve().parent.parent / "fdcore" / "data" / "examples"
MOLECULE_MODEL = "fd-orb-molecules-v1"
PAPER_MOLECULES = (
    ("aspirin", "Aspirin", "A molecule in a plain xyz file, 21 atoms, with charge and spin in its comment line."),
    ("paracetamol", "Paracetamol", "20 atoms; an amide and a phenol."),
    ("Ac-Ala3-NHMe", "Ac-Ala3-NHMe, a peptide", "Three alanines with capped ends, 42 atoms."),
    ("DHA", "DHA, a fatty acid", "Docosahexaenoic acid, 56 atoms, six double bonds in a soft chain."),
    ("stachyose", "Stachyose, a sugar of four rings", "87 atoms, fourteen hydroxyl groups and their hydrogen bonds."),
)


@dataclass(frozen=True)
class Card:
    """What the cards file says of an example; `paper` is the name of the system in Table 2 of the paper."""

    title: str
    description: str
    source: str
    paper: str = ""
    model: str = ""


def symmetric_cif(name: str, spacegroup: str, number: int, cell: list[float], sites: list[tuple]) -> str:
    """A CIF with its asymmetric unit, as databases write it."""
    lengths = ("a", "b", "c", "alpha", "beta", "gamma")
    lines = [
        f"data_{name}",
        f"_symmetry_space_group_name_H-M   '{spacegroup}'",
        f"_symmetry_Int_Tables_number   {number}",
    ]
    lines += [
        f"_cell_{'length' if k < 3 else 'angle'}_{label}   {value:.4f}"
        for k, (label, value) in enumerate(zip(lengths, cell, strict=True))
    ]
    lines += ["loop_"] + [
        f"_atom_site_{k}" for k in ("label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy")
    ]
    counts: dict[str, int] = {}
    for symbol, x, y, z in sites:
        counts[symbol] = counts.get(symbol, 0) + 1
        lines.append(f"{symbol}{counts[symbol]} {symbol} {x:.5f} {y:.5f} {z:.5f} 1")
    return "\n".join(lines) + "\n"


def written(atoms: Atoms | list[Atoms], format: str, **options) -> str:
    """The text that ASE writes."""
    buffer = io.BytesIO() if format == "cif" else io.StringIO()
    ase.io.write(buffer, atoms, format=format, **options)
    value = buffer.getvalue()
    return value.decode() if isinstance(value, bytes) else value


def plain_xyz(name: str, atoms: Atoms) -> str:
    """A neutral molecule with paired electrons, as plain xyz with charge and spin in the comment line."""
    rows = [f"{s} {x:.5f} {y:.5f} {z:.5f}" for s, (x, y, z) in zip(atoms.symbols, atoms.positions, strict=True)]
    return "\n".join([str(len(atoms)), f"{name} charge=0 spin=1", *rows]) + "\n"


def capd_nh2() -> Atoms:
    """NH2 between two calcium atoms of CaPd(110): four layers, 2 x 2, bond lengths of amides; not relaxed."""
    slab = surface(bulk("CaPd", "cesiumchloride", a=3.52), (1, 1, 0), layers=4, vacuum=7.5, periodic=True) * (2, 2, 1)
    top = slab.positions[:, 2].max()
    upper = [i for i, s in enumerate(slab.symbols) if s == "Ca" and slab.positions[i, 2] > top - 0.1]
    first = slab.positions[upper[0]]
    distances = slab.get_distances(upper[0], upper, mic=True, vector=True)
    along = min((d for d in distances if np.linalg.norm(d) > 0.1), key=np.linalg.norm)
    length = float(np.linalg.norm(along))
    across = np.cross([0.0, 0.0, 1.0], along / length)
    nitrogen = first + along / 2 + [0, 0, np.sqrt(2.35**2 - (length / 2) ** 2)]
    half = np.deg2rad(104.0) / 2
    hydrogen = [nitrogen + 1.02 * (sign * np.sin(half) * across + [0, 0, np.cos(half)]) for sign in (1, -1)]
    return slab + Atoms("NH2", positions=[nitrogen, *hydrogen])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    work = parser.parse_args().work
    minima = {a.info["prototype"]: a for a in ase.io.read(work / "minima.extxyz", ":")}
    molecules = {a.info["prototype"]: a for a in ase.io.read(work / "molecules" / "minima.extxyz", ":")}
    water = ase.io.read(work / "molecules" / "water_box.extxyz")
    rng = np.random.default_rng(2026)
    OUT.mkdir(parents=True, exist_ok=True)

    def clean(name: str) -> Atoms:
        atoms = minima[name]
        return Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=True)

    def rattled(atoms: Atoms, sigma: float) -> Atoms:
        out = atoms.copy()
        out.positions += rng.normal(0, sigma, out.positions.shape)
        return out

    a_nacl = float(clean("NaCl").cell.lengths()[0])
    compressed = bulk("NaCl", "rocksalt", a=0.86 * a_nacl, cubic=True)
    ladder = []
    for sigma in np.geomspace(0.01, 0.5, 12):
        frame = rattled(clean("ice XI"), sigma)
        frame.info["sigma_A"] = round(float(sigma), 4)
        ladder.append(frame)
    hot = clean("Mg17Al12")
    one = hot.copy()
    one.positions[4] += [0.45, -0.3, 0.2]

    files = [
        (
            "Mg17Al12.cif",
            symmetric_cif(
                "Mg17Al12",
                "I -4 3 m",
                217,
                [10.549, 10.549, 10.549, 90, 90, 90],
                [
                    ("Mg", 0, 0, 0),
                    ("Mg", 0.324, 0.324, 0.324),
                    ("Mg", 0.3582, 0.3582, 0.0393),
                    ("Al", 0.0954, 0.0954, 0.2725),
                ],
            ),
            Card(
                "Mg17Al12, as published",
                "The paper's alloy, 58 atoms, symmetry in the CIF. What the embedded model knows best.",
                "Cell and sites: Schobinger-Papamantellos & Fischer 1970",
                paper="Mg17Al12",
            ),
        ),
        (
            "Mg17Al12_displaced.extxyz",
            written(rattled(hot, 0.3), "extxyz"),
            Card(
                "Mg17Al12, every atom displaced",
                "The same alloy with random displacements of 0.3 Å per component: far from anything relaxed.",
                "training/make_examples.py",
            ),
        ),
        (
            "Mg17Al12_one_atom.extxyz",
            written(one, "extxyz"),
            Card(
                "Mg17Al12, one atom out of place",
                "A relaxed cell with a single atom moved by 0.58 Å. See whether the per-atom map finds it.",
                "training/make_examples.py",
            ),
        ),
        (
            "NaCl.cif",
            symmetric_cif("NaCl", "F m -3 m", 225, [a_nacl] * 3 + [90] * 3, [("Na", 0, 0, 0), ("Cl", 0.5, 0.5, 0.5)]),
            Card(
                "Rock salt",
                "Eight atoms, perfect symmetry: every force vanishes, so the two cannot disagree.",
                "training/make_examples.py",
            ),
        ),
        (
            "NaCl_compressed.vasp",
            written(compressed, "vasp", direct=True),
            Card(
                "Rock salt, compressed",
                "The lattice constant 14 % too short, a POSCAR. Outside what the model was trained on, yet symmetric.",
                "training/make_examples.py",
            ),
        ),
        (
            "MgO_vacancy.extxyz",
            written(rattled(bulk("MgO", "rocksalt", a=4.25, cubic=True) * (2, 1, 1), 0.05)[1:], "extxyz"),
            Card(
                "MgO with a vacancy",
                "One magnesium missing: a charged defect that the training data does not contain.",
                "training/make_examples.py",
            ),
        ),
        (
            "LGPS.cif",
            written(clean("Li10GeP2S12"), "cif"),
            Card(
                "LGPS, a solid electrolyte",
                "Li10GeP2S12 with its disorder resolved, 50 atoms, relaxed by the teacher.",
                "Kamaya et al. 2011, ordered and relaxed in training/",
                paper="LGPS",
            ),
        ),
        (
            "ice_XI.cif",
            written(clean("ice XI"), "cif"),
            Card(
                "Ice XI",
                "The paper's ice with its protons in order, 24 atoms.",
                "Leadbetter et al. 1985, relaxed in training/",
                paper="ice",
            ),
        ),
        (
            "ice_ladder.extxyz",
            written(ladder, "extxyz"),
            Card(
                "Ice, twelve steps out",
                "Twelve frames displaced by 0.01 to 0.5 Å: watch U_Delta rise, and see where it ranks them.",
                "training/make_examples.py",
            ),
        ),
        (
            "Li3PS4_beta.vasp",
            written(clean("beta-Li3PS4"), "vasp", direct=True),
            Card(
                "beta-Li3PS4, never trained on",
                "A polymorph that was held out of training, its elements known.",
                "Homma et al. 2011, relaxed in training/",
            ),
        ),
        (
            "MOF-5.cif",
            symmetric_cif(
                "MOF-5",
                "F m -3 m",
                225,
                [25.832, 25.832, 25.832, 90, 90, 90],
                [
                    ("Zn", 0.2936, 0.2064, 0.2064),
                    ("O", 0.25, 0.25, 0.25),
                    ("O", 0.2819, 0.2181, 0.1340),
                    ("C", 0.25, 0.25, 0.1113),
                    ("C", 0.25, 0.25, 0.0538),
                    ("C", 0.2829, 0.2171, 0.0269),
                    ("H", 0.3049, 0.1951, 0.0448),
                ],
            ),
            Card(
                "MOF-5, for the large models",
                "424 atoms with Zn and C together, which no embedded model knows: it refuses, and says which models do.",
                "Sites: Eddaoudi et al. 2002",
                paper="MoF5",
            ),
        ),
        (
            "CaPd_NH2.extxyz",
            written(capd_nh2(), "extxyz"),
            Card(
                "CaPd surface with NH2, for the large models",
                "Four layers of CaPd(110) with NH2 between two calcium atoms, an amide as in the paper's table (not ammonia), 35 atoms, as "
                "built: not relaxed. The paper's own slab comes from OC22.",
                "CsCl type: Mendelsohn & Tanaka 1973, J. Less-Common Met. 32, 314. a = 3.52 Å is what the slab was built with, not verified "
                "against a measurement; adsorbate placed in training/",
                paper="CaPd-NH2",
            ),
        ),
        *(
            (
                f"{name}.xyz",
                plain_xyz(name, molecules[name]),
                Card(title, description, "rdkit from SMILES, relaxed with GFN2-xTB in training/", paper=name),
            )
            for name, title, description in PAPER_MOLECULES
        ),
        (
            "water_box.extxyz",
            written(Atoms(water.symbols, positions=water.positions, cell=water.cell, pbc=True), "extxyz"),
            Card(
                "Water, a box of 15 Å",
                "112 molecules of the liquid at 300 K. The model for molecules knows water from droplets, not from a periodic cell.",
                "SPC/Fw molecular dynamics in training/",
                paper="Water",
                model=MOLECULE_MODEL,
            ),
        ),
    ]
    cards = []
    for file, text, card in files:
        (OUT / file).write_text(text)
        given = {k: v for k, v in asdict(card).items() if v}
        cards.append({"file": file, **given, "licence": "CC0-1.0"})
    (OUT / "cards.json").write_text(json.dumps(cards, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(cards)} examples written to {OUT}")


if __name__ == "__main__":
    main()
