"""Models that were fine-tuned here: a folder with `model.safetensors` and `card.json`, found by its name or by its path.

The tensors are those of the architecture that the first model of the lineage has; the card holds what a ModelCard holds, which
architecture that is, and the lineage: of every fine-tuning, the oldest first, on what and how. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdcore import config as configuration
from fdcore.errors import UnknownModelError, WeightsError
from fdcore.models.base import file_sha256
from fdcore.models.embedded_cards import read_card
from fdcore.records import ModelCard

if TYPE_CHECKING:
    from fdcore.models.orb import OrbModel

PREFIX = "ft-"
WEIGHTS, CARD, DISTRIBUTION = "model.safetensors", "card.json", "distribution.json"
FORMAT = "fdcore.finetuned.1"
NAME = re.compile(r"ft-[A-Za-z0-9][A-Za-z0-9._-]{0,120}")
MOST_CARD_BYTES = 5_000_000
# Of one text of a card, in characters.
MOST_TEXT = 20_000
# Folders that were named by their path in this process, by the model's id.
_places: dict[str, Path] = {}


def models_folder() -> Path:
    """Where models are looked for by name."""
    return configuration.from_environment().data / "models"


# ---- finding ---------------------------------------------------------------------------------------------------------


def is_finetuned(name: str) -> bool:
    """Whether this names a fine-tuned model: "ft-...", a folder or its safetensors by path."""
    return name.startswith(PREFIX) or os.sep in name or name.endswith(".safetensors") or Path(name).is_dir()


def folder_of(name: str) -> Path:
    """The folder of a fine-tuned model. UnknownModelError where there is none."""
    if name in _places:
        return _places[name]
    if name.startswith(PREFIX) and os.sep not in name:
        folder = models_folder() / name
        if (folder / CARD).is_file():
            return folder
        if folder.is_symlink():
            raise UnknownModelError(
                f"The run that made {name} was deleted.", "Fine-tune again, or choose another model."
            )
    path = Path(name).expanduser()
    folder = path if path.is_dir() else path.parent
    if path.exists() and (folder / CARD).is_file():
        return folder.absolute()
    raise UnknownModelError(
        f"There is no fine-tuned model {name!r}.",
        f"Give its folder, which holds {WEIGHTS} and {CARD}, or a name that `fdcore models` lists.",
    )


def card(name: str) -> ModelCard:
    """The card of a fine-tuned model by its name or path; one that was named by its path is found by its name from then on."""
    folder = folder_of(name)
    found = read(folder)[0]
    if folder != models_folder() / found.id:
        _places[found.id] = folder
    return found


def named() -> Iterator[ModelCard]:
    """Cards of the models in `models_folder`; those that cannot be read are left out."""
    for file in sorted(models_folder().glob(f"{PREFIX}*/{CARD}")):
        try:
            yield read(file.parent)[0]
        except WeightsError:
            continue


def read(folder: Path) -> tuple[ModelCard, dict[str, Any]]:
    """The card of the model in a folder, and the rest of what its file says: "architecture" and "lineage". WeightsError."""
    file = folder / CARD
    again = "Fine-tune again, or copy the folder once more, complete."
    try:
        if file.stat().st_size > MOST_CARD_BYTES:
            raise ValueError("it is too large")
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.get("format") != FORMAT:
            raise ValueError(f"its format is {content.get('format')!r}")
        found = read_card(_strict(content["card"]))
        if NAME.fullmatch(found.id) is None or found.family != "finetuned" or found.kind != "direct":
            raise ValueError("it names no fine-tuned model")
        architecture, lineage = content["architecture"], content.get("lineage", [])
        if not isinstance(architecture, str) or architecture.startswith(PREFIX):
            raise ValueError("it names no architecture")
        if not isinstance(lineage, list) or not all(isinstance(step, dict) for step in lineage):
            raise ValueError("its lineage is no list of fine-tunings")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{file.parent.name}/{CARD} cannot be read: {error}", again) from error
    return found, {"architecture": architecture, "lineage": lineage}


def _strict(given: Any) -> dict[str, Any]:
    """The fields of a card, each of the kind that it must be: a stranger's card is shown and compared with. ValueError."""
    known = {f.name: f for f in fields(ModelCard)}
    out: dict[str, Any] = {}
    for name, value in dict(given).items():
        if name not in known:
            continue
        kind = str(known[name].type)
        if kind.startswith("tuple"):
            fine = isinstance(value, list) and all(_is_line(v) for v in value)
        elif kind.startswith("Mapping"):
            fine = isinstance(value, dict) and all(_is_line(k) and _is_number(v) for k, v in value.items())
        elif kind == "bool":
            fine = isinstance(value, bool)
        elif kind.startswith(("int", "float")):
            fine = "None" in kind if value is None else _is_number(value) and value >= 0
        else:
            fine = _is_line(value)
        if not fine:
            raise ValueError(f"{name} is {str(value)[:60]!r}")
        out[name] = value
    return out


