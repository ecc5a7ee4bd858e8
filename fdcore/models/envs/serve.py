"""The loop of a worker in another environment: orders in, answers out (the contract is in `wire`). Must not import fdcore."""

from __future__ import annotations

import os
import platform
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, BinaryIO

import numpy as np
import wire

Arrays = dict[str, np.ndarray]
Handler = Callable[[dict[str, Any], Arrays], tuple[dict[str, Any], Arrays]]


class Failed(Exception):
    """An order that cannot be carried out: `kind` as in `wire`, and a message in the user's words."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def loop(
    incoming: BinaryIO,
    outgoing: BinaryIO,
    handlers: Mapping[str, Handler],
    packages: tuple[str, ...] = (),
    on_end_of_input: Callable[[], None] = lambda: os._exit(0),
) -> None:
    """Answer orders until the input ends."""
    orders: queue.Queue[tuple[dict[str, Any], Arrays] | None] = queue.Queue()

    def listen() -> None:
        try:
            while True:
                orders.put(wire.receive(incoming))
        except (EOFError, OSError, ValueError, wire.WireError):
            orders.put(None)
            # In the middle of a computation the main thread would not look.
            on_end_of_input()

    versions = {name: metadata.version(name) for name in packages}
    hello = {"protocol": wire.PROTOCOL, "python": platform.python_version(), **versions}
    wire.send(outgoing, {"hello": hello})
    threading.Thread(target=listen, daemon=True, name="orders").start()
    while (order := orders.get()) is not None:
        message, arrays = order
        try:
            if message["do"] not in handlers:
                raise Failed("compute", f"There is no order {message['do']!r}.")
            started = time.perf_counter()
            done, found = handlers[message["do"]](message, arrays)
            seconds = time.perf_counter() - started
        except Failed as failure:
            wire.send(outgoing, {"failed": {"kind": failure.kind, "message": str(failure)}})
        except Exception as error:
            traceback.print_exc()
            wire.send(outgoing, {"failed": {"kind": _kind(error), "message": f"{type(error).__name__}: {error}"[:500]}})
        else:
            wire.send(outgoing, {"done": done, "seconds": seconds}, found)


def streams() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and the real standard output; whatever a library prints goes to standard error from here on."""
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return sys.stdin.buffer, outgoing


def repeatable(device: str) -> None:
    """Tell torch to give the same numbers to the last bit every time, where it can: on a CPU."""
    if device == "cpu":
        import torch

        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False


def short(error: BaseException) -> str:
    """What kind of error, and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def _kind(error: Exception) -> str:
    text = str(error)
    short = ("can't allocate memory", "not enough memory", "out of memory")
    return "memory" if isinstance(error, MemoryError) or any(s in text for s in short) else "compute"
