"""Force Delta: when to stop trusting a direct-force machine-learned potential.

>>> model = fdcore.load_model()
>>> for ev in model.evaluate(atoms):
...     print(ev.force_delta, ev.force_delta_per_atom)
"""

from __future__ import annotations

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
