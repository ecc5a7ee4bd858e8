"""From paths to chunks: what is read and recorded together, listed without holding a listing or a file in memory.

Where small files are packed, a chunk ends behind a file whose name says so (content-defined), not behind every so many files: a file that
is added to a folder changes the chunk in which it lies, and leaves the others as they were.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fdcore.errors import UsageError
from fdcore.records import Failure
from fdcore.screening.parts import Form, Part, parts_of
from fdcore.screening.walk import cannot, files_of

__all__ = ["Chunk", "Form", "Piece", "list_chunks"]

# What the pieces of a chunk may hold together, a single file or frame that is larger apart: it is in memory at a time.
CHUNK_BYTES = 16_000_000
# A part has up to one and a half times as many; the readers take 10,000 of a source.
MOST = 5_000


@dataclass(frozen=True)
class Piece:
    """A file or a part of one.

    path: absolute. name: how it is shown in results: relative to the folder that was given, or the file's own name.
    form: `file`: a whole small file; `frames`: bytes start..stop of an xyz or extxyz; `lines`: bytes start..stop of a JSONL; `rows`: rows
    start..stop, by their place in the order of ids, of an ASE database; `table`: rows start..stop of a Parquet file.
    first: the place of its first structure in the file.
    """

    path: str
    name: str
    form: Form
    start: int
    stop: int
    first: int


@dataclass(frozen=True)
class Chunk:
    """What is read and recorded together. count: its structures, as far as the listing knows."""

    number: int
    pieces: tuple[Piece, ...]
    count: int

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Chunk:
        fields = json.loads(text)
        return cls(fields["number"], tuple(Piece(**piece) for piece in fields["pieces"]), fields["count"])


def list_chunks(paths: Sequence[str | Path], size: int = 200, root: Path | None = None) -> Iterator[Chunk | Failure]:
    """Chunks of about `size` structures of these files and folders, in order, and a Failure for each path that gives none.

    With `root`, names are relative to it, so are relative paths, and what lies outside of it is a Failure. Folders are walked in sorted order;
    what is hidden there, and what by its name is no structure, is passed over. A file that is named is always taken.
    Raises UsageError for a size that is not from 1 to MOST.
    """
    if not 1 <= size <= MOST:
        raise UsageError(f"Chunks of {size:,} structures are not possible.", f"Choose a size from 1 to {MOST:,}.")
    pack = _Pack(size)
    before = ""
    for item in files_of(paths, root):
        if isinstance(item, Failure):
            yield item
            continue
        path, name, folder = item
        if folder != before:
            # What is named behind a folder changes none of its chunks.
            yield from pack.close()
            before = folder
        try:
            parts = parts_of(path, size)
            first = next(parts)
            second = next(parts, None)
            if second is None:
                yield from pack.add(_piece(path, name, first), first)
                continue
            # Each part of a large file is a chunk of its own.
            yield from pack.close()
            for part in (first, second):
                yield pack.chunk((_piece(path, name, part),), part.structures)
            for part in parts:
                yield pack.chunk((_piece(path, name, part),), part.structures)
        except OSError as error:
            yield cannot(name, error)
    yield from pack.close()


def _piece(path: str, name: str, part: Part) -> Piece:
    return Piece(path, name, part.form, part.start, part.stop, part.first)


class _Pack:
    """Small files on their way into a chunk, and the numbers of chunks."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._number = 0
        self._empty()

    def _empty(self) -> None:
        self._pieces: list[Piece] = []
        self._count = self._bytes = 0

    def add(self, piece: Piece, part: Part) -> Iterator[Chunk]:
        """Take a whole file; gives the chunks that are full."""
        if self._count + part.structures > 2 * self.size or self._bytes + part.size > CHUNK_BYTES:
            yield from self.close()
        self._pieces.append(piece)
        self._count += part.structures
        self._bytes += part.size
        if self._count >= self.size / 4 and _place(piece.name) % self.size < part.structures:
            yield from self.close()

    def close(self) -> Iterator[Chunk]:
        if self._pieces:
            pieces, count = tuple(self._pieces), self._count
            self._empty()
            yield self.chunk(pieces, count)

    def chunk(self, pieces: tuple[Piece, ...], count: int) -> Chunk:
        self._number += 1
        return Chunk(self._number - 1, pieces, count)


def _place(name: str) -> int:
    """A number that only the name decides."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest())
