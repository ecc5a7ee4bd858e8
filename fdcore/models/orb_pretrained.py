"""Published Orb weights through the package's own loaders, with its traps closed.

The loaders set torch's global default dtype and only warn when a head's weights are missing from the file; here the default
is put back and a missing energy or force head is an error.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from orb_models.forcefield.pretrained import ORB_PRETRAINED_MODELS

from fdcore.errors import WeightsError
from fdcore.models.base import file_sha256
from fdcore.models.orb import OrbConservative, OrbModel
from fdcore.models.orb_cards import cached_file
from fdcore.models.orb_network import OrbNetwork
from fdcore.records import ModelCard

if TYPE_CHECKING:
    from fdcore.models.orb_network import Regressor

# One load at a time: the package's loaders change process-wide settings.
_LOADING = threading.Lock()
# How Orb v2 checkpoints of 2024 call their heads (the package renames them too).
_LEGACY_HEADS = {"node_head.": "heads.forces.", "graph_head.": "heads.energy.", "stress_head.": "heads.stress."}


def load(card: ModelCard, device: str, dtype: str, weights: Path | None = None) -> OrbModel:
    """Load a published direct model from its official address, the package's cache, or a local file of the same architecture.

    Raises WeightsError when the file is damaged, belongs to another architecture, lacks a head, or cannot be downloaded.
    """
    return _loaded(OrbModel, card, device, dtype, weights)


def load_predictor(card: ModelCard, device: str, dtype: str, weights: Path | None = None) -> OrbConservative:
    """The same for a conservative one."""
    return _loaded(OrbConservative, card, device, dtype, weights)


def _loaded[M: OrbNetwork](kind: type[M], card: ModelCard, device: str, dtype: str, weights: Path | None) -> M:
    loader = ORB_PRETRAINED_MODELS[card.id]
    options: dict = {"device": device, "compile": False, "precision": _PRECISIONS[dtype]}
    if weights is not None:
        options["weights_path"] = str(weights)
    with _LOADING, _global_settings_kept():
        try:
            module, adapter = loader(**options)
            file = weights if weights is not None else cached_file(card)
            keys = _checkpoint_keys(file)
        except WeightsError:
            raise
        except Exception as error:
            raise _weights_error(card, weights, error) from error
    _require_heads(card, module, keys)
    model = kind(card, module, adapter, device, dtype)
    model.weights_sha256 = file_sha256(file) if file is not None else ""
    return model


# Not "float32-high": TF32 matrix products on a GPU would put noise of 1e-3 into the difference that we measure.
_PRECISIONS = {"float32": "float32-highest", "float64": "float64"}


@contextmanager
def _global_settings_kept() -> Iterator[None]:
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Setting global torch default dtype")
            warnings.filterwarnings("ignore", message="Consider passing 'precision=")
            warnings.filterwarnings("ignore", message="Found key in")
            # The architecture is built at single precision whatever ran before; the loader then converts it.
            torch.set_default_dtype(torch.float32)
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)


def _checkpoint_keys(path: Path | None) -> frozenset[str] | None:
    if path is None:
        return None
    try:
        state: Mapping[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError):
        # Files older than torch's zip format cannot be mapped.
        state = torch.load(path, map_location="cpu", weights_only=True)
    return frozenset(_modern(key) for key in state)


def _modern(key: str) -> str:
    for old, new in _LEGACY_HEADS.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def _require_heads(card: ModelCard, module: Regressor, keys: frozenset[str] | None) -> None:
    """The loader fills a missing head with random numbers and a warning; U_Delta of those would look like a result."""
    if keys is None:
        return
    # A file of the backbone alone would be loaded with every head random.
    needed = [k for k in module.state_dict() if k.startswith(("heads.energy.", "heads.forces.", "heads.confidence."))]
    missing = sorted(
        {".".join(k.split(".")[:2]) for k in needed if k not in keys and not k.endswith("num_batches_tracked")}
    )
    if missing:
        raise WeightsError(
            f"The weights for {card.id} lack {', '.join(missing)}: the force or energy would be random numbers.",
            "Use the official checkpoint, or one saved with all heads.",
        )


def _weights_error(card: ModelCard, weights: Path | None, error: Exception) -> WeightsError:
    reason = str(error).strip().splitlines()
    short = reason[0][:300] if reason else type(error).__name__
    if weights is None:
        return WeightsError(
            f"The weights of {card.id} ({card.download_MB:.0f} MB) could not be downloaded: {short}",
            f"Check the network, or fetch {card.address} elsewhere and pass it with --weights.",
        )
    if not weights.is_file():
        return WeightsError(f"There is no file {weights}.", "Check the path given with --weights.")
    return WeightsError(
        f"{weights.name} cannot be loaded as {card.id}: {short}",
        "Check that the file is complete and belongs to this model (--model).",
    )
