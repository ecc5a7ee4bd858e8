"""Cards of the models whose weights travel with the package, read from `fdcore/data/models/*.card.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fdcore import data
from fdcore.records import ModelCard

_FIELDS = {f.name for f in fields(ModelCard)}
_TUPLES = ("elements", "trained_on")


def read_card(content: Mapping[str, Any]) -> ModelCard:
    """A ModelCard from what a card file says; keys that are not fields of the card (tables, counts) are left to the file."""
    known: dict[str, Any] = {k: tuple(v) if k in _TUPLES else v for k, v in content.items() if k in _FIELDS}
    return ModelCard(**known)


# Further seeds of a model stand behind the models themselves.
CARDS: tuple[ModelCard, ...] = tuple(
    sorted(
        (read_card(json.loads(file.read_text())) for file in data.path("models").glob("*.card.json")),
        key=lambda card: (card.member_of != "", card.id),
    )
)
