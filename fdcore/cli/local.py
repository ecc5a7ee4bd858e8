"""A task in this process: where its record is kept, and how it is watched and stopped."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fdcore import services
from fdcore.errors import UsageError
from fdcore.records import ModelCard, Structure
from fdcore.spec import Spec
from fdcore.store.series import read_result
from fdcore.tasks.run import Limits, Outcome, Report, execute

SPEC = "spec.json"


@contextlib.contextmanager
def record(out: str | None, spec: Spec) -> Iterator[tuple[Path, list[Path]]]:
    """The folder of this attempt and those of earlier ones, which `out` keeps; without it, one that is gone afterwards."""
    if out is None:
        kept = Path(tempfile.mkdtemp(prefix="fdcore-"))
        try:
            yield kept / "1", []
        finally:
            shutil.rmtree(kept, ignore_errors=True)
        return
    folder = Path(out)
    folder.mkdir(exist_ok=True)
    described = folder / SPEC
    if described.is_file():
        if Spec.from_json(described.read_text(encoding="utf-8")).work_sha256 != spec.work_sha256:
            raise UsageError(
                f"{out} holds the record of another run.", "Name another folder, or repeat that run's own command."
            )
    else:
        described.write_text(spec.to_json(), encoding="utf-8")
    earlier = sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    if earlier and read_result(earlier[-1]) is not None:
        # It is done: the same command shows it again.
        yield earlier[-1], earlier[:-1]
        return
    following = str(1 + max((int(p.name) for p in earlier), default=0))
    yield folder / following, earlier


def carry_out(
    spec: Spec,
    structures: Sequence[Structure],
    load: Any,
    folder: Path,
    previous: Sequence[Path],
    unit: str = "step",
    load_further: Any = None,
) -> Outcome:
    """One attempt with a progress bar; it is stopped (`stop_asked`) at the next state that can be saved."""
    done = read_result(folder)
    if done is not None:
        return Outcome("done", summary=done)
    with stop_asked() as should_stop, tqdm(total=None, unit=unit, file=sys.stderr, disable=None) as bar:

        def report(known: Report) -> None:
            bar.total = known.total
            bar.set_description(known.text, refresh=False)
            bar.update(known.done - bar.n)

        return execute(
            spec,
            structures,
            load,
            folder,
            previous=previous,
            report=report,
            should_stop=should_stop,
            limits=Limits(),
            load_further=load_further,
        )


@contextlib.contextmanager
def stop_asked() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C and SIGTERM ask to stop soon, which the yielded function tells; a second one stops at once."""
    stop: list[bool] = []

    def interrupted(*_: object) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.append(True)
        print("fdcore: stopping; once more stops at once", file=sys.stderr)

    before = {number: signal.signal(number, interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Loaded:
    """Loads the model when it is first asked for, and keeps it."""

    def __init__(self, card: ModelCard, arguments: argparse.Namespace) -> None:
        self.model: Any = None
        self._how = (card.id, arguments.device, arguments.dtype, arguments.weights)

    def __call__(self, _: Spec) -> Any:
        if self.model is None:
            self.model = services.load_model(*self._how)
        return self.model


def say(outcome: Outcome, kept: str | None, made: int) -> None:
    """What became of a task, on standard error; `kept`: where its record is, `made`: how much there is."""
    if outcome.note:
        print(f"fdcore: {outcome.note}", file=sys.stderr)
    if outcome.state == "failed":
        print(f"fdcore: {outcome.error} {outcome.hint or ''}".rstrip(), file=sys.stderr)
    if outcome.state == "cancelled":
        way = "the same command goes on from here" if kept else "with --record FOLDER it could be gone on with"
        what = "what was made is kept" if made else "nothing was made yet"
        print(f"fdcore: stopped; {what}, {way}", file=sys.stderr)
