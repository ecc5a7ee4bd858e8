"""The table of a screening on disk: one Parquet file per chunk, written whole or not at all and never changed; put together in the end.

A part is named by the content of its chunk and the settings, so that a part that is there is the answer, whoever made it and when.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from fdcore.errors import StoreError
from fdcore.screening.rows import SCHEMA, Row, digest, table

PARTS, TABLE_PARQUET, TABLE_CSV = "parts", "results.parquet", "results.csv"


def all_there(folder: Path) -> bool:
    """Whether the whole table has been put together."""
    return all((folder / name).is_file() for name in (TABLE_PARQUET, TABLE_CSV))


class Results:
    """The parts of a table in one folder, of chunks scored with one set of settings."""

    def __init__(self, folder: Path, settings_sha256: str) -> None:
        self.folder = folder / PARTS
        self._settings = settings_sha256
        self.folder.mkdir(parents=True, exist_ok=True)
        # Whether a chunk may have been done before: the key of what is new need not be made twice.
        self.any_there = any(p.is_dir() for p in self.folder.iterdir())

    def key(self, chunk_key: str) -> str:
        """The name of the part of a chunk with this content."""
        return hashlib.sha256(f"{self._settings}:{chunk_key}".encode()).hexdigest()

    def path(self, key: str) -> Path:
        # Folders of 256, so that a million parts do not lie in one.
        return self.folder / key[:2] / f"{key}.parquet"

    def watched(self, key: str) -> Path:
        """Where it is written down which structure of a chunk is being evaluated."""
        return self.folder / f"{key}.watched"

    def there(self, key: str) -> bool:
        return self.path(key).is_file()

    def whole(self, key: str) -> bool:
        """Whether there is a part that can be used; one that is damaged, or not of these columns, is dropped, and made again."""
        try:
            if pq.read_table(self.path(key)).schema.equals(SCHEMA):
                return True
        except (OSError, pa.ArrowInvalid):
            pass
        self.path(key).unlink(missing_ok=True)
        return False

    def write(self, key: str, rows: list[Row]) -> None:
        """Complete on disk before it has its name. StoreError where there is no room."""
        path = self.path(key)
        new = path.with_name(f".{key}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(exist_ok=True)
            pq.write_table(table(rows), new, compression="zstd")
            with new.open("rb+") as file:
                os.fsync(file.fileno())
            new.replace(path)
        except OSError as error:
            new.unlink(missing_ok=True)
            raise StoreError(
                f"A part of the table could not be written ({error.strerror or error}).",
                "Make room, then repeat the command: it goes on from what is there.",
            ) from error
        self.watched(key).unlink(missing_ok=True)

    def read(self, key: str, columns: list[str] | None = None) -> pa.Table:
        """StoreError where the part is gone or damaged."""
        try:
            return pq.read_table(self.path(key), columns=columns)
        except (OSError, pa.ArrowInvalid) as error:
            raise StoreError(
                f"The part {key[:12]} of the table cannot be read ({error}).",
                "Delete that file and repeat the command: its chunk is scored again.",
            ) from error

    def summary(self, key: str) -> tuple[int, int, dict[str, Any]]:
        """(scored, failed, digest) of a part that is there."""
        rows = self.read(key).to_pylist()
        failed = sum(row["verdict"] == "failed" for row in rows)
        return len(rows) - failed, failed, dict(digest(rows))


def rows_there(folder: Path) -> int:
    """Rows of the whole table as it was last put together; 0 where there is none that can be read."""
    try:
        return pq.read_metadata(folder / TABLE_PARQUET).num_rows
    except (OSError, pa.ArrowInvalid):
        return 0


def put_together(tables: Iterable[pa.Table], folder: Path) -> int:
    """Both files of the whole table from its parts, in their order and with no more than one part in memory; returns the number of rows.
    Neither file is there before it is complete."""
    new = [folder / f".{name}.{secrets.token_hex(4)}" for name in (TABLE_PARQUET, TABLE_CSV)]
    count = 0
    try:
        with (
            pq.ParquetWriter(new[0], SCHEMA, compression="zstd") as parquet,
            pyarrow.csv.CSVWriter(new[1], SCHEMA) as csv,
        ):
            for several in _gathered(tables):
                parquet.write_table(several, row_group_size=GROUP)
                csv.write_table(several)
                count += len(several)
        for made, name in zip(new, (TABLE_PARQUET, TABLE_CSV), strict=True):
            made.replace(folder / name)
    finally:
        for made in new:
            made.unlink(missing_ok=True)
    return count


# Rows of a row group: what a reader that filters has to look at.
GROUP = 20_000


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in larger tables, cut at the same places however the parts were cut."""
    held: list[pa.Table] = []
    count = 0
    for part in tables:
        held.append(part)
        count += len(part)
        if count >= GROUP:
            whole = pa.concat_tables(held)
            while len(whole) >= GROUP:
                yield whole.slice(0, GROUP)
                whole = whole.slice(GROUP)
            held, count = [whole], len(whole)
    if count:
        yield pa.concat_tables(held)
