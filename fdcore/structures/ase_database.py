"""An ASE database (SQLite): every row with its energy and forces where it has both.

Read here and not by ASE, which wants a file it may write to: bytes are opened in memory and files for reading alone, what they define beside
tables is not trusted, and nothing but numbers and plain JSON is taken. Source: ase/db/sqlite.py (the table `systems`; arrays are little-endian blobs).
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fdcore.errors import FormatError, LimitError, StructureError
from fdcore.records import Failure, FloatArray, Structure
from fdcore.structures.limits import Limits
from fdcore.structures.origin import provenance_of, tags_of
from fdcore.structures.text import whole

MAGIC = b"SQLite format 3\x00"
_COLUMNS = ("numbers", "positions", "cell", "pbc", "energy", "forces", "key_value_pairs")
_QUERY = f"SELECT {', '.join(_COLUMNS)} FROM systems"
# Of every so many rows of a file the id is remembered, where ids have gaps.
_STRIDE = 1000
_CHARGE_KEYS = ("total_charge", "charge")
_TORN = "Copy it again while no program writes to it."
_SPIN_KEYS = ("spin_multiplicity", "multiplicity", "spin")

Row = tuple[Any, ...]


def read_database(data: bytes, limits: Limits) -> Iterator[Structure | Failure]:
    """Each row as a Structure, or a Failure that carries its place. Raises FormatError or LimitError where the rest cannot be read."""
    _check_whole(data[:100], len(data))
    with _reading(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(data)
        _protect(connection, limits)
        for index, row in enumerate(connection.execute(f"{_QUERY} ORDER BY id")):
            if index >= limits.max_frames:
                raise LimitError(
                    f"The database has more than {limits.max_frames:,} rows; the first {limits.max_frames:,} were read.",
                    "Split it, e.g. `ase db all.db 'id<1000' --insert-into part.db`.",
                )
            yield item_of(row, index, limits)


def count_rows(path: str, limits: Limits) -> int:
    """How many rows the database in this file has. Raises FormatError, OSError."""
    return _places(path, *_state(path), limits)[0]


def rows_of(path: str, start: int, stop: int, limits: Limits) -> Iterator[Row]:
    """The rows start..stop of the database in this file, by their place in the order of their ids, for `item_of`; it is opened for reading
    alone, and what is before them is not read. Raises FormatError, OSError."""
    count, least, marks = _places(path, *_state(path), limits)
    if start >= min(stop, count):
        return
    at = start // _STRIDE
    begin, skip = (marks[at], start % _STRIDE) if marks else (least + start, 0)
    with _reading(_opened(path)) as connection:
        _protect(connection, limits)
        query = f"{_QUERY} WHERE id >= ? ORDER BY id LIMIT ? OFFSET ?"
        yield from connection.execute(query, (begin, min(stop, count) - start, skip))


def item_of(row: Row, index: int, limits: Limits) -> Structure | Failure:
    """A row as a Structure that is not validated yet, or a Failure, either with this place in its file."""
    try:
        return _structure(dict(zip(_COLUMNS, row, strict=True)), index, limits)
    except StructureError as error:
        return Failure("", error.message, error.hint, index)


@lru_cache(maxsize=16)
def _places(path: str, size: int, changed_ns: int, limits: Limits) -> tuple[int, int, tuple[int, ...]]:
    """The number of rows, the least id and, where ids have gaps, the id of every row whose place is a multiple of _STRIDE."""
    with open(path, "rb") as stream:
        _check_whole(stream.read(100), size)
    with _reading(_opened(path)) as connection:
        _protect(connection, limits)
        # Three queries: each is answered from an index.
        count, least, most = (
            connection.execute(f"SELECT {what} FROM systems").fetchone()[0]
            for what in ("count(*)", "min(id)", "max(id)")
        )
        if not count or most - least + 1 == count:
            return count, least or 0, ()
        ids = connection.execute("SELECT id FROM systems ORDER BY id")
        return count, least, tuple(row[0] for row in islice(ids, 0, None, _STRIDE))


def _state(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def _reading(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Close it afterwards, and put what SQLite finds wrong in words."""
    try:
        yield connection
    except sqlite3.Error as error:
        raise FormatError(f"The database is damaged or of another kind ({error}).", _TORN) from error
    finally:
        connection.close()


