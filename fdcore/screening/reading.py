"""From a chunk to its structures, each validated as an upload is, in order, and the key by which the chunk is known again.

Texts and small files go through the bounded processes of `fdcore.structures.pool`, one conversation for a chunk. Rows of databases and of
Parquet files are read here, from the folder of a person who may read it: blobs, numbers and plain JSON, nothing that is executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np

from fdcore.errors import FormatError, StructureError
from fdcore.records import Failure, Structure
from fdcore.screening import parquet, parts
from fdcore.screening.chunks import Chunk, Piece
from fdcore.screening.walk import cannot
from fdcore.structures import Limits, Source
from fdcore.structures.ase_database import item_of, rows_of
from fdcore.structures.dicts import structure_of
from fdcore.structures.entry import too_large
from fdcore.structures.pool import Pool, Read
from fdcore.structures.read import checked

Item = Structure | Failure
_FORMATS = {"file": None, "frames": "xyz", "lines": "jsonl"}


@dataclass(frozen=True)
class ReadChunk:
    """key: SHA-256 of the names and the content of a chunk, wherever its files lie and whatever its number. items: a Structure or a Failure
    for each place, in order; `file` is the piece's name and `index` the place in the file, None for a file that failed as such."""

    key: str
    items: tuple[Item, ...]


def chunk_key(chunk: Chunk, limits: Limits) -> str:
    """The `key` that `read_chunk` gives, without what reading costs: of a chunk whose results may be there."""
    content = _Content()
    for piece in chunk.pieces:
        content.begin(piece)
        if piece.form in _FORMATS:
            _source(piece, limits, content)
        else:
            _rows(piece, limits, content)
    return content.key()


def read_chunk(chunk: Chunk, limits: Limits, pool: Pool) -> ReadChunk:
    """Read and validate what is in a chunk. Never raises for what is in a file, or for one that is not there any more."""
    # Every structure that fails is told here, one by one.
    limits = replace(limits, max_failures=limits.max_frames)
    content = _Content()
    items: list[list[Item]] = [[] for _ in chunk.pieces]
    asked: list[int] = []

    def sources() -> Iterator[Source]:
        for place, piece in enumerate(chunk.pieces):
            content.begin(piece)
            if piece.form in _FORMATS:
                source = _source(piece, limits, content)
                if isinstance(source, Failure):
                    items[place].append(source)
                    continue
                asked.append(place)
                yield source
            else:
                items[place] += _rows(piece, limits, content)

    # For rows no child is needed, nor waited for.
    answers = pool.read_each(sources(), limits) if any(p.form in _FORMATS for p in chunk.pieces) else _none(sources())
    for place, (structures, failures) in enumerate(answers):
        items[asked[place]] += _in_order(structures, failures, chunk.pieces[asked[place]])
    for piece, found in zip(chunk.pieces, items, strict=True):
        if piece.form in ("frames", "lines") and len(found) == 1 and isinstance(found[0], Failure):
            found[:] = _one_by_one(piece, limits, pool) or found
    return ReadChunk(content.key(), tuple(item for found in items for item in found))


def _none(sources: Iterator[Source]) -> Iterator[Read]:
    """Go through pieces none of which is a source."""
    assert next(sources, None) is None
    return iter(())


