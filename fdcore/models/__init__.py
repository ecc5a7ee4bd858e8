"""The registry: which models there are, what their cards say, and how one is loaded.

Adding a family is one row in `FAMILIES` and one file; listing models imports no backend.
"""

from __future__ import annotations

import glob
import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fdcore import config as configuration
from fdcore.errors import UnknownModelError, UsageError, WeightsError
from fdcore.models import finetuned
from fdcore.models.base import Model, Predictor
from fdcore.models.neighbours import import_neighbour_lists
from fdcore.records import ModelCard, Structure

DEFAULT_MODEL = "fd-orb-small-v1"
DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Family:
    """Where a family's cards and loader live: `cards` (light) has CARDS and, where weights are downloaded,
    cached_file(card) -> Path | None; `loader` (heavy) has load(card, device, dtype, weights) -> Model for the direct ones, and
    load_predictor, with the same arguments, for the conservative ones."""

    cards: str
    loader: str


FAMILIES: dict[str, Family] = {
    "embedded": Family("fdcore.models.embedded_cards", "fdcore.models.embedded"),
    "orb": Family("fdcore.models.orb_cards", "fdcore.models.orb_pretrained"),
    "eqv2": Family("fdcore.models.eqv2_cards", "fdcore.models.eqv2"),
    "fairchem": Family("fdcore.models.fairchem_cards", "fdcore.models.fairchem_pretrained"),
    "chgnet": Family("fdcore.models.chgnet_cards", "fdcore.models.chgnet"),
    "mace": Family("fdcore.models.mace_cards", "fdcore.models.mace"),
    "metatomic": Family("fdcore.models.metatomic_cards", "fdcore.models.metatomic"),
}
# Models that were made on this machine have no cards of their own in the package: `finetuned` finds them.
FINETUNED = Family("fdcore.models.finetuned", "fdcore.models.finetuned")


@cache
def list_models() -> tuple[ModelCard, ...]:
    """Cards of all known models: the default, the other embedded ones, then the published ones."""
    cards = [card for family in FAMILIES.values() for card in importlib.import_module(family.cards).CARDS]
    return tuple(sorted(cards, key=lambda card: card.id != DEFAULT_MODEL))


