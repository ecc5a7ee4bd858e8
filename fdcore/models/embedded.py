"""The embedded models: small Orb-v3-style networks trained in `training/`, loaded from safetensors."""

from __future__ import annotations

from pathlib import Path

from fdcore import data
from fdcore.errors import WeightsError
from fdcore.models import small_orb
from fdcore.models.base import file_sha256
from fdcore.models.orb import OrbModel
from fdcore.records import ModelCard


def load(card: ModelCard, device: str, dtype: str, weights: Path | None = None) -> OrbModel:
    """Load shipped weights (checked against the card's SHA-256) or another file of the same format."""
    path = weights or data.path("models", f"{card.id}.safetensors")
    sha256 = file_sha256(path)
    if weights is None and sha256 != card.sha256:
        raise WeightsError(
            f"The shipped weights of {card.id} are not the ones its card describes.",
            "Install the package again.",
        )
    module, adapter, _, _ = small_orb.load(path, device=device, dtype=dtype)
    model = OrbModel(card, module, adapter, device, dtype)
    model.weights_sha256 = sha256
    return model
