"""One pair of hands of a screening: takes chunks from its book, scores them and writes parts, beside any number of others.

Nothing is recorded in the run itself. What is done stands in the book (the engine's database) and in the parts (the folder of the screening,
fdcore/store/files.py): whoever begins goes on from there. Whoever sees that every chunk is done puts the table together.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from fdcore import config as configuration
from fdcore.config import Config
from fdcore.errors import UsageError
from fdcore.records import Structure
from fdcore.screening import listing, place
from fdcore.screening.chunks import MOST, list_chunks
from fdcore.screening.hand import Hand
from fdcore.screening.inputs import INPUTS, offered_folder
from fdcore.screening.process import judges
from fdcore.screening.results import Results, all_there, put_together
from fdcore.screening.scoring import How
from fdcore.screening.screen import tables
from fdcore.screening.summary import SUMMARY, summary_of
from fdcore.spec import Spec
from fdcore.store.chunks import TASK, ChunkBook, Count
from fdcore.store.files import is_screen, screen_folder
from fdcore.store.runs import Store
from fdcore.store.series import Checkpoint, Tables
from fdcore.tasks.base import Job, Parameters, Progress, Record, Run, Savable

# How often a long wait is interrupted, and how often the book is counted: where counting is slow, less often.
LOOK_SECONDS = 0.5
COUNTING_SHARE = 0.05
# What the numbers are made with, for those who read them later.
SETTINGS = "settings.json"


@dataclass(frozen=True)
class ScreenParameters(Parameters):
    """screen: the name of the screening, which all of its hands share. folder: one of the folders that the operator offers; empty: what was
    brought. source: paths within it, all of it where there are none. check_share: of the structures, that is scored a second time, alone.
    charge (e), spin: where a file is silent. chunk: structures that are taken at once. hand: of so many hands, counted from 0."""

    screen: str = ""
    folder: str = ""
    source: tuple[str, ...] = ()
    check_share: float = 0.01
    charge: int | None = None
    spin: int | None = None
    chunk: int = 200
    hand: int = 0
    hands: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", tuple(self.source))
        if not isinstance(self.screen, str) or not is_screen(self.screen):
            raise UsageError("The screening has no name.", "Begin it on the Screen page.")
        if not isinstance(self.folder, str) or not all(isinstance(s, str) for s in self.source):
            raise UsageError("What is to be screened is not named by text.")
        if not (self.folder or self.source):
            raise UsageError("There is nothing to be screened.", "Bring files, or choose a folder.")
        if not _number(self.check_share) or not 0 <= self.check_share <= 1:
            raise UsageError(f"{self.check_share!r} is not a share.", "Give a number from 0 to 1.")
        if not _whole(self.chunk) or not 1 <= self.chunk <= MOST:
            raise UsageError(
                f"Chunks of {self.chunk!r} structures are not possible.", f"Choose a size from 1 to {MOST:,}."
            )
        for name in ("charge", "spin"):
            value = getattr(self, name)
            if value is not None and not _whole(value):
                raise UsageError(f"The {name} {value!r} is not a whole number.", f"Give {name} as an integer.")
        if not _whole(self.hands) or not _whole(self.hand) or not 0 <= self.hand < self.hands:
            raise UsageError(f"There is no hand {self.hand!r} of {self.hands!r}.", "Hands are counted from 0.")

    @property
    def how(self) -> How:
        return How(self.check_share, self.charge, self.spin)

    def inputs(self, config: Config) -> Path:
        """The folder that may be read, and nothing outside of it. UsageError where the operator does not offer it any more."""
        if self.folder:
            return offered_folder(config.screen_folder, self.folder)
        return screen_folder(config, self.screen) / INPUTS


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class ScreenTask:
    name = TASK
    unit = "structure"

    def check(self, spec: Spec) -> None:
        ScreenParameters.of(spec)

    def tables(self, spec: Spec, structures: Sequence[Structure]) -> Tables:
        """None: the table of a screening is in its own folder, for all its hands."""
        return {}

    def run(self, job: Job) -> Run:
        model, p = job.needs_model(), ScreenParameters.of(job.spec)
        config = configuration.from_environment()
        folder = screen_folder(config, p.screen)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings = place.settings_of(
            model=model.card.id,
            weights_sha256=model.weights_sha256 or None,
            dtype=model.dtype,
            how=asdict(p.how) | {"compile": False},
            chunk=p.chunk,
        )
        book = _opened(config, p.screen, place.sha256_of(settings))
        _write(folder / SETTINGS, settings)
        run, holder = _names(job)
        # An earlier attempt of this run has ended, or this one would not have begun.
        book.release_of(f"{run}.")
        told = _Told(book)
        yield from told.anew()
        yield from _listed(book, holder, p, config, told)
        results = Results(folder, place.sha256_of(settings))
        helpers = judges(model.device)
        hand = Hand(book, results, holder, p.how, silent_seconds=config.dead_after_seconds, judges=helpers)
        try:
            with _one_thread(model.device), contextlib.closing(hand.work(lambda: model)) as work:
                for moved in work:
                    yield from told.after(moved.number, moved.structures, moved.finished)
        finally:
            if helpers is not None:
                helpers.shutdown(cancel_futures=True)
        yield from _put_together(book, results, folder, told)
        summary = summary_of(book, settings, {"hands": p.hands})
        _write(folder / SUMMARY, summary)
        yield from told.anew()
        worst = summary["worst"][0]["force_delta_eV_per_A"] if summary["worst"] else None
        return {
            "structures": summary["structures"],
            "scored": summary["scored"],
            "failed": summary["failed"],
            "verdicts": summary["verdicts"],
            "largest_force_delta_eV_per_A": worst,
            "device": model.device,
            "weights_sha256": model.weights_sha256,
        }


def _opened(config: Config, screen: str, settings_sha256: str) -> ChunkBook:
    book = ChunkBook(Store(config), screen)
    try:
        book.open(settings_sha256)
    except UsageError as error:
        raise UsageError(
            "This screening was begun with other weights, or by another version of the program.",
            "Begin a new one; or let only machines work on it that have the same.",
        ) from error
    return book


def _names(job: Job) -> tuple[str, str]:
    """The run, and a name for this process among all that work on the screening, which begins with it."""
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"
    if job.products is None:
        return unique, f"{unique}.{socket.gethostname()}"
    # The folder of an attempt is called by its run (fdcore/store/files.py).
    run = job.products.parent.name
    return run, f"{run}.{job.products.name}.{unique}"


@contextlib.contextmanager
def _one_thread(device: str) -> Iterator[None]:
    """On a CPU: sums of several threads differ in their last bits, and machines have different numbers of cores. More cores take more hands."""
    if device != "cpu":
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _nothing() -> Checkpoint:
    """Chunks that are done are done; what is in work is begun again."""
    return Checkpoint({}, {})


class _Told:
    """How far the screening is, all hands together, from the book and from what was done of a chunk since."""

    def __init__(self, book: ChunkBook) -> None:
        self._book = book
        self._count: Count | None = None
        self._within = 0
        self._most = 0
        self._next = 0.0

    def anew(self, text: str = "") -> Iterator[Record]:
        """As the book has it now."""
        began = time.monotonic()
        self._count = self._book.count()
        now = time.monotonic()
        self._next = now + max(LOOK_SECONDS, (now - began) / COUNTING_SHARE)
        yield from self._records(text)

    def after(self, number: int, structures: int, finished: bool) -> Iterator[Record]:
        """So many structures of a chunk more; number -1: it waits."""
        self._within = 0 if finished else self._within + structures
        text = "waiting for the chunks of other hands" if number < 0 else ""
        if finished or self._count is None or time.monotonic() >= self._next:
            yield from self.anew(text)
        else:
            yield from self._records(text)

    def _records(self, text: str) -> Iterator[Record]:
        count = self._count
        assert count is not None
        # A chunk that another one has taken over is not done twice; and nobody likes to see numbers fall.
        done = self._most = max(self._most, count.scored + count.failed + self._within)
        total = done if count.complete else max(count.expected, done)
        failed = f", {count.failed:,} failed" if count.failed else ""
        yield Progress(done, total, text or f"{done:,} of {total:,} structures{failed}")
        yield Savable(_nothing)


def _listed(book: ChunkBook, holder: str, p: ScreenParameters, config: Config, told: _Told) -> Iterator[Record]:
    """Until the inputs are listed, by this hand or by another one."""
    while not book.count().listed:
        if not book.take_listing(holder, config.dead_after_seconds):
            yield from told.anew("waiting for the list of structures")
            time.sleep(LOOK_SECONDS)
            continue
        root = p.inputs(config)
        listed = list_chunks(p.source or [root], p.chunk, root)
        try:
            for expected in listing.fill(book, holder, listed):
                yield from told.anew(f"listing the inputs: {expected:,} structures so far")
        except UsageError:
            # Taken for dead meanwhile: another one lists.
            continue
        finally:
            # Interrupted, another one lists at once; complete, this does nothing.
            book.release_of(holder)


def _put_together(book: ChunkBook, results: Results, folder: Path, told: _Told) -> Iterator[Record]:
    """Both files of the whole table, unless another hand has made them."""
    if all_there(folder) and (folder / SUMMARY).is_file():
        return
    over = threading.Event()

    def parts() -> Iterator[pa.Table]:
        for part in tables(book, results):
            if over.is_set():
                raise UsageError("Stopped.")
            yield part

    with ThreadPoolExecutor(1, "table") as pool:
        made = pool.submit(put_together, parts(), folder)
        try:
            while not wait([made], LOOK_SECONDS).done:
                yield from told.anew("putting the table together")
        finally:
            over.set()
    made.result()


def _write(file: Path, document: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    new = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    new.write_text(json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
    new.replace(file)
