"""What a run records while it runs: tables of numbers that grow, notes in words, and the state from which it can go on.

One folder per attempt holds
    series.h5      one HDF5 group per table, one chunked dataset per column; written in SWMR mode, so that other processes
                   read it while it grows and a killed writer leaves everything that was flushed
    notes.jsonl    one JSON object per line, for what is not a number
    checkpoint     safetensors: the arrays of the state, and as metadata the rest of it and how much of the two files above
                   belongs to it; replaced as a whole, never written in place
    <product>/     what else the task made, such as a model
    result.json    what the task returned; its presence means that the folder is complete

A new attempt copies what the last checkpoint vouches for into a folder of its own and appends to that: a point is never
lost, never there twice, and a worker that was wrongly taken for dead writes where nobody reads. The folder gets its name when
the copy is complete; until then the earlier one is the run's newest.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

# Before h5py: network file systems without locks are common on clusters; attempts never share a file anyway.
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "BEST_EFFORT")

import h5py
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fdcore.errors import StoreError, UsageError
from fdcore.store.files import folder_size

SERIES, NOTES, CHECKPOINT, RESULT = "series.h5", "notes.jsonl", "checkpoint.safetensors", "result.json"
# Rows of one chunk: large enough for speed, small enough that a short run is not megabytes.
CHUNK_BYTES = 16_000
# What is copied at once from an earlier attempt.
COPY_BYTES = 16_000_000
# Rows are held back until the next flush, but not more than this.
PENDING_BYTES = 4_000_000


@dataclass(frozen=True)
class Column:
    """One number per row, or an array of fixed shape per row: dtype as NumPy writes it, `shape` without the rows."""

    dtype: str = "<f8"
    shape: tuple[int, ...] = ()


Tables = Mapping[str, Mapping[str, Column]]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a task between two steps: plain JSON values and arrays."""

    values: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]


