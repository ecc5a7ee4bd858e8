"""A model proves its own gradients: F_c and grad U_Delta against central differences in float64 at fixed graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ase
import numpy as np
from ase.build import bulk, molecule
from numpy.typing import NDArray

from fdcore.errors import UnsupportedStructureError, UsageError
from fdcore.models.base import AtomsInput, Model
from fdcore.records import Evaluation

STEP_A = 1e-4
# Relative to the largest component. Rounding of energies of 1e2-1e3 eV at this step leaves about 1e-8.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class GradientCheck:
    """Largest absolute errors over the probed components, beside the scale (largest component) they refer to."""

    model: str
    structure: str
    step_A: float
    components: int
    forces_conservative_error: float
    forces_conservative_scale: float
    force_delta_gradient_error: float
    force_delta_gradient_scale: float
    low_memory_gradient_error: float
    passed: bool


def check_gradients(
    model: Model, atoms: AtomsInput | None = None, *, components: int = 9, seed: int = 0
) -> GradientCheck:
    """Compare F_c with -(E(+h) - E(-h)) / 2h and grad U_Delta with (U(+h) - U(-h)) / 2h for randomly chosen components.

    atoms : the structure to probe; by default a rattled cell or molecule of elements that the model covers.
    Raises UsageError for a model that is not in float64: in single precision the difference is noise.
    """
    if model.dtype != "float64":
        raise UsageError("Finite differences need a model in float64.", 'Load it with dtype="float64".')
    structure = model.check(atoms if atoms is not None else probe(model.card.elements, model.card.needs_charge_spin))
    rng = np.random.default_rng(seed)
    chosen = rng.choice(3 * structure.n_atoms, size=min(components, 3 * structure.n_atoms), replace=False)
    shifts = np.zeros((len(chosen), 2, structure.n_atoms, 3))
    for row, component in enumerate(chosen):
        shifts[row, 0].flat[component] = STEP_A
        shifts[row, 1].flat[component] = -STEP_A
    ends = model.displaced(structure, shifts.reshape(-1, structure.n_atoms, 3))
    exact = model.gradients(structure, method="double-backward")[0]
    low_memory = model.gradients(structure, method="finite-difference")[0]

    forces_numeric = -_slopes(ends, [e.energy for e in ends])
    gradient_numeric = _slopes(ends, [e.force_delta for e in ends])
    forces_error = np.abs(forces_numeric - exact.evaluation.forces_conservative.flat[chosen]).max()
    gradient_error = np.abs(gradient_numeric - exact.force_delta_gradient.flat[chosen]).max()
    low_memory_error = np.abs(gradient_numeric - low_memory.force_delta_gradient.flat[chosen]).max()
    forces_scale = np.abs(exact.evaluation.forces_conservative).max()
    gradient_scale = np.abs(exact.force_delta_gradient).max()
    passed = (
        forces_error <= TOLERANCE * forces_scale
        and gradient_error <= 10 * TOLERANCE * gradient_scale
        and low_memory_error <= 10 * TOLERANCE * gradient_scale
    )
    return GradientCheck(
        model=model.card.id,
        structure=structure.formula,
        step_A=STEP_A,
        components=len(chosen),
        forces_conservative_error=float(forces_error),
        forces_conservative_scale=float(forces_scale),
        force_delta_gradient_error=float(gradient_error),
        force_delta_gradient_scale=float(gradient_scale),
        low_memory_gradient_error=float(low_memory_error),
        passed=bool(passed),
    )


def _slopes(ends: Sequence[Evaluation], values: Sequence[float]) -> NDArray[np.float64]:
    pairs = np.asarray(values).reshape(-1, 2)
    return (pairs[:, 0] - pairs[:, 1]) / (2 * STEP_A)


def probe(elements: Sequence[str], needs_charge_spin: bool = False) -> ase.Atoms:
    """A small rattled structure made of `elements`: rock salt, then water, then a metal cell."""
    known = set(elements)
    water = molecule("H2O")
    water.rattle(0.05, seed=1)
    if needs_charge_spin:
        water.info.update(charge=0, spin=1)
        return water
    if {"Na", "Cl"} <= known:
        salt = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
        salt.rattle(0.1, seed=1)
        return salt
    if {"H", "O"} <= known:
        return water
    for symbol in ("Al", "Mg", "Cu", "Si", "Fe"):
        if symbol in known:
            metal = bulk(symbol, cubic=symbol not in ("Mg",)) * (2, 1, 1)
            metal.rattle(0.1, seed=1)
            return metal
    raise UnsupportedStructureError("None of the built-in probe structures is covered by this model.", "Pass your own.")
