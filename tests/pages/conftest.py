"""Page tests run the real pages, services, store, task, readers and verdicts over a model of known arithmetic: its forces can be
checked by hand, and it loads at once. Instead of a worker, `submit` runs the task in this process; tests/jobs has the real one."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("streamlit.testing.v1")

import streamlit as st  # noqa: E402
from streamlit.testing.v1 import AppTest  # noqa: E402

from fdcore import services  # noqa: E402
from fdcore.errors import WeightsError  # noqa: E402
from fdcore.jobs import queue  # noqa: E402
from fdcore.jobs.engine import Engine  # noqa: E402
from fdcore.records import Evaluation, Prediction  # noqa: E402
from fdcore.services import runs  # noqa: E402
from fdcore.store import database, structures  # noqa: E402
from fdcore.store.files import attempt_folder, previous_folders  # noqa: E402
from fdcore.tasks.run import execute  # noqa: E402
from pages.parts import browser  # noqa: E402
from tests.doubles import Double  # noqa: E402

# F_nc - F_c of every atom, in eV/Å: u_i is 0.03 everywhere and 0.3 on atom 0.
GAP, GAP_OF_FIRST = 0.03, 0.3


class KnownModel(Double):
    """F_c pulls every atom to the mean position; F_nc is that plus a constant, ten times larger on the first atom."""

    bytes_per_edge = 1e3

    def _edge_count(self, structure):
        return float(structure.n_atoms)

    def _evaluate(self, structures):
        return [self._one(s) for s in structures]

    def _one(self, structure):
        conservative = structure.positions.mean(axis=0) - structure.positions
        gap = np.full((structure.n_atoms, 3), GAP)
        gap[0] = GAP_OF_FIRST
        return Evaluation(-1.5 * structure.n_atoms, conservative + gap, conservative)

    def _displaced(self, structure, displacements):
        return [self._one(replace(structure, positions=structure.positions + d)) for d in displacements]


def expected_force_delta(n_atoms: int) -> float:
    """U_Delta of KnownModel for a structure of n atoms, eV/Å."""
    return float(np.sqrt((GAP_OF_FIRST**2 + (n_atoms - 1) * GAP**2) / n_atoms))


@pytest.fixture(autouse=True)
def known_model(monkeypatch):
    """Every model that is "here" is a KnownModel; the others cannot be fetched, as without a network."""
    monkeypatch.syspath_prepend(str(ROOT))

    monkeypatch.setattr(services, "model_is_here", lambda card: card.weights == "embedded")
    st.cache_resource.clear()
    yield KnownModel
    st.cache_resource.clear()


def load(spec):
    """What a compute process does, with KnownModel for every embedded model."""
    card = services.card(spec.model.id)
    if card.weights != "embedded":
        raise WeightsError(f"The weights of {card.id} could not be fetched.", "Connect to the network once.")
    return KnownModel(card, "cpu", spec.model.dtype)


class Stretched(KnownModel):
    """Another model, whose direct force is half as long again."""

    def _predict(self, structures):
        return [Prediction(e.energy, 1.5 * e.forces_direct) for e in self._evaluate(structures)]


def load_further(model_id):
    """Further members of an ensemble: embedded ones and Orb v2 are here, others cannot be fetched."""
    card = services.card(model_id)
    if card.weights != "embedded" and not model_id.startswith("orb-v2"):
        raise WeightsError(f"The weights of {card.id} could not be fetched.", "Connect to the network once.")
    return Stretched(card, "cpu", "float32")


class Workshop:
    """Stands in for the worker. `hold` True leaves runs waiting; `run_all` then works them off."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.hold = engine, False

    def run(self, run_id: str, should_stop=lambda: False) -> None:
        """One attempt of one run, as `fdcore.jobs.work` does it."""
        store, config = self.engine.store, self.engine.config
        begun = store.begin_attempt(run_id, "workshop")
        if begun is None:
            return
        run, attempt = begun
        old = None if run.parent is None else store.same_spec(run.parent, run.spec_sha256)
        outcome = execute(
            run.spec,
            structures.of_run(store, run_id),
            load,
            attempt_folder(config, run_id, attempt),
            previous=[] if old is None else previous_folders(config, old.id, old.attempt + 1),
            should_stop=should_stop,
            load_further=load_further,
            report=lambda r: store.progress(run_id, attempt, r.done, r.total, r.text, r.seconds_left, r.size),
        )
        store.end(
            run_id,
            attempt,
            outcome.state,
            text=outcome.state,
            error=outcome.error,
            hint=outcome.hint,
            summary=outcome.summary,
            size=outcome.size,
        )

    def stop_midway(self) -> None:
        """Work the waiting run off, and stop it when it has looked around for a while."""
        [(run_id, *_)] = self.engine.store.queued()
        looks = itertools.count()
        self.run(run_id, lambda: next(looks) > 25)

    def run_all(self) -> None:
        for run_id, *_ in self.engine.store.queued():
            self.run(run_id)


@pytest.fixture(autouse=True)
def cookie_jar(monkeypatch):
    """The cookies that the browser of this test sends: none at first."""
    jar: dict[str, str] = {}
    monkeypatch.setattr(browser, "cookie", jar.get)
    monkeypatch.setattr(browser, "timezone", lambda: "UTC")
    monkeypatch.setattr(browser, "base_address", lambda: "http://localhost")
    return jar


@pytest.fixture(autouse=True)
def workshop(tmp_path, monkeypatch):
    """The real engine on a database of this test, with a Workshop instead of a worker."""
    monkeypatch.setenv("FDCORE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(queue, "migrate", lambda config: None)
    monkeypatch.setattr(queue, "offer", lambda *arguments: None)
    monkeypatch.setattr(queue, "forget_run", lambda *arguments: None)
    monkeypatch.setattr(Engine, "app_is_open", lambda self: None)
    monkeypatch.setattr(Engine, "page_is_open", lambda self: None)
    runs.current.cache_clear()
    made = Workshop(runs.current())
    submit = Engine.submit

    def submit_and_run(self, *arguments, **keywords):
        run_id = submit(self, *arguments, **keywords)
        if not made.hold:
            made.run(run_id)
        return run_id

    monkeypatch.setattr(Engine, "submit", submit_and_run)
    yield made
    database.dispose(made.engine.config)
    runs.current.cache_clear()


@pytest.fixture
def app():
    """The app as a person meets it, before anything was chosen."""
    return AppTest.from_file(str(ROOT / "ui.py"), default_timeout=60)


def words(app) -> str:
    """All text of the page, for asking whether something is said."""
    kinds = ("title", "markdown", "caption", "error", "warning", "info", "success", "metric", "code")
    parts = [str(e.value) for kind in kinds for e in getattr(app, kind)]
    return "\n".join([*parts, *(m.label for m in app.metric), *(b.label for b in app.button)]).replace("\\", "")


def progress_text(app) -> str:
    """What the progress bars say."""
    return "\n".join(e.proto.text for e in app.get("progress")).replace("\\", "")
