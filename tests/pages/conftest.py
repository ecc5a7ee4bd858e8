"""Page tests run the real pages, services, readers and verdicts over a model of known arithmetic: its forces can be checked
by hand, and it loads at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("streamlit.testing.v1")

import streamlit as st  # noqa: E402
from streamlit.testing.v1 import AppTest  # noqa: E402

from fdcore import services  # noqa: E402
from fdcore.errors import WeightsError  # noqa: E402
from fdcore.models.base import Model  # noqa: E402
from fdcore.records import Evaluation  # noqa: E402

# F_nc - F_c of every atom, in eV/Å: u_i is 0.03 everywhere and 0.3 on atom 0.
GAP, GAP_OF_FIRST = 0.03, 0.3


class KnownModel(Model):
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

    def _gradients(self, structure, method):
        raise NotImplementedError

    def _displaced(self, structure, displacements):
        raise NotImplementedError


def expected_force_delta(n_atoms: int) -> float:
    """U_Delta of KnownModel for a structure of n atoms, eV/Å."""
    return float(np.sqrt((GAP_OF_FIRST**2 + (n_atoms - 1) * GAP**2) / n_atoms))


@pytest.fixture(autouse=True)
def known_model(monkeypatch):
    """Every model that is "here" is a KnownModel; the others cannot be fetched, as without a network."""
    monkeypatch.syspath_prepend(str(ROOT))

    def load(id=None, device="auto", dtype="float32", weights=None):
        card = services.card(id or services.default_model_id())
        if card.weights != "embedded":
            raise WeightsError(f"The weights of {card.id} could not be fetched.", "Connect to the network once.")
        return KnownModel(card, "cpu", dtype)

    monkeypatch.setattr(services, "load_model", load)
    monkeypatch.setattr(services, "model_is_here", lambda card: card.weights == "embedded")
    st.cache_resource.clear()
    yield
    st.cache_resource.clear()


@pytest.fixture
def app():
    """The app as a person meets it, before anything was chosen."""
    return AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)


def words(app) -> str:
    """All text of the page, for asking whether something is said."""
    kinds = ("title", "markdown", "caption", "error", "warning", "info", "metric", "code")
    parts = [str(e.value) for kind in kinds for e in getattr(app, kind)]
    return "\n".join([*parts, *(m.label for m in app.metric), *(b.label for b in app.button)]).replace("\\", "")
