"""GPAW as a reference: PBE by plane waves, computed by a program in an environment of its own (GPAW is under the GPL and never imported here).

What is asked of it is decided here, as pure functions: grid of k points, box, starting moments. The messages are in `models/envs/gpaw`.
Source: Mortensen et al. 2024, GPAW (J. Chem. Phys. 160, 092503).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from fdcore.errors import UnconvergedError, UnsupportedStructureError, UsageError
from fdcore.records import FloatArray, IntArray, Structure

ENVIRONMENT = "gpaw"
VERSION = "26.7.0"
DATA_VERSION = "1.2.1"
# Functionals that the data sets were made for, or that are near.
FUNCTIONALS = ("PBE", "PBEsol", "RPBE", "revPBE", "LDA")
SPINS = ("auto", "on", "off")
# How long (s) one structure may take.
PATIENCE_S = 6 * 3600.0
# Elements whose crystals are mostly insulators, or no crystals of metals: everything else is a metal.
NONMETALS = frozenset(
    atomic_numbers[s]
    for s in [
        "H",
        "He",
        "B",
        "C",
        "N",
        "O",
        "F",
        "Ne",
        "Si",
        "P",
        "S",
        "Cl",
        "Ar",
        "Ge",
        "As",
        "Se",
        "Br",
        "Kr",
        "Te",
        "I",
        "Xe",
        "At",
        "Rn",
    ]
)
# Elements with open d and f shells, with the moment (Bohr magnetons) that the iteration begins with: as the Materials Project does.
MAGNETIC = {
    atomic_numbers[s]: 5.0
    for s in [
        "V",
        "Cr",
        "Mn",
        "Fe",
        "Co",
        "Ni",
        "Ce",
        "Pr",
        "Nd",
        "Pm",
        "Sm",
        "Eu",
        "Gd",
        "Tb",
        "Dy",
        "Ho",
        "Er",
        "Tm",
        "Yb",
        "U",
    ]
}


@dataclass(frozen=True)
class GpawSettings:
    """What GPAW is asked for.

    cutoff_eV : of the plane waves; with oxygen 600 to 700 at least (at 400 the net force on water is 0.08 eV/Å).
    kpoint_density_A : k points per 1/Å of the reciprocal lattice vectors (with 2 pi) of a crystal; `kpoint_density_metal_A` where
        every element is a metal. Grids hold Gamma. Molecules: Gamma alone.
    smearing_eV : width of the Fermi-Dirac occupations.
    xc : functional. spin : "auto": spin-polarised with an odd number of electrons, a given multiplicity above 1, or elements with open
        d and f shells (which begin ferromagnetic); "on"; "off".
    vacuum_A : around a molecule, on every side.
    density_tolerance (electrons per valence electron), energy_tolerance_eV (per valence electron), max_iterations : of the
        self-consistency; where it is not reached there is no label.
    """

    cutoff_eV: float = 700.0
    kpoint_density_A: float = 3.5
    kpoint_density_metal_A: float = 5.0
    smearing_eV: float = 0.05
    xc: str = "PBE"
    spin: str = "auto"
    vacuum_A: float = 5.0
    density_tolerance: float = 1e-5
    energy_tolerance_eV: float = 1e-5
    max_iterations: int = 200

    def __post_init__(self) -> None:
        bounds = {
            "cutoff_eV": (100, 3000),
            "kpoint_density_A": (0.1, 20),
            "kpoint_density_metal_A": (0.1, 20),
            "smearing_eV": (0, 1),
            "vacuum_A": (2, 20),
            "density_tolerance": (1e-12, 1e-2),
            "energy_tolerance_eV": (1e-12, 1e-2),
            "max_iterations": (1, 5000),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise UsageError(f"{name} is {value!r}; a number from {low:g} to {high:g} is needed.")
        if not isinstance(self.max_iterations, int):
            raise UsageError(f"max_iterations is {self.max_iterations!r}; a whole number is needed.")
        for name, known in (("xc", FUNCTIONALS), ("spin", SPINS)):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is {getattr(self, name)!r}.", f"Known are {', '.join(known)}.")


@dataclass(frozen=True)
class Asked:
    """One structure as GPAW is asked about it: positions (N, 3) and cell (3, 3) in Å, grid (3,) of k points, starting moments (N,) in Bohr
    magnetons; `fixed_moment`: their sum is kept."""

    positions: FloatArray
    cell: FloatArray
    grid: IntArray
    moments: FloatArray
    spin_polarised: bool
    fixed_moment: bool


def asked(structure: Structure, settings: GpawSettings) -> Asked:
    """What is asked about this structure. UnsupportedStructureError for a charge, and for a multiplicity that the electrons do not have."""
    if structure.charge:
        raise UnsupportedStructureError(
            f"{structure.formula} carries a charge of {structure.charge} e: plane waves would put a uniform background around it.",
            "Use gfn2 for charged molecules, or label it with another program.",
        )
    moments, polarised, fixed = starting_moments(structure, settings.spin)
    if structure.periodic:
        metal = not any(int(z) in NONMETALS for z in structure.numbers)
        density = settings.kpoint_density_metal_A if metal else settings.kpoint_density_A
        return Asked(
            structure.positions, structure.cell, kpoint_grid(structure.cell, density), moments, polarised, fixed
        )
    positions, cell = boxed(structure.positions, settings.vacuum_A)
    return Asked(positions, cell, np.ones(3, np.int64), moments, polarised, fixed)


def kpoint_grid(cell: FloatArray, density_A: float) -> IntArray:
    """Divisions (3,) of the reciprocal cell of `cell` (3, 3) in Å, so that no direction has fewer than `density_A` points per 1/Å."""
    lengths = 2 * np.pi * np.linalg.norm(np.linalg.inv(cell), axis=0)
    # A hair below: 4.0000000001 points are four.
    return np.maximum(1, np.ceil(lengths * density_A - 1e-6)).astype(np.int64)


def boxed(positions: FloatArray, vacuum_A: float) -> tuple[FloatArray, FloatArray]:
    """A molecule, moved into a rectangular cell (3, 3) with so much vacuum on every side: positions (N, 3) and cell, in Å."""
    low, high = positions.min(axis=0), positions.max(axis=0)
    return positions - low + vacuum_A, np.diag(high - low + 2 * vacuum_A)


def starting_moments(structure: Structure, spin: str) -> tuple[FloatArray, bool, bool]:
    """Starting moments (N,) in Bohr magnetons, whether spins are polarised, and whether the sum of the moments is kept."""
    numbers: NDArray[np.int64] = structure.numbers
    odd = bool(numbers.sum() % 2)
    nothing = np.zeros(len(numbers))
    if structure.spin is not None:
        unpaired = structure.spin - 1
        if unpaired % 2 != odd:
            raise UnsupportedStructureError(
                f"{structure.formula} has {int(numbers.sum())} electrons, which cannot have the multiplicity {structure.spin}.",
                "Correct the multiplicity (2S + 1) or the structure.",
            )
        if spin == "off" and unpaired:
            raise UnsupportedStructureError(
                f"{structure.formula} has the multiplicity {structure.spin}, but spin is off.", "Set spin to auto."
            )
        if unpaired or spin == "on":
            return nothing + unpaired / len(numbers), True, not structure.periodic
        return nothing, False, False
    if spin == "off":
        return nothing, False, False
    moments = np.array([MAGNETIC.get(int(z), 0.0) for z in numbers])
    if moments.any():
        return moments, True, False
    if odd:
        return nothing + 1 / len(numbers), True, not structure.periodic
    return nothing, spin == "on", False


class Gpaw:
    """GPAW with these settings: a process that is started when first needed, in an environment that is built when first needed."""

    def __init__(self, settings: GpawSettings, worker: Any = None) -> None:
        self.settings = settings
        self._worker = worker

    def label(self, structure: Structure) -> tuple[float, FloatArray, Mapping[str, Any]]:
        """Free energy (eV), its negative gradient (N, 3) in eV/Å, and what was decided for this structure.

        Raises UnsupportedStructureError, UnconvergedError (no number), ComputeError, WorkerError, BuildError.
        """
        question = asked(structure, self.settings)
        worker = self._running()
        order = {"do": "label", "spin_polarised": question.spin_polarised, "fixed_moment": question.fixed_moment}
        arrays = {
            "numbers": structure.numbers,
            "positions": question.positions,
            "cell": question.cell,
            "grid": question.grid,
            "moments": question.moments,
        }
        try:
            done, found = worker.ask(order, arrays, PATIENCE_S)
        except UnconvergedError as error:
            raise UnconvergedError(
                f"{structure.formula}: {error.message}",
                "Raise smearing_eV or max_iterations (--set), or leave it without a label.",
            ) from error
        forces = found["forces_reference"]
        details = {
            "kpoints": [int(n) for n in question.grid],
            "spin_polarised": question.spin_polarised,
            "moment": round(done["moment"], 4),
            "iterations": done["iterations"],
            "net_force_eV_per_A": round(float(np.abs(forces.sum(axis=0)).max()), 6),
            "libxc": worker.facts["libxc"],
            **({} if structure.periodic else {"box_A": [round(float(x), 4) for x in np.diag(question.cell)]}),
        }
        return float(found["energy"][0]), forces, details

    def _running(self) -> Any:
        if self._worker is None:
            # Heavy, and only wanted by who asks for it.
            from fdcore.models import envs
            from fdcore.models.isolated import Worker

            packages = {"gpaw": VERSION, "gpaw-data": DATA_VERSION}
            script: Path = envs.HERE / ENVIRONMENT / "worker.py"
            self._worker = Worker(envs.python_of(ENVIRONMENT), script, asdict(self.settings), packages, called="GPAW")
        self._worker.start()
        return self._worker
