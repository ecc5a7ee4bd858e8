"""A file's parts: where in it whole structures begin and end, found without holding it in memory."""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import BinaryIO, Literal, NamedTuple

from fdcore.errors import StructureError
from fdcore.screening import parquet
from fdcore.structures import Limits
from fdcore.structures.ase_database import MAGIC, count_rows

Form = Literal["file", "frames", "lines", "rows", "table"]
# A part ends here even if it holds fewer structures: an atom takes 8 bytes or more, so this is within the readers' limit on atoms.
PART_BYTES = 6_000_000
# So much of a line is looked at together.
_LINE = 1 << 16


class Part(NamedTuple):
    """start, stop: bytes for `file`, `frames` and `lines`, else rows. first: the place of its first structure. structures: how many, as far
    as they can be told without reading them; size: about how many bytes of memory its content takes."""

    form: Form
    start: int
    stop: int
    first: int
    structures: int
    size: int


class _Span(NamedTuple):
    """Whole structures that follow each other: bytes start..stop, so many structures from `first` on."""

    start: int
    stop: int
    first: int
    structures: int


def parts_of(path: str, size: int) -> Iterator[Part]:
    """The parts of a file, of about `size` structures each; a small file is one. Raises OSError."""
    suffix = os.path.splitext(path)[1].lower()
    with open(path, "rb") as stream:
        there = os.fstat(stream.fileno()).st_size
        if suffix in _TEXTS:
            form, scan = _TEXTS[suffix]
            yield from _texts(form, scan(stream, there), there, size)
            return
        magic = stream.read(len(MAGIC))
    if magic == MAGIC:
        yield from _rows("rows", path, there, size)
    elif magic.startswith(parquet.MAGIC):
        yield from _rows("table", path, there, size)
    else:
        yield _whole(there, _guess(suffix, there))


def singly(form: Form, data: bytes) -> list[tuple[int, int]]:
    """Start and stop of each structure within the bytes of a part of frames or lines; what follows a tear is one."""
    scan = _frames if form == "frames" else _lines
    return [(span.start, span.stop) for span in scan(io.BytesIO(data), len(data))]


def _whole(there: int, count: int) -> Part:
    return Part("file", 0, there, 0, count, there)


def _guess(suffix: str, there: int) -> int:
    """Structures in a small file whose content is not looked at; a large JSON is a list of them."""
    return max(1, there // 5_000) if suffix == ".json" and there > 1_000_000 else 1


def _texts(form: Form, spans: Iterator[_Span], there: int, size: int) -> Iterator[Part]:
    """Parts of many structures each; a file that would be one part, or is short and torn, is read as any file that is brought alone."""
    gathered = _gathered(spans, size)
    head = list(islice(gathered, 3))
    torn = len(head) == 2 and not head[1].structures and head[1].stop == there <= PART_BYTES
    if len(head) < 2 or torn:
        yield _whole(there, max(1, sum(max(1, span.structures) for span in head)))
        return
    for span in chain(head, gathered):
        yield Part(form, span.start, span.stop, span.first, max(1, span.structures), span.stop - span.start)


def _gathered(spans: Iterator[_Span], size: int) -> Iterator[_Span]:
    """Single structures joined to about `size`, a short rest with those before it; what follows a tear stays alone."""
    before: _Span | None = None
    now: _Span | None = None
    for span in spans:
        if now is not None and (not span.structures or now.structures >= size or span.stop - now.start > PART_BYTES):
            if before is not None:
                yield before
            before, now = now, None
        now = span if now is None else _joined(now, span)
    if before is not None and now is not None:
        if 0 < now.structures <= size // 2 and now.stop - before.start <= PART_BYTES:
            now = _joined(before, now)
        else:
            yield before
    if now is not None:
        yield now


def _joined(a: _Span, b: _Span) -> _Span:
    return _Span(a.start, b.stop, a.first, a.structures + b.structures)


# In one file of frames; behind the last of them nothing is looked for any more.
MOST_TORN = 100


def _frames(stream: BinaryIO, there: int) -> Iterator[_Span]:
    """Each frame of an xyz file by the number that it begins with; where that is none, or lines are missing, what there is up to the next frame
    of an extxyz, or the rest, with 0 structures."""
    at = first = torn = 0
    readline = stream.readline
    while True:
        line = readline(_LINE)
        if not line:
            return
        token = line.strip()
        if not token:
            at += len(line)
            continue
        token = token.removeprefix(b"+")
        n = int(token) if token.isdigit() and len(token) < 10 and len(line) < _LINE else -1
        stop = _behind(readline, at + len(line), n + 1) if n >= 0 else None
        if stop is None:
            torn += 1
            stream.seek(at)
            # A wrong count may have led to the end of the file: not as often as there are frames.
            stop = _next_frame(readline, at, there) if torn <= MOST_TORN else there
            yield _Span(at, stop, first, 0)
            stream.seek(stop)
        else:
            yield _Span(at, stop, first, 1)
        at, first = stop, first + 1


def _next_frame(readline: Callable[[int], bytes], at: int, there: int) -> int:
    """Where the next frame behind a torn one begins: a number alone in its line, before a comment as only extxyz has."""
    number: int | None = None
    start = at
    while line := readline(_LINE):
        if number is not None and number > start and (b"Lattice=" in line or b"Properties=" in line):
            return number
        number = at if line.strip().isdigit() else None
        at += len(line)
    return there


def _behind(readline: Callable[[int], bytes], at: int, lines: int) -> int | None:
    """The place behind so many lines; None where they are not there."""
    for _ in range(lines):
        line = readline(_LINE)
        if not line:
            return None
        at += len(line)
        while len(line) == _LINE and line[-1] != 10:
            line = readline(_LINE)
            at += len(line)
    return at


def _lines(stream: BinaryIO, there: int) -> Iterator[_Span]:
    """Each line that is not blank; the whole of a text of two bytes a letter, whose lines do not end where they seem to."""
    at = first = 0
    if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        yield _Span(0, there, 0, 0)
        return
    stream.seek(0)
    while at < there:
        line = stream.readline(_LINE)
        if not line:
            return
        stop, blank = at + len(line), not line.strip()
        while len(line) == _LINE and line[-1] != 10:
            line = stream.readline(_LINE)
            stop += len(line)
            blank = blank and not line.strip()
        if not blank:
            yield _Span(at, stop, first, 1)
            first += 1
        at = stop


_TEXTS: dict[str, tuple[Form, Callable[[BinaryIO, int], Iterator[_Span]]]] = {
    ".xyz": ("frames", _frames),
    ".extxyz": ("frames", _frames),
    ".jsonl": ("lines", _lines),
    ".ndjson": ("lines", _lines),
}


def _rows(form: Form, path: str, there: int, size: int) -> Iterator[Part]:
    try:
        if form == "rows":
            count, taken = count_rows(path, Limits()), there
        else:
            count, taken = parquet.count_rows(path)
    except StructureError:
        # Its reason is told where it is read.
        yield Part(form, 0, 1, 0, 1, 0)
        return
    each = max(1, taken // max(1, count))
    step = max(1, min(size, PART_BYTES // each))
    start = 0
    while start < count or count == 0:
        # As with texts, a short rest belongs to the part before it.
        stop = count if count - start <= step + step // 2 else start + step
        yield Part(form, start, stop, start, stop - start, (stop - start) * each)
        start = stop
        if count == 0:
            return
