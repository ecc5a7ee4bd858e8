"""A model's first evaluation compiles kernels for its neighbour lists: better before a person waits for it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ase.build import bulk, molecule

from fdcore.errors import FdcoreError
from fdcore.spec import ModelChoice

if TYPE_CHECKING:
    from fdcore.models.base import Model


def default_choice() -> ModelChoice:
    """What a page asks for before anybody has chosen anything."""
    from fdcore.models import DEFAULT_MODEL, card

    return ModelChoice(DEFAULT_MODEL, weights_sha256=card(DEFAULT_MODEL).sha256 or None)


def first_evaluation(model: Model) -> None:
    """Evaluate a crystal and a molecule that the model knows; one that it does not know is no error."""
    for atoms in (bulk("Mg"), bulk("NaCl", "rocksalt", a=5.6), molecule("H2O")):
        with contextlib.suppress(FdcoreError):
            model.evaluate(atoms)
