"""The labelled structures that travel with the package for everybody's model: found by name, and checked against their card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fdcore import data
from fdcore.errors import UsageError
from fdcore.structures import Source

PBE = "pbe-gpaw"


@dataclass(frozen=True)
class ShippedLabels:
    """A file of labelled structures with its card; `card` is all of it, for whoever wants the settings or the convergence."""

    id: str
    title: str
    about: str
    method: str
    licence: str
    count: int
    sha256: str
    path: Path
    card: Mapping[str, Any]

    def source(self) -> Source:
        """As if the user had brought the file. Raises UsageError where it is not the one of the card."""
        content = self.path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise UsageError(f"{self.path.name} is not the file that its card describes.", "Install fdcore again.")
        return Source(self.path.name, content)


@cache
def shipped(name: str = PBE) -> ShippedLabels:
    """The labels of that name. UsageError where they are not here."""
    path, about = data.path("labels", f"{name}.extxyz"), data.path("labels", f"{name}.card.json")
    if not (path.is_file() and about.is_file()):
        raise UsageError(
            f"The labelled structures {name} are not part of this installation.",
            "Install fdcore again, or make them with training/make_dft.py; your own labelled files work without them.",
        )
    card = json.loads(about.read_text(encoding="utf-8"))
    wanted = {key: card[key] for key in ("id", "title", "about", "method", "licence", "count", "sha256")}
    return ShippedLabels(path=path, card=card, **wanted)
