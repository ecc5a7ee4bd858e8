"""Every path through the Adversarial page, with the values that are shown."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from ase.calculators.lj import LennardJones
from streamlit.testing.v1 import AppTest

from fdcore import adversarial
from fdcore import reference as references
from fdcore.distribution import reference_distribution
from fdcore.records import Evaluation, Gradients
from fdcore.scene import colour
from fdcore.services import adversarial as attacks
from fdcore.services import runs
from tests.pages.conftest import ROOT, progress_text, words


@pytest.fixture(autouse=True)
def gradients(monkeypatch, known_model):
    """KnownModel's gap with a slope: it grows with the distance of each atom from where the crystal has it."""

    def one(self, structure):
        mean = structure.positions.mean(axis=0)
        away = structure.positions - mean
        size = 0.01 + 0.02 * (away**2).sum() / structure.n_atoms
        return Evaluation(0.0, -away + size, -away)

    def slope(self, structure, method):
        evaluation = one(self, structure)
        away = structure.positions - structure.positions.mean(axis=0)
        return Gradients(evaluation, 0.04 * away / structure.n_atoms, away)

    monkeypatch.setattr(known_model, "_one", one)
    monkeypatch.setattr(known_model, "_gradients", slope)


def open_example(app, example_id: str = "NaCl"):
    app.switch_page("pages/adversarial.py")
    app.query_params["example"] = example_id
    return app.run()


def quick(app):
    """A few short starts, everything is kept."""
    app.number_input(key="attack-steps").set_value(6).run()
    app.number_input(key="attack-rise").set_value(1.0).run()
    app.number_input(key="attack-relax_fmax_eV_per_A").set_value(None).run()
    app.number_input(key="attack-count").set_value(3).run()
    return app


def start(app):
    app.button(key="attack-start").click().run()
    return app


def metric(app, label: str) -> str:
    return next(m.value for m in app.metric if m.label == label)


def only_run() -> runs.Run:
    [run] = [r for r in runs.list_runs(runs.Viewer.operator()) if r.task == "attack"]
    return run


def test_without_a_structure_it_says_what_will_come(app):
    app.switch_page("pages/adversarial.py")
    app.run()
    assert not app.exception
    assert "Let the model show its weak spots" in words(app)
    app.button(key="try_example").click().run()
    assert not app.exception
    assert app.button(key="attack-start").label == "Make 10 structures"


def test_cost_and_starts_are_said_before_it_begins(app):
    open_example(app)
    assert "5 starts of up to 50 steps, 8 atoms: about" in words(app)
    app.number_input(key="attack-count").set_value(20).run()
    assert app.button(key="attack-start").label == "Make 20 structures"
    assert "10 starts" in words(app)


def test_result_is_that_of_the_record(app):
    start(quick(open_example(app)))
    assert not app.exception
    run = only_run()
    assert run.state == "done"
    found = attacks.of_run(run)
    items = adversarial.dataset(found)
    assert len(items) == 3
    assert metric(app, "Structures") == "3 of 3"
    highest = found.steps["force_delta_eV_per_A"][found.steps["allowed"] > 0].max()
    assert metric(app, "Highest U_Delta") == f"{highest:#.3g} eV/Å"
    table = app.dataframe[0].value
    assert list(table["id"]) == [f"start{i.start:03d}-step{i.step:03d}" for i in items]
    np.testing.assert_allclose(table["force_delta_eV_per_A"], [i.force_delta for i in items])
    assert "3 structures on which the two forces disagree" in words(app)
    # A small picture of each, on the scale of all, which reaches what is ordinary for the model.
    pictures = [base64.b64decode(p.removeprefix("data:image/svg+xml;base64,")).decode() for p in table["picture"]]
    assert all(p.count("<circle") == 8 for p in pictures)
    ordinary = reference_distribution(run.spec.model.id).quantile(0.95)
    top = max(ordinary, *(i.force_delta_per_atom.max() for i in items))
    for picture, item in zip(pictures, items, strict=True):
        assert all(f'fill="{colour(u / top)}"' in picture for u in item.force_delta_per_atom)
    assert "What they are not" in words(app)


def test_command_line_repeats_it(app):
    start(quick(open_example(app)))
    assert (
        app.code[0].value
        == "fdcore attack NaCl.cif --model fd-orb-small-v1 --steps 6 --count 3 --rise 1.0 --relax-fmax none --out dataset.extxyz"
    )


def test_downloads_are_offered(app):
    start(quick(open_example(app)))
    labels = {b.label for b in app.get("download_button")} if app.get("download_button") else set()
    labels |= {e.proto.label for e in app.get("download_button")}
    assert {"extXYZ", "ASE database", "CIF", "CSV", "All as zip", "JSON"} <= labels


