"""Force Delta: when to stop trusting a direct-force machine-learned potential.

>>> model = fdcore.load_model()
>>> for ev in model.evaluate(atoms):
...     print(ev.force_delta, ev.force_delta_per_atom)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdcore.errors import FdcoreError
    from fdcore.models import card, list_models, load_model, models_covering
    from fdcore.records import Evaluation, Gradients, ModelCard, Structure

__version__ = "0.1.0"

__all__ = [
    "Evaluation",
    "FdcoreError",
    "Gradients",
    "ModelCard",
    "Structure",
    "__version__",
    "card",
    "list_models",
    "load_model",
    "models_covering",
]

_HOMES = {
    "FdcoreError": "fdcore.errors",
    **dict.fromkeys(("card", "list_models", "load_model", "models_covering"), "fdcore.models"),
    **dict.fromkeys(("Evaluation", "Gradients", "ModelCard", "Structure"), "fdcore.records"),
}


def __getattr__(name: str) -> Any:
    """Import on first use: the job supervisor is part of this package and stays small without numpy and ase."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fdcore' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
