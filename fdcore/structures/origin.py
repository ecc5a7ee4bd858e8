"""Where the results in a file come from, as its reader finds it told: the JSON that `fdcore.labels.Provenance` reads.

In extended xyz and in the key-value pairs of an ASE database this is told under the names `label_reference`, `label_version`,
`label_settings`, `label_details` and `label_made_at`; settings as `name=value; name=value`, which needs no quotes within quotes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping
from typing import Any

from fdcore.spec import canonical
from fdcore.structures.text import clean

LONGEST = 2000
# What else a file says of a structure: so many texts of this length, those by which people group data sets first.
MOST_TAGS, LONGEST_TAG = 12, 60
GROUPING = ("system", "group", "config_type", "sigma_a", "sigma", "name", "label", "dataset")
# What is read as something else, or is a result that another program left.
NO_TAGS = frozenset(
    (
        "lattice",
        "properties",
        "pbc",
        "origin",
        "cell",
        "stress",
        "virial",
        "virials",
        "dipole",
        "free_energy",
        "magmom",
        "time",
    )
)
PREFIX = "label_"
TEXTS = ("reference", "version", "made_at")
TABLES = ("settings", "details")
# An ASE database takes no text that reads as a number, such as the version 5.4.
NOT_A_NUMBER = "version "


def told(reference: str, version: str = "", settings: Mapping[str, Any] | None = None) -> str:
    """The JSON of an origin that a reader knows by itself."""
    plain = {clean(str(k), 60): _plain(v) for k, v in (settings or {}).items()}
    return canonical({"reference": clean(reference, 200), "version": clean(version, 200), "settings": plain})


def provenance_of(info: Mapping[str, str]) -> str:
    """The JSON of an origin that a file tells in `info`."""
    found: dict[str, Any] = {name: clean(info.get(PREFIX + name, ""), 200).removeprefix(NOT_A_NUMBER) for name in TEXTS}
    return canonical({**found, **{name: as_table(info.get(PREFIX + name, "")) for name in TABLES}})


def as_info(document: Mapping[str, Any]) -> dict[str, str]:
    """What a writer puts into a file of an origin (the fields of `Provenance`); nothing for what is empty."""
    texts = {PREFIX + name: _said(str(document[name])) for name in TEXTS if document.get(name)}
    texts = {name: f"{NOT_A_NUMBER}{text}" if _is_number(text) else text for name, text in texts.items()}
    return {**texts, **{PREFIX + name: as_text(document[name]) for name in TABLES if document.get(name)}}


def as_text(table: Mapping[str, Any]) -> str:
    """`name=value; name=value`."""
    return "; ".join(f"{name}={_said(value)}" for name, value in table.items())


def as_table(text: str) -> dict[str, Any]:
    """What `as_text` wrote; texts where a value is nothing else."""
    out = {}
    for part in clean(text, LONGEST).split("; "):
        name, equals, value = part.partition("=")
        if equals and name.strip():
            out[name.strip()] = _read(value.strip())
    return out


def tags_of(info: Mapping[str, Any], read: Container[str] = ()) -> dict[str, str]:
    """What a file says of a structure in a few words, by names in lower case; without labels and their origin, and what is `read` as
    something else."""
    found = {}
    for name, value in info.items():
        key, text = name.lower(), str(value).strip()
        known = key in NO_TAGS or key in read or "energy" in key or key.startswith(PREFIX)
        if text and not known and len(text) <= LONGEST_TAG and len(key) <= LONGEST_TAG:
            found[key] = clean(text, LONGEST_TAG)
    order = dict.fromkeys([*(key for key in GROUPING if key in found), *found])
    return {key: found[key] for key in list(order)[:MOST_TAGS]}


def _said(value: Any) -> str:
    if isinstance(value, list | tuple):
        # Not in square brackets: readers of extended xyz take those off.
        return f"({','.join(map(_said, value))})"
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return "".join(" " if c in "\"'\\;{}" else c for c in text)


def _read(value: str) -> Any:
    if value.startswith("(") and value.endswith(")"):
        return [_read(part) for part in value[1:-1].split(",") if part and "(" not in part]
    try:
        return _plain(json.loads(value))
    except ValueError:
        return value


def _plain(value: Any) -> Any:
    """Without numbers that JSON does not know, and without depth."""
    if isinstance(value, list):
        return [v for v in value if isinstance(v, int | float | str) and not _odd(v)]
    if value is None or isinstance(value, int | str) or (isinstance(value, float) and not _odd(value)):
        return value
    return clean(str(value), 200)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _odd(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
