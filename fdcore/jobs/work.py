"""One run on one worker: attempts until it has ended, or until somebody else has it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fdcore.config import Config
from fdcore.errors import QuotaError, StoreError
from fdcore.jobs import screens
from fdcore.jobs.compute import Compute, Gone
from fdcore.store.files import attempt_folder, folder_size, latest_folder, other_folders, previous_folders
from fdcore.store.records import Run
from fdcore.store.runs import Store

# How often the wishes of the owner are looked up, and how often progress is written.
LOOK_SECONDS = 0.2
WRITE_SECONDS = 0.7
# How often it is asked whether there is room for what is recorded: runs of an owner grow together.
ROOM_SECONDS = 2.0
# A task whose process dies this often at the same place will do so again; one that dies while it loads may be unlucky
# a little longer, and whole workers also end for reasons of their own (a restart, a closed laptop).
CRASHES_ALLOWED, CRASHES_WHILE_LOADING_ALLOWED, LOSSES_ALLOWED = 3, 8, 20
# A screening finds the structure that ends its process, and goes on without it: that takes five such ends (fdcore/screening/scoring.py).
CRASHES_OF_SCREENINGS_ALLOWED = 8


class LetGo(Exception):
    """The run is no longer this worker's, or this worker is ending: stop computing, write nothing."""


