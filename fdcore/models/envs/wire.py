"""Messages between fdcore and a worker that runs in another environment. Standard library and NumPy only: both sides import it.

A message is one frame: 4 bytes (little-endian) with the length of the header, a JSON header, and the bytes of its arrays one after
the other, C-contiguous and little-endian, as the header's `arrays` lists them: [name, dtype, shape]. Nothing is unpickled.

    worker  {"hello": {"protocol": n, "python": ..., <package>: <version>, ...}}        once, first of all
    client  {"do": <name>, ...}                                                         one at a time
    worker  {"done": {...}, "seconds": <its time>} or {"failed": {"kind", "message"}}                     exactly one per order, in order

Every order carries the whole of what it is about. `kind` says what went wrong: "memory" (too little of it), "weights" (the file),
"convergence" (an iteration did not end), or "compute". End of input is the order to die, at once, whatever the worker is doing. The worker's standard output belongs to these
messages; what libraries print goes to its standard error.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

# Raised with every change of what is sent: the two sides may come from different installations.
PROTOCOL = 1
# A header of more than this is noise on the line, not a message.
LONGEST_HEADER = 1_000_000
DTYPES = ("<f8", "<i8", "|b1")


class WireError(Exception):
    """What came is no message."""


def send(stream: IO[bytes], message: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> None:
    """Write one message; booleans, whole numbers and floats travel as bool, int64 and float64."""
    parts = {name: _plain(array) for name, array in (arrays or {}).items()}
    listed = [[name, part.dtype.str, list(part.shape)] for name, part in parts.items()]
    header = json.dumps({**message, "arrays": listed}).encode()
    stream.write(struct.pack("<I", len(header)) + header)
    for part in parts.values():
        stream.write(part.data if part.size else b"")
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The next message and its arrays. EOFError where the other side has gone, WireError for anything that is no message."""
    (length,) = struct.unpack("<I", _exactly(stream, 4))
    if length > LONGEST_HEADER:
        raise WireError(f"a header of {length} bytes")
    try:
        message = json.loads(_exactly(stream, length))
        listed = [(str(name), str(dtype), tuple(map(int, shape))) for name, dtype, shape in message.pop("arrays")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WireError(f"a header that cannot be read ({error})") from error
    arrays = {}
    for name, dtype, shape in listed:
        if dtype not in DTYPES or any(n < 0 for n in shape):
            raise WireError(f"an array of type {dtype} and shape {shape}")
        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(_exactly(stream, count * kind.itemsize), kind).reshape(shape).copy()
    return message, arrays


def _plain(array: np.ndarray) -> np.ndarray:
    kind = {"b": "|b1", "i": "<i8", "u": "<i8", "f": "<f8"}[np.asarray(array).dtype.kind]
    return np.ascontiguousarray(array, dtype=kind)


def _exactly(stream: IO[bytes], count: int) -> bytes:
    """`count` bytes; a pipe may hand them over in pieces."""
    pieces = []
    while count:
        piece = stream.read(count)
        if not piece:
            raise EOFError("the other side has closed the line")
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)
