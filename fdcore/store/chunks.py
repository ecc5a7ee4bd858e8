"""Who works on which chunk of a screening: one row per chunk, taken by one holder at a time.

The same table serves one laptop (an SQLite file beside the results) and many machines (PostgreSQL). A holder says that it lives; what a
silent one held goes back to those that wait, with the number of times that it was taken. Only the present holder can end a chunk.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from fdcore.errors import StoreError, UsageError
from fdcore.store import database, schema
from fdcore.store.runs import TASK_OF_SCREENS, Store

screens, chunks = schema.screens, schema.chunks
# The task whose runs work on screenings of the engine: each names its screening in the parameter `screen`.
TASK = TASK_OF_SCREENS
# Rows of one INSERT.
BATCH = 2000
# How often a database that is away is asked again.
AGAIN_SECONDS = 0.5


def patiently[T](call: Callable[[], T], seconds: float) -> T:
    """A call to the book, made again while the database is away; StoreError after so many seconds."""
    until = time.monotonic() + seconds
    while True:
        try:
            return call()
        except StoreError:
            if time.monotonic() > until:
                raise
            time.sleep(AGAIN_SECONDS)


@dataclass(frozen=True)
class Taken:
    """A chunk that a holder has: its number, its description, and how often it was taken, this time included."""

    number: int
    body: str
    tries: int


@dataclass(frozen=True)
class Count:
    """How far a screening is. `expected`: structures that its listing promises (a file that is not read yet counts as one); `listed`: whether
    the listing is complete; `seconds`: of processors, summed over holders."""

    listed: bool
    chunks: int
    waiting: int
    taken: int
    done: int
    expected: int
    scored: int
    failed: int
    seconds: float

    @property
    def complete(self) -> bool:
        return self.listed and self.done == self.chunks


class ChunkBook:
    """The chunks of one screening. Safe to use from several processes and machines."""

    def __init__(self, store: Store, screen: str) -> None:
        self.store, self.screen = store, screen

    def open(self, settings: str) -> None:
        """Make the screening, or join it. UsageError where it was begun with other settings."""
        with self.store.begin() as connection:
            values = {"id": self.screen, "settings": settings, "created_at": database.now(connection)}
            connection.execute(database.insert_or_ignore(connection, screens), values)
            known = connection.execute(sa.select(screens.c.settings).where(screens.c.id == self.screen)).scalar_one()
        if known != settings:
            raise UsageError(
                "These results were begun with another model, other settings or other paths.",
                "Repeat the first command to go on with them, or name another folder.",
            )

    @property
    def settings(self) -> str | None:
        """What it was made with; None where there is no such screening."""
        with self.store.begin() as connection:
            return connection.execute(
                sa.select(screens.c.settings).where(screens.c.id == self.screen)
            ).scalar_one_or_none()

    # ---- listing ---------------------------------------------------------------------------------------------------

    def take_listing(self, holder: str, dead_after: float) -> bool:
        """Whether this holder is to list the inputs: nobody has, and nobody who lives does."""
        with self.store.begin() as connection:
            now = database.now(connection)
            free = sa.or_(screens.c.lister.is_(None), screens.c.lister == holder, screens.c.seen_at < now - dead_after)
            taken = connection.execute(
                sa.update(screens)
                .where(screens.c.id == self.screen, screens.c.listed == 0, free)
                .values(lister=holder, seen_at=now)
            )
        return taken.rowcount == 1

    def reopen(self, dead_after: float) -> bool:
        """Let the inputs be listed again, as a new command should: files may have come since. False while somebody works on the last list."""
        with self.store.begin() as connection:
            quiet = sa.or_(screens.c.seen_at.is_(None), screens.c.seen_at <= database.now(connection) - dead_after)
            done = connection.execute(
                sa.update(screens).where(screens.c.id == self.screen, quiet).values(listed=0, lister=None, seen_at=None)
            )
            return done.rowcount == 1

    def begin_listing(self, holder: str) -> None:
        """An empty list: what an earlier one held, complete or not, is dropped."""
        with self.store.begin() as connection:
            self._require_lister(connection, holder)
            connection.execute(sa.delete(chunks).where(chunks.c.screen == self.screen))

    def add(self, holder: str, listed: Sequence[Mapping[str, Any]]) -> None:
        """Append chunks ({"number", "body", "expected"}; those that need no work also "key", "failed") of the listing that this holder does."""
        rows = [
            {
                "screen": self.screen,
                "number": c["number"],
                "body": c["body"],
                "expected": c["expected"],
                "state": "done" if "key" in c else "waiting",
                "key": c.get("key"),
                "failed": c.get("failed", 0),
                "digest": c.get("digest"),
            }
            for c in listed
        ]
        with self.store.begin() as connection:
            self._require_lister(connection, holder)
            connection.execute(sa.insert(chunks), rows)

    def _require_lister(self, connection: sa.Connection, holder: str) -> None:
        still = connection.execute(
            sa.update(screens)
            .where(screens.c.id == self.screen, screens.c.lister == holder, screens.c.listed == 0)
            .values(seen_at=database.now(connection))
        )
        if still.rowcount != 1:
            raise UsageError("Somebody else lists the inputs of this screening.", "Start it again: it will join.")

    def end_listing(self, holder: str) -> None:
        with self.store.begin() as connection:
            self._require_lister(connection, holder)
            connection.execute(sa.update(screens).where(screens.c.id == self.screen).values(listed=1))

    # ---- taking ----------------------------------------------------------------------------------------------------

    def take(self, holder: str) -> Taken | None:
        """The first chunk that waits; None where none does. Work begins while the list is still being made only for what is complete in it."""
        while True:
            with self.store.begin() as connection:
                first = (
                    sa.select(chunks.c.number, chunks.c.body, chunks.c.tries)
                    .where(chunks.c.screen == self.screen, chunks.c.state == "waiting")
                    .where(sa.exists().where(screens.c.id == self.screen, screens.c.listed == 1))
                    .order_by(chunks.c.number)
                    .limit(1)
                    .with_for_update(skip_locked=True, of=chunks)
                )
                row = connection.execute(first).one_or_none()
                if row is None:
                    return None
                taken = connection.execute(
                    sa.update(chunks)
                    .where(chunks.c.screen == self.screen, chunks.c.number == row.number, chunks.c.state == "waiting")
                    .values(state="taken", holder=holder, seen_at=database.now(connection), tries=row.tries + 1)
                )
            # SQLite locks no row: another one may have been faster.
            if taken.rowcount == 1:
                return Taken(row.number, row.body, row.tries + 1)

    def seen(self, holder: str) -> None:
        """This holder lives, and so do its chunks."""
        with self.store.begin() as connection:
            connection.execute(
                sa.update(chunks)
                .where(chunks.c.screen == self.screen, chunks.c.state == "taken", chunks.c.holder == holder)
                .values(seen_at=database.now(connection))
            )
            connection.execute(
                sa.update(screens).where(screens.c.id == self.screen).values(seen_at=database.now(connection))
            )

    def leave(self) -> None:
        """The last one who worked on it goes: a new command need not wait to be sure of that."""
        with self.store.begin() as connection:
            connection.execute(sa.update(screens).where(screens.c.id == self.screen).values(seen_at=None))

    def finish(
        self, holder: str, number: int, *, key: str, scored: int, failed: int, seconds: float, digest: Mapping[str, Any]
    ) -> bool:
        """A chunk is done. False where it is no longer this holder's: its result is then what the other one makes."""
        with self.store.begin() as connection:
            ended = connection.execute(
                sa.update(chunks)
                .where(chunks.c.screen == self.screen, chunks.c.number == number)
                .where(chunks.c.state == "taken", chunks.c.holder == holder)
                .values(
                    state="done",
                    key=key,
                    scored=scored,
                    failed=failed,
                    seconds=seconds,
                    digest=json.dumps(digest, allow_nan=False),
                )
            )
        return ended.rowcount == 1

    def release(self, holder: str, *, unused: bool = False) -> None:
        """What this holder has goes back. `unused`: it was not worked on, so that the try does not count."""
        values: dict[str, Any] = {"state": "waiting", "holder": None}
        if unused:
            values["tries"] = chunks.c.tries - 1
        with self.store.begin() as connection:
            connection.execute(
                sa.update(chunks)
                .where(chunks.c.screen == self.screen, chunks.c.state == "taken", chunks.c.holder == holder)
                .values(values)
            )

    def release_of(self, beginning: str) -> None:
        """What all holders have whose names begin so goes back, the listing too: those that are known to be gone."""
        begins = chunks.c.holder.startswith(beginning, autoescape=True)
        lists = screens.c.lister.startswith(beginning, autoescape=True)
        with self.store.begin() as connection:
            connection.execute(
                sa.update(chunks)
                .where(chunks.c.screen == self.screen, chunks.c.state == "taken", begins)
                .values(state="waiting", holder=None)
            )
            connection.execute(
                sa.update(screens)
                .where(screens.c.id == self.screen, screens.c.listed == 0, lists)
                .values(lister=None, seen_at=None)
            )

    def reclaim(self, silent_seconds: float) -> int:
        """What holders have that were not heard of for so long goes back; returns how many chunks."""
        with self.store.begin() as connection:
            before = database.now(connection) - silent_seconds
            back = connection.execute(
                sa.update(chunks)
                .where(chunks.c.screen == self.screen, chunks.c.state == "taken", chunks.c.seen_at < before)
                .values(state="waiting", holder=None)
            )
        return back.rowcount

    # ---- asking ----------------------------------------------------------------------------------------------------

    def count(self) -> Count:
        def of(state: str) -> sa.ColumnElement[int]:
            return sa.func.coalesce(sa.func.sum(sa.case((chunks.c.state == state, 1), else_=0)), 0)

        def total(column: sa.Column) -> sa.ColumnElement[Any]:
            return sa.func.coalesce(sa.func.sum(column), 0)

        query = sa.select(
            sa.func.count(),
            of("waiting"),
            of("taken"),
            of("done"),
            total(chunks.c.expected),
            total(chunks.c.scored),
            total(chunks.c.failed),
            total(chunks.c.seconds),
        ).where(chunks.c.screen == self.screen)
        with self.store.begin() as connection:
            listed = connection.execute(sa.select(screens.c.listed).where(screens.c.id == self.screen)).scalar()
            row = connection.execute(query).one()
        whole = [int(value) for value in row[:-1]]
        return Count(bool(listed), *whole, seconds=float(row[-1]))

    def done(self, after: int = -1) -> Iterable[tuple[int, str, str, Mapping[str, Any]]]:
        """(number, key, body, digest) of the chunks that are done, in order, a batch at a time."""
        while True:
            query = (
                sa.select(chunks.c.number, chunks.c.key, chunks.c.body, chunks.c.digest)
                .where(chunks.c.screen == self.screen, chunks.c.state == "done", chunks.c.number > after)
                .order_by(chunks.c.number)
                .limit(BATCH)
            )
            with self.store.begin() as connection:
                rows = connection.execute(query).all()
            for row in rows:
                yield row.number, row.key, row.body, json.loads(row.digest) if row.digest else {}
            if len(rows) < BATCH:
                return
            after = rows[-1].number

    def keys(self, with_body: str) -> Iterable[tuple[int, str, str | None]]:
        """(number, key) of the chunks that are done, in order, and the description of those with this key."""
        after = -1
        while True:
            query = (
                sa.select(chunks.c.number, chunks.c.key, sa.case((chunks.c.key == with_body, chunks.c.body)))
                .where(chunks.c.screen == self.screen, chunks.c.state == "done", chunks.c.number > after)
                .order_by(chunks.c.number)
                .limit(BATCH)
            )
            with self.store.begin() as connection:
                rows = connection.execute(query).all()
            yield from map(tuple, rows)
            if len(rows) < BATCH:
                return
            after = rows[-1].number

    def chunk(self, number: int) -> str | None:
        """The description of one chunk."""
        with self.store.begin() as connection:
            return connection.execute(
                sa.select(chunks.c.body).where(chunks.c.screen == self.screen, chunks.c.number == number)
            ).scalar_one_or_none()

    def delete(self) -> None:
        """Forget the screening."""
        with self.store.begin() as connection:
            connection.execute(sa.delete(chunks).where(chunks.c.screen == self.screen))
            connection.execute(sa.delete(screens).where(screens.c.id == self.screen))
