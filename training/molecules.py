"""The molecules that `fd-orb-molecules-v1` is trained and tested on: neutral, closed shell, of H, C, N and O.

Geometries come from SMILES (rdkit, ETKDG and MMFF94), from the sets of small molecules and dimers that ASE ships, and from a
box of liquid water; the teacher relaxes every one before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.collections import g2, s22
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import LBFGS
from rdkit import Chem
from rdkit.Chem import AllChem

ELEMENTS = frozenset("HCNO")


@dataclass(frozen=True)
class Molecule:
    """`make(k)` gives the k-th starting geometry of `conformers`; `frames` is the size of its share of the training data.
    `relaxed` is False where the geometry is to be kept (a piece of a liquid). `held_out` ones are never trained on."""

    name: str
    family: str
    make: Callable[[int], Atoms]
    frames: int
    conformers: int = 1
    relaxed: bool = True
    held_out: bool = False


def from_smiles(smiles: str, seed: int = 0) -> Atoms:
    """A three-dimensional geometry, hydrogens included: embedded by distance geometry and relaxed with MMFF94."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    if AllChem.EmbedMolecule(molecule, randomSeed=seed + 7) != 0:
        raise ValueError(f"No geometry found for {smiles}.")
    AllChem.MMFFOptimizeMolecule(molecule, maxIters=1000)
    return Atoms([a.GetSymbol() for a in molecule.GetAtoms()], positions=molecule.GetConformer().GetPositions())


def pair(first: Atoms, second: Atoms, seed: int, closest_A: float = 1.9) -> Atoms:
    """Two molecules side by side, each randomly turned, the second brought in until its closest atom is `closest_A` away."""
    rng = np.random.default_rng(seed)
    parts = []
    for atoms in (first, second):
        turned = atoms.copy()
        turned.positions -= turned.positions.mean(axis=0)
        turned.positions = turned.positions @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
        parts.append(turned)
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    for distance in np.arange(0.0, 30.0, 0.05):
        moved = parts[1].positions + distance * direction
        if np.linalg.norm(parts[0].positions[:, None] - moved[None], axis=2).min() >= closest_A:
            break
    parts[1].positions += distance * direction
    return parts[0] + parts[1]


