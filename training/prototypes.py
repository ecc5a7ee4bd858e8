"""The crystals that the embedded model is trained and tested on: published structures, each with its source.

Cells are those of experiment or of the Materials Project convention; the teacher relaxes every one before it is used, so a
coordinate in the third digit does not matter, the topology does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.spacegroup import crystal


@dataclass(frozen=True)
class Prototype:
    """`weight`: share of frames within its family; `held_out` prototypes are never trained on."""

    name: str
    family: str
    make: Callable[[], Atoms]
    weight: float = 1.0
    held_out: bool = False
    source: str = ""


def mg17al12() -> Atoms:
    """29-atom primitive cell of the I-43m structure (Schobinger-Papamantellos & Fischer 1970)."""
    return crystal(
        ["Mg", "Mg", "Mg", "Al"],
        [(0, 0, 0), (0.324, 0.324, 0.324), (0.3582, 0.3582, 0.0393), (0.0954, 0.0954, 0.2725)],
        spacegroup=217,
        cellpar=[10.549, 10.549, 10.549, 90, 90, 90],
        primitive_cell=True,
    )


def l12(majority: str, minority: str, a: float) -> Atoms:
    """Ordered A3B of the Cu3Au type."""
    return Atoms(
        [minority, *[majority] * 3],
        scaled_positions=[(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)],
        cell=[a] * 3,
        pbc=True,
    )


def l10(first: str, second: str, a: float) -> Atoms:
    """Ordered AB of the CuAu type, 8 atoms."""
    return Atoms(
        [first, first, second, second],
        scaled_positions=[(0, 0, 0), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)],
        cell=[a] * 3,
        pbc=True,
    ) * (2, 1, 1)


def d019(majority: str, minority: str, a: float, c: float) -> Atoms:
    """Ordered hexagonal A3B of the Ni3Sn type (P6_3/mmc): B on 2c, A on 6h."""
    return crystal(
        [minority, majority],
        [(1 / 3, 2 / 3, 0.25), (0.833, 0.666, 0.25)],
        spacegroup=194,
        cellpar=[a, a, c, 90, 90, 120],
    )


def vacancy(atoms: Atoms, *indices: int) -> Atoms:
    """A copy without some atoms (a neutral set, e.g. one Na and one Cl)."""
    keep = [i for i in range(len(atoms)) if i not in indices]
    return atoms[keep]


def li2s() -> Atoms:
    """Antifluorite, Fm-3m."""
    return crystal(
        ["S", "Li"], [(0, 0, 0), (0.25, 0.25, 0.25)], spacegroup=225, cellpar=[5.71] * 3 + [90] * 3, primitive_cell=True
    )


def li3ps4_gamma() -> Atoms:
    """gamma-Li3PS4, Pmn2_1 (Homma et al. 2011), wurtzite-like; cell of experiment, tetrahedra of the Li3PO4 parent."""
    return crystal(
        ["Li", "Li", "P", "S", "S", "S"],
        [
            (0.248, 0.328, 0.986),
            (0.0, 0.157, 0.489),
            (0.0, 0.824, 0.0),
            (0.218, 0.668, 0.894),
            (0.0, 0.106, 0.898),
            (0.0, 0.820, 0.323),
        ],
        spacegroup=31,
        cellpar=[7.708, 6.535, 6.137, 90, 90, 90],
    )


def li3ps4_beta() -> Atoms:
    """beta-Li3PS4, Pnma (Homma et al. 2011), with its half-occupied lithium (4b/4c) put on 4b."""
    return crystal(
        ["Li", "Li", "P", "S", "S", "S"],
        [
            (0.332, 0.033, 0.383),
            (0.0, 0.0, 0.5),
            (0.087, 0.25, 0.163),
            (0.154, 0.034, 0.270),
            (0.941, 0.25, 0.256),
            (0.098, 0.25, 0.811),
        ],
        spacegroup=62,
        cellpar=[12.819, 8.219, 6.124, 90, 90, 90],
    )


def lgps(metal: str = "Ge") -> Atoms:
    """Li10GeP2S12 (Kamaya et al. 2011, P4_2/nmc), ordered: Ge and P alternate on 4d, and of the lithium sites those are
    left empty that crowd their neighbours most. 50 atoms."""
    cell = [8.7177, 8.7177, 12.6345, 90, 90, 90]

    def sites(symbol: str, position: tuple[float, float, float]) -> Atoms:
        return crystal([symbol], [position], spacegroup=137, setting=2, cellpar=cell)

    # Origin choice 2 is choice 1 of the publication shifted by (-1/4, 1/4, -1/4).
    shift = np.array([-0.25, 0.25, -0.25])

    def at(x: float, y: float, z: float) -> tuple[float, float, float]:
        return tuple((np.array([x, y, z]) + shift) % 1.0)

    frame = sites("P", at(0, 0, 0.5))
    mixed = sites("P", at(0, 0.5, 0.6905))
    # Alternate along c, so that equal neighbours are far apart.
    order = np.argsort(mixed.get_scaled_positions()[:, 2])
    mixed.symbols[order[0]] = metal
    mixed.symbols[order[2]] = metal
    sulphur = sites("S", at(0, 0.1838, 0.4077)) + sites("S", at(0, 0.2956, 0.0977)) + sites("S", at(0, 0.6987, 0.7908))
    atoms = frame + mixed + sulphur
    lithium = (
        sites("Li", at(0.2564, 0.2724, 0.1830)) + sites("Li", at(0, 0.5, 0.9450)) + sites("Li", at(0.2469, 0.2469, 0.0))
    )
    while len(lithium) > 20:
        trial = lithium + atoms
        distances = trial.get_all_distances(mic=True) + 10 * np.eye(len(trial))
        crowd = (1 / distances[: len(lithium), : len(lithium)] ** 4).sum(axis=1)
        del lithium[int(np.argmax(crowd))]
    return atoms + lithium


def ice_xi() -> Atoms:
    """Proton-ordered ice Ih, Cmc2_1 (Leadbetter et al. 1985); 24 atoms."""
    return crystal(
        ["O", "O", "H", "H", "H"],
        [
            (0.0, 0.6646, 0.0631),
            (0.5, 0.8255, -0.0631),
            (0.0, 0.6636, 0.1963),
            (0.0, 0.5363, 0.0183),
            (0.6766, 0.7748, -0.0183),
        ],
        spacegroup=36,
        cellpar=[4.465, 7.859, 7.292, 90, 90, 90],
    )


def ice_viii() -> Atoms:
    """Two interpenetrating ordered frameworks, I4_1/amd (Kuhs et al. 1984); 24 atoms, dense."""
    return crystal(
        ["O", "H"],
        [(0.0, 0.25, 0.1071), (0.0, 0.4157, 0.1935)],
        spacegroup=141,
        setting=2,
        cellpar=[4.656, 4.656, 6.775, 90, 90, 90],
    )


def salt(formula: str, a: float, repeat: tuple[int, int, int] = (1, 1, 1), cubic: bool = False) -> Atoms:
    """Rock salt."""
    return bulk(formula, "rocksalt", a=a, cubic=cubic) * repeat


MG_AL, SALT, SULPHIDE, ICE = "Mg-Al", "rock salt", "Li-P-S", "ice"

PROTOTYPES: tuple[Prototype, ...] = (
    Prototype("Mg17Al12", MG_AL, mg17al12, 4.0, source="Schobinger-Papamantellos & Fischer 1970"),
    Prototype("Mg", MG_AL, lambda: bulk("Mg", "hcp", a=3.19, c=5.18) * (2, 2, 1), 1.0, source="textbook"),
    Prototype("Mg vacancy", MG_AL, lambda: vacancy(bulk("Mg", "hcp", a=3.19, c=5.18) * (2, 2, 2), 0), 0.5),
    Prototype("Al", MG_AL, lambda: bulk("Al", a=4.04, cubic=True) * (2, 1, 1), 1.0, source="textbook"),
    Prototype("Al vacancy", MG_AL, lambda: vacancy(bulk("Al", a=4.04) * (3, 2, 2), 0), 0.5),
    Prototype("Mg3Al D0_19", MG_AL, lambda: d019("Mg", "Al", 6.26, 5.08), 1.0, source="Ni3Sn type"),
    Prototype("MgAl L1_0", MG_AL, lambda: l10("Mg", "Al", 4.2), 0.7, source="CuAu type"),
    Prototype("Al3Mg L1_2", MG_AL, lambda: l12("Al", "Mg", 4.13) * (2, 1, 1), 1.0, held_out=True, source="Cu3Au type"),
    Prototype("NaCl", SALT, lambda: salt("NaCl", 5.69, cubic=True), 2.0, source="textbook"),
    Prototype("NaCl slab-like cell", SALT, lambda: salt("NaCl", 5.69, (2, 2, 1)), 0.7),
    Prototype("NaCl vacancy pair", SALT, lambda: vacancy(salt("NaCl", 5.69, (2, 1, 1), cubic=True), 0, 1), 0.7),
    Prototype("MgO", SALT, lambda: salt("MgO", 4.25, cubic=True), 2.0, source="textbook"),
    Prototype("MgO thin cell", SALT, lambda: salt("MgO", 4.25, (2, 2, 1)), 0.7),
    Prototype("LiF", SALT, lambda: salt("LiF", 4.07, cubic=True), 2.0, source="textbook"),
    Prototype("LiF thin cell", SALT, lambda: salt("LiF", 4.07, (2, 2, 1)), 0.7),
    Prototype("NaCl CsCl-type", SALT, lambda: bulk("NaCl", "cesiumchloride", a=3.48) * (2, 2, 1), 1.0, held_out=True),
    Prototype("Li2S", SULPHIDE, lambda: li2s() * (2, 2, 1), 1.0, source="antifluorite"),
    Prototype("gamma-Li3PS4", SULPHIDE, li3ps4_gamma, 1.5, source="Homma et al. 2011"),
    Prototype("Li10GeP2S12", SULPHIDE, lgps, 1.5, source="Kamaya et al. 2011, ordered"),
    Prototype("beta-Li3PS4", SULPHIDE, li3ps4_beta, 1.0, held_out=True, source="Homma et al. 2011, ordered"),
    Prototype("ice XI", ICE, ice_xi, 1.0, source="Leadbetter et al. 1985"),
    Prototype("ice VIII", ICE, ice_viii, 1.0, held_out=True, source="Kuhs et al. 1984"),
)
