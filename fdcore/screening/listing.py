"""The inputs of a screening, listed into its book: a chunk at a time, with what cannot be listed as rows that are done."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa

from fdcore.records import Failure
from fdcore.screening import rows
from fdcore.screening.chunks import Chunk
from fdcore.store.chunks import BATCH, ChunkBook

# How long a list may wait before others see it, and its lister is known to live.
ADD_SECONDS = 1.0
# The key of an entry that has no part.
UNLISTED = "unlisted"


def fill(book: ChunkBook, holder: str, listed: Iterable[Chunk | Failure]) -> Iterator[int]:
    """Write a listing that `holder` has taken (`ChunkBook.take_listing`) into the book; yields the number of structures promised so far."""
    book.begin_listing(holder)
    waiting: list[dict[str, Any]] = []
    told, expected = time.monotonic(), 0
    for number, item in enumerate(listed):
        entry = _entry(number, item)
        waiting.append(entry)
        expected += entry["expected"]
        if len(waiting) >= BATCH or time.monotonic() - told > ADD_SECONDS:
            book.add(holder, waiting)
            waiting, told = [], time.monotonic()
            yield expected
    if waiting:
        book.add(holder, waiting)
    book.end_listing(holder)
    yield expected


def _entry(number: int, item: Chunk | Failure) -> dict[str, Any]:
    if isinstance(item, Chunk):
        return {"number": number, "body": replace(item, number=number).to_json(), "expected": item.count}
    row = rows.unread(item)
    return {
        "number": number,
        "body": json.dumps({"unlisted": row}),
        "expected": 1,
        "key": UNLISTED,
        "failed": 1,
        "digest": json.dumps(rows.digest([row])),
    }


def unlisted(body: str) -> pa.Table:
    """The row of what could not be listed."""
    return rows.table([json.loads(body)["unlisted"]])
