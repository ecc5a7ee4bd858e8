"""Runs, their attempts and the workers that make them: every question and every change in one place.

What belongs to an owner is asked by a `Viewer`, and a run of somebody else is not told apart from one that does not exist.
What the engine changes is fenced by the number of the attempt: a worker that was believed dead and comes back cannot touch
a run that another one has taken over.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from fdcore.config import MB, Config
from fdcore.errors import QuotaError, RunStateError, StoreError, UnknownRunError
from fdcore.spec import Spec
from fdcore.store import database, schema
from fdcore.store.records import ACTIVE, ENDED, Attempt, Outline, Place, Run, RunState, Viewer, Waiting, Worker, run_of

runs, attempts, workers = schema.runs, schema.attempts, schema.workers
# The task whose runs share screenings (fdcore/store/chunks.py).
TASK_OF_SCREENS = "screen"
# The columns of a `Place`, and the order in which waiting runs are served: the queue has the same (fdcore/jobs/queue.py).
PLACE = (runs.c.id, runs.c.lane, runs.c.attempt, runs.c.turn, runs.c.created_at)
ORDER = (sa.case((runs.c.attempt > 0, 0), else_=1), runs.c.turn, runs.c.created_at)


def _of_screen(screen: str) -> sa.ColumnElement[bool]:
    # A token is nowhere else in a spec, and a person has few screenings.
    return sa.and_(runs.c.task == TASK_OF_SCREENS, runs.c.spec.contains(f'"screen":"{screen}"', autoescape=True))


class Store:
    """The product's tables in one database. Safe to use from several threads and processes."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.engine = database.engine(config)

    @contextmanager
    def begin(self):
        """A transaction; StoreError in the words of a person when the database cannot be reached."""
        with database.in_words(), self.engine.begin() as connection:
            yield connection

    def migrate(self) -> None:
        """Bring the product's tables up to date; several processes may try at once."""
        with self.begin() as connection:
            if connection.dialect.name == "sqlite":
                connection.execute(sa.text("BEGIN IMMEDIATE"))
            else:
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(7046029254386353)"))
            schema.migrations.create(connection, checkfirst=True)
            known = set(connection.execute(sa.select(schema.migrations.c.number)).scalars())
            if known and max(known) > len(schema.MIGRATIONS):
                raise StoreError(
                    "The database was made by a newer version of the program.", "Install that version, or a newer one."
                )
            for number, step in enumerate(schema.MIGRATIONS, start=1):
                if number not in known:
                    step(connection)
                    row = {"number": number, "name": step.__name__.strip("_"), "applied_at": time.time()}
                    connection.execute(sa.insert(schema.migrations).values(row))

    # ---- submission ------------------------------------------------------------------------------------------------

    def submit(
        self,
        owner: str,
        spec: Spec,
        *,
        title: str,
        lane: str,
        parent: str | None = None,
        also: Callable[[sa.Connection, Place], None] = lambda connection, place: None,
    ) -> str:
        """A new queued run; returns its id. `also(connection, place)` joins the same transaction: the run exists with
        its inputs and its place in the queue, or not at all. Raises QuotaError."""
        run_id, now = new_token(), time.time()
        with self.begin() as connection:
            self._require_quota(connection, owner)
            turn = self._turn(connection, owner, lane)
            connection.execute(
                sa.insert(runs).values(
                    id=run_id,
                    owner=owner,
                    task=spec.task,
                    title=title,
                    lane=lane,
                    state="queued",
                    spec=spec.to_json(),
                    spec_sha256=spec.sha256,
                    work_sha256=spec.work_sha256,
                    turn=turn,
                    created_at=now,
                    total=float(spec.n_structures),
                    parent=parent,
                )
            )
            also(connection, Place(run_id, lane, 0, turn, now))
        return run_id

    def _require_quota(self, connection: sa.Connection, owner: str) -> None:
        limits = self.config
        active = sa.func.sum(sa.case((runs.c.state.in_(ACTIVE), 1), else_=0))
        count = connection.execute(sa.select(sa.func.coalesce(active, 0)).where(runs.c.owner == owner)).scalar_one()
        if limits.max_active_runs and count >= limits.max_active_runs:
            raise QuotaError(
                f"{count} of your runs are waiting or running, which is as many as this server allows.",
                "Wait for one to end, or cancel one on the Runs page.",
            )
        self._require_room(connection, owner)

    def require_room(self, owner: str) -> None:
        """QuotaError where this owner's runs, or those of everybody, hold as much as is allowed: what they do grows no further."""
        with self.begin() as connection:
            self._require_room(connection, owner)

    def _require_room(self, connection: sa.Connection, owner: str) -> None:
        limits, stored = self.config, sa.select(sa.func.coalesce(sa.func.sum(runs.c.bytes), 0))
        if limits.max_owner_MB:
            held = connection.execute(stored.where(runs.c.owner == owner)).scalar_one()
            if held >= limits.max_owner_MB * MB:
                raise QuotaError(
                    f"Your kept runs hold {held / MB:,.0f} MB of the {limits.max_owner_MB:,} MB that this server allows.",
                    "Download and delete runs you no longer need on the Runs page.",
                )
        if limits.max_total_MB:
            total = connection.execute(stored).scalar_one()
            if total >= limits.max_total_MB * MB:
                raise QuotaError(
                    f"The runs kept on this server hold all of its {limits.max_total_MB:,} MB.",
                    "Delete runs you no longer need, or ask the operator to prune old ones (`fdcore runs prune`).",
                )

    @staticmethod
    def _turn(connection: sa.Connection, owner: str, lane: str) -> int:
        """Start-time fair queueing (Goyal et al. 1996) with equal weights: an owner's next run starts one turn after the
        owner's previous one, and never before the turn that the lane has reached. Owners therefore alternate, however
        many runs one of them submits at once."""
        in_lane = sa.and_(runs.c.lane == lane, runs.c.state.in_(ACTIVE))
        own = sa.select(sa.func.max(runs.c.turn)).where(in_lane, runs.c.owner == owner)
        reached = sa.select(sa.func.max(runs.c.turn)).where(runs.c.lane == lane, runs.c.state == "running")
        first = sa.select(sa.func.min(runs.c.turn)).where(in_lane)
        last_own = connection.execute(own).scalar() or 0
        clock = connection.execute(reached).scalar() or connection.execute(first).scalar() or 1
        return max(last_own + 1, clock)

    # ---- what an owner may see and do ------------------------------------------------------------------------------

    def run(self, viewer: Viewer, run_id: str, key: str = "") -> Run:
        """One run; with the `key` of a shared link also somebody else's. Raises UnknownRunError."""
        with self.begin() as connection:
            row = connection.execute(sa.select(runs).where(runs.c.id == run_id)).one_or_none()
        if row is None or not self._visible(viewer, row.owner, row.share, key):
            raise UnknownRunError(
                "There is no such run, or it belongs to somebody else.",
                "Open it in the browser that started it, or ask its owner for a link that shares it.",
            )
        return run_of(row)

    def find(self, viewer: Viewer, beginning: str) -> Run:
        """The one run whose id begins so. UnknownRunError where there is none or more than one."""
        begins = runs.c.id.startswith(beginning, autoescape=True)
        query = self._mine(sa.select(runs), viewer).where(begins).limit(2)
        with self.begin() as connection:
            found = connection.execute(query).all()
        if len(found) == 1:
            return run_of(found[0])
        if found:
            raise UnknownRunError(f"More than one run begins with {beginning}.", "Give more of its id.")
        raise UnknownRunError(f"There is no run {beginning}.", "`fdcore runs list` shows them.")

    @staticmethod
    def _visible(viewer: Viewer, owner: str, share: str | None, key: str) -> bool:
        if viewer.owner is None or secrets.compare_digest(viewer.owner, owner):
            return True
        return bool(share and key) and secrets.compare_digest(str(share), key)

    def list_runs(
        self,
        viewer: Viewer,
        *,
        states: Sequence[RunState] = (),
        tasks: Sequence[str] = (),
        limit: int = 200,
        offset: int = 0,
    ) -> tuple[Run, ...]:
        """The viewer's runs, newest first."""
        query = self._mine(sa.select(runs), viewer).order_by(runs.c.created_at.desc(), runs.c.id)
        if states:
            query = query.where(runs.c.state.in_(states))
        if tasks:
            query = query.where(runs.c.task.in_(tasks))
        with self.begin() as connection:
            return tuple(map(run_of, connection.execute(query.limit(limit).offset(offset))))

    def active_runs(self, viewer: Viewer, *, limit: int = 200, offset: int = 0) -> tuple[Run, ...]:
        """The viewer's runs that are in work, then those that wait, as they will be served."""
        waits = sa.case((runs.c.state == "running", 0), else_=1)
        query = self._mine(sa.select(runs), viewer).where(runs.c.state.in_(ACTIVE)).order_by(waits, *ORDER)
        with self.begin() as connection:
            return tuple(map(run_of, connection.execute(query.limit(limit).offset(offset))))

    def outline(self, viewer: Viewer) -> Outline:
        """What a page that lists a viewer's runs asks often, to know whether it must list them anew."""
        counts = self._mine(sa.select(runs.c.state, sa.func.count()), viewer).group_by(runs.c.state)
        newest = self._mine(sa.select(runs.c.id), viewer).order_by(runs.c.created_at.desc(), runs.c.id).limit(1)
        with self.begin() as connection:
            found: dict[str, int] = dict(tuple(row) for row in connection.execute(counts))
            first = connection.execute(newest).scalar_one_or_none()
        ended = sum(found.get(state, 0) for state in ENDED)
        return Outline(found.get("running", 0), found.get("queued", 0), ended, first or "")

    def count_runs(self, viewer: Viewer, states: Sequence[RunState] = ()) -> int:
        query = self._mine(sa.select(sa.func.count()).select_from(runs), viewer)
        if states:
            query = query.where(runs.c.state.in_(states))
        with self.begin() as connection:
            return int(connection.execute(query).scalar_one())

    def find_same_work(self, viewer: Viewer, spec: Spec) -> Run | None:
        """The newest run of this viewer that was asked the same and is waiting, running or done."""
        query = (
            self._mine(sa.select(runs), viewer)
            .where(runs.c.work_sha256 == spec.work_sha256, runs.c.state.in_((*ACTIVE, "done")))
            .where(runs.c.cancel_requested == 0)
            .order_by(runs.c.created_at.desc())
            .limit(1)
        )
        with self.begin() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else run_of(row)

    @staticmethod
    def _mine(query: Any, viewer: Viewer) -> Any:
        return query if viewer.owner is None else query.where(runs.c.owner == viewer.owner)

    def attempts(self, run_id: str) -> tuple[Attempt, ...]:
        """All beginnings of a run, in order. The caller has asked for the run itself before."""
        columns = [c for c in attempts.c if c.name != "run"]
        query = sa.select(*columns).where(attempts.c.run == run_id).order_by(attempts.c.number)
        with self.begin() as connection:
            return tuple(Attempt(**{**row._mapping, "begun": bool(row.begun)}) for row in connection.execute(query))

    def waiting(self, run: Run) -> Waiting:
        """What a queued run waits for."""
        before = sa.tuple_(*ORDER) < sa.tuple_(sa.literal(0 if run.attempt else 1), run.turn, run.created_at)
        in_lane = runs.c.lane == run.lane
        with self.begin() as connection:
            ahead = connection.execute(
                sa.select(sa.func.count()).select_from(runs).where(in_lane, runs.c.state == "queued", before)
            ).scalar_one()
            holding = connection.execute(
                sa.select(sa.func.count()).select_from(runs).where(in_lane, runs.c.state == "running")
            ).scalar_one()
        slots = sum(w.lanes.get(run.lane, 0) for w in self.workers() if w.alive)
        return Waiting(int(ahead), int(holding), slots)

    def request_cancel(self, viewer: Viewer, run_id: str) -> Run:
        """A queued run is cancelled at once, a running one is asked to stop. RunStateError where it has ended."""
        run = self.run(viewer, run_id)
        with self.begin() as connection:
            waiting = connection.execute(
                sa.update(runs)
                .where(runs.c.id == run.id, runs.c.state == "queued")
                .values(state="cancelled", cancel_requested=1, ended_at=time.time(), text="cancelled before it began")
            ).rowcount
            asked = (
                waiting
                or connection.execute(
                    sa.update(runs).where(runs.c.id == run.id, runs.c.state == "running").values(cancel_requested=1)
                ).rowcount
            )
        if not asked:
            raise RunStateError("The run has ended already.", "There is nothing to cancel; it can be deleted.")
        return self.run(viewer, run_id)

    def share(self, viewer: Viewer, run_id: str, on: bool) -> str | None:
        """The key of a link that shows this run to everybody who has it; None after it was taken back."""
        run = self.run(viewer, run_id)
        key = (run.share or new_token()) if on else None
        with self.begin() as connection:
            connection.execute(sa.update(runs).where(runs.c.id == run.id).values(share=key))
        return key

    def rename(self, viewer: Viewer, run_id: str, title: str) -> None:
        run = self.run(viewer, run_id)
        with self.begin() as connection:
            connection.execute(sa.update(runs).where(runs.c.id == run.id).values(title=title[:200]))

    def take_over(self, old: str, new: str) -> int:
        """Give all runs of one owner to another: what a browser did before its person logged in. Returns how many."""
        with self.begin() as connection:
            return connection.execute(sa.update(runs).where(runs.c.owner == old).values(owner=new)).rowcount

    def delete(self, viewer: Viewer, run_id: str) -> Run:
        """Forget an ended run and structures that no other run uses; the caller removes its files. Raises RunStateError."""
        run = self.run(viewer, run_id)
        with self.begin() as connection:
            database.hold_structures(connection, alone=True)
            gone = connection.execute(sa.delete(runs).where(runs.c.id == run.id, runs.c.state.in_(ENDED))).rowcount
            if not gone:
                raise RunStateError("The run has not ended yet.", "Cancel it first.")
            used = sa.select(schema.run_structures.c.structure)
            connection.execute(sa.delete(schema.structures).where(schema.structures.c.id.not_in(used)))
        return run

    # ---- what the engine changes, fenced by the attempt -------------------------------------------------------------

    def begin_attempt(self, run_id: str, worker: str) -> tuple[Run, int] | None:
        """Take a queued run and start its next attempt; None where there is nothing to take (cancelled, deleted, taken).

        However often a run is offered, exactly one caller gets it.
        """
        return self._begin(run_id, worker, runs.c.state == "queued")

    def begin_again(self, run_id: str, worker: str, attempt: int) -> tuple[Run, int] | None:
        """The next attempt of a run that this worker still holds, after its compute process died."""
        return self._begin(run_id, worker, sa.and_(runs.c.state == "running", runs.c.attempt == attempt))

    def _begin(self, run_id: str, worker: str, condition: sa.ColumnElement[bool]) -> tuple[Run, int] | None:
        with self.begin() as connection:
            number = connection.execute(
                sa.update(runs)
                .where(runs.c.id == run_id, condition, runs.c.cancel_requested == 0)
                .values(
                    attempt=runs.c.attempt + 1,
                    state="running",
                    worker=worker,
                    started_at=sa.func.coalesce(runs.c.started_at, time.time()),
                    text="starting",
                    seconds_left=None,
                )
                .returning(runs.c.attempt)
            ).scalar_one_or_none()
            if number is None:
                # Asked to stop while no process worked on it: that wish is fulfilled now.
                asked = connection.execute(
                    sa.select(runs.c.id).where(runs.c.id == run_id, condition, runs.c.cancel_requested == 1)
                ).scalar_one_or_none()
                if asked is not None:
                    self._end(connection, run_id, None, "cancelled", text="cancelled")
                return None
            row = connection.execute(sa.select(runs).where(runs.c.id == run_id)).one()
            connection.execute(
                sa.insert(attempts).values(
                    run=run_id,
                    number=number,
                    worker=worker,
                    started_at=time.time(),
                    outcome="running",
                    done_at_start=row.done,
                    done_at_end=row.done,
                )
            )
        return run_of(row), number

    def requeue(
        self,
        worker: str,
        also: Callable[[sa.Connection, Place], None],
        *,
        attended: Callable[[str], bool] = lambda run_id: False,
    ) -> tuple[str, ...]:
        """Put every run that a worker held back into its lane, because that worker is gone or, except for the `attended`
        ones, has let go of it; returns their ids. `also(connection, place)` joins the same transaction. These runs are the
        next to be served: who waited for a turn once does not wait for it again."""
        query = sa.select(*PLACE).where(runs.c.worker == worker, runs.c.state == "running")
        back = []
        with self.begin() as connection:
            for row in connection.execute(query.order_by(*ORDER)).all():
                if attended(row.id):
                    continue
                taken = connection.execute(
                    sa.update(runs)
                    .where(runs.c.id == row.id, runs.c.state == "running", runs.c.worker == worker)
                    .where(runs.c.attempt == row.attempt)
                    .values(state="queued", worker=None, text="waiting to go on", seconds_left=None)
                ).rowcount
                if taken:
                    self._close_attempts(
                        connection, row.id, "lost", f"The worker {worker} ended, or lost the database, meanwhile."
                    )
                    also(connection, Place(*row))
                    back.append(row.id)
        return tuple(back)

    def same_spec(self, run_id: str, spec_sha256: str) -> Run | None:
        """The run, if it still exists and was asked exactly this."""
        query = sa.select(runs).where(runs.c.id == run_id, runs.c.spec_sha256 == spec_sha256)
        with self.begin() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else run_of(row)

    def lane(self, run_id: str) -> str | None:
        """The lane of a waiting run; None where it no longer waits."""
        query = sa.select(runs.c.lane).where(runs.c.id == run_id, runs.c.state == "queued")
        with self.begin() as connection:
            return connection.execute(query).scalar_one_or_none()

    def abandon(self, run_id: str, worker: str) -> None:
        """End a run that this worker cannot carry on because of a fault of the program."""
        with self.begin() as connection:
            mine = connection.execute(
                sa.select(runs.c.attempt).where(runs.c.id == run_id, runs.c.worker == worker, runs.c.state == "running")
            ).scalar_one_or_none()
            if mine is not None:
                error = "The worker failed while it was handling this run."
                self._end(connection, run_id, mine, "failed", error=error, hint="The operator finds why in its log.")

    def queued(self) -> tuple[Place, ...]:
        """Every waiting run, in the order in which they will be served."""
        query = sa.select(*PLACE).where(runs.c.state == "queued").order_by(*ORDER)
        with self.begin() as connection:
            return tuple(Place(*row) for row in connection.execute(query))

    @staticmethod
    def _close_attempts(connection: sa.Connection, run_id: str, outcome: str, note: str) -> None:
        connection.execute(
            sa.update(attempts)
            .where(attempts.c.run == run_id, attempts.c.outcome == "running")
            .values(outcome=outcome, note=note, ended_at=time.time())
        )

    def begun(self, run_id: str, attempt: int, done: float) -> None:
        """The task works, from where it goes on."""
        with self.begin() as connection:
            connection.execute(
                sa.update(attempts)
                .where(attempts.c.run == run_id, attempts.c.number == attempt)
                .values(begun=1, done_at_start=done, done_at_end=done)
            )

    def progress(
        self,
        run_id: str,
        attempt: int,
        done: float,
        total: float,
        text: str,
        seconds_left: float | None,
        size: int | None,
    ) -> bool:
        """Note how far an attempt is. False where it is no longer the current one: its worker must let go. `size` None: as it was."""
        values: dict[str, Any] = {"done": done, "total": total, "text": text, "seconds_left": seconds_left}
        if size is not None:
            values["bytes"] = size
        with self.begin() as connection:
            current = connection.execute(
                sa.update(runs)
                .where(runs.c.id == run_id, runs.c.attempt == attempt, runs.c.state == "running")
                .values(values)
            ).rowcount
            if current:
                connection.execute(
                    sa.update(attempts)
                    .where(attempts.c.run == run_id, attempts.c.number == attempt)
                    .values(done_at_end=done)
                )
        return bool(current)

    def wishes(self, run_id: str, attempt: int) -> tuple[bool, bool]:
        """(still the current attempt of a running run, asked to cancel)."""
        query = sa.select(runs.c.cancel_requested).where(
            runs.c.id == run_id, runs.c.attempt == attempt, runs.c.state == "running"
        )
        with self.begin() as connection:
            asked = connection.execute(query).scalar_one_or_none()
        return asked is not None, bool(asked)

    def crash(self, run_id: str, attempt: int, note: str) -> None:
        """The compute process of an attempt died; the run may be begun again."""
        with self.begin() as connection:
            connection.execute(
                sa.update(attempts)
                .where(attempts.c.run == run_id, attempts.c.number == attempt, attempts.c.outcome == "running")
                .values(outcome="crashed", note=note, ended_at=time.time())
            )

    def end(
        self,
        run_id: str,
        attempt: int,
        state: RunState,
        *,
        text: str = "",
        error: str | None = None,
        hint: str | None = None,
        summary: Mapping[str, Any] | None = None,
        size: int | None = 0,
    ) -> bool:
        """The end of a run, once: False where this attempt is no longer the current one, and then nothing changes."""
        with self.begin() as connection:
            return self._end(
                connection, run_id, attempt, state, text=text, error=error, hint=hint, summary=summary, size=size
            )

    def _end(
        self,
        connection: sa.Connection,
        run_id: str,
        attempt: int | None,
        state: RunState,
        *,
        text: str = "",
        error: str | None = None,
        hint: str | None = None,
        summary: Mapping[str, Any] | None = None,
        size: int | None = None,
    ) -> bool:
        where = [runs.c.id == run_id, runs.c.state.in_(ACTIVE)]
        if attempt is not None:
            where.append(runs.c.attempt == attempt)
        values: dict[str, Any] = {"state": state, "ended_at": time.time(), "text": text, "seconds_left": None}
        values |= {"error": error, "hint": hint}
        if size is not None:
            values["bytes"] = size
        if summary is not None:
            values["summary"] = json.dumps(dict(summary), allow_nan=False)
        if state == "done":
            values["done"] = runs.c.total
        ended = bool(connection.execute(sa.update(runs).where(*where).values(**values)).rowcount)
        if ended:
            self._close_attempts(connection, run_id, state, error or "")
        return ended

    # ---- runs that share a screening ---------------------------------------------------------------------------------

    def runs_of_screen(self, screen: str) -> tuple[Run, ...]:
        """Every run that works or has worked on a screening, the oldest first. The caller has asked for one of them before."""
        query = sa.select(runs).where(_of_screen(screen)).order_by(runs.c.created_at, runs.c.id)
        with self.begin() as connection:
            return tuple(map(run_of, connection.execute(query)))

    def share_bytes(self, screen: str, size: int) -> None:
        """What a screening holds counts for the runs that share it, in equal parts."""
        with self.begin() as connection:
            count = connection.execute(
                sa.select(sa.func.count()).select_from(runs).where(_of_screen(screen))
            ).scalar_one()
            if count:
                connection.execute(sa.update(runs).where(_of_screen(screen)).values(bytes=-(-size // count)))

    # ---- workers ---------------------------------------------------------------------------------------------------

    def hello(self, name: str, host: str, pid: int, version: str, lanes: Mapping[str, int]) -> None:
        """A worker begins, or begins again after it was taken for dead."""
        with self.begin() as connection:
            now = database.now(connection)
            connection.execute(sa.delete(workers).where(workers.c.name == name))
            connection.execute(
                sa.insert(workers).values(
                    name=name,
                    host=host,
                    pid=pid,
                    version=version,
                    lanes=json.dumps(dict(lanes)),
                    state="alive",
                    started_at=now,
                    seen_at=now,
                )
            )

    def heartbeat(self, name: str, pid: int) -> bool:
        """False where somebody else has taken this worker for dead (or its place) meanwhile."""
        with self.begin() as connection:
            return bool(
                connection.execute(
                    sa.update(workers)
                    .where(workers.c.name == name, workers.c.pid == pid, workers.c.state == "alive")
                    .values(seen_at=database.now(connection))
                ).rowcount
            )

    def goodbye(self, name: str, pid: int) -> None:
        with self.begin() as connection:
            connection.execute(
                sa.update(workers).where(workers.c.name == name, workers.c.pid == pid).values(state="gone")
            )

    def bury(self, silent_seconds: float) -> tuple[str, ...]:
        """Take workers that were silent for longer for dead; each name is given to exactly one caller."""
        with self.begin() as connection:
            limit = database.now(connection) - silent_seconds
            return tuple(
                connection.execute(
                    sa.update(workers)
                    .where(workers.c.state == "alive", workers.c.seen_at < limit)
                    .values(state="dead")
                    .returning(workers.c.name)
                ).scalars()
            )

    def not_alive(self) -> tuple[str, ...]:
        """Workers that are dead or have gone; whatever they still hold belongs to the others."""
        query = sa.select(workers.c.name).where(workers.c.state != "alive")
        with self.begin() as connection:
            return tuple(connection.execute(query).scalars())

    def forget_workers(self, silent_seconds: float) -> None:
        """Drop workers that ended or died so long ago and hold nothing: names of containers come and go."""
        held = sa.select(runs.c.worker).where(runs.c.state == "running", runs.c.worker.is_not(None))
        with self.begin() as connection:
            limit = database.now(connection) - silent_seconds
            old = sa.and_(workers.c.state != "alive", workers.c.seen_at < limit, workers.c.name.not_in(held))
            connection.execute(sa.delete(workers).where(old))

    def workers(self) -> tuple[Worker, ...]:
        """All workers ever seen, the youngest first."""
        query = sa.select(workers).order_by(workers.c.started_at.desc())
        with self.begin() as connection:
            now = database.now(connection)
            rows = connection.execute(query).all()
        return tuple(
            Worker(
                name=r.name,
                host=r.host,
                pid=r.pid,
                version=r.version,
                lanes=json.loads(r.lanes),
                alive=r.state == "alive" and now - r.seen_at < self.config.dead_after_seconds,
                started_at=r.started_at,
                silent_seconds=now - r.seen_at,
            )
            for r in rows
        )

    # ---- retention ---------------------------------------------------------------------------------------------------

    def ended_before(self, when: float, viewer: Viewer) -> tuple[Run, ...]:
        """Ended runs that ended before `when`, oldest first."""
        query = self._mine(sa.select(runs), viewer).where(runs.c.state.in_(ENDED), runs.c.ended_at < when)
        with self.begin() as connection:
            return tuple(map(run_of, connection.execute(query.order_by(runs.c.ended_at))))

    def known_ids(self, ids: Sequence[str]) -> set[str]:
        """Those of `ids` that are runs."""
        with self.begin() as connection:
            return set(connection.execute(sa.select(runs.c.id).where(runs.c.id.in_(ids))).scalars())


def new_token() -> str:
    """An unguessable name: 128 random bits, safe in an address, a file name and a command line."""
    return secrets.token_hex(16)
