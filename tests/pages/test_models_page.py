"""The Models page: every model, what it is, the self-check with its figures."""

from __future__ import annotations

import pytest

from fdcore import services
from fdcore.records import Gradients
from fdcore.services import checking, runs
from tests.pages.conftest import words


@pytest.fixture
def gradients(monkeypatch, known_model):
    """KnownModel's gap is constant: U_Delta has no slope, which its gradient says. Its F_c is not that of its constant energy."""

    def flat(self, structure, method):
        evaluation = self._one(structure)
        return Gradients(evaluation, 0 * evaluation.forces_direct, -evaluation.forces_conservative)

    monkeypatch.setattr(known_model, "_gradients", flat)


def open_page(app):
    app.switch_page("pages/models.py").run()
    assert not app.exception
    return app


def test_every_model_is_listed_with_what_it_is(app):
    table = open_page(app).dataframe[0].value
    cards = services.all_models()
    assert list(table["model"]) == [c.id for c in cards]
    assert set(table["force"]) == {"direct", "conservative"}
    assert table["weights"][0] == "comes with the app"
    assert any("download of" in w for w in table["weights"])


def test_self_check_shows_its_figures(app, gradients):
    open_page(app).button(key="check-model").click().run()
    assert not app.exception
    run = checking.latest(runs.Viewer.operator())[services.default_model_id()]
    check = checking.found(run)
    # The test's model has an energy that does not change: it must be told of, not passed.
    assert check is not None and not check.passed
    assert "DO NOT agree" in words(app)
    shown = app.dataframe[-1].value
    assert shown["largest error"][0] == pytest.approx(check.forces_conservative_error)
    assert check.forces_conservative_error == pytest.approx(check.forces_conservative_scale, rel=0.5)


def test_the_model_of_all_pages(app):
    open_page(app)
    assert app.button(key="use-model").disabled, "it is in use"


def test_operators_folder_is_where_weights_are_looked_for(tmp_path, monkeypatch, random_checkpoint):
    """A checkpoint named by its model's id is loaded without a download, and the model counts as being here."""
    from fdcore import models

    card = models.card("orb-d3-xs-v2")
    assert models.operator_weights(card) is None
    monkeypatch.setenv("FDCORE_WEIGHTS", str(tmp_path))
    assert models.operator_weights(card) is None
    path = tmp_path / "orb-d3-xs-v2.ckpt"
    path.write_bytes(random_checkpoint("orb-d3-xs-v2").read_bytes())
    assert models.is_here(card) and models.operator_weights(card) == path
    assert models.load_model("orb-d3-xs-v2", "cpu").weights_sha256 == models.base.file_sha256(path)
    (tmp_path / "orb-d3-xs-v2.pt").touch()
    with pytest.raises(models.WeightsError, match="several files"):
        models.is_here(card)
