"""What a screening found, from the digests of its chunks: never from the whole table, whose length it does not depend on."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from typing import Any

from fdcore.screening.rows import FAILED_KEPT, REASONS_KEPT, WORST_KEPT
from fdcore.store.chunks import ChunkBook

SUMMARY = "summary.json"


class Found:
    """Adds digests up; asked at any time."""

    def __init__(self) -> None:
        self.verdicts: Counter[str] = Counter()
        self.bins: Counter[int] = Counter()
        self.reasons: Counter[str] = Counter()
        self.checked = self.ties = 0
        self.largest_difference = 0.0
        self.worst: list[Mapping[str, Any]] = []
        self.failed: list[Mapping[str, Any]] = []
        # Of the last chunk that was added: where to go on.
        self.last = -1

    def add(self, digest: Mapping[str, Any]) -> None:
        self.verdicts.update(digest["verdicts"])
        self.bins.update({int(k): n for k, n in digest["bins"].items()})
        self.reasons.update(digest["reasons"])
        if len(self.reasons) > 5 * REASONS_KEPT:
            self.reasons = Counter(dict(self.reasons.most_common(REASONS_KEPT)))
        self.checked += digest["checked"]
        self.ties += digest["ties"]
        self.largest_difference = max(self.largest_difference, digest["largest_difference"])
        self.worst = heapq.nlargest(
            WORST_KEPT, [*self.worst, *digest["worst"]], key=lambda row: row["force_delta_eV_per_A"]
        )
        self.failed = [*self.failed, *digest["failed"]][: 4 * FAILED_KEPT]

    def document(self) -> dict[str, Any]:
        return {
            "verdicts": dict(self.verdicts),
            "force_delta_bins": {str(k): self.bins[k] for k in sorted(self.bins)},
            "reasons": dict(self.reasons.most_common(REASONS_KEPT)),
            "checked_alone": self.checked,
            # Of the sample; missing where none was taken.
            "largest_alone_difference_eV_per_A": self.largest_difference if self.checked else None,
            "ties": self.ties,
            "worst": list(self.worst),
            "failures": list(self.failed),
        }


def found(book: ChunkBook) -> Found:
    """All that is done."""
    out = Found()
    for number, _, _, digest in book.done():
        out.add(digest)
        out.last = number
    return out


def summary_of(book: ChunkBook, settings: Mapping[str, Any], how: Mapping[str, Any]) -> dict[str, Any]:
    """The document of `summary.json`: counts, what was found, and how it was made."""
    count = book.count()
    return {
        "complete": count.complete,
        "structures": count.scored + count.failed,
        "scored": count.scored,
        "failed": count.failed,
        "chunks": count.chunks,
        "processor_seconds": count.seconds,
        **found(book).document(),
        "settings": dict(settings),
        **how,
    }
