"""What a page or the command line may ask of runs. Everything belongs to a `Viewer`; nothing here draws or prints."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from fdcore import config as configuration
from fdcore import finetuning, generations, models, motion, services
from fdcore.distribution import reference_distribution
from fdcore.errors import RunStateError
from fdcore.export import PACKAGES, comparison_table, provenance
from fdcore.jobs import archive, screens
from fdcore.jobs.engine import Engine, engine
from fdcore.models import finetuned
from fdcore.records import Failure, Score, Structure
from fdcore.spec import ModelChoice, Spec
from fdcore.store import structures as stored
from fdcore.store.files import screen_folder
from fdcore.store.records import ENDED, Attempt, Outline, Run, RunState, Viewer, Waiting, Worker
from fdcore.tasks import score as score_task
from fdcore.tasks.finetune import MODEL
from fdcore.tasks.stages import GenerationsParameters
from fdcore.verdict import judge

__all__ = ["Attempt", "Outline", "Result", "Run", "RunState", "Viewer", "Waiting", "Worker"]

# A run that is expected to take longer than this on the CPU does not belong where people wait for the next second.
QUICK_SECONDS = 20.0


@cache
def current() -> Engine:
    """The engine that the environment configures."""
    return engine(configuration.from_environment())


def app_is_open() -> None:
    """Say that this machine's worker is wanted: starts it where there is none and the operator lets us."""
    current().app_is_open()


def page_is_open() -> None:
    """Say that a person is choosing what to compute: the worker also loads the default model meanwhile."""
    current().page_is_open()


# ---- submitting ----------------------------------------------------------------------------------------------------


def spec_of(
    task: str,
    structures: Sequence[Structure],
    model: ModelChoice,
    parameters: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
) -> Spec:
    """The complete description of one task on these structures with this model."""
    card = services.card(model.id)
    known = ModelChoice(model.id, model.dtype, model.device, model.weights_sha256 or card.sha256 or None)
    return Spec(
        task=task,
        model=known,
        inputs_sha256=stored.inputs_sha256(structures),
        n_structures=len(structures),
        parameters=dict(parameters or {}),
        seed=seed,
        versions={name: version(name) for name in PACKAGES},
    )


def submit_score(
    viewer: Viewer,
    structures: Sequence[Structure],
    model: ModelChoice,
    *,
    title: str,
    refusals: Sequence[Failure] = (),
    again: bool = False,
) -> Run:
    """Queue the scoring of these structures, or return the run that already answers the same question (`again`: do not).

    Raises QuotaError, UnknownModelError, UsageError.
    """
    cost = services.estimate(services.card(model.id), structures, model.dtype).seconds
    return submit(
        viewer,
        spec_of("score", structures, model),
        structures,
        title=title,
        lane=lane_of(model.device, cost),
        refusals=refusals,
        again=again,
    )


def submit(
    viewer: Viewer,
    spec: Spec,
    structures: Sequence[Structure],
    *,
    title: str,
    lane: str,
    refusals: Sequence[Failure] = (),
    again: bool = False,
) -> Run:
    """Queue any run, or return the one of this viewer that already does the same work (`again`: do not)."""
    known = current()
    same = None if again else known.store.find_same_work(viewer, spec)
    # What could not be read is part of what a person sees of a run.
    if same is not None and stored.refusals_of_run(known.store, same.id) == tuple(refusals):
        return same
    run_id = known.submit(
        _owner(viewer),
        spec,
        title=title,
        lane=lane,
        also=lambda connection, run_id: stored.add(connection, run_id, structures, refusals),
    )
    return known.store.run(viewer, run_id)


def lane_of(device: str, cpu_seconds: float) -> str:
    """Which lane a run belongs to: what is short on the CPU never waits for what is long; a GPU takes the long ones."""
    if device.startswith("cuda"):
        return "gpu"
    if cpu_seconds <= QUICK_SECONDS:
        return "quick"
    has_gpu = device == "auto" and any(w.alive and w.lanes.get("gpu") for w in current().store.workers())
    return "gpu" if has_gpu else "long"


