"""Write the example structures that travel with the package, and their cards.

    python training/make_examples.py --minima training/work/minima.extxyz

`minima.extxyz` (the teacher's relaxed prototypes) comes from make_data.py. Everything written here is our own: CC0.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk

OUT = Path(__file__).resolve().parent.parent / "fdcore" / "data" / "examples"

# MMFF geometry of acetylsalicylic acid (rdkit, seed 7).
ASPIRIN = """\
C 3.403773 0.554328 0.055171
C 2.043928 0.139118 0.531220
O 1.689379 0.144080 1.703130
O 1.288360 -0.265870 -0.563568
C -0.028437 -0.584662 -0.218989
C -0.328237 -1.942419 -0.067410
C -1.628959 -2.330425 0.247766
C -2.625932 -1.367087 0.398262
C -2.326724 -0.011368 0.227262
C -1.022044 0.396766 -0.091408
C -0.703218 1.833352 -0.303091
O 0.360873 2.305193 -0.658958
O -1.756333 2.637294 -0.059211
H 3.923900 -0.305428 -0.374101
H 3.984378 0.930016 0.902534
H 3.310878 1.356169 -0.681670
H 0.448981 -2.692201 -0.185748
H -1.865912 -3.383598 0.378171
H -3.640546 -1.670069 0.646979
H -3.124400 0.719025 0.342852
H -1.403708 3.537784 -0.218829
"""


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minima", type=Path, default=Path("training/work/minima.extxyz"))
    minima = {a.info["prototype"]: a for a in ase.io.read(parser.parse_args().minima, ":")}
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
            "Mg17Al12, as published",
            "The paper's alloy, 58 atoms, symmetry in the CIF. What the embedded model knows best.",
            "Cell and sites: Schobinger-Papamantellos & Fischer 1970",
        ),
        (
            "Mg17Al12_displaced.extxyz",
            written(rattled(hot, 0.3), "extxyz"),
            "Mg17Al12, every atom displaced",
            "The same alloy with random displacements of 0.3 Å per component: far from anything relaxed.",
            "training/make_examples.py",
        ),
        (
            "Mg17Al12_one_atom.extxyz",
            written(one, "extxyz"),
            "Mg17Al12, one atom out of place",
            "A relaxed cell with a single atom moved by 0.58 Å. See whether the per-atom map finds it.",
            "training/make_examples.py",
        ),
        (
            "NaCl.cif",
            symmetric_cif("NaCl", "F m -3 m", 225, [a_nacl] * 3 + [90] * 3, [("Na", 0, 0, 0), ("Cl", 0.5, 0.5, 0.5)]),
            "Rock salt",
            "Eight atoms, perfect symmetry: every force vanishes, so the two cannot disagree.",
            "training/make_examples.py",
        ),
        (
            "NaCl_compressed.vasp",
            written(compressed, "vasp", direct=True),
            "Rock salt, compressed",
            "The lattice constant 14 % too short, a POSCAR. Outside what the model was trained on, yet symmetric.",
            "training/make_examples.py",
        ),
        (
            "MgO_vacancy.extxyz",
            written(rattled(bulk("MgO", "rocksalt", a=4.25, cubic=True) * (2, 1, 1), 0.05)[1:], "extxyz"),
            "MgO with a vacancy",
            "One magnesium missing: a charged defect that the training data does not contain.",
            "training/make_examples.py",
        ),
        (
            "LGPS.cif",
            written(clean("Li10GeP2S12"), "cif"),
            "LGPS, a solid electrolyte",
            "Li10GeP2S12 with its disorder resolved, 50 atoms, relaxed by the teacher.",
            "Kamaya et al. 2011, ordered and relaxed in training/",
        ),
        (
            "ice_XI.cif",
            written(clean("ice XI"), "cif"),
            "Ice XI",
            "Proton-ordered ice, 24 atoms.",
            "Leadbetter et al. 1985, relaxed in training/",
        ),
        (
            "ice_ladder.extxyz",
            written(ladder, "extxyz"),
            "Ice, twelve steps out",
            "Twelve frames displaced by 0.01 to 0.5 Å: watch U_Delta rise, and see where it ranks them.",
            "training/make_examples.py",
        ),
        (
            "Li3PS4_beta.vasp",
            written(clean("beta-Li3PS4"), "vasp", direct=True),
            "beta-Li3PS4, never trained on",
            "A polymorph that was held out of training, its elements known.",
            "Homma et al. 2011, relaxed in training/",
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
            "MOF-5, for the large models",
            "424 atoms with Zn and C, which the embedded model does not know: it refuses, and says which models do.",
            "Sites: Eddaoudi et al. 2002",
        ),
        (
            "aspirin.xyz",
            f"{len(ASPIRIN.splitlines())}\naspirin charge=0 spin=1\n{ASPIRIN}",
            "Aspirin, for the large models",
            "A molecule in a plain xyz file, with charge and spin in its comment line.",
            "rdkit + MMFF94",
        ),
    ]
    cards = []
    for file, text, title, description, source in files:
        (OUT / file).write_text(text)
        cards.append({"file": file, "title": title, "description": description, "source": source, "licence": "CC0-1.0"})
    (OUT / "cards.json").write_text(json.dumps(cards, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(cards)} examples written to {OUT}")


if __name__ == "__main__":
    main()
