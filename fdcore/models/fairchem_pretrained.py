"""fairchem checkpoints through the package's own loader (`load_predict_unit`), from the hub or a local file.

A checkpoint is a pickle, and its configuration names classes to be made: reading one runs what is in it. So it is read only from
its publisher or from a file that the operator named; no page takes one.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fdcore.errors import WeightsError
from fdcore.models.base import file_sha256
from fdcore.models.fairchem_cards import CHECKPOINTS, HUB, cached_file
from fdcore.models.process_settings import settings_kept
from fdcore.records import ModelCard

with warnings.catch_warnings(), settings_kept():
    from fairchem.core.calculate.pretrained_mlip import pretrained_checkpoint_path_from_name
    from fairchem.core.units.mlip_unit import load_predict_unit
    from fairchem.core.units.mlip_unit.api.inference import InferenceSettings
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    from fdcore.models.fairchem import FairchemConservative, FairchemModel, FairchemNetwork


def load(card: ModelCard, device: str, dtype: str, weights: Path | None = None) -> FairchemModel:
    """Load a direct model from the hub, its cache, or a local checkpoint.

    Raises WeightsError when the weights are gated, not to be had, damaged, of another kind or of another task.
    """
    return _loaded(FairchemModel, card, device, dtype, weights)


def load_predictor(card: ModelCard, device: str, dtype: str, weights: Path | None = None) -> FairchemConservative:
    """As `load`, for a conservative model."""
    return _loaded(FairchemConservative, card, device, dtype, weights)


def _loaded[M: FairchemNetwork](kind: type[M], card: ModelCard, device: str, dtype: str, weights: Path | None) -> M:
    checkpoint = CHECKPOINTS[card.id]
    path = weights or cached_file(card) or _downloaded(card)
    settings = InferenceSettings(
        tf32=False,
        activation_checkpointing=False,
        merge_mole=False,
        compile=False,
        execution_mode="general",
        base_precision_dtype=getattr(torch, dtype),
        auto_add_default_untrained_tasks=False,
    )
    with settings_kept():
        before = dict(os.environ)
        try:
            unit: Any = load_predict_unit(path, settings, device="cuda" if device.startswith("cuda") else "cpu")
            # The package moves a model when it first predicts, and to the first card only.
            unit.device = device
            unit.model.requires_grad_(False).to(getattr(torch, dtype))
            unit.move_to_device()
        except Exception as error:  # the boundary: a checkpoint fails in as many ways as a pickle can
            raise _unreadable(card, path, error) from error
        finally:
            os.environ.clear()
            os.environ.update(before)
    _check_kind(card, unit, path)
    backbone = unit.model.module.backbone
    known = replace(
        card,
        cutoff_A=float(backbone.cutoff),
        n_parameters=sum(p.numel() for p in unit.model.parameters()),
    )
    model = kind(known, unit, checkpoint.task, device, dtype)
    model.weights_sha256 = file_sha256(path)
    return model


def _check_kind(card: ModelCard, unit: Any, path: Path) -> None:
    direct = bool(unit.model.module.backbone.regress_config.direct_forces)
    if direct != (card.kind == "direct"):
        found = "direct" if direct else "conservative"
        raise WeightsError(
            f"{path.name} holds a {found} model, but {card.id} is a {card.kind} one.",
            "Check that the file belongs to this model (--model).",
        )
    tasks = sorted(unit.dataset_to_tasks)
    if CHECKPOINTS[card.id].task not in tasks:
        raise WeightsError(
            f"{path.name} was made for {', '.join(tasks)}, not for {CHECKPOINTS[card.id].task} as {card.id}.",
            "Check that the file belongs to this model (--model).",
        )


def _downloaded(card: ModelCard) -> Path:
    checkpoint = CHECKPOINTS[card.id]
    page = f"{HUB}{checkpoint.repo}"
    elsewhere = f"or fetch {checkpoint.file} elsewhere and pass it with --weights."
    try:
        return Path(pretrained_checkpoint_path_from_name(checkpoint.name))
    except GatedRepoError as error:  # before RepositoryNotFoundError, of which it is a kind
        raise WeightsError(
            f"The weights of {card.id} are gated: they are given to those who accept the {card.licence} on {page}.",
            f"Accept it there and set HF_TOKEN to a token that may read gated repositories (hf auth login does it), {elsewhere}",
        ) from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"{page}, where the weights of {card.id} are, is not shown to this machine: it is gated, and the token is missing or wrong.",
            f"Accept the {card.licence} on that page and set HF_TOKEN to a token that may read gated repositories, {elsewhere}",
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise WeightsError(
            f"The weights of {card.id} are not on this machine, and the hub cannot be reached.",
            f"They are gated: once there is a network, accept the {card.licence} on {page} and set HF_TOKEN, {elsewhere}",
        ) from error
    except Exception as error:  # the boundary: whatever a download meets
        raise WeightsError(
            f"The weights of {card.id} could not be downloaded from {page}: {_short(error)}",
            f"They need an accepted {card.licence} and a token (HF_TOKEN); check the network, {elsewhere}",
        ) from error


def _unreadable(card: ModelCard, path: Path, error: Exception) -> WeightsError:
    if isinstance(error, WeightsError):
        return error
    return WeightsError(
        f"{path.name} cannot be loaded as {card.id}: {_short(error)}",
        "It must be an inference checkpoint of fairchem-core 2 that is complete and belongs to this model (--model).",
    )


def _short(error: Exception) -> str:
    reason = str(error).strip().splitlines()
    return reason[0][:300] if reason else type(error).__name__
