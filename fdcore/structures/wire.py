"""The contract between the app and the process that parses, and its encoding.

Messages travel on pipes, parent first:

1. The child, once its imports are done, sends one message with the header {"ready": true}.
2. The parent sends a request: header {"name", "format", "first", "limits"}, body the file's bytes. It may send the next ones before it has
   the answer, as far as the pipe holds them; they are answered in order.
3. The child answers every request with one message: header {"structures": [...], "failures": [...]}, body the arrays of the
   structures in order (numbers int64 (N,), positions (N, 3), cell (3, 3), then energy_eV (1,) and forces_eV_per_A (N, 3) where
   the header names them; float64, little-endian). Where labels tell their origin, the header holds it (provenance, as JSON); so it does
   what else the file says (tags).
4. End of the child's input is its order to exit. A child that dies, hangs or sends anything else is killed and replaced; the
   file whose answer was due becomes a Failure, and those behind it are sent again.

A message is 4 bytes "FDS1", header length (uint32), body length (uint64), the header as JSON in UTF-8, the body. Nothing that
arrives is executed: no pickle. The loop takes file objects, so tests need no process.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fdcore.records import Failure, FloatArray, Structure, frozen_array
from fdcore.structures.limits import Limits, Source

_HEAD = struct.Struct("<4sIQ")
_MAGIC = b"FDS1"
MAX_HEADER = 64_000_000
LABELS = ("energy_eV", "forces_eV_per_A")


class WireError(Exception):
    """A message that breaks the contract."""


def send(stream: BinaryIO, header: dict[str, Any], body: bytes = b"") -> None:
    text = json.dumps(header).encode()
    stream.write(_HEAD.pack(_MAGIC, len(text), len(body)) + text)
    stream.write(body)
    stream.flush()


def receive(stream: BinaryIO, max_body: int) -> tuple[dict[str, Any], bytes] | None:
    """The next message, or None where the stream ended before one. Raises WireError before reading what is too large."""
    head = _exactly(stream, _HEAD.size, at_start=True)
    if head is None:
        return None
    magic, header_size, body_size = _HEAD.unpack(head)
    if magic != _MAGIC or header_size > MAX_HEADER or body_size > max_body:
        raise WireError(f"a message of {header_size} + {body_size} bytes")
    try:
        header = json.loads(_exactly(stream, header_size) or b"")
    except ValueError as error:
        raise WireError("a header that is no JSON") from error
    if not isinstance(header, dict):
        raise WireError("a header that is no object")
    return header, _exactly(stream, body_size) or b""


def _exactly(stream: BinaryIO, size: int, at_start: bool = False) -> bytes | None:
    pieces: list[bytes] = []
    left = size
    while left:
        piece = stream.read(min(left, 1 << 20))
        if not piece:
            if at_start and left == size:
                return None
            raise WireError("the stream ended within a message")
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def send_request(stream: BinaryIO, source: Source, limits: Limits) -> None:
    header = {"name": source.name, "format": source.format, "first": source.first, "limits": asdict(limits)}
    send(stream, header, source.data)


def send_result(stream: BinaryIO, structures: list[Structure], failures: list[Failure]) -> None:
    heads: list[dict[str, Any]] = []
    arrays: list[bytes] = []
    for s in structures:
        labels = [key for key in LABELS if key in s.labels]
        heads.append(
            {
                "n": s.n_atoms,
                "periodic": s.periodic,
                "charge": s.charge,
                "spin": s.spin,
                "file": s.file,
                "index": s.index,
                "labels": labels,
                # Only where it is there: what is stored is named by the hash of these bytes.
                **({"provenance": s.labels["provenance"]} if "provenance" in s.labels else {}),
                **({"tags": dict(s.tags)} if s.tags else {}),
                "warnings": list(s.warnings),
            }
        )
        arrays.append(s.numbers.astype("<i8").tobytes())
        arrays += [np.asarray(a, "<f8").tobytes() for a in (s.positions, s.cell, *(s.labels[key] for key in labels))]
    send(stream, {"structures": heads, "failures": [asdict(f) for f in failures]}, b"".join(arrays))


def result_of(header: dict[str, Any], body: bytes) -> tuple[list[Structure], list[Failure]]:
    """Decode a result. Raises WireError for anything that `send_result` would not have written."""
    try:
        return _result_of(header, body)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise WireError("a result that does not fit together") from error


def _result_of(header: dict[str, Any], body: bytes) -> tuple[list[Structure], list[Failure]]:
    at = 0

    def take(count: int, kind: str = "<f8") -> NDArray:
        nonlocal at
        if count < 0 or at + 8 * count > len(body):
            raise WireError("a body that is too short")
        values = np.frombuffer(body, kind, count, at)
        at += 8 * count
        return values

    structures: list[Structure] = []
    for head in header["structures"]:
        n = int(head["n"])
        numbers, positions, cell = take(n, "<i8"), take(3 * n).reshape(n, 3), take(9).reshape(3, 3)
        labels: dict[str, FloatArray | float | str] = {}
        for key in head["labels"]:
            labels[key] = float(take(1)[0]) if key == "energy_eV" else frozen_array(take(3 * n).reshape(n, 3))
        if "provenance" in head:
            labels["provenance"] = str(head["provenance"])
        periodic = bool(head["periodic"])
        structures.append(
            Structure(
                numbers,
                positions,
                cell,
                (periodic, periodic, periodic),
                charge=head["charge"],
                spin=head["spin"],
                file=str(head["file"]),
                index=int(head["index"]),
                labels=labels,
                warnings=tuple(map(str, head["warnings"])),
                tags={str(k): str(v) for k, v in head.get("tags", {}).items()},
            )
        )
    if at != len(body):
        raise WireError("a body that is too long")
    return structures, [Failure(**f) for f in header["failures"]]


Reader = Callable[[Source, Limits], tuple[list[Structure], list[Failure]]]


def serve(stdin: BinaryIO, stdout: BinaryIO, read: Reader, prepare: Callable[[Limits], None] = lambda _: None) -> None:
    """The child's loop: ready, then one answer per request, until the input ends."""
    send(stdout, {"ready": True})
    while (message := receive(stdin, max_body=1 << 40)) is not None:
        header, data = message
        limits = Limits(**header["limits"])
        prepare(limits)
        structures, failures = read(Source(header["name"], data, header["format"], header["first"]), limits)
        send_result(stdout, structures, failures)
