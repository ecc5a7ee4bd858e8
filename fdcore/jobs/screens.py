"""What runs of screenings share: one folder and one book, which count for the owner, and go with the last run that refers to them."""

from __future__ import annotations

import time
from pathlib import Path

from fdcore.config import MB, Config
from fdcore.store.chunks import TASK, ChunkBook
from fdcore.store.files import folder_size, is_screen, remove_files, remove_screen, screen_folder
from fdcore.store.records import Run
from fdcore.store.runs import Store

# What is measured costs a look at every file: this share of the time, no more.
MEASURING_SHARE = 0.02
# A folder without a run is one that is being filled, or one that was left behind when it is so old.
ORPHAN_SECONDS = 86400.0


def screen_of(run: Run) -> str | None:
    """The screening that a run works on; None for all other runs."""
    return str(run.spec.parameters["screen"]) if run.task == TASK else None


def count_bytes(config: Config, store: Store, screen: str) -> int:
    """Let what a screening holds count for its runs; returns how much it is."""
    held = folder_size(screen_folder(config, screen))
    store.share_bytes(screen, held)
    return held


def let_go(store: Store, run: Run) -> None:
    """Nobody works on this run any more: what it had of its screening goes back to the others."""
    screen = screen_of(run)
    if screen is not None:
        ChunkBook(store, screen).release_of(f"{run.id}.")


def remove_run(config: Config, store: Store, run: Run) -> None:
    """The files of a run whose row is gone; those of its screening with the last run that refers to it."""
    remove_files(config, run.id)
    screen = screen_of(run)
    if screen is None:
        return
    if store.runs_of_screen(screen):
        count_bytes(config, store, screen)
    else:
        remove(config, store, screen)


def remove(config: Config, store: Store, screen: str) -> None:
    """A screening that no run refers to."""
    # The folder last: where this is interrupted, it is found again by its folder.
    ChunkBook(store, screen).delete()
    remove_screen(config, screen)


def remove_orphans(config: Config, store: Store) -> None:
    """Screenings that no run refers to: a start or a deletion that was interrupted."""
    if not config.screens.is_dir():
        return
    for place in config.screens.iterdir():
        if (
            is_screen(place.name)
            and time.time() - _touched(place) > ORPHAN_SECONDS
            and not store.runs_of_screen(place.name)
        ):
            remove(config, store, place.name)


def _touched(place: Path) -> float:
    try:
        return place.stat().st_mtime
    except OSError:
        return time.time()


class Meter:
    """Measures the screening of one run now and then."""

    def __init__(self, config: Config, store: Store, run: Run) -> None:
        self._config, self._store, self._screen = config, store, screen_of(run)
        self._next = 0.0

    def too_much(self) -> dict[str, str] | None:
        """Counts what the screening holds; how the run ends where that is more than one may hold."""
        if self._screen is None or time.monotonic() < self._next:
            return None
        began = time.monotonic()
        held = count_bytes(self._config, self._store, self._screen)
        now = time.monotonic()
        self._next = now + (now - began) / MEASURING_SHARE
        most = self._config.max_run_MB * MB
        if not most or held <= most:
            return None
        return {
            "state": "failed",
            "error": f"The screening holds more than the {self._config.max_run_MB:,} MB that this server allows for one.",
            "hint": "What is done is kept. Split the inputs, or use `fdcore screen` on a machine of your own.",
        }
