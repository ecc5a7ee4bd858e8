"""Calculators to hold a structure against: what the truth is measured by.

Named ones are optional extras; from the command line any ASE calculator can be registered. What a page may ask for is only what is
named here: a run must not name code.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdcore.errors import ComputeError, FdcoreError, UsageError
from fdcore.records import Structure

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """A calculator by name. `extra`: what must be installed for it (empty: nothing of ours); `about`: what it is and what it is for."""

    id: str
    title: str
    about: str
    module: str
    extra: str
    make: Callable[[], Any]

    @property
    def is_here(self) -> bool:
        return not self.module or find_spec(self.module) is not None


@dataclass(frozen=True)
class Truth:
    """What a reference says of a structure: energy (eV) and forces (N, 3) in eV/Å."""

    energy: float
    forces_reference: Array


def _chgnet() -> Any:
    from chgnet.model.dynamics import CHGNetCalculator  # type: ignore[reportMissingImports]

    return CHGNetCalculator(use_device="cpu", on_isolated_atoms="ignore")


def _tblite(method: str) -> Callable[[], Any]:
    def make() -> Any:
        from tblite.ase import TBLite  # type: ignore[reportMissingImports]

        return TBLite(method=method, verbosity=0)

    return make


REFERENCES: dict[str, Reference] = {
    r.id: r
    for r in (
        Reference(
            "chgnet",
            "CHGNet",
            "A machine-learned potential trained on PBE(+U) crystals; the teacher of the embedded model. Not for molecules.",
            "chgnet",
            "chgnet",
            _chgnet,
        ),
        Reference(
            "gfn1",
            "GFN1-xTB (tblite)",
            "Semi-empirical tight binding for molecules and, at the Gamma point only, for cells.",
            "tblite",
            "tblite",
            _tblite("GFN1-xTB"),
        ),
        Reference(
            "gfn2",
            "GFN2-xTB (tblite)",
            "Semi-empirical tight binding for molecules.",
            "tblite",
            "tblite",
            _tblite("GFN2-xTB"),
        ),
    )
}


def reference(name: str) -> Reference:
    """The reference of that name. UsageError where there is none, or where what it needs is not installed."""
    if name not in REFERENCES:
        raise UsageError(
            f"There is no reference {name!r}.",
            f"Known are {', '.join(REFERENCES)}; on the command line also MODULE:CALLABLE, something that returns an ASE calculator.",
        )
    found = REFERENCES[name]
    if not found.is_here:
        raise UsageError(
            f"The reference {found.title} is not installed.",
            f"Install it with: pip install 'force-delta[{found.extra}]'.",
        )
    return found


def register(name: str) -> Reference:
    """Make MODULE:CALLABLE, whose call returns an ASE calculator, a reference of this process; names already known stay as they are."""
    if name in REFERENCES:
        return reference(name)
    module, _, attribute = name.partition(":")
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", name) is None:
        return reference(name)
    try:
        make: Any = importlib.import_module(module)
        for part in attribute.split("."):
            make = getattr(make, part)
    except Exception as error:  # the boundary: importing runs whatever the module holds
        raise UsageError(f"{name} cannot be imported ({error}).", "Check the name, and PYTHONPATH.") from error
    if not callable(make):
        raise UsageError(f"{name} cannot be called.", "Name a class of calculators, or a function that returns one.")
    found = Reference(name, name, "Named on the command line.", "", "", make)
    # One that cannot be made now is told of when it is asked: what is to be held against it is worth having without.
    with contextlib.suppress(ComputeError):
        made(found)
    REFERENCES[name] = found
    return found


def made(reference: Reference) -> Any:
    """A calculator of this reference. ComputeError where it cannot be made, UsageError where what is made is no calculator."""
    try:
        calculator = reference.make()
    except MemoryError:
        raise
    except Exception as error:  # the boundary: every calculator fails in its own way
        raise ComputeError(
            f"The reference {reference.title} could not be made ({type(error).__name__}: {str(error)[:200]}).",
            "Mend it and compare again with fdcore truth.",
        ) from error
    if not hasattr(calculator, "get_potential_energy"):
        raise UsageError(
            f"{reference.title} makes {type(calculator).__name__}, which has no get_potential_energy.",
            "Name a class of ASE calculators, or a function that returns one.",
        )
    return calculator


def truths(reference: Reference, structures: Sequence[Structure]) -> Any:
    """Generator of a Truth or an FdcoreError per structure, in order. Raises as `made`."""
    calculator: Any = None
    for structure in structures:
        # Some calculators keep more of a structure than they should: where one has failed, the next gets a fresh one.
        calculator = made(reference) if calculator is None else calculator
        try:
            yield _truth(calculator, reference, structure)
        except FdcoreError as error:
            calculator = None
            yield error


def _truth(calculator: Any, reference: Reference, structure: Structure) -> Truth:
    atoms = structure.to_atoms()
    if structure.charge is not None:
        atoms.set_initial_charges(np.full(len(atoms), structure.charge / len(atoms)))
    atoms.calc = calculator
    try:
        energy, forces = float(atoms.get_potential_energy()), np.array(atoms.get_forces(), dtype=np.float64)
    except MemoryError:
        raise
    except Exception as error:  # the boundary: every calculator fails in its own way
        raise ComputeError(
            f"{reference.title} failed on {structure.formula} ({type(error).__name__}: {str(error)[:200]}).",
            "The others are still compared.",
        ) from error
    if forces.shape != structure.positions.shape or not (np.isfinite(forces).all() and np.isfinite(energy)):
        raise ComputeError(f"{reference.title} gave forces of {structure.formula} that are not finite numbers.")
    return Truth(energy, forces)