class Work:
    """Drives one run through a compute process. `ending` is asked often; when it says yes, everything is let go at once."""

    def __init__(self, config: Config, store: Store, compute: Compute, ending: Callable[[], bool]) -> None:
        self._config, self._store, self._compute, self._ending = config, store, compute, ending

    def run(self, run_id: str) -> str:
        """Returns how it ended here: the state of the run, "nothing to do" or "let go"."""
        begun = self._store.begin_attempt(run_id, self._config.name)
        if begun is None:
            return "nothing to do"
        try:
            while begun is not None:
                run, number = begun
                state = self._attempt(run, number)
                if state is not None:
                    return state
                begun = self._store.begin_again(run_id, self._config.name, number)
        except LetGo:
            self._compute.kill()
            return "let go"
        return "cancelled"

    def _attempt(self, run: Run, number: int) -> str | None:
        """One attempt; None where the compute process died and the run may be begun again."""
        refused = self._hopeless(run) or self._no_room(run)
        if refused:
            return self._end(run, number, {"state": "failed", **refused})
        self._compute.order(
            {
                "op": "run",
                "run": run.id,
                "attempt": number,
                "spec": run.spec.to_json(),
                "folder": str(attempt_folder(self._config, run.id, number)),
                "previous": [str(f) for f in self._previous(run, number)],
            }
        )
        started = looked = written = roomy = time.monotonic()
        report: dict[str, Any] = {}
        unwritten = False
        asked_to_stop = 0.0
        # The limit that the run has met, as what becomes of it.
        limit: dict[str, Any] = {}
        meter = screens.Meter(self._config, self._store, run)
        while True:
            message = self._compute.next(LOOK_SECONDS)
            now = time.monotonic()
            if self._ending():
                raise LetGo
            if isinstance(message, Gone):
                return self._died(run, number, message, bool(asked_to_stop))
            if message is not None and (message.get("run"), message.get("attempt")) == (run.id, number):
                if "outcome" in message:
                    if unwritten:
                        self._write(run, number, report)
                    # What was complete before it heard of the limit is complete.
                    stopped = message["outcome"]["state"] == "cancelled"
                    return self._end(run, number, message["outcome"] | (limit if stopped else {}))
                report, unwritten = message["report"], True
                if report["first"]:
                    self._patiently(lambda at=report["done"]: self._store.begun(run.id, number, at))
            if unwritten and (report["first"] or now - written >= WRITE_SECONDS):
                self._write(run, number, report)
                written, unwritten = now, False
            if now - looked < LOOK_SECONDS:
                continue
            looked = now
            mine, cancel = self._patiently(lambda: self._store.wishes(run.id, number))
            if not mine:
                raise LetGo
            if not limit and not asked_to_stop:
                hours = self._config.max_run_hours
                if hours and now - started > hours * 3600:
                    limit = self._too_long()
                elif now - roomy > ROOM_SECONDS:
                    limit, roomy = self._patiently(meter.too_much) or self._no_room(run) or {}, now
            if (cancel or limit) and not asked_to_stop:
                asked_to_stop = now
                self._compute.order({"op": "stop"})
            if asked_to_stop and now - asked_to_stop > self._config.cancel_grace_seconds:
                self._compute.kill()
                outcome: dict[str, Any] = {"state": "cancelled", "note": "did not answer and was ended"}
                return self._end(run, number, outcome | limit)

    def _previous(self, run: Run, number: int) -> list[Path]:
        """Folders whose saved state this attempt may go on from: of this run, then of the stopped one that it continues."""
        folders = previous_folders(self._config, run.id, number)
        continued = None if run.parent is None else self._store.same_spec(run.parent, run.spec_sha256)
        if continued is not None:
            folders += previous_folders(self._config, continued.id, continued.attempt + 1)
        return folders

    def _too_long(self) -> dict[str, Any]:
        return {
            "state": "failed",
            "error": f"The run took longer than the {self._config.max_run_hours:g} hours that this server allows.",
            "hint": "What it recorded is kept. Ask for less, or split the work.",
        }

    def _no_room(self, run: Run) -> dict[str, Any] | None:
        """The limits on what an owner and all owners keep act while runs grow, too."""
        try:
            self._patiently(lambda: self._store.require_room(run.owner))
        except QuotaError as error:
            hint = f"What the run recorded is kept, and it can go on when there is room. {error.hint}"
            return {"state": "failed", "error": error.message, "hint": hint}
        return None

    def _hopeless(self, run: Run) -> dict[str, Any] | None:
        """Whether earlier attempts have shown that another one will not get further."""
        crashes = loading = losses = 0
        place: float | None = None
        for attempt in reversed(self._store.attempts(run.id)):
            if attempt.outcome == "running":
                continue
            if attempt.outcome not in ("crashed", "lost"):
                break
            if attempt.begun:
                # What counts is what was saved: an earlier attempt that began earlier has moved the run on.
                if place is not None and attempt.done_at_start < place:
                    break
                place = attempt.done_at_start
            crashes += attempt.outcome == "crashed" and attempt.begun
            loading += attempt.outcome == "crashed" and not attempt.begun
            losses += attempt.outcome == "lost"
        allowed = CRASHES_OF_SCREENINGS_ALLOWED if screens.screen_of(run) else CRASHES_ALLOWED
        if crashes < allowed and loading < CRASHES_WHILE_LOADING_ALLOWED and losses < LOSSES_ALLOWED:
            return None
        return {
            "error": f"The process that computed it died {crashes + loading + losses} times without getting further.",
            "hint": "It may need more memory than there is: use a smaller structure or model. What was recorded is kept.",
        }

    def _died(self, run: Run, number: int, gone: Gone, asked_to_stop: bool) -> str | None:
        self._compute.kill()
        if asked_to_stop:
            return self._end(run, number, {"state": "cancelled"})
        if gone.killed_for_memory and not screens.screen_of(run):
            outcome = {
                "state": "failed",
                "error": "The system ended the computation because memory ran out.",
                "hint": "Use a smaller structure, a smaller model or float32, or a machine with more memory.",
            }
            return self._end(run, number, outcome)
        note = f"The compute process ended by itself (code {gone.returncode})."
        self._patiently(lambda: self._store.crash(run.id, number, note))
        return None

    def _write(self, run: Run, number: int, report: dict[str, Any]) -> None:
        # What a screening holds is measured apart from its runs.
        size = None if screens.screen_of(run) else report["size"]
        values = (report["done"], report["total"], report["text"], report["seconds_left"], size)
        if not self._patiently(lambda: self._store.progress(run.id, number, *values)):
            raise LetGo

    def _end(self, run: Run, number: int, outcome: dict[str, Any]) -> str:
        state, folder = outcome["state"], attempt_folder(self._config, run.id, number)
        # An attempt that was refused has none: what an earlier one recorded is what the run keeps.
        kept = latest_folder(self._config, run.id, number)
        text = {"done": "done", "failed": "failed", "cancelled": "stopped"}[state]
        ended = self._patiently(
            lambda: self._store.end(
                run.id,
                number,
                state,
                text=f"{text}: {outcome['note']}" if outcome.get("note") else text,
                error=outcome.get("error"),
                hint=outcome.get("hint"),
                summary=outcome.get("summary"),
                size=self._size(run, kept),
            )
        )
        if not ended:
            raise LetGo
        self._patiently(lambda: screens.let_go(self._store, run))
        if folder.is_dir():
            for earlier in other_folders(self._config, run.id, number):
                shutil.rmtree(earlier, ignore_errors=True)
        return state

    def _size(self, run: Run, kept: Path | None) -> int | None:
        """What the run holds; None where that was counted here."""
        screen = screens.screen_of(run)
        if screen is None:
            return 0 if kept is None else folder_size(kept)
        screens.count_bytes(self._config, self._store, screen)
        return None

    def _patiently[T](self, ask: Callable[[], T]) -> T:
        """A database that restarts is waited for, as long as nobody can have taken this worker for dead."""
        until = time.monotonic() + 0.7 * self._config.dead_after_seconds
        while True:
            try:
                return ask()
            except StoreError:
                if time.monotonic() > until or self._ending():
                    raise LetGo from None
                time.sleep(0.2)