def retry(viewer: Viewer, run_id: str) -> Run:
    """A new run with the same spec and the same inputs. It goes on from where a stopped or failed one was last saved, and
    begins anew after a finished one; the old run stays as it is. Raises RunStateError while it is active."""
    known = current()
    old = known.store.run(viewer, run_id)
    if old.active:
        raise RunStateError("The run has not ended yet.", "Cancel it first, or wait.")
    inputs = stored.of_run(known.store, run_id)
    refusals = stored.refusals_of_run(known.store, run_id)
    new = known.submit(
        old.owner if viewer.owner is None else viewer.owner,
        old.spec,
        title=old.title,
        lane=old.lane,
        parent=old.id,
        also=lambda connection, new_id: stored.add(connection, new_id, inputs, refusals),
    )
    return known.store.run(viewer, new)


def _owner(viewer: Viewer) -> str:
    return viewer.owner or "operator"


# ---- asking --------------------------------------------------------------------------------------------------------


def get(viewer: Viewer, run_id: str, key: str = "") -> Run:
    """One run, or UnknownRunError; `key` is that of a shared link."""
    return current().store.run(viewer, run_id, key)


def find(viewer: Viewer, beginning: str) -> Run:
    """The one run whose id begins so; UnknownRunError otherwise."""
    return current().store.find(viewer, beginning)


def same_work(viewer: Viewer, spec: Spec) -> Run | None:
    """The newest run of this viewer that was asked the same, and is waiting, running or done."""
    return current().store.find_same_work(viewer, spec)


def list_runs(
    viewer: Viewer,
    *,
    states: Sequence[RunState] = (),
    tasks: Sequence[str] = (),
    limit: int = 200,
    offset: int = 0,
) -> tuple[Run, ...]:
    """The viewer's runs, newest first."""
    return current().store.list_runs(viewer, states=states, tasks=tasks, limit=limit, offset=offset)


def active_runs(viewer: Viewer, *, limit: int = 200, offset: int = 0) -> tuple[Run, ...]:
    """The viewer's runs that are in work, then those that wait, as they will be served."""
    return current().store.active_runs(viewer, limit=limit, offset=offset)


def ended_runs(viewer: Viewer, *, limit: int = 200, offset: int = 0) -> tuple[Run, ...]:
    """The viewer's runs that have ended, newest first."""
    return current().store.list_runs(viewer, states=ENDED, limit=limit, offset=offset)


def outline(viewer: Viewer) -> Outline:
    """How many runs are in work, waiting and ended, and which is the newest."""
    return current().store.outline(viewer)


def count_runs(viewer: Viewer, states: Sequence[RunState] = ()) -> int:
    return current().store.count_runs(viewer, states)


def attempts(run: Run) -> tuple[Attempt, ...]:
    return current().store.attempts(run.id)


def waiting(run: Run) -> Waiting:
    """What a queued run waits for."""
    return current().store.waiting(run)


def workers() -> tuple[Worker, ...]:
    return current().store.workers()


def inputs(run: Run) -> tuple[Structure, ...]:
    """The structures that a run works on, in their order."""
    return stored.of_run(current().store, run.id)


def refusals(run: Run) -> tuple[Failure, ...]:
    """What was brought with a run and could not be read."""
    return stored.refusals_of_run(current().store, run.id)


# ---- changing ------------------------------------------------------------------------------------------------------


def cancel(viewer: Viewer, run_id: str) -> Run:
    """Raises RunStateError where the run has ended."""
    return current().cancel(viewer, run_id)


def delete(viewer: Viewer, run_id: str) -> None:
    """Forget an ended run and its files. Raises RunStateError while it is active."""
    current().delete(viewer, run_id)


def share(viewer: Viewer, run_id: str, on: bool = True) -> str | None:
    """The key of a link that shows this run to whoever has it; `on` False takes it back."""
    return current().store.share(viewer, run_id, on)


def rename(viewer: Viewer, run_id: str, title: str) -> None:
    current().store.rename(viewer, run_id, title)


def take_over(old_owner: str, new_owner: str) -> int:
    """Give what a browser did before its person logged in to the account. Returns how many runs."""
    return current().store.take_over(old_owner, new_owner)


