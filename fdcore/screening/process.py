"""A pair of hands as a process of its own: `python -m fdcore.screening.process`.

Contract: one order as a line of JSON on standard input (`order_of`); lines of JSON back on the real standard output,

    {"ready": true}                                     the model is loaded
    {"structures": n, "chunk": k, "finished": bool}     it moved
    {"over": true}                                      every chunk is done, or it was told to stop; the last line
    {"error": text, "hint": text}                       it cannot work, and neither could another one like it

End of input tells it to stop soon. Killed at any moment, it leaves its chunk to another one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase.build import bulk

from fdcore import config as configuration
from fdcore.errors import FdcoreError
from fdcore.records import Structure

if TYPE_CHECKING:
    from fdcore.models.base import Model

# More than keep up with a GPU.
MOST_JUDGES = 12


def order_of(
    *, folder: Path, database_url: str, screen: str, settings_sha256: str, holder: str, model: dict[str, Any], how: Any
) -> dict[str, Any]:
    """What the process is told. `model`: id, device, dtype, weights (a path or None), compile (bool)."""
    return {
        "folder": str(folder),
        "database_url": database_url,
        "screen": screen,
        "settings_sha256": settings_sha256,
        "holder": holder,
        "model": model,
        "how": asdict(how),
    }


def main() -> None:
    # The real standard output belongs to the protocol.
    outgoing = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def tell(**message: Any) -> None:
        outgoing.write(json.dumps(message) + "\n")
        outgoing.flush()

    order = json.loads(sys.stdin.readline())
    stop = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=listen, daemon=True, name="end of input").start()
    try:
        _work(order, tell, stop)
    except FdcoreError as error:
        tell(error=error.message, hint=error.hint)
    else:
        tell(over=True)
    outgoing.flush()
    # A library's threads have nothing to say any more.
    os._exit(0)


def _work(order: dict[str, Any], tell: Any, stop: threading.Event) -> None:
    from fdcore.screening.hand import Hand
    from fdcore.screening.place import book_of
    from fdcore.screening.results import Results
    from fdcore.screening.scoring import How

    chosen = order["model"]

    def load() -> Model:
        from fdcore.models import load_model

        model = load_model(chosen["id"], chosen["device"], chosen["dtype"], chosen["weights"])
        if chosen["compile"]:
            model.compile()
        _first_evaluation(model)
        tell(ready=True)
        return model

    folder = Path(order["folder"])
    book = book_of(folder, order["database_url"], order["screen"])
    hand = Hand(
        book,
        Results(folder, order["settings_sha256"]),
        order["holder"],
        How(**order["how"]),
        silent_seconds=configuration.from_environment().dead_after_seconds,
        judges=judges(chosen["device"]),
    )
    for moved in hand.work(load, stop.is_set):
        tell(structures=moved.structures, chunk=moved.number, finished=moved.finished)


def _first_evaluation(model: Model) -> None:
    """What is made on first use, kernels of the neighbour list and compiled code, is made before the model counts as ready: of an element that
    it has seen, crystals of two sizes."""
    from fdcore.screening.scoring import answers

    atoms = bulk(model.card.elements[0], "fcc", a=4.0, cubic=True)
    for repeat in (1, 2):
        answers(model, model.prepare([Structure.from_atoms(atoms * (repeat, 1, 1))] * repeat))


def judges(device: str) -> Executor | None:
    """A GPU evaluates ten structures while a processor judges one: the cores that it leaves idle do that. On a CPU every core evaluates."""
    if not device.startswith("cuda"):
        return None
    import torch

    from fdcore.screening.screen import cores

    share = max(1, cores() // max(1, torch.cuda.device_count()) - 1)
    # Not forked: a process with a CUDA context cannot be.
    return ProcessPoolExecutor(min(share, MOST_JUDGES), multiprocessing.get_context("spawn"))


if __name__ == "__main__":
    main()
