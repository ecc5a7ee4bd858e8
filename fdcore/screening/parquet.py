"""Rows of a Parquet file as dictionaries for `fdcore.structures.dicts`, read by batches: never a whole file, and never its other columns."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from fdcore.errors import FormatError, StructureError
from fdcore.structures.dicts import HOLDERS, ID_KEYS, NUMBER_KEYS, OPTIMADE_KEYS, OPTIMADE_MORE
from fdcore.structures.json_text import parse
from fdcore.structures.text import quote

MAGIC = b"PAR1"
_BATCH_ROWS = 64
# Files that are being read from one chunk to the next.
_OPEN = 4
_BESIDE = ("charge", "total_charge", "spin", "spin_multiplicity", *ID_KEYS)
_BROKEN = "Write the table again, e.g. with pandas' `to_parquet`."

Row = Mapping[str, Any]


def count_rows(path: str) -> tuple[int, int]:
    """The number of rows, and about how many bytes their columns take in memory, both as the file's end tells. Raises FormatError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            about = table.metadata
            return about.num_rows, sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
    except (pa.ArrowException, OSError) as error:
        raise _broken(error) from error


def rows_of(stream: BinaryIO, start: int, stop: int) -> Iterator[Row]:
    """Rows start..stop of an open file. Raises FormatError.

    Within its groups of rows a file can only be read from the front: where the next chunk goes on, it goes on from where this one ended.
    """
    cursor = _taken(_identity(stream), start)
    try:
        if cursor is None:
            cursor = _Cursor(stream, start)
        yield from cursor.rows(start, stop)
    except StructureError:
        raise
    except Exception as error:
        # pyarrow tells of damage by many classes, of which only some are its own.
        raise _broken(error) from error
    _keep(cursor)


def document_of(row: Row) -> dict[str, Any]:
    """A row as the dictionary that is read as a structure. Raises FormatError where a text in it is no JSON."""
    found = {key: value for key, value in row.items() if value is not None}
    for key in (*HOLDERS, "species"):
        value = found.get(key)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str):
            found[key] = parse(value)
    return found


class _Cursor:
    """A place in a file: its batches from the group of rows in which that place is."""

    def __init__(self, stream: BinaryIO, start: int) -> None:
        import pyarrow.parquet as pq

        self.identity = _identity(stream)
        # A descriptor of its own: it stays open from chunk to chunk.
        self._own = os.fdopen(os.dup(stream.fileno()), "rb")
        self._own.seek(0)
        # Not a whole column of a group at once: groups may have a million rows.
        table = pq.ParquetFile(self._own, buffer_size=1 << 20, pre_buffer=False)
        columns = columns_of(table.schema_arrow.names)
        first, groups = 0, list[int]()
        for group in range(table.metadata.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            if first + rows > start or groups:
                groups.append(group)
            else:
                first += rows
        self.at = first
        self._batches = table.iter_batches(_BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False)
        self._batch: Any = None
        self._offset = 0

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        while self.at < stop:
            if self._batch is None or self._offset >= self._batch.num_rows:
                self._batch, self._offset = next(self._batches, None), 0
                if self._batch is None:
                    return
            here = self._batch.num_rows - self._offset
            skipped = min(here, max(0, start - self.at))
            taken = min(here, stop - self.at) - skipped
            part = self._batch.slice(self._offset + skipped, taken).to_pylist() if taken > 0 else []
            self.at += skipped + max(0, taken)
            self._offset += skipped + max(0, taken)
            yield from part

    def close(self) -> None:
        self._own.close()


_cursors: OrderedDict[tuple[int, ...], _Cursor] = OrderedDict()
_lock = threading.Lock()


def _taken(identity: tuple[int, ...], start: int) -> _Cursor | None:
    """The cursor of this file, where it is not beyond `start`; nobody else has it then."""
    with _lock:
        cursor = _cursors.pop(identity, None)
    if cursor is not None and cursor.at > start:
        cursor.close()
        return None
    return cursor


def _keep(cursor: _Cursor) -> None:
    with _lock:
        replaced = _cursors.pop(cursor.identity, None)
        _cursors[cursor.identity] = cursor
        old = [_cursors.popitem(last=False)[1] for _ in range(len(_cursors) - _OPEN)]
    for unused in (*old, *((replaced,) if replaced else ())):
        unused.close()


def _identity(stream: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(stream.fileno())
    # The process too: what is forked shares the place within a file.
    return os.getpid(), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def columns_of(names: Sequence[str]) -> list[str]:
    """The columns that hold the structures and their names. Raises FormatError where there are none."""
    there = set(names)
    numbers = next((key for key in NUMBER_KEYS if key in there), None)
    holder = next((key for key in HOLDERS if key in there), None)
    if holder is not None:
        kept = [holder]
    elif there.issuperset(OPTIMADE_KEYS):
        kept = [*OPTIMADE_KEYS, *(key for key in OPTIMADE_MORE if key in there)]
    elif numbers is not None and "positions" in there:
        kept = [numbers, "positions", *(key for key in ("cell", "pbc", "energy", "forces") if key in there)]
    else:
        raise FormatError(
            f"The Parquet file has no column of structures; its columns: {quote(', '.join(names), 100)}.",
            "Name one `structure` or `atoms` (dictionaries or JSON), or give OPTIMADE's columns, or numbers, positions, cell and pbc.",
        )
    return [*kept, *(key for key in _BESIDE if key in there)]


def _broken(error: Exception) -> FormatError:
    return FormatError(f"The Parquet file cannot be read ({type(error).__name__}: {quote(str(error), 80)}).", _BROKEN)