def _opened(path: str) -> sqlite3.Connection:
    try:
        return sqlite3.connect(f"{Path(path).resolve().as_uri()}?mode=ro", uri=True)
    except sqlite3.Error as error:
        raise FormatError(f"The database cannot be opened ({error}).", "Check its permissions.") from error


def _check_whole(header: bytes, there: int) -> None:
    """SQLite reads what is left of a torn file; its header says how many pages there were (https://www.sqlite.org/fileformat.html)."""
    if len(header) < 100:
        raise FormatError("The database is damaged: not even its header is there.", _TORN)
    size, (changes, pages) = int.from_bytes(header[16:18], "big"), struct.unpack(">II", header[24:32])
    size = 65536 if size == 1 else size
    # Programs of before 2010 left the number of pages as it was.
    known = changes == int.from_bytes(header[92:96], "big") and pages > 0
    if known and there < pages * size:
        raise FormatError(f"The database is torn: {there:,} of {pages * size:,} bytes are there.", _TORN)


def _protect(connection: sqlite3.Connection, limits: Limits) -> None:
    """Before anything is read: what the file defines is not trusted, and nothing is written."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limits.max_bytes)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA query_only = ON")
    kind = connection.execute("SELECT type FROM sqlite_master WHERE name = 'systems'").fetchone()
    columns = {row[1] for row in connection.execute("PRAGMA table_info(systems)")}
    # A view would be a program of whoever made the file.
    if kind != ("table",) or not columns >= {"id", *_COLUMNS}:
        raise FormatError(
            "This is an SQLite database, but not one of ASE.", "Write the structures with ase.db or as extxyz."
        )


def _structure(row: Mapping[str, Any], index: int, limits: Limits) -> Structure:
    numbers = _array(row["numbers"], "<i4", "atomic numbers")
    n = len(numbers)
    if n > limits.max_atoms:
        raise LimitError(
            f"Row {index + 1} has {n:,} atoms; at most {limits.max_atoms:,} are read here.", "Use a smaller cell."
        )
    positions = _array(row["positions"], "<f8", "positions", (n, 3))
    cell = _array(row["cell"], "<f8", "cell", (3, 3))
    told = _pairs(row["key_value_pairs"])
    labels: dict[str, FloatArray | float | str] = {}
    warnings: list[str] = []
    if row["energy"] is not None:
        _keep(labels, warnings, "energy_eV", row["energy"])
    if row["forces"] is not None:
        _keep(labels, warnings, "forces_eV_per_A", _array(row["forces"], "<f8", "forces", (n, 3)))
    if labels and "label_reference" in told:
        labels["provenance"] = provenance_of({k: str(v) for k, v in told.items()})
    charge, spin = _first(told, _CHARGE_KEYS), _first(told, _SPIN_KEYS)
    multiplicity = None if spin is None else whole(str(spin), "the spin multiplicity")
    bits = row["pbc"] if isinstance(row["pbc"], int) else 0
    return Structure(
        numbers=numbers.astype(np.int64),
        positions=positions,
        cell=cell,
        pbc=(bool(bits & 1), bool(bits & 2), bool(bits & 4)),
        charge=None if charge is None else whole(str(charge), "the charge"),
        spin=multiplicity or None,
        index=index,
        labels=labels,
        warnings=tuple(warnings),
        tags=tags_of(told, frozenset((*_CHARGE_KEYS, *_SPIN_KEYS))),
    )


def _keep(labels: dict[str, Any], warnings: list[str], key: str, value: Any) -> None:
    if isinstance(value, float | int | np.ndarray) and np.isfinite(value).all():
        labels[key] = value if isinstance(value, np.ndarray) else float(value)
    else:
        warnings.append(f"the {'energy is' if key == 'energy_eV' else 'forces are'} not finite: left out")


def _array(blob: Any, kind: str, what: str, shape: tuple[int, ...] | None = None) -> Any:
    size = np.dtype(kind).itemsize
    if not isinstance(blob, bytes) or len(blob) % size or (shape and len(blob) != size * int(np.prod(shape))):
        raise FormatError(f"The {what} of this row cannot be read.", "Write the row again with ase.db.")
    return np.frombuffer(blob, kind).reshape(shape or -1).astype(kind[1:])


def _pairs(text: Any) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except (ValueError, TypeError, RecursionError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str | int | float)} if isinstance(found, dict) else {}


def _first(told: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((told[key] for key in keys if key in told), None)
