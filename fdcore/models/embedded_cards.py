"""Cards of the models whose weights travel with the package, read from `fdcore/data/models/*.card.json`."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from fdcore import data
from fdcore.records import ModelCard

_FIELDS = {f.name for f in fields(ModelCard)}
_TUPLES = ("elements",)


def read_card(text: str) -> ModelCard:
    """A ModelCard from the JSON of a card file; keys that are not fields of the card (tables, counts) are left to the file."""
    content = json.loads(text)
    known: dict[str, Any] = {k: tuple(v) if k in _TUPLES else v for k, v in content.items() if k in _FIELDS}
    return ModelCard(**known)


CARDS: tuple[ModelCard, ...] = tuple(
    read_card(file.read_text()) for file in sorted(data.path("models").glob("*.card.json"))
)
