"""JSON and lines of JSON: one structure, many, or the answer of an OPTIMADE server. See `dicts` for what a structure looks like."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fdcore.errors import FormatError, LimitError, StructureError
from fdcore.records import Failure, Structure
from fdcore.structures.dicts import holds_structure, structure_of
from fdcore.structures.limits import Limits
from fdcore.structures.text import clean, plural, quote

# Lines that an OPTIMADE export has beside its structures.
_NO_STRUCTURES = ("info", "links", "references", "files", "calculations")


def read_json(text: str, limits: Limits) -> Iterator[Structure | Failure]:
    """Each structure of a document, or a Failure that carries its place. Raises FormatError or LimitError for the document as such."""
    members = _members(parse(text))
    for index, member in enumerate(members[: limits.max_frames]):
        yield _item(member, index, limits)
    if len(members) > limits.max_frames:
        raise LimitError(
            f"The file has more than {limits.max_frames:,} structures; the first {limits.max_frames:,} were read.",
            "Split it, or write one structure a line (JSONL) and split that.",
        )


def read_jsonl(text: str, limits: Limits, first: int = 0) -> Iterator[Structure | Failure]:
    """The structure of each line that is not blank, or a Failure; lines are counted from `first`. Raises LimitError."""
    index = first
    for line in text.split("\n"):
        if not line.strip():
            continue
        if index - first >= limits.max_frames:
            raise LimitError(
                f"The file has more than {limits.max_frames:,} lines; the first {limits.max_frames:,} were read.",
                "Split it, e.g. `split -l 10000 FILE part-`.",
            )
        try:
            document = parse(line)
        except FormatError as error:
            yield Failure("", error.message, error.hint, index)
        else:
            if not _beside(document):
                yield _item(document, index, limits)
        index += 1


def parse(text: str) -> Any:
    """What a text in JSON says; raises FormatError. Numbers and texts only: what a document names is not imported."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise FormatError("The JSON is nested too deeply.", "Bring the structure without what surrounds it.") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise FormatError(f"The JSON is broken at {where}: {clean(error.msg, 60)}.", "Write the file again.") from error
    except ValueError as error:
        raise FormatError(f"The JSON is broken: {quote(str(error), 60)}.", "Write the file again.") from error


def _item(member: Any, index: int, limits: Limits) -> Structure | Failure:
    try:
        return structure_of(member, index, limits)
    except StructureError as error:
        return Failure("", error.message, error.hint, index)


def _members(document: Any) -> list[Any]:
    if isinstance(document, list):
        return document
    if not isinstance(document, Mapping):
        raise FormatError("This is JSON, but no object or list.", "Bring a structure as a dictionary.")
    if holds_structure(document):
        return [document]
    data = document.get("data")
    if isinstance(data, list):
        return data
    if isinstance(data, Mapping):
        return [data]
    if isinstance(document.get("errors"), list) and "meta" in document:
        raise FormatError(
            f"The server answered with {plural(len(document['errors']), 'error')} and no structure.", "Ask it again."
        )
    # A database of ASE as JSON, or any dictionary from names to structures.
    named = {key: value for key, value in document.items() if key not in ("ids", "nextid")}
    if named and all(holds_structure(value) for value in named.values()):
        return [{"id": key, **value} for key, value in named.items()]
    return [document]


def _beside(document: Any) -> bool:
    if not isinstance(document, Mapping) or holds_structure(document):
        return False
    return "x-optimade" in document or document.get("type") in _NO_STRUCTURES
