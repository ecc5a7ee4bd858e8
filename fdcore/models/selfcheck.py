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
from fdcore.records import Structure

STEP_A = 1e-4
# Relative to the largest component. Rounding of energies of 1e2-1e3 eV at this step leaves about 1e-8.
TOLERANCE = 1e-5
# A smaller difference (eV/Å) is rounding: energies of 1e3 eV have it at this step.
LEAST_EV_PER_A = 1e-7


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


@dataclass(frozen=True)
class ForceCheck:
    """Largest difference of F_c from -dE/dR over so many components (eV/Å), beside the largest component of F_c."""

    components: int
    step_A: float
    error: float
    scale: float
    passed: bool


def check_forces(model: Model, atoms: AtomsInput, *, components: int = 9, seed: int = 0) -> ForceCheck:
    """As `check_gradients`, of F_c alone. Where F_c is next to nothing, rounding of the energy is what is compared: it passes up to 1e-7 eV/Å."""
    _require_double(model)
    structure = model.check(atoms)
    chosen, shifts = _shifts(model, structure, components, seed)
    ends = model.displaced(structure, shifts.reshape(-1, structure.n_atoms, 3))
    [here] = model.displaced(structure, np.zeros((1, structure.n_atoms, 3)))
    numeric = -_slopes([e.energy for e in ends], shifts.shape[1])
    error = float(np.abs(numeric - here.forces_conservative.flat[chosen]).max())
    scale = float(np.abs(here.forces_conservative).max())
    return ForceCheck(len(chosen), STEP_A, error, scale, error <= max(TOLERANCE * scale, LEAST_EV_PER_A))


def check_gradients(
    model: Model, atoms: AtomsInput | None = None, *, components: int = 9, seed: int = 0
) -> GradientCheck:
    """Compare F_c with -(E(+h) - E(-h)) / 2h and grad U_Delta with (U(+h) - U(-h)) / 2h for randomly chosen components.

    Families with `difference_points` 4 use (8 (E(+h) - E(-h)) - (E(+2h) - E(-2h))) / 12h, whose error is of fourth order.

    atoms : the structure to probe; by default a rattled cell or molecule of elements that the model covers.
    Raises UsageError for a model that is not in float64: in single precision the difference is noise.
    """
    _require_double(model)
    structure = model.check(atoms if atoms is not None else probe(model.card.elements, model.card.needs_charge_spin))
    chosen, shifts = _shifts(model, structure, components, seed)
    points = shifts.shape[1]
    ends = model.displaced(structure, shifts.reshape(-1, structure.n_atoms, 3))
    exact = model.gradients(structure, method="double-backward")[0]
    low_memory = model.gradients(structure, method="finite-difference")[0]

    forces_numeric = -_slopes([e.energy for e in ends], points)
    gradient_numeric = _slopes([e.force_delta for e in ends], points)
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


def _require_double(model: Model) -> None:
    if model.dtype != "float64":
        raise UsageError("Finite differences need a model in float64.", 'Load it with dtype="float64".')


def _shifts(
    model: Model, structure: Structure, components: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Components chosen at random (K,), and displacements of each by the steps of the difference (K, points, N, 3)."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(3 * structure.n_atoms, size=min(components, 3 * structure.n_atoms), replace=False)
    points = np.array([1, -1, 2, -2])[: model.difference_points] * STEP_A
    shifts = np.zeros((len(chosen), len(points), structure.n_atoms, 3))
    for row, component in enumerate(chosen):
        for column, step in enumerate(points):
            shifts[row, column].flat[component] = step
    return chosen, shifts


def _slopes(values: Sequence[float], points: int) -> NDArray[np.float64]:
    rows = np.asarray(values).reshape(-1, points)
    near = (rows[:, 0] - rows[:, 1]) / (2 * STEP_A)
    if points == 2:
        return near
    far = (rows[:, 2] - rows[:, 3]) / (4 * STEP_A)
    return (4 * near - far) / 3


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
