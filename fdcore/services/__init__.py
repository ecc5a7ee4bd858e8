"""What a page or the command line may ask. Everything here takes and gives frozen records; nothing here draws or prints."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fdcore import data, models
from fdcore.distribution import reference_distribution
from fdcore.export import provenance
from fdcore.human import duration, size
from fdcore.models.base import Model, available_bytes, estimated_edges, guessed_bytes_per_edge, guessed_seconds_per_edge
from fdcore.records import Failure, ModelCard, Score, Structure
from fdcore.spec import ModelChoice, Spec
from fdcore.structures import Limits, Parsed, Source, read_paths, read_sources, with_charge_spin
from fdcore.tasks import score as score_task
from fdcore.tasks.base import Job, Note, Rows, Run
from fdcore.tasks.run import OUT_OF_MEMORY_HINT, out_of_memory
from fdcore.verdict import judge

__all__ = [
    "Estimate",
    "Example",
    "Limits",
    "Parsed",
    "Source",
    "all_models",
    "available_models",
    "card",
    "check_device",
    "command_line",
    "default_model_id",
    "estimate",
    "example_source",
    "examples",
    "extra_is_here",
    "list_models",
    "load_model",
    "model_is_here",
    "models_covering",
    "read_paths",
    "read_sources",
    "score",
    "settings",
    "suggested_model",
    "with_charge_spin",
]

load_model = models.load_model
check_device = models.check_device
card = models.card
model_is_here = models.is_here
extra_is_here = models.extra_is_here


def list_models() -> tuple[ModelCard, ...]:
    """Cards of every model that can be scored by its name alone (it has a direct force head), embedded ones first."""
    return tuple(c for c in models.list_models() if c.kind == "direct" and c.weights != "file")


def all_models() -> tuple[ModelCard, ...]:
    """Cards of every model, those for ensembles only among them."""
    return models.list_models()


def available_models() -> tuple[ModelCard, ...]:
    """Those whose weights are on this machine."""
    return tuple(c for c in list_models() if model_is_here(c))


def default_model_id() -> str:
    """The embedded model that needs no download."""
    return models.DEFAULT_MODEL


def suggested_model(structures: Iterable[Structure]) -> str:
    """The embedded model to begin with, for these structures."""
    return models.suggested_model(structures)


def models_covering(numbers: ArrayLike) -> tuple[ModelCard, ...]:
    """Direct-force models trained on every element in `numbers` (atomic numbers)."""
    return models.models_covering(numbers)


def download_of(card: ModelCard) -> str:
    """What a button that fetches the weights says; their size where it is known."""
    return f"Download {card.download_MB:.0f} MB" if card.download_MB else "Download its weights"


# ---- scoring -------------------------------------------------------------------------------------------------------


def score(model: Model, structures: Iterable[Structure]) -> Iterator[Score | Failure]:
    """Score structures in input order; one that fails becomes a Failure and the others go on.

    It drives the task that the engine runs, in this process and without files.
    """
    listed = tuple(structures)
    spec = Spec("score", ModelChoice(model.card.id, model.dtype, model.device), "", len(listed))
    answered = 0
    try:
        for item in _judged(score_task.ScoreTask().run(Job(spec, listed, model)), listed, model):
            answered += 1
            yield item
    except Exception as error:  # the boundary: backends have many names for a shortage
        if not out_of_memory(error):
            raise
        # What is scored stays; nothing is made up for the others.
        for structure in listed[answered:]:
            yield Failure(structure.file, "Not scored: memory ran out.", OUT_OF_MEMORY_HINT, structure.index)


def _judged(records: Run, listed: Sequence[Structure], model: Model) -> Iterator[Score | Failure]:
    """The records of the task as a page shows them, each as soon as it is complete."""
    reference = reference_distribution(model.card.id)
    atoms: Mapping[str, Any] = {}
    for record in records:
        if isinstance(record, Note):
            yield from score_task.failures(iter([record.values]), listed)
        elif isinstance(record, Rows) and record.table == "atoms":
            atoms = record.columns
        elif isinstance(record, Rows):
            # Here every structure has a table of atoms to itself.
            alone = {name: np.asarray(column) for name, column in record.columns.items()}
            alone["first_atom"] = np.zeros(1, np.int64)
            for position, evaluation in score_task.evaluations(alone, atoms):
                verdict = judge(listed[position], evaluation, model.card, reference)
                yield Score(listed[position], model.card.id, evaluation, verdict)


def settings(model: Model) -> dict:
    """Provenance of results made with this loaded model."""
    return provenance(model.card, device=model.device, dtype=model.dtype, weights=model.weights_sha256)


# ---- cost ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """What scoring will cost: wall time in seconds, peak memory in MB, and whether it fits; `text` says it in words.

    measured: False while the time is a guess from the model's size (before its first batches here).
    """

    seconds: float
    memory_MB: float
    available_MB: float
    fits: bool
    measured: bool
    text: str


def estimate(model: Model | ModelCard, structures: Sequence[Structure], dtype: str = "float32") -> Estimate:
    """Estimate the cost of scoring `structures` with a loaded model, or roughly with a model that is not loaded yet."""
    if isinstance(model, Model):
        seconds = model.seconds(structures)
        largest = max((model.memory_bytes(s) for s in structures), default=0.0)
        available, measured = model.available_bytes(), model.speed_is_measured
    else:
        edges = [estimated_edges(s, model.cutoff_A, model.neighbour_cap) for s in structures]
        doubled = 2.0 if dtype == "float64" else 1.0
        seconds = sum(edges) * guessed_seconds_per_edge(model) * doubled
        largest = max(edges, default=0.0) * guessed_bytes_per_edge(model) * doubled
        available, measured = available_bytes("cpu"), False
    fits = largest < available
    text = f"about {duration(seconds)}, {size(largest)} of {size(available)} free"
    if not measured:
        text += " (a guess until this model has run here)"
    return Estimate(seconds, largest / 1e6, available / 1e6, fits, measured, text)


# ---- examples ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """A structure file that travels with the package, described by its card. `model`: where another than the suggested one is to be
    used; `paper`: the name that the paper gives this system."""

    id: str
    title: str
    file: str
    description: str
    source: str
    licence: str
    model: str = ""
    paper: str = ""


@cache
def examples() -> tuple[Example, ...]:
    """The shipped examples in the order of their cards file."""
    cards = json.loads(data.path("examples", "cards.json").read_text())
    return tuple(Example(id=c["file"].rsplit(".", 1)[0], **c) for c in cards)


def example_source(example: Example) -> Source:
    """The example as if the user had brought it."""
    return Source(name=example.file, data=data.path("examples", example.file).read_bytes())


# ---- repeat this ---------------------------------------------------------------------------------------------------


def as_argument(file: str) -> str:
    """A file's name where it cannot be taken for an option."""
    return f"./{file}" if file.startswith("-") else file


def command_line(
    files: Sequence[str], model_id: str, *, dtype: str = "float32", charge: int | None = None, spin: int | None = None
) -> str:
    """The command that repeats what a page did; options at their default are left out. The model is always named: without it,
    the command line chooses one for the structures."""
    words = ["fdcore", "score", *map(as_argument, files), "--model", model_id]
    if dtype != "float32":
        words += ["--dtype", dtype]
    if charge is not None:
        words += ["--charge", str(charge)]
    if spin is not None:
        words += ["--spin", str(spin)]
    return shlex.join(words)
