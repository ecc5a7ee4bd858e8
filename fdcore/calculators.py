"""ASE calculators that are named on a command line: MODULE:CALLABLE, something that returns one. Never from a page: it is code."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from fdcore.errors import ComputeError, FdcoreError, UsageError
from fdcore.records import FloatArray, Structure

NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def factory(name: str) -> Callable[[], Any]:
    """What MODULE:CALLABLE names; modules beside the person are found, too. UsageError where it cannot be imported or called."""
    module, _, attribute = name.partition(":")
    if NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!r} names no calculator.", "Write MODULE:CALLABLE, something that returns an ASE calculator."
        )
    if "" not in sys.path:
        # As `python -m` does; a console script has its own folder there instead.
        sys.path.insert(0, "")
    try:
        make: Any = importlib.import_module(module)
        for part in attribute.split("."):
            make = getattr(make, part)
    except Exception as error:  # the boundary: importing runs whatever the module holds
        raise UsageError(f"{name} cannot be imported ({error}).", "Check the name, and PYTHONPATH.") from error
    if not callable(make):
        raise UsageError(f"{name} cannot be called.", "Name a class of calculators, or a function that returns one.")
    return make


def made(make: Callable[[], Any], title: str, then: str = "Mend it and try again.") -> Any:
    """The calculator that `make` returns. ComputeError where making it fails (`then`: what to do), UsageError where it is none."""
    try:
        found = make()
    except (MemoryError, FdcoreError):
        raise
    except Exception as error:  # the boundary: every calculator fails in its own way
        raise ComputeError(f"{title} could not be made ({type(error).__name__}: {str(error)[:200]}).", then) from error
    if not hasattr(found, "get_potential_energy"):
        raise UsageError(
            f"{title} makes {type(found).__name__}, which has no get_potential_energy.",
            "Name a class of ASE calculators, or a function that returns one.",
        )
    return found


class Asked:
    """A calculator asked about one structure at changing positions (N, 3) in Å."""

    def __init__(self, made: Any, name: str, structure: Structure) -> None:
        self._atoms, self._name, self._formula = structure.to_atoms(), name, structure.formula
        if structure.charge is not None:
            self._atoms.set_initial_charges(np.full(len(self._atoms), structure.charge / len(self._atoms)))
        self._atoms.calc = made

    def energy(self, positions: FloatArray) -> float:
        """eV. Raises ComputeError."""
        self._atoms.positions = positions
        return float(self._said(self._atoms.get_potential_energy))

    def forces_driving(self, positions: FloatArray) -> FloatArray:
        """What it calls forces (N, 3) in eV/Å. Raises ComputeError."""
        self._atoms.positions = positions
        found = np.array(self._said(self._atoms.get_forces), dtype=np.float64)
        if found.shape != self._atoms.positions.shape:
            raise ComputeError(f"{self._name} gave forces of shape {found.shape} for {self._formula}.")
        return found

    def _said(self, ask: Any) -> Any:
        try:
            found = ask()
        except (MemoryError, FdcoreError):
            # Ours say what happened and what to do.
            raise
        except Exception as error:  # the boundary: every calculator fails in its own way
            raise ComputeError(
                f"{self._name} failed on {self._formula} ({type(error).__name__}: {str(error)[:200]}).",
                "Other structures are not affected.",
            ) from error
        if not np.isfinite(found).all():
            raise ComputeError(f"{self._name} gave numbers for {self._formula} that are not finite.")
        return found
