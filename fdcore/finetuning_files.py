"""A fine-tuning's findings as files."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pandas as pd

from fdcore import finetuning
from fdcore.finetuning import Trained
from fdcore.models import finetuned

COLUMNS = ["part", "n", "quantity", "before", "after", "ratio"]


def errors_csv(found: Trained) -> str:
    """Errors before and after, one row per part and quantity; what is not known is empty."""
    return pd.DataFrame(finetuning.error_rows(found), columns=COLUMNS).to_csv(index=False)


def losses_csv(found: Trained) -> str:
    """Mean losses and held-out errors per epoch."""
    losses = pd.DataFrame(finetuning.loss_per_epoch(found))
    if losses.empty:
        return losses.to_csv(index=False)
    held_out = pd.DataFrame({k: v for k, v in found.epochs.items() if k in ("epoch", *finetuning.QUANTITIES)})
    if not held_out.empty:
        losses = losses.merge(held_out, on="epoch", how="left")
    return losses.to_csv(index=False)


def model_files(folder: Path) -> dict[str, bytes]:
    """What a model consists of, by name: the weights and the card, and the reference distribution where there is one."""
    names = (finetuned.WEIGHTS, finetuned.CARD, finetuned.DISTRIBUTION)
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def model_zip(folder: Path) -> bytes:
    """`model_files` as a zip with one folder, which is named as the model is: unpacked, it can be used by its path."""
    card, _ = finetuned.read(folder)
    stream = io.BytesIO()
    # Weights do not get smaller.
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archived:
        for name, content in model_files(folder).items():
            archived.writestr(f"{card.id}/{name}", content)
    return stream.getvalue()
