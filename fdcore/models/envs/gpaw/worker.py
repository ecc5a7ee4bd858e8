"""GPAW as a worker (see `wire` for the messages). Runs in its own environment; must not import fdcore.

Orders; lengths in Å, energies in eV:

    load   cutoff_eV, smearing_eV, xc, density_tolerance, energy_tolerance_eV, max_iterations -> gpaw, libxc (versions)
    label  numbers (N,), positions (N, 3), cell (3, 3), grid (3,), moments (N,); spin_polarised, fixed_moment
           -> energy (1,), the free energy, whose derivative the forces are; forces_reference (N, 3); iterations, moment

A density that does not become self-consistent is answered with `failed`, kind "convergence"; never with a number.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from gpaw import GPAW, PW, ConvergenceError, FermiDirac
from gpaw import __version__ as gpaw_version
from gpaw.cgpaw import libxc_version
from serve import Arrays, Failed, loop, streams


class Worker:
    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}

    def load(self, order: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        self.settings = order
        return {"gpaw": gpaw_version, "libxc": str(libxc_version)}, {}

    def label(self, order: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        given = self.settings
        atoms = Atoms(arrays["numbers"], arrays["positions"], cell=arrays["cell"], pbc=True)
        if order["spin_polarised"]:
            atoms.set_initial_magnetic_moments(arrays["moments"])
        atoms.calc = GPAW(
            mode=PW(given["cutoff_eV"]),
            xc=given["xc"],
            kpts={"size": [int(n) for n in arrays["grid"]], "gamma": True},
            occupations=FermiDirac(given["smearing_eV"], fixmagmom=order["fixed_moment"]),
            spinpol=order["spin_polarised"],
            maxiter=given["max_iterations"],
            convergence={"density": given["density_tolerance"], "energy": given["energy_tolerance_eV"]},
            # What it would print; kept for the last words of a process that dies.
            txt=sys.stderr,
        )
        try:
            energy = atoms.get_potential_energy(force_consistent=True)
            forces = atoms.get_forces(apply_constraint=False)
        except ConvergenceError as error:
            raise Failed(
                "convergence",
                f"The density did not become self-consistent within {given['max_iterations']} iterations.",
            ) from error
        moment = float(atoms.get_magnetic_moment()) if order["spin_polarised"] else 0.0
        done = {"iterations": int(atoms.calc.get_number_of_iterations()), "moment": moment}
        return done, {"energy": np.array([energy]), "forces_reference": forces}


def main() -> None:
    incoming, outgoing = streams()
    worker = Worker()
    loop(incoming, outgoing, {n: getattr(worker, n) for n in ("load", "label")}, packages=("gpaw", "gpaw-data"))


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent))
    main()