def card(model_id: str) -> ModelCard:
    """The card of one model; UnknownModelError names the nearest ids. Fine-tuned models are also known by their path."""
    by_id = {c.id: c for c in list_models()}
    if model_id not in by_id:
        if finetuned.is_finetuned(model_id):
            return finetuned.card(model_id)
        near = get_close_matches(model_id, by_id, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise UnknownModelError(f"There is no model {model_id!r}.", hint + "`fdcore models` lists them all.")
    return by_id[model_id]


def models_covering(numbers: ArrayLike, *, kind: str = "direct") -> tuple[ModelCard, ...]:
    """The direct-force models trained on every element in `numbers` (atomic numbers); further seeds of a model are not listed."""
    return tuple(c for c in list_models() if c.kind == kind and not c.member_of and not c.covers(numbers))


def suggested_model(structures: Iterable[Structure]) -> str:
    """The model to begin with where nobody chose one, no download needed: the first embedded one that was trained on all these
    elements and on structures of these kinds; failing that, on these elements; the default where there is none."""
    listed = tuple(structures)
    numbers = [int(z) for s in listed for z in np.unique(s.numbers)]
    able = [c for c in models_covering(numbers) if c.weights == "embedded"]
    kinds = {s.kind for s in listed}
    best = [c for c in able if kinds <= set(c.trained_on)] or able
    return best[0].id if listed and best else DEFAULT_MODEL


def reference_groups(cards: Iterable[ModelCard]) -> dict[str, tuple[str, ...]]:
    """Ids of models by the method that they were trained to reproduce: two of different groups differ by more than their errors."""
    groups: dict[str, list[str]] = {}
    for one in cards:
        groups.setdefault(one.reference_method, []).append(one.id)
    return {method: tuple(ids) for method, ids in groups.items()}


def mixed_methods(cards: Iterable[ModelCard]) -> str:
    """In words why these models should not be in one ensemble; empty where they may be."""
    groups = reference_groups(cards)
    if len(groups) < 2:
        return ""
    parts = "; ".join(f"{', '.join(ids)}: {method}" for method, ids in groups.items())
    return f"These models were trained to reproduce different methods ({parts}). What they differ by is then not their error alone."


def is_here(model_card: ModelCard) -> bool:
    """Whether the weights are on this machine: embedded, in the operator's folder, or in the package's download cache; and the package,
    where it is optional."""
    if not extra_is_here(model_card):
        return False
    if model_card.weights in ("embedded", "local") or operator_weights(model_card) is not None:
        return True
    return importlib.import_module(FAMILIES[model_card.family].cards).cached_file(model_card) is not None


def extra_is_here(model_card: ModelCard) -> bool:
    """Whether the optional package that the model needs is installed."""
    return not model_card.extra or find_spec(model_card.extra) is not None


def operator_weights(model_card: ModelCard) -> Path | None:
    """The checkpoint of this model in the operator's folder (FDCORE_WEIGHTS), None where there is none. Nobody else's files are
    looked at: reading some formats runs what they hold."""
    folder = configuration.from_environment().weights
    if not folder:
        return None
    found = sorted(p for p in Path(folder).expanduser().glob(f"{glob.escape(model_card.id)}.*") if p.is_file())
    if len(found) > 1:
        raise WeightsError(
            f"The operator's folder holds several files for {model_card.id}: {', '.join(p.name for p in found)}.",
            "Leave one.",
        )
    return found[0] if found else None


def load_model(
    id: str | None = None, device: str = "auto", dtype: str = "float32", weights: str | Path | None = None
) -> Model:
    """Load a direct-force model by its published name, a fine-tuned one also by its path; no id loads the embedded default.

    device : "auto" (CUDA, then CPU), "cpu", "cuda", "cuda:1".
    dtype : "float32" or "float64".
    weights : a local checkpoint of that model, from a place you trust; nothing is downloaded then.

    Raises UnknownModelError, WeightsError, UsageError.
    """
    model_card = card(id or DEFAULT_MODEL)
    if model_card.kind != "direct":
        _check_dtype(dtype)
        raise WeightsError(
            f"{model_card.id} has no direct force head, so there is no second force to compare.",
            "U_Delta is defined for direct-force models; `fdcore models` lists them.",
        )
    return _loaded(model_card, "load", device, dtype, weights)


def load_predictor(
    id: str | None = None, device: str = "auto", dtype: str = "float32", weights: str | Path | None = None
) -> Predictor:
    """Load any model for the one force that it is run with, as a member of an ensemble: also conservative ones. As `load_model`."""
    model_card = card(id or DEFAULT_MODEL)
    if model_card.kind == "direct":
        return load_model(model_card.id, device, dtype, weights)
    return _loaded(model_card, "load_predictor", device, dtype, weights)


def _loaded(model_card: ModelCard, how: str, device: str, dtype: str, weights: str | Path | None) -> Any:
    _check_dtype(dtype)
    if not extra_is_here(model_card):
        raise UsageError(
            f"{model_card.id} needs the optional package {model_card.extra}, which is not installed.",
            f"Install it with: pip install 'force-delta[{model_card.extra}]'.",
        )
    import_neighbour_lists()
    family = FINETUNED if model_card.family == "finetuned" else FAMILIES[model_card.family]
    loader = importlib.import_module(family.loader)
    path = Path(weights) if weights is not None else operator_weights(model_card)
    if path is not None and not path.is_file():
        raise WeightsError(f"There is no file {path}.", "Check the path given with --weights.")
    return getattr(loader, how)(model_card, resolve_device(device), dtype, path)


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise UsageError(f"There is no precision {dtype!r}.", f"Use {' or '.join(DTYPES)}.")


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