class Recorder:
    """Writes one attempt's folder. `rows` is how many rows each table has."""

    def __init__(self, folder: Path, tables: Tables, previous: Path | None = None) -> None:
        """`previous`: the folder of an earlier attempt, to go on from its checkpoint (`self.state` is None without one)."""
        self.folder = folder.with_name(folder.name + ".new")
        self.state: Checkpoint | None = None
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, mode=0o700)
        self._file = h5py.File(self.folder / SERIES, "w", libver="latest")
        self.rows = dict.fromkeys(tables, 0)
        self._pending: dict[str, list[dict[str, NDArray[Any]]]] = {table: [] for table in tables}
        self._pending_bytes = 0
        # Of every column so far. A reader of a growing file is not told that its end is missing; these tell.
        self._digests = {f"{table}/{name}": blake2b() for table, columns in tables.items() for name in columns}
        for table, columns in tables.items():
            for name, column in columns.items():
                self._file.create_dataset(
                    f"{table}/{name}",
                    shape=(0, *column.shape),
                    maxshape=(None, *column.shape),
                    chunks=(max(1, min(4096, CHUNK_BYTES // _width(column))), *(max(1, n) for n in column.shape)),
                    dtype=column.dtype,
                )
        self._tables = tables
        self._file.swmr_mode = True
        self._notes = (self.folder / NOTES).open("wb")
        if previous is not None:
            try:
                self._go_on(previous)
            except BaseException:
                self._file.close()
                self._notes.close()
                shutil.rmtree(self.folder, ignore_errors=True)
                raise
        shutil.rmtree(folder, ignore_errors=True)
        self.folder = self.folder.replace(folder)

    def append(self, table: str, columns: Mapping[str, Any]) -> None:
        """Add rows: every column of the table, all with the same number of rows."""
        known = self._tables[table]
        if set(columns) != set(known):
            raise UsageError(f"Table {table} has the columns {sorted(known)}, not {sorted(columns)}.")
        arrays = {
            name: np.array(columns[name], dtype=known[name].dtype).reshape(-1, *known[name].shape) for name in known
        }
        (count,) = {len(a) for a in arrays.values()}
        for name, array in arrays.items():
            self._digests[f"{table}/{name}"].update(array.tobytes())
        self._pending[table].append(arrays)
        self._pending_bytes += sum(a.nbytes for a in arrays.values())
        self.rows[table] += count
        if self._pending_bytes > PENDING_BYTES:
            self._write()

    def _write(self) -> None:
        """Bring what was appended into the file, all rows of a table at once: resizing is what costs."""
        for table, parts in self._pending.items():
            if not parts:
                continue
            for name in self._tables[table]:
                data = _dataset(self._file, f"{table}/{name}")
                start = data.shape[0]
                data.resize(self.rows[table], axis=0)
                data[start:] = np.concatenate([part[name] for part in parts])
            parts.clear()
        self._pending_bytes = 0

    def note(self, values: Mapping[str, Any]) -> None:
        """Add one line of words."""
        self._notes.write(json.dumps(dict(values), allow_nan=False).encode() + b"\n")

    def keep(self, name: str, write: Callable[[Path], None]) -> None:
        """Have `write` fill a folder of this name; it is there complete or not at all."""
        fresh = self.folder / (name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        write(fresh)
        for file in fresh.iterdir():
            _sync(file)
        shutil.rmtree(self.folder / name, ignore_errors=True)
        fresh.replace(self.folder / name)

    def flush(self) -> None:
        """Everything recorded so far can now be read by others, and survives this process."""
        self._write()
        self._notes.flush()
        self._file.flush()

    def save(self, state: Checkpoint) -> None:
        """Replace the checkpoint. What was recorded before this call belongs to it, and reaches the disk first."""
        self.flush()
        for name in (SERIES, NOTES):
            _sync(self.folder / name)
        metadata = {
            "values": json.dumps(dict(state.values), allow_nan=False),
            "rows": json.dumps(self.rows),
            "digests": json.dumps(self._sums()),
            "notes": json.dumps(self._notes.tell()),
        }
        fresh = self.folder / (CHECKPOINT + ".new")
        # safetensors wants at least one array.
        arrays = {"_": np.zeros(1, np.uint8), **{k: np.ascontiguousarray(v) for k, v in state.arrays.items()}}
        save_file(arrays, fresh, metadata=metadata)
        _sync(fresh)
        fresh.replace(self.folder / CHECKPOINT)
        _sync(self.folder)
        self.state = state

    def finish(self, result: Mapping[str, Any]) -> None:
        """The attempt is complete: everything is on disk before `result.json` says so, and nothing can be changed after."""
        self.close()
        for name in (SERIES, NOTES):
            _sync(self.folder / name)
        fresh = self.folder / (RESULT + ".new")
        fresh.write_text(json.dumps(dict(result), allow_nan=False), encoding="utf-8")
        _sync(fresh)
        fresh.replace(self.folder / RESULT)
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
        for file in self.folder.rglob("*"):
            if file.is_file():
                file.chmod(0o400)
        _sync(self.folder)

    def close(self) -> None:
        """Flush and close; more than once does nothing."""
        if self._file:
            try:
                self.flush()
            finally:
                self._notes.close()
                self._file.close()

    def _sums(self) -> dict[str, str]:
        return {name: digest.hexdigest() for name, digest in self._digests.items()}

    def size(self) -> int:
        """Bytes of the folder."""
        return folder_size(self.folder)

    def _go_on(self, previous: Path) -> None:
        read = read_checkpoint(previous)
        if read is None:
            return
        with (previous / NOTES).open("rb") as file:
            kept = file.read(read.notes)
        try:
            with open_series(previous) as old:
                for table, count in read.rows.items():
                    rows = max(1, COPY_BYTES // sum(map(_width, self._tables[table].values())))
                    for start in range(0, count, rows):
                        self._copy(old, table, start, min(count, start + rows))
        except (OSError, KeyError, ValueError) as error:
            raise StoreError(_TORN) from error
        if self.rows != read.rows or self._sums() != read.digests or len(kept) != read.notes:
            raise StoreError(_TORN)
        self._notes.write(kept)
        for product in previous.iterdir():
            # Complete ones only; the same files under a second name, which the deletion of the first leaves alone.
            if product.is_dir() and product.suffix != ".new":
                shutil.copytree(product, self.folder / product.name, copy_function=os.link)
        # The new attempt must not depend on the old folder: it may itself be killed before its first own checkpoint.
        self.save(read.state)

    def _copy(self, old: h5py.File | None, table: str, start: int, stop: int) -> None:
        if old is None:
            raise StoreError(_TORN)
        self.append(table, {name: _dataset(old, f"{table}/{name}")[start:stop] for name in self._tables[table]})


_TORN = "the state is there, but not all that was recorded before it."


def _width(column: Column) -> int:
    """Bytes of one row."""
    return max(1, np.dtype(column.dtype).itemsize * int(np.prod(column.shape, dtype=int)))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Saved:
    """A checkpoint with what it vouches for: rows and digests of the tables, bytes of the notes."""

    state: Checkpoint
    rows: dict[str, int]
    digests: dict[str, str]
    notes: int


def read_checkpoint(folder: Path) -> Saved | None:
    """The last checkpoint of an attempt; None where it has none. StoreError where it is damaged."""
    file = folder / CHECKPOINT
    if not file.is_file():
        return None
    try:
        with safe_open(file, "numpy") as opened:
            metadata = opened.metadata()
            arrays = {k: opened.get_tensor(k) for k in opened.keys() if k != "_"}  # noqa: SIM118 - no mapping
        values, rows, digests, notes = (json.loads(metadata[k]) for k in ("values", "rows", "digests", "notes"))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError("the saved state of the run is damaged.", "Submit it again.") from error
    return Saved(Checkpoint(values, arrays), rows, digests, notes)


class open_series:
    """`with open_series(folder) as file:` the HDF5 file for reading, also while it is written; None before it exists."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / SERIES
        self._file: h5py.File | None = None

    def __enter__(self) -> h5py.File | None:
        try:
            # SWMR also opens what a killed writer left open.
            self._file = h5py.File(self._path, "r", libver="latest", swmr=True)
        except (OSError, KeyError):
            return None
        return self._file

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def read_table(folder: Path, table: str, start: int = 0) -> dict[str, NDArray[Any]]:
    """The columns of one table from row `start` on, all of the same length; empty before the file exists."""
    with open_series(folder) as file:
        if file is None or table not in file:
            return {}
        columns = {str(name): _dataset(file, f"{table}/{name}") for name in cast(h5py.Group, file[table])}
        count = _complete(columns)
        return {name: column[start:count] for name, column in columns.items()}


@contextmanager
def closed_series(folder: Path) -> Iterator[Path | None]:
    """A path at which the record is a file that every HDF5 program opens: the record itself where its writer closed it, else (the
    writer was killed, or still writes) a copy of all complete rows, which is gone afterwards. None before the file exists."""
    path = folder / SERIES
    try:
        with h5py.File(path, "r"):
            pass
    except OSError:
        with open_series(folder) as file:
            if file is None:
                # Not a record that can be understood: as it is, rather than not at all.
                yield path if path.is_file() else None
                return
            # Beside the attempts: where there was room for the record, and where a run that is deleted takes it along.
            with tempfile.NamedTemporaryFile(dir=folder.parent, prefix="copy-", suffix=".h5") as copy:
                _copy_complete(file, Path(copy.name))
                yield Path(copy.name)
    else:
        yield path


def _copy_complete(file: h5py.File, target: Path) -> None:
    with h5py.File(target, "w") as copy:
        for table in file:
            columns = {str(name): _dataset(file, f"{table}/{name}") for name in cast(h5py.Group, file[table])}
            count = _complete(columns)
            for name, column in columns.items():
                made = copy.create_dataset(
                    f"{table}/{name}",
                    shape=(count, *column.shape[1:]),
                    maxshape=column.maxshape,
                    chunks=column.chunks,
                    dtype=column.dtype,
                )
                rows = max(1, COPY_BYTES // _width(Column(column.dtype.str, column.shape[1:])))
                for start in range(0, count, rows):
                    made[start : min(count, start + rows)] = column[start : min(count, start + rows)]


def _complete(columns: Mapping[str, h5py.Dataset]) -> int:
    """Rows that every column has: a writer appends column by column."""
    return min(column.shape[0] for column in columns.values())


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    return cast(h5py.Dataset, file[name])


def read_notes(folder: Path) -> Iterator[dict[str, Any]]:
    """The notes in order; a line that is still being written is left out."""
    try:
        content = (folder / NOTES).read_bytes()
    except OSError:
        return
    for line in content.split(b"\n")[:-1]:
        yield json.loads(line)


def read_result(folder: Path) -> dict[str, Any] | None:
    """What the task returned, None where the attempt is not complete."""
    try:
        return json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
