"""Rows of a screening's parts that pass a filter, the largest U_Delta first: looked for part by part, with no more than a few in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from ase.data import chemical_symbols

from fdcore.errors import StoreError, UsageError
from fdcore.screening.rows import SCHEMA

FORCE_DELTA = "force_delta_eV_per_A"
# What a table of many structures shows, and what finds one of them again.
COLUMNS = (
    "verdict", "file", "index", "id", "formula", "elements", "n_atoms", FORCE_DELTA, "worst_atom", "worst_element", "worst_atom_eV_per_A",
    "reference_percentile", "confidence_eV_per_A", "error_direct_eV_per_A", "energy_eV_per_atom", "tie", "warnings", "error", "hint",
    "content_sha256",
)  # fmt: skip
# The number of the chunk in which a row was made.
CHUNK = "chunk"
_FILE = "__filename"
ORDER = [(FORCE_DELTA, "descending"), ("file", "ascending"), ("index", "ascending")]
BATCH_ROWS, FILES_AT_ONCE = 10_000, 100


@dataclass(frozen=True)
class Filter:
    """What is looked for; what is not set lets everything pass.

    elements : symbols that are all in the structure. verdicts : any of these ("failed" is one). least_atoms, most_atoms; least, most : of
    U_Delta, eV/Å. ties : only those whose neighbour list is cut within a shell. text : in the name of the file, the formula, the id or the reason.
    Raises UsageError for a symbol that is none.
    """

    elements: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    least_atoms: int | None = None
    most_atoms: int | None = None
    least: float | None = None
    most: float | None = None
    ties: bool = False
    text: str = ""

    def __post_init__(self) -> None:
        for symbol in self.elements:
            if symbol not in chemical_symbols[1:]:
                raise UsageError(f"{symbol!r} is not the symbol of an element.", "Write it as in Na or O.")

    def expression(self) -> ds.Expression | None:
        """As pyarrow asks it; None: everything passes."""
        conditions: list[Any] = [
            pc.match_substring_regex(pc.field("elements"), pattern=f"(^|-){symbol}(-|$)") for symbol in self.elements
        ]
        if self.verdicts:
            conditions.append(pc.field("verdict").isin(list(self.verdicts)))
        for column, least, most in (
            ("n_atoms", self.least_atoms, self.most_atoms),
            (FORCE_DELTA, self.least, self.most),
        ):
            conditions += [pc.field(column) >= least] if least is not None else []
            conditions += [pc.field(column) <= most] if most is not None else []
        if self.ties:
            conditions.append(pc.field("tie") == True)  # noqa: E712 - an expression, not a bool
        words = self.text.strip()
        if words:
            found: Any = None
            for column in ("file", "formula", "id", "error"):
                one = pc.match_substring(pc.field(column), words, ignore_case=True)
                found = one if found is None else found | one
            conditions.append(found)
        whole: Any = None
        for condition in conditions:
            whole = condition if whole is None else whole & condition
        return whole


@dataclass(frozen=True)
class Selected:
    """The first rows that pass (COLUMNS and CHUNK), and how many pass in all."""

    rows: pa.Table
    matching: int


def select(
    parts: Mapping[int, Path],
    unlisted: Mapping[int, pa.Table],
    wanted: Filter,
    most: int,
    columns: Sequence[str] = COLUMNS,
) -> Selected:
    """Of these parts (and of what could not be listed), by the number of their chunk, the `most` rows with the largest U_Delta that pass; those
    that failed come last. StoreError where a part cannot be read."""
    expression = wanted.expression()
    kept = _Kept(most)
    passed = 0
    for number, table in unlisted.items():
        passing = table if expression is None else table.filter(expression)
        passed += len(passing)
        kept.add(passing.select(list(columns)).append_column(CHUNK, _numbers([number] * len(passing))))
    numbers = {str(path): number for number, path in parts.items()}
    paths = list(numbers)
    try:
        # One column of everything says which rows are wanted whole: by statistics, most parts need not be read for those.
        matching, least, others = _largest(paths, expression, most)
        if least is not None:
            above = pc.field(FORCE_DELTA) >= least
            above = above | pc.field(FORCE_DELTA).is_null() if others else above
            expression = above if expression is None else expression & above
        for batch in _batches(paths if matching else [], expression, [*columns, _FILE]):
            table = pa.Table.from_batches([batch])
            places = _numbers([numbers[name] for name in table.column(_FILE).to_pylist()])
            kept.add(table.drop_columns([_FILE]).append_column(CHUNK, places))
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(
            "A part of the table cannot be read.",
            "It may be written anew just now: try again. If it stays so, screen the inputs again.",
        ) from error
    return Selected(kept.first(), passed + matching)


def _largest(paths: list[str], expression: ds.Expression | None, most: int) -> tuple[int, float | None, bool]:
    """How many rows pass; the smallest U_Delta (eV/Å) among the `most` largest of them, None where no row has one; and whether there is room
    for those that have none."""
    count = with_number = 0
    largest = np.empty(0)
    for batch in _batches(paths, expression, [FORCE_DELTA]):
        values = batch.column(0).drop_null().to_numpy()
        count += len(batch)
        with_number += len(values)
        largest = np.concatenate([largest, values])
        if len(largest) > most:
            largest = np.partition(largest, len(largest) - most)[-most:]
    return count, float(largest.min()) if len(largest) else None, with_number < most


def _batches(
    paths: Sequence[str], expression: ds.Expression | None, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """A few files at a time: a dataset keeps what it has read of each file's end, which of many files is more than their rows."""
    for start in range(0, len(paths), FILES_AT_ONCE):
        dataset = ds.dataset(list(paths[start : start + FILES_AT_ONCE]), schema=SCHEMA, format="parquet")
        scanner = dataset.scanner(
            columns=list(columns), filter=expression, batch_size=BATCH_ROWS, batch_readahead=2, fragment_readahead=4
        )
        yield from scanner.to_batches()


def _numbers(numbers: list[int]) -> pa.Array:
    return pa.array(numbers, pa.int64())


class _Kept:
    """The first rows in order of those that were added."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: list[pa.Table] = []
        self._rows = 0

    def add(self, table: pa.Table) -> None:
        self._rows += len(table)
        self._held.append(table)
        if self._rows > 4 * self._most + BATCH_ROWS:
            self._held = [self.first()]
            self._rows = len(self._held[0])

    def first(self) -> pa.Table:
        if not self._held:
            empty = SCHEMA.empty_table().select(list(COLUMNS))
            return empty.append_column(CHUNK, _numbers([]))
        return pa.concat_tables(self._held).sort_by(ORDER).slice(0, self._most)
