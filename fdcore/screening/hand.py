"""One pair of hands: takes chunks from the book, reads the next one while the model works on the present one, and writes parts.

Any number of them work on one screening, in processes of one machine or of many; each may end at any moment, and what it held goes to
another one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fdcore.errors import StoreError
from fdcore.screening import rows, scoring
from fdcore.screening.chunks import Chunk
from fdcore.screening.reading import ReadChunk, chunk_key, read_chunk
from fdcore.screening.results import Results
from fdcore.screening.scoring import How
from fdcore.store.chunks import ChunkBook, Taken, patiently
from fdcore.structures import Limits
from fdcore.structures.pool import Pool

if TYPE_CHECKING:
    from fdcore.models.base import Model

# How often one who has nothing to do looks whether there is something again.
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Moved:
    """What a pair of hands did: `structures` more of chunk `number` are done; `finished`: all of it. Number -1: it waits for work."""

    number: int
    structures: int = 0
    finished: bool = False


@dataclass(frozen=True)
class _Ready:
    taken: Taken
    key: str
    # None where the part is there already.
    read: ReadChunk | None
    seconds: float


class Hand:
    """`holder` names it among all that work on this screening; `silent_seconds`: after so long without a sign of life another one's chunks
    go back; `judges`: processes that make rows beside the model (`scoring.score`)."""

    def __init__(
        self,
        book: ChunkBook,
        results: Results,
        holder: str,
        how: How,
        *,
        silent_seconds: float = 30.0,
        limits: Limits | None = None,
        judges: Executor | None = None,
    ) -> None:
        self._book, self._results, self._holder, self._how = book, results, holder, how
        self._silent, self._limits, self._judges = silent_seconds, limits or Limits(), judges
        self._graphs: Executor | None = None
        # One child: this hand reads one chunk at a time.
        self._pool = Pool(1)

    def work(self, load: Callable[[], Model], should_stop: Callable[[], bool] = lambda: False) -> Generator[Moved]:
        """Until every chunk of the screening is done, by whomever, or until it should stop. The first chunk is read while `load` makes the
        model. Raises StoreError where the disk cannot be written, or the book not for longer than the others wait."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._sign_of_life())
            ahead = stack.enter_context(ThreadPoolExecutor(1, "next chunk"))
            loaded = threading.Event()
            coming: Future[_Ready | None] | None = ahead.submit(self._first, loaded)
            try:
                try:
                    model = load()
                finally:
                    loaded.set()
                if model.device.startswith("cuda"):
                    # A GPU waits for the graphs of its next batch; a CPU process has one core for both.
                    self._graphs = stack.enter_context(ThreadPoolExecutor(1, "graphs"))
                while not should_stop():
                    ready = (coming or ahead.submit(self._next)).result()
                    coming = None
                    if ready is None:
                        if patiently(self._book.count, self._silent).complete:
                            return
                        yield Moved(-1)
                        time.sleep(LOOK_SECONDS)
                        patiently(lambda: self._book.reclaim(self._silent), self._silent)
                        continue
                    coming = ahead.submit(self._next)
                    yield from self._chunk(model, ready, should_stop)
            finally:
                # What was read ahead was not begun.
                if coming is not None:
                    with contextlib.suppress(StoreError):
                        coming.result()
                with contextlib.suppress(StoreError):
                    self._book.release(self._holder, unused=True)
                self._pool.close()

    def _first(self, loaded: threading.Event) -> _Ready | None:
        """As soon as there is one: the inputs may still be being listed while the model is loaded."""
        while True:
            ready = self._next()
            if ready is not None or loaded.wait(LOOK_SECONDS / 2):
                return ready

    def _next(self) -> _Ready | None:
        taken = patiently(lambda: self._book.take(self._holder), self._silent)
        if taken is None:
            return None
        began = time.perf_counter()
        chunk = Chunk.from_json(taken.body)
        if self._results.any_there and self._results.whole(key := self._results.key(chunk_key(chunk, self._limits))):
            return _Ready(taken, key, None, time.perf_counter() - began)
        read = read_chunk(chunk, self._limits, self._pool)
        # Its content as it was read: a file may have changed in between.
        return _Ready(taken, self._results.key(read.key), read, time.perf_counter() - began)

    def _chunk(self, model: Model, ready: _Ready, should_stop: Callable[[], bool]) -> Iterator[Moved]:
        number, began = ready.taken.number, time.perf_counter()
        if ready.read is None:
            scored, failed, digest = self._results.summary(ready.key)
        else:
            careful = ready.taken.tries >= scoring.CAREFUL_FROM
            watch = scoring.Watch(self._results.watched(ready.key)) if careful else None
            work = scoring.score(model, ready.read.items, self._how, watch, self._judges, self._graphs)
            told = 0
            while True:
                try:
                    done = next(work)
                except StopIteration as end:
                    made = end.value
                    break
                yield Moved(number, done - told)
                told = done
                if should_stop():
                    return
            self._results.write(ready.key, made)
            failed = sum(row["verdict"] == "failed" for row in made)
            scored, digest = len(made) - failed, rows.digest(made)
        seconds = ready.seconds + time.perf_counter() - began
        patiently(
            lambda: self._book.finish(
                self._holder, number, key=ready.key, scored=scored, failed=failed, seconds=seconds, digest=digest
            ),
            self._silent,
        )
        yield Moved(number, finished=True)

    @contextlib.contextmanager
    def _sign_of_life(self) -> Iterator[None]:
        over = threading.Event()

        def beat() -> None:
            while not over.wait(self._silent / 5):
                # A database that restarts is heard of where a chunk is finished.
                with contextlib.suppress(StoreError):
                    self._book.seen(self._holder)

        thread = threading.Thread(target=beat, daemon=True, name="sign of life")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
