"""The registry: which models there are, what their cards say, and how one is loaded.

Adding a family is one row in `FAMILIES` and one file; listing models imports no backend.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from numpy.typing import ArrayLike

from fdcore.errors import UnknownModelError, UsageError, WeightsError
from fdcore.models.base import Model
from fdcore.models.neighbours import import_neighbour_lists
from fdcore.records import ModelCard

DEFAULT_MODEL = "fd-orb-small-v1"
DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Family:
    """Where a family's cards and loader live: `cards` (light) has CARDS and, where weights are downloaded,
    cached_file(card) -> Path | None; `loader` (heavy) has load(card, device, dtype, weights) -> Model."""

    cards: str
    loader: str


FAMILIES: dict[str, Family] = {
    "embedded": Family("fdcore.models.embedded_cards", "fdcore.models.embedded"),
    "orb": Family("fdcore.models.orb_cards", "fdcore.models.orb_pretrained"),
}


@cache
def list_models() -> tuple[ModelCard, ...]:
    """Cards of all known models, embedded ones first."""
    return tuple(card for family in FAMILIES.values() for card in importlib.import_module(family.cards).CARDS)


def card(model_id: str) -> ModelCard:
    """The card of one model; UnknownModelError names the nearest ids."""
    by_id = {c.id: c for c in list_models()}
    if model_id not in by_id:
        near = get_close_matches(model_id, by_id, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise UnknownModelError(f"There is no model {model_id!r}.", hint + "`fdcore models` lists them all.")
    return by_id[model_id]


def models_covering(numbers: ArrayLike, *, kind: str = "direct") -> tuple[ModelCard, ...]:
    """The direct-force models trained on every element in `numbers` (atomic numbers)."""
    return tuple(c for c in list_models() if c.kind == kind and not c.covers(numbers))


def is_here(model_card: ModelCard) -> bool:
    """Whether the weights are on this machine: embedded, or in the package's download cache."""
    if model_card.weights == "embedded":
        return True
    return importlib.import_module(FAMILIES[model_card.family].cards).cached_file(model_card) is not None


def load_model(
    id: str | None = None, device: str = "auto", dtype: str = "float32", weights: str | Path | None = None
) -> Model:
    """Load a model by its published name; no id loads the embedded default.

    device : "auto" (CUDA, then CPU), "cpu", "cuda", "cuda:1".
    dtype : "float32" or "float64".
    weights : a local checkpoint of that model, from a place you trust; nothing is downloaded then.

    Raises UnknownModelError, WeightsError, UsageError.
    """
    model_card = card(id or DEFAULT_MODEL)
    if dtype not in DTYPES:
        raise UsageError(f"There is no precision {dtype!r}.", f"Use {' or '.join(DTYPES)}.")
    if model_card.kind != "direct":
        raise WeightsError(
            f"{model_card.id} has no direct force head, so there is no second force to compare.",
            "U_Delta is defined for direct-force models; `fdcore models` lists them.",
        )
    import_neighbour_lists()
    loader = importlib.import_module(FAMILIES[model_card.family].loader)
    path = Path(weights) if weights is not None else None
    if path is not None and not path.is_file():
        raise WeightsError(f"There is no file {path}.", "Check the path given with --weights.")
    return loader.load(model_card, resolve_device(device), dtype, path)


def check_device(device: str) -> None:
    """UsageError for a name that is no device; does not import torch, so wrong usage is known at once."""
    if re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device) is None:
        raise UsageError(f"There is no device {device!r}.", "Use auto, cpu, cuda or cuda:1.")


def resolve_device(device: str) -> str:
    """ "auto" to the device that will be used; UsageError when the one asked for is not there."""
    check_device(device)
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if count else "cpu"
    if device == "cpu":
        return device
    if not count:
        raise UsageError("No CUDA device is available here.", "Use --device cpu, or install a CUDA build of torch.")
    if ":" in device and int(device.split(":")[1]) >= count:
        raise UsageError(f"There is no {device}: this machine has {count} CUDA device(s).", "Count from cuda:0.")
    return device