class FlexibleWater(Calculator):
    """SPC/Fw (Wu, Tepper & Voth 2006) of molecules that stand as O, H, H in a periodic cube; charges by the damped shifted force
    of Fennell & Gezelter 2006 within half the box."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        positions = torch.tensor(self.atoms.positions, requires_grad=True)
        energy = self._energy(positions, float(self.atoms.cell.lengths()[0]))
        (gradient,) = torch.autograd.grad(energy, positions)
        self.results = {"energy": float(energy.detach()), "forces": -gradient.numpy()}

    @staticmethod
    def _energy(positions: torch.Tensor, side: float) -> torch.Tensor:
        kcal = units.kcal / units.mol
        oxygen, first, second = positions[0::3], positions[1::3] - positions[0::3], positions[2::3] - positions[0::3]
        lengths = first.norm(dim=1), second.norm(dim=1)
        angle = torch.acos((first * second).sum(dim=1) / (lengths[0] * lengths[1]))
        energy = 0.5 * 1059.162 * kcal * sum(((r - 1.012) ** 2).sum() for r in lengths)
        energy = energy + 0.5 * 75.90 * kcal * ((angle - np.deg2rad(113.24)) ** 2).sum()

        def distances(points: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
            between = points[rows] - points[columns]
            return (between - side * torch.round(between / side)).norm(dim=1)

        cutoff, damping = 0.5 * side, 0.2
        r = distances(oxygen, *torch.triu_indices(len(oxygen), len(oxygen), 1))
        sixth = (3.165492 / r[r < cutoff]) ** 6
        energy = energy + 4 * 0.1554253 * kcal * (sixth**2 - sixth).sum()
        rows, columns = torch.triu_indices(len(positions), len(positions), 1)
        between = rows // 3 != columns // 3
        rows, columns = rows[between], columns[between]
        r = distances(positions, rows, columns)
        near = r < cutoff
        r, charge = r[near], torch.tensor([-0.82, 0.41, 0.41], dtype=r.dtype)
        at_cutoff = math.erfc(damping * cutoff) / cutoff
        slope = at_cutoff / cutoff + 2 * damping / math.sqrt(math.pi) * math.exp(-((damping * cutoff) ** 2)) / cutoff
        shape = torch.erfc(damping * r) / r - at_cutoff + slope * (r - cutoff)
        return energy + units.Hartree * units.Bohr * (charge[rows[near] % 3] * charge[columns[near] % 3] * shape).sum()


@cache
def water_box(side_A: float = 15.0, density_g_per_cm3: float = 0.997, steps: int = 8000, seed: int = 0) -> Atoms:
    """Liquid water at 300 K: SPC/Fw in a periodic cube, molten from a lattice by Langevin dynamics of 0.5 fs steps.

    The O, H and H of a molecule stand together and are whole, whatever side of the box they are on.
    """
    rng = np.random.default_rng(seed)
    count = round(density_g_per_cm3 * side_A**3 * 1e-24 / (18.015 / 6.02214e23))
    points = int(np.ceil(count ** (1 / 3)))
    grid = np.array([(i, j, k) for i in range(points) for j in range(points) for k in range(points)]) * side_A / points
    half = np.deg2rad(113.24) / 2
    monomer = 1.012 * np.array([(0, 0, 0), (np.sin(half), np.cos(half), 0), (-np.sin(half), np.cos(half), 0)])
    positions = [
        centre + monomer @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
        for centre in grid[np.sort(rng.permutation(len(grid))[:count])]
    ]
    box = Atoms("OHH" * count, positions=np.concatenate(positions), cell=[side_A] * 3, pbc=True)
    box.calc = FlexibleWater()
    LBFGS(box, logfile=None).run(fmax=0.5, steps=100)
    MaxwellBoltzmannDistribution(box, temperature_K=300, rng=rng)
    Langevin(box, 0.5 * units.fs, temperature_K=300, friction=0.02 / units.fs, rng=rng).run(steps)
    return Atoms(box.symbols, positions=box.positions, cell=box.cell, pbc=True)


def water_droplet(count: int, seed: int) -> Atoms:
    """The `count` molecules of the liquid that are nearest to a random point, without the cell."""
    box = water_box()
    rng = np.random.default_rng((count, seed))
    oxygen = box.positions[::3]
    shift = oxygen - rng.uniform(0, box.cell.lengths())
    shift -= box.cell.lengths() * np.round(shift / box.cell.lengths())
    out = Atoms()
    for i in np.argsort(np.linalg.norm(shift, axis=1))[:count]:
        molecule = box[3 * i : 3 * i + 3]
        molecule.positions += shift[i] - oxygen[i]
        out += Atoms(molecule.symbols, positions=molecule.positions)
    return out


def of_smiles(family: str, frames: int, table: dict[str, str], conformers: int = 1, held_out: bool = False):
    """One Molecule per row of a table from names to SMILES."""
    return tuple(
        Molecule(name, family, lambda k, s=smiles: from_smiles(s, k), frames, conformers, held_out=held_out)
        for name, smiles in table.items()
    )


def pairs(frames: int, table: dict[str, tuple[str, str]], held_out: bool = False):
    """One Molecule per row of a table from names to two SMILES."""
    return tuple(
        Molecule(
            name,
            "dimers",
            lambda k, a=first, b=second: pair(from_smiles(a), from_smiles(b), k),
            frames,
            2,
            held_out=held_out,
        )
        for name, (first, second) in table.items()
    )


# Oxygen-only and carbene species are left out: GFN2 at closed shell is no reference for them.
SMALL = tuple(
    name
    for name in g2.names
    if set(g2[name].symbols) <= ELEMENTS
    and sum(g2[name].numbers) % 2 == 0
    and not g2[name].get_initial_magnetic_moments().any()
    and name not in ("O3", "CH2_s1A1d")
)

PAPER = {
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "paracetamol": "CC(=O)Nc1ccc(O)cc1",
    "Ac-Ala3-NHMe": "CC(=O)N[C@@H](C)C(=O)N[C@@H](C)C(=O)N[C@@H](C)C(=O)NC",
    "DHA": r"CC/C=C\C/C=C\C/C=C\C/C=C\C/C=C\C/C=C\CCC(=O)O",
    "stachyose": "C([C@@H]1[C@@H]([C@@H]([C@H]([C@H](O1)OC[C@@H]2[C@@H]([C@@H]([C@H]([C@H](O2)OC[C@@H]3[C@H]([C@@H]([C@H]"
    "([C@H](O3)O[C@]4([C@H]([C@@H]([C@H](O4)CO)O)O)CO)O)O)O)O)O)O)O)O)O)O",
}

ORGANIC = {
    "pentane": "CCCCC",
    "hexane": "CCCCCC",
    "cyclohexane": "C1CCCCC1",
    "2-butene": r"C/C=C/C",
    "isoprene": "CC(=C)C=C",
    "toluene": "Cc1ccccc1",
    "styrene": "C=Cc1ccccc1",
    "naphthalene": "c1ccc2ccccc2c1",
    "1-propanol": "CCCO",
    "2-butanol": "CCC(C)O",
    "ethylene glycol": "OCCO",
    "glycerol": "OCC(O)CO",
    "phenol": "Oc1ccccc1",
    "catechol": "Oc1ccccc1O",
    "benzyl alcohol": "OCc1ccccc1",
    "tetrahydrofuran": "C1CCOC1",
    "dioxane": "C1COCCO1",
    "dimethoxyethane": "COCCOC",
    "dimethoxymethane": "COCOC",
    "anisole": "COc1ccccc1",
    "propanal": "CCC=O",
    "acrolein": "C=CC=O",
    "cyclohexanone": "O=C1CCCCC1",
    "acetylacetone": "CC(=O)CC(C)=O",
    "benzaldehyde": "O=Cc1ccccc1",
    "propionic acid": "CCC(=O)O",
    "acrylic acid": "C=CC(=O)O",
    "lactic acid": "CC(O)C(=O)O",
    "malonic acid": "OC(=O)CC(=O)O",
    "oxalic acid": "OC(=O)C(=O)O",
    "benzoic acid": "OC(=O)c1ccccc1",
    "salicylic acid": "OC(=O)c1ccccc1O",
    "methyl salicylate": "COC(=O)c1ccccc1O",
    "methyl acetate": "COC(C)=O",
    "ethyl acetate": "CCOC(C)=O",
    "vinyl acetate": "C=COC(C)=O",
    "phenyl acetate": "CC(=O)Oc1ccccc1",
    "acetic anhydride": "CC(=O)OC(C)=O",
    "propylamine": "CCCN",
    "pyrrolidine": "C1CCNC1",
    "piperidine": "C1CCNCC1",
    "morpholine": "C1COCCN1",
    "4-aminophenol": "Nc1ccc(O)cc1",
    "acetanilide": "CC(=O)Nc1ccccc1",
    "formamide": "NC=O",
    "N-methylacetamide": "CC(=O)NC",
    "dimethylformamide": "CN(C)C=O",
    "urea": "NC(N)=O",
    "imidazole": "c1c[nH]cn1",
    "pyrazine": "c1cnccn1",
    "indole": "c1ccc2[nH]ccc2c1",
    "guanidine": "NC(N)=N",
    "acetaldoxime": "CC=NO",
    "nitroethane": "CC[N+](=O)[O-]",
    "nitrobenzene": "O=[N+]([O-])c1ccccc1",
    "benzonitrile": "N#Cc1ccccc1",
    "adenine": "Nc1ncnc2[nH]cnc12",
    "thymine": "Cc1c[nH]c(=O)[nH]c1=O",
    "cytosine": "Nc1cc[nH]c(=O)n1",
}

FATTY = {
    "butyric acid": "CCCC(=O)O",
    "hexanoic acid": "CCCCCC(=O)O",
    "4-hexenoic acid": r"C/C=C\CCC(=O)O",
    "1,4-pentadiene": "C=CCC=C",
    "3,6-nonadiene": r"CC/C=C\C/C=C\CC",
    "methyl butyrate": "CCCC(=O)OC",
    "sorbic acid": "C/C=C/C=C/C(=O)O",
}

PEPTIDES = {
    "glycine": "NCC(=O)O",
    "alanine": "C[C@H](N)C(=O)O",
    "serine": "N[C@@H](CO)C(=O)O",
    "threonine": "C[C@@H](O)[C@H](N)C(=O)O",
    "valine": "CC(C)[C@H](N)C(=O)O",
    "proline": "OC(=O)[C@@H]1CCCN1",
    "asparagine": "N[C@@H](CC(N)=O)C(=O)O",
    "aspartic acid": "N[C@@H](CC(=O)O)C(=O)O",
    "phenylalanine": "N[C@@H](Cc1ccccc1)C(=O)O",
    "histidine": "N[C@@H](Cc1c[nH]cn1)C(=O)O",
    "glycine dipeptide": "CC(=O)NCC(=O)NC",
    "serine dipeptide": "CC(=O)N[C@@H](CO)C(=O)NC",
    "valine dipeptide": "CC(=O)N[C@@H](C(C)C)C(=O)NC",
    "Gly-Gly": "NCC(=O)NCC(=O)O",
    "Ala-Gly": "C[C@H](N)C(=O)NCC(=O)O",
}

SUGARS = {
    "glyceraldehyde": "OC[C@@H](O)C=O",
    "erythritol": "OC[C@@H](O)[C@@H](O)CO",
    "tetrahydropyran-2-ol": "OC1CCCCO1",
    "xylopyranose": "O[C@@H]1CO[C@@H](O)[C@H](O)[C@H]1O",
    "fructofuranose": "OC[C@H]1O[C@](O)(CO)[C@@H](O)[C@@H]1O",
    "galactopyranose": "OC[C@H]1O[C@H](O)[C@H](O)[C@@H](O)[C@H]1O",
    "sucrose": "C([C@@H]1[C@H]([C@@H]([C@H]([C@H](O1)O[C@]2([C@H]([C@@H]([C@H](O2)CO)O)O)CO)O)O)O)O",
}

HELD_OUT = {
    "butanone": "CCC(C)=O",
    "aniline": "Nc1ccccc1",
    "pyrimidine": "c1cncnc1",
    "alanine dipeptide": "CC(=O)N[C@@H](C)C(=O)NC",
    "glucopyranose": "OC[C@H]1O[C@@H](O)[C@H](O)[C@@H](O)[C@@H]1O",
    "caffeine": "Cn1c(=O)c2c(ncn2C)n(C)c1=O",
    "ibuprofen": "CC(C)Cc1ccc(cc1)C(C)C(=O)O",
}

MOLECULES: tuple[Molecule, ...] = (
    *(Molecule(name, "small", lambda k, n=name: Atoms(g2[n].symbols, g2[n].positions), 7) for name in SMALL),
    *of_smiles("organic", 10, ORGANIC),
    *of_smiles("fatty acids", 14, FATTY, conformers=3),
    *of_smiles("amino acids and peptides", 14, PEPTIDES, conformers=2),
    *of_smiles("sugars", 14, SUGARS, conformers=2),
    *of_smiles("the paper's molecules", 60, {k: v for k, v in PAPER.items() if k in ("aspirin", "paracetamol")}, 3),
    *of_smiles("the paper's molecules", 50, {"Ac-Ala3-NHMe": PAPER["Ac-Ala3-NHMe"]}, 4),
    *of_smiles("the paper's molecules", 40, {"DHA": PAPER["DHA"]}, 4),
    *of_smiles("the paper's molecules", 28, {"stachyose": PAPER["stachyose"]}, 3),
    *(Molecule(name, "dimers", lambda k, n=name: Atoms(s22[n].symbols, s22[n].positions), 8) for name in s22.names),
    *pairs(
        12,
        {
            "water + methanol": ("O", "CO"),
            "water + acetic acid": ("O", "CC(=O)O"),
            "water + formamide": ("O", "NC=O"),
            "water + dimethyl ether": ("O", "COC"),
            "water + N-methylacetamide": ("O", "CC(=O)NC"),
            "methanol dimer": ("CO", "CO"),
            "methanol + ammonia": ("CO", "N"),
            "ethylene glycol dimer": ("OCCO", "OCCO"),
        },
    ),
    *(
        Molecule(f"{n} water molecules", "water", lambda k, n=n: water_droplet(n, k), 16, 4)
        for n in (2, 3, 4, 5, 6, 7, 9, 10, 11, 12)
    ),
    *(
        Molecule(f"droplet of {n}", "liquid water", lambda k, n=n: water_droplet(n, k), 22, 11, relaxed=False)
        for n in (17, 19, 21)
    ),
    *of_smiles("held-out molecules", 40, HELD_OUT, conformers=2, held_out=True),
    *pairs(40, {"ethanol dimer": ("CCO", "CCO")}, held_out=True),
    Molecule("8 water molecules", "water", lambda k: water_droplet(8, k), 40, 4, held_out=True),
    Molecule(
        "droplet of 20", "liquid water", lambda k: water_droplet(20, 100 + k), 24, 8, relaxed=False, held_out=True
    ),
)