def ended_longer_ago(viewer: Viewer, days: float, states: Sequence[RunState] = ()) -> tuple[Run, ...]:
    """Ended runs (of these states; none: all) that ended more than so many days ago, oldest first."""
    old = current().store.ended_before(time.time() - days * 86400, viewer)
    return tuple(r for r in old if not states or r.state in states)


def folder(run: Run) -> Path | None:
    """Where the newest attempt records, None before it has begun."""
    return current().folder(run)


# ---- results -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What a scoring run has found so far. `provenance` as in exports; None before the run has begun."""

    run: Run
    scores: tuple[Score, ...]
    failures: tuple[Failure, ...]
    provenance: dict[str, Any] | None


def result(run: Run) -> Result:
    """The scores of a run, with verdicts made now from the arrays it kept; partial while it runs or after a stop."""
    given = inputs(run)
    failures = list(refusals(run))
    folder = current().folder(run)
    scores: list[Score] = []
    if folder is not None and run.spec.model is not None:
        card = models.card(run.spec.model.id)
        reference = reference_distribution(card.id)
        pairs, failed = score_task.read(folder, given)
        failures += failed
        scores = [Score(s, card.id, e, judge(s, e, card, reference)) for s, e in pairs]
    return Result(run, tuple(scores), tuple(failures), provenance_of(run))


def model_folders(run: Run) -> tuple[Path, ...]:
    """Where the models are that a run has finished, in the order in which they were made."""
    here = folder(run)
    if here is None:
        return ()
    names = [MODEL] if run.task == finetuning.TASK else []
    if run.task == generations.TASK:
        names = [s.product for s in GenerationsParameters.of(run.spec).stages() if s.kind == "finetune"]
    # A product is written under another name, so that one that is there is complete.
    return tuple(here / name for name in names if (here / name / finetuned.CARD).is_file())


def motion_of(run: Run) -> motion.Motion:
    """What a run of dynamics, relaxation or the advisor has recorded so far."""
    return motion.read(folder(run), run.spec, inputs(run), run.summary)


def provenance_of(run: Run) -> dict[str, Any] | None:
    """What one must know to repeat a run's numbers: of the process that made them once it has ended, else as submitted."""
    choice = run.spec.model
    if choice is None:
        return None
    found = run.summary or {}
    document = provenance(
        models.card(choice.id),
        device=str(found.get("device", choice.device)),
        dtype=choice.dtype,
        weights=str(found.get("weights_sha256") or choice.weights_sha256 or ""),
    )
    document["versions"] = dict(run.spec.versions)
    document["seed"] = run.spec.seed
    document["run"] = run.id
    document["spec_sha256"] = run.spec_sha256
    return document


def compare(viewer: Viewer, run_ids: Sequence[str]):
    """One row per structure that several scoring runs share, one column of U_Delta per run (a pandas table)."""
    return comparison_table([(_label(r), result(r).scores) for r in (get(viewer, i) for i in run_ids)])


def _label(run: Run) -> str:
    model = run.spec.model.id if run.spec.model else run.task
    return f"{model} ({run.id[:6]})"


def export(viewer: Viewer, run_id: str, stream: BinaryIO, key: str = "") -> None:
    """Write a run as a zip: what was asked, with which versions, every attempt, the inputs, and all that was recorded."""
    run = get(viewer, run_id, key)
    here, given = folder(run), inputs(run)
    scored = result(run) if run.task == "score" else None
    recorded = archive.Recorded(
        run=run,
        folder=here,
        structures=given,
        refusals=refusals(run),
        provenance=provenance_of(run),
        scores=((), ()) if scored is None else (scored.scores, scored.failures),
        made=model_folders(run),
        screen=None if (screen := screens.screen_of(run)) is None else screen_folder(current().config, screen),
    )
    archive.write(
        stream,
        run=run,
        attempts=attempts(run),
        structures=given,
        refusals=recorded.refusals,
        folder=here,
        files=archive.found(recorded),
    )


def archive_bytes(viewer: Viewer, run_id: str, key: str = "") -> bytes:
    """`export` in memory, for a browser."""
    buffer = io.BytesIO()
    export(viewer, run_id, buffer, key)
    return buffer.getvalue()


def document(run: Run) -> dict[str, Any]:
    """A run as plain JSON: spec, times in UTC, attempts, result."""
    return archive.document(run, attempts(run), refusals(run))