def _is_line(value: Any) -> bool:
    """Text that can be printed in one line."""
    return isinstance(value, str) and len(value) <= MOST_TEXT and (not value or value.isprintable())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# ---- loading ---------------------------------------------------------------------------------------------------------


def load(card: ModelCard, device: str, dtype: str, weights: Path | None = None) -> OrbModel:
    """Load a fine-tuned model; its weights are checked against its card. WeightsError."""
    folder = folder_of(card.id) if weights is None else weights.parent
    path = weights or folder / WEIGHTS
    sha256 = file_sha256(path) if path.is_file() else ""
    if sha256 != card.sha256:
        raise WeightsError(
            f"The weights of {card.id} are not the ones that its card describes.",
            "Copy the folder once more, complete, or fine-tune again.",
        )
    _, rest = read(folder)
    model = _architecture(str(rest["architecture"]), path, device, dtype)
    model.card, model.weights_sha256 = card, sha256
    return model


def _architecture(model_id: str, path: Path, device: str, dtype: str) -> OrbModel:
    from fdcore import models

    # Of the listed ones only: a name out of a stranger's card must lead to no file.
    base = next((c for c in models.list_models() if c.id == model_id), None)
    if base is None:
        raise WeightsError(f"There is no architecture {model_id!r}.", "Use a folder that this program wrote.")
    if base.family == "embedded":
        from fdcore.models import embedded

        return embedded.load(base, device, dtype, path)
    if base.family != "orb":
        raise WeightsError(f"A model of the family {base.family} cannot be fine-tuned.", "Use another model.")
    import torch
    from safetensors.torch import load_file

    from fdcore.models import orb_pretrained

    # The package's own loader reads only files of torch: the same tensors, written for it by us.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.ckpt"
        torch.save(load_file(str(path)), file)
        return orb_pretrained.load(base, device, dtype, file)


# ---- writing ---------------------------------------------------------------------------------------------------------


def architecture_of(base: ModelCard) -> str:
    """The id of the model whose architecture `base` has: the first of its lineage."""
    return str(read(folder_of(base.id))[1]["architecture"]) if base.family == "finetuned" else base.id


def lineage_of(base: ModelCard) -> list[dict[str, Any]]:
    """The fine-tunings that `base` has behind it, the oldest first."""
    return list(read(folder_of(base.id))[1].get("lineage", [])) if base.family == "finetuned" else []


def write(
    folder: Path,
    model: OrbModel,
    base: ModelCard,
    base_sha256: str,
    step: Mapping[str, Any],
    changes: Mapping[str, Any],
) -> ModelCard:
    """Write a model that was fine-tuned from `base` (whose weights have this hash) and return its card.

    step : how it was made, for the lineage; plain JSON values. changes : fields of the card that differ from those of the base.
    """
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    architecture, path = architecture_of(base), folder / WEIGHTS
    state = {
        n: t.detach().cpu().to(torch.float32) if t.is_floating_point() else t.detach().cpu()
        for n, t in model.module.state_dict().items()
    }
    state = {n: t.clone(memory_format=torch.contiguous_format) for n, t in state.items()}
    recipe = getattr(model.module, "small_orb_config", None)
    metadata = {"format": FORMAT}
    if recipe is not None:
        from fdcore.models import small_orb

        metadata = {"format": small_orb.FORMAT, "config": json.dumps(asdict(recipe))}
    save_file(state, str(path), metadata)
    _sort_metadata(path)
    sha256 = file_sha256(path)
    made = replace(
        base,
        **{
            "family": "finetuned",
            "weights": "local",
            "id": f"{PREFIX}{architecture}-{sha256[:8]}",
            "sha256": sha256,
            "member_of": "",
            "address": "",
            "download_MB": 0.0,
            "source": "fine-tuned with this program",
            **changes,
        },
    )
    lineage: Sequence[Mapping[str, Any]] = [*lineage_of(base), {"base": base.id, "base_sha256": base_sha256, **step}]
    document = {"format": FORMAT, "card": asdict(made), "architecture": architecture, "lineage": lineage}
    (folder / CARD).write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    return made


def _sort_metadata(path: Path) -> None:
    """Equal tensors make equal files: the library writes metadata in an order that changes from call to call."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:
            raise WeightsError(
                f"The header of {path.name} cannot be put in order.", "Report it: the format has changed."
            )
        file.seek(8)
        file.write(text.ljust(length))
