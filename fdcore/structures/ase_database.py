"""An ASE database (SQLite): every row with its energy and forces where it has both.

Read here and not by ASE, which wants a file it may write to: the bytes are opened in memory, what they define beside tables is not trusted, and
nothing but numbers and plain JSON is taken. Source: ase/db/sqlite.py (the table `systems`; arrays are little-endian blobs).
"""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fdcore.errors import FormatError, LimitError, StructureError
from fdcore.records import Failure, FloatArray, Structure
from fdcore.structures.limits import Limits
from fdcore.structures.origin import provenance_of, tags_of
from fdcore.structures.text import whole

MAGIC = b"SQLite format 3\x00"
_COLUMNS = ("numbers", "positions", "cell", "pbc", "energy", "forces", "key_value_pairs")
_QUERY = f"SELECT {', '.join(_COLUMNS)} FROM systems ORDER BY id"
_CHARGE_KEYS = ("total_charge", "charge")
_TORN = "Copy it again while no program writes to it."
_SPIN_KEYS = ("spin_multiplicity", "multiplicity", "spin")


def read_database(data: bytes, limits: Limits) -> Iterator[Structure | Failure]:
    """Each row as a Structure, or a Failure that carries its place. Raises FormatError or LimitError where the rest cannot be read."""
    connection = sqlite3.connect(":memory:")
    try:
        _open(connection, data, limits)
        for index, row in enumerate(connection.execute(_QUERY)):
            if index >= limits.max_frames:
                raise LimitError(
                    f"The database has more than {limits.max_frames:,} rows; the first {limits.max_frames:,} were read.",
                    "Split it, e.g. `ase db all.db 'id<1000' --insert-into part.db`.",
                )
            try:
                yield _structure(dict(zip(_COLUMNS, row, strict=True)), index, limits)
            except StructureError as error:
                yield Failure("", error.message, error.hint, index)
    except sqlite3.Error as error:
        raise FormatError(f"The database is damaged or of another kind ({error}).", _TORN) from error
    finally:
        connection.close()


def _check_whole(data: bytes) -> None:
    """SQLite reads what is left of a torn file; its header says how many pages there were (https://www.sqlite.org/fileformat.html)."""
    if len(data) < 100:
        raise FormatError("The database is damaged: not even its header is there.", _TORN)
    size, (changes, pages) = int.from_bytes(data[16:18], "big"), struct.unpack(">II", data[24:32])
    size = 65536 if size == 1 else size
    # Programs of before 2010 left the number of pages as it was.
    known = changes == int.from_bytes(data[92:96], "big") and pages > 0
    if known and len(data) < pages * size:
        raise FormatError(f"The database is torn: {len(data):,} of {pages * size:,} bytes are there.", _TORN)


def _open(connection: sqlite3.Connection, data: bytes, limits: Limits) -> None:
    _check_whole(data)
    connection.deserialize(data)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limits.max_bytes)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA query_only = ON")
    kind = connection.execute("SELECT type FROM sqlite_master WHERE name = 'systems'").fetchone()
    columns = {row[1] for row in connection.execute("PRAGMA table_info(systems)")}
    # A view would be a program of whoever made the file.
    if kind != ("table",) or not columns >= set(_COLUMNS):
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
