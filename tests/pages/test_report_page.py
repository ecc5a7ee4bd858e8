"""Every path through the Report page, with the values that are shown."""

from __future__ import annotations

import numpy as np
import pytest

from fdcore import report_words, services
from fdcore.services import report as reports
from fdcore.services import runs
from tests.pages.conftest import GAP, GAP_OF_FIRST, expected_force_delta, words

FAST = ["asymmetry", "symmetry"]


def open_example(app, example_id: str = "NaCl"):
    app.switch_page("pages/report.py")
    app.query_params["example"] = example_id
    return app.run()


def start(app, parts=FAST):
    app.multiselect(key="report-parts").set_value(parts).run()
    app.button(key="report-start").click().run()
    assert not app.exception
    return app


def only_run() -> runs.Run:
    [run] = [r for r in runs.list_runs(runs.Viewer.operator()) if r.task == "report"]
    return run


def test_nothing_chosen_offers_an_example(app):
    app.switch_page("pages/report.py").run()
    assert not app.exception
    app.button(key="try_example").click().run()
    assert not app.exception
    assert not app.button(key="report-start").disabled
    # The cost before the start.
    assert "about" in words(app) and "free" in words(app)


def test_words_and_figures_are_those_of_the_model(app):
    start(open_example(app))
    run = only_run()
    assert run.state == "done" and run.spec.model.dtype == "float64"
    [one] = reports.of_run(run).examined
    n = one.structure.n_atoms
    assert one.evaluation.force_delta == pytest.approx(expected_force_delta(n))
    # F_nc is F_c and a constant: its Jacobian is symmetric, its net force is not zero.
    assert one.asymmetry["direct"].value < 1e-10
    net = np.linalg.norm(np.full(3, GAP_OF_FIRST + (n - 1) * GAP)) / n
    assert one.net_force("direct") == pytest.approx(net)
    said = words(app)
    lines = report_words.said_of(one, reports.of_run(run))[0]
    for line in lines:
        assert line.name in said
    assert "λ = " in said and "Jacobian asymmetry" in said and "ORB-v2 0.015" in said
    assert "phonons and Hessians of F_nc" in said
    assert "fdcore report NaCl.cif --model fd-orb-small-v1 --parts forces,asymmetry,symmetry" in said
    offered = {b.label for b in app.get("download_button")} | {b.proto.label for b in app.get("download_button")}
    assert {"Report (HTML)", "Report (PDF)"} <= offered
    # The address names the run; a reload finds it.
    assert app.query_params["run"] in (run.id, [run.id])
    fresh = type(app).from_file(str(app._script_path), default_timeout=60)
    fresh.switch_page("pages/report.py")
    fresh.query_params["run"] = run.id
    fresh.query_params["key"] = runs.share(runs.Viewer.operator(), run.id)
    fresh.run()
    assert not fresh.exception and "Jacobian asymmetry" in words(fresh)


def test_an_energy_that_is_not_the_force_is_said(app):
    """The energy of the tests' model is constant: F_c is not its slope, and nothing can be built on it."""
    start(open_example(app), ["gradient"])
    said = words(app)
    assert "F_c is not the slope of the energy here" in said and "fail" in said


def test_a_part_that_cannot_be_done_is_missing_with_its_reason(app):
    open_example(app)
    app.radio(key="report-dtype").set_value("float32").run()
    start(app, ["gradient"])
    assert only_run().spec.model.dtype == "float32"
    said = words(app)
    assert "missing" in said and "single precision are noise" in said
    assert "--dtype float32" in said


def test_stopped_in_the_middle_it_shows_what_there_is_and_goes_on(app, workshop):
    workshop.hold = True
    start(open_example(app), ["gradient", "asymmetry", "lines"])
    workshop.stop_midway()
    app.run()
    run = only_run()
    assert run.state == "cancelled"
    before = reports.of_run(run).examined
    assert len(before) == 1 and not before[0].lines
    said = words(app)
    assert "**Stopped**" in said and "Not done: it was stopped before." in said and "U_Delta" in said
    workshop.hold = False
    app.button(key="go_on").click().run()
    assert not app.exception
    done = runs.list_runs(runs.Viewer.operator())[0]
    assert done.state == "done" and reports.of_run(done).examined[0].lines


def test_several_structures_are_chosen_from(app):
    start(open_example(app, "ice_ladder"), ["symmetry"])
    run = only_run()
    assert len(reports.of_run(run).examined) == run.spec.n_structures > 1
    app.selectbox(key="report-which").select(1).run()
    assert not app.exception


def test_the_runs_page_opens_it_and_other_pages_keep_their_precision(app):
    start(open_example(app))
    run = only_run()
    fresh = type(app).from_file(str(app._script_path), default_timeout=60)
    fresh.switch_page("pages/runs.py")
    fresh.query_params["run"] = run.id
    fresh.query_params["key"] = runs.share(runs.Viewer.operator(), run.id)
    fresh.run()
    fresh.button(key="open").click().run()
    assert not fresh.exception
    assert fresh.session_state["fd_settings"].dtype == "float32"
    assert services.card(fresh.session_state["fd_settings"].model_id).id == run.spec.model.id
