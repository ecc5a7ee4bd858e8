"""The engine as those see it who submit: pages, services, command lines. Imports no model."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import sqlalchemy as sa

from fdcore.config import Config
from fdcore.errors import RunStateError
from fdcore.jobs import queue, screens, supervisor
from fdcore.spec import Spec
from fdcore.store.files import latest_folder
from fdcore.store.records import Place, Run, Viewer
from fdcore.store.runs import Store
from fdcore.tasks import task


class Engine:
    """Submits, cancels and deletes runs of one database. Cheap to make; safe to share between threads."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.store = Store(config)
        self.store.migrate()
        queue.migrate(config)

    def submit(
        self,
        owner: str,
        spec: Spec,
        *,
        title: str,
        lane: str,
        parent: str | None = None,
        also: Callable[[sa.Connection, str], None] = lambda connection, run_id: None,
    ) -> str:
        """Queue a run; returns its id. `also(connection, id)` stores its inputs in the same transaction.

        Raises UsageError for a spec that its task refuses, QuotaError.
        """
        task(spec.task).check(spec)

        def join(connection: sa.Connection, place: Place) -> None:
            also(connection, place.run)
            queue.offer(self.config, connection, place)

        return self.store.submit(owner, spec, title=title, lane=lane, parent=parent, also=join)

    def cancel(self, viewer: Viewer, run_id: str) -> Run:
        """Stop a run: at once where it waits, within a second where its task behaves. Raises RunStateError."""
        return self.store.request_cancel(viewer, run_id)

    def delete(self, viewer: Viewer, run_id: str) -> None:
        """Forget an ended run with its files. Raises RunStateError while it waits or runs."""
        run = self.store.delete(viewer, run_id)
        screens.remove_run(self.config, self.store, run)
        queue.forget_run(self.config, run.id, run.attempt)

    def wait(self, viewer: Viewer, run_id: str, seconds: float = 3600.0, tick: float = 0.05) -> Run:
        """The run once it has ended; RunStateError when that takes longer."""
        until = time.monotonic() + seconds
        while (run := self.store.run(viewer, run_id)).active:
            if time.monotonic() > until:
                raise RunStateError(f"The run has not ended within {seconds:g} s.", "Look again later.")
            time.sleep(tick)
        return run

    def folder(self, run: Run):
        """Where the newest attempt of a run records, None before it has begun."""
        return latest_folder(self.config, run.id, run.attempt)

    # ---- the worker of this machine ----------------------------------------------------------------------------------

    def app_is_open(self) -> None:
        """Tell the worker of this machine that it is wanted; start it where there is none and the operator lets us."""
        supervisor.app_is_open(self.config)

    def page_is_open(self) -> None:
        """The same, and that somebody will want the default model soon."""
        supervisor.page_is_open(self.config)


@cache
def engine(config: Config) -> Engine:
    """The engine of this process for this configuration."""
    return Engine(config)