def test_wrong_settings_are_explained_where_they_stand(app):
    open_example(app)
    app.number_input(key="attack-temperature_K").set_value(500.0).run()
    app.number_input(key="attack-beta").set_value(0.1).run()
    assert any("both weigh the energy" in e.value for e in app.error)
    assert not [b for b in app.button if b.key == "attack-start"]


def test_stopped_attack_keeps_what_was_made_and_goes_on(app, workshop):
    workshop.hold = True
    quick(open_example(app))
    app.number_input(key="attack-starts").set_value(40).run()
    start(app)
    assert "Waiting" in progress_text(app)
    workshop.stop_midway()
    app.run()
    assert not app.exception
    [run] = [r for r in runs.list_runs(runs.Viewer.operator()) if r.task == "attack"]
    assert f"after {run.done:,.0f} of {run.total:,.0f} steps. What was made is kept" in words(app)
    before = attacks.of_run(only_run()).n_steps
    assert before > 0
    # Nobody climbs any more, and no caption says so.
    [how] = [c.value for c in app.caption if c.value.startswith("Start ")]
    assert "still climbing" not in how
    workshop.hold = False
    app.button(key="go_on").click().run()
    assert not app.exception
    done = next(r for r in runs.list_runs(runs.Viewer.operator()) if r.state == "done")
    assert attacks.of_run(done).n_steps > before


def test_stopped_before_it_began_has_made_nothing(app, workshop):
    workshop.hold = True
    start(quick(open_example(app)))
    runs.cancel(runs.Viewer.operator(), only_run().id)
    app.run()
    assert not app.exception
    assert "before it began: nothing was made" in words(app)


def test_too_few_are_explained(app):
    quick(open_example(app))
    app.number_input(key="attack-rise").set_value(500.0).run()
    start(app)
    assert not app.exception
    assert "No structure has reached 500 times" in words(app)
    assert any("More starts" in i.value for i in app.info)


@pytest.fixture
def lennard_jones(monkeypatch):
    """Stands in for CHGNet."""
    known = references.Reference("chgnet", "CHGNet", "A stand-in.", "", "chgnet", LennardJones)
    monkeypatch.setitem(references.REFERENCES, "chgnet", known)


def compare(app):
    app.selectbox(key="attack-reference").set_value("chgnet").run()
    app.button(key="compare").click().run()
    return app


def test_comparison_with_a_reference(app, lennard_jones):
    quick(open_example(app)).number_input(key="attack-starts").set_value(8).run()
    compare(start(app))
    assert not app.exception
    assert "Against CHGNet, U_Delta ranks the error of F_c with r_s =" in words(app)
    assert "over whole climbs, since structures of one climb are alike" in words(app)


def test_comparison_survives_a_reload_and_belongs_to_its_attack(app, lennard_jones):
    compare(start(quick(open_example(app))))
    sentence = next(m.value for m in app.markdown if "Against CHGNet" in m.value)
    again = opened(app, only_run())
    assert not again.exception
    assert sentence in [m.value for m in again.markdown]
    assert "error_conservative_eV_per_A" in again.dataframe[0].value
    # Another attack of the same structure has none.
    again.button(key="attack-settings-again").click().run()
    again.number_input(key="attack-steps").set_value(5).run()
    start(again)
    assert "Against CHGNet" not in words(again)
    assert "error_conservative_eV_per_A" not in again.dataframe[0].value


def test_comparison_is_seen_by_whom_the_attack_is_shared_with(app, lennard_jones):
    compare(start(quick(open_example(app))))
    run = only_run()
    key = runs.share(runs.Viewer.operator(), run.id)
    guest = AppTest.from_file(str(ROOT / "ui.py"), default_timeout=60)
    guest.session_state["fd_session_owner"] = "somebody-else"
    guest.switch_page("pages/adversarial.py")
    guest.query_params["run"], guest.query_params["key"] = run.id, key
    guest.run()
    assert not guest.exception
    assert "Against CHGNet, U_Delta ranks" in words(guest)
    assert not [b for b in guest.button if b.key == "compare"]


def test_elements_the_model_does_not_know_are_refused(app):
    open_example(app, "MOF-5")
    assert not app.exception
    assert not [b for b in app.button if b.key == "attack-start"]


def opened(app, run):
    """The same person, another day."""
    again = AppTest.from_file(str(ROOT / "ui.py"), default_timeout=60)
    again.session_state["fd_session_owner"] = app.session_state["fd_session_owner"]
    again.switch_page("pages/adversarial.py")
    again.query_params["run"] = run.id
    return again.run()


def test_history_opens_it_again(app):
    start(quick(open_example(app)))
    again = opened(app, only_run())
    assert metric(again, "Structures") == "3 of 3"
    assert again.code[0].value == app.code[0].value