class _Content:
    """The hash of what was read, each part with its length before it."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256(b"fdcore.screening.chunk.1")

    def begin(self, piece: Piece) -> None:
        self.add(json.dumps([piece.name, piece.form, piece.first]).encode())

    def add(self, data: bytes) -> None:
        self._hash.update(len(data).to_bytes(8, "little"))
        self._hash.update(data)

    def key(self) -> str:
        return self._hash.hexdigest()


def _in_order(structures: list[Structure], failures: list[Failure], piece: Piece) -> list[Item]:
    """What a reader gave in two lists, by the place in the file; what is said of the file as such comes last."""
    items: list[Item] = [*structures, *failures]
    items.sort(key=lambda item: float("inf") if item.index is None else item.index)
    # Readers shorten long names.
    return [item if item.file == piece.name else replace(item, file=piece.name) for item in items]


def _one_by_one(piece: Piece, limits: Limits, pool: Pool) -> list[Item]:
    """Each structure of a part as a source of its own, where all of them failed with one reason, such as one that stalls the reader."""
    source = _source(piece, limits, _Content())
    if isinstance(source, Failure):
        return []
    spans = parts.singly(piece.form, source.data)
    if len(spans) < 2:
        return []
    sources = [replace(source, data=source.data[a:b], first=piece.first + n) for n, (a, b) in enumerate(spans)]
    return [item for read in pool.read_each(sources, limits) for item in _in_order(*read, piece)]


def _place(piece: Piece) -> int | None:
    return None if piece.form == "file" else piece.first


# --- texts, by the children ------------------------------------------------------------------------------------------------


def _source(piece: Piece, limits: Limits, content: _Content) -> Source | Failure:
    """The bytes of a piece; or why there are none, which is then its content."""
    try:
        with _opened(piece.path) as stream:
            there = os.fstat(stream.fileno()).st_size
            wanted = there if piece.form == "file" else piece.stop - piece.start
            failure = _refused(piece, there, wanted, limits)
            data = b"" if failure else _exactly(stream, 0 if piece.form == "file" else piece.start, wanted)
    except (OSError, ValueError) as error:
        failure, data = cannot(piece.name, error), b""
    if failure is not None:
        failure = replace(failure, index=_place(piece))
        content.add(f"{failure.error} {failure.hint}".encode())
        return failure
    content.add(data)
    return Source(piece.name, data, _FORMATS[piece.form], _place(piece))


def _refused(piece: Piece, there: int, wanted: int, limits: Limits) -> Failure | None:
    if piece.form != "file" and there < piece.stop:
        return Failure(piece.name, "The file is shorter than it was when it was listed.", "List it again.")
    if wanted <= limits.max_bytes:
        return None
    if piece.form == "frames":
        return Failure(
            piece.name,
            f"Frame {piece.first + 1:,} and what follows it have {wanted / 1e6:.1f} MB: a count is wrong, or the file is torn there.",
            "Correct the count in the frame's first line, or write the file again.",
        )
    return too_large(piece.name, wanted, limits)


def _opened(path: str) -> BinaryIO:
    """An ordinary file that is where it was listed: a link that was put in its place is not followed."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    stream = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        stream.close()
        raise ValueError("not an ordinary file")
    return stream


def _exactly(stream: BinaryIO, start: int, size: int) -> bytes:
    stream.seek(start)
    return stream.read(size)


# --- rows, here -------------------------------------------------------------------------------------------------------------


def _rows(piece: Piece, limits: Limits, content: _Content) -> list[Item]:
    items: list[Item] = []
    try:
        with _opened(piece.path) as stream, np.errstate(all="ignore"):
            # One by one: those before an error stay.
            for item in _read_rows(piece, stream, limits, content):
                items.append(checked(item, piece.name, limits))  # noqa: PERF401
        if len(items) < max(1, piece.stop - piece.start):
            raise FormatError("The file has fewer rows than when it was listed, or none.", "List it again.")
    except StructureError as error:
        items.append(Failure(piece.name, error.message, error.hint, piece.first + len(items)))
    except (OSError, ValueError) as error:
        items.append(replace(cannot(piece.name, error), index=piece.first + len(items)))
    except MemoryError:
        error = "Reading the rows takes more memory than there is."
        items.append(Failure(piece.name, error, "Bring fewer structures a file.", piece.first + len(items)))
    else:
        return items
    content.add(str(items[-1]).encode())
    return items


def _read_rows(piece: Piece, stream: BinaryIO, limits: Limits, content: _Content) -> Iterator[Item]:
    if piece.form == "rows":
        for index, row in enumerate(rows_of(piece.path, piece.start, piece.stop, limits), piece.first):
            content.add(_blobs(row))
            yield item_of(row, index, limits)
    else:
        for index, row in enumerate(parquet.rows_of(stream, piece.start, piece.stop), piece.first):
            content.add(_canonical(row))
            yield _table_item(row, index, limits)


def _table_item(row: parquet.Row, index: int, limits: Limits) -> Item:
    try:
        return structure_of(parquet.document_of(row), index, limits)
    except StructureError as error:
        return Failure("", error.message, error.hint, index)


def _blobs(row: tuple[Any, ...]) -> bytes:
    """The values of a row, each with its kind and length."""
    parts = [v if isinstance(v, bytes) else repr(v).encode("utf-8", "surrogatepass") for v in row]
    kinds = "".join("b" if isinstance(v, bytes) else "v" for v in row)
    return b"".join([kinds.encode(), *(len(p).to_bytes(8, "little") + p for p in parts)])


def _canonical(row: parquet.Row) -> bytes:
    return json.dumps(row, sort_keys=True, separators=(",", ":"), default=_told).encode()


def _told(value: Any) -> str:
    """Bytes, dates and decimals, which JSON does not know."""
    return value.hex() if isinstance(value, bytes) else str(value)
