"""Every path through the Ensemble page, with the values that are shown."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from fdcore import ensemble, services
from fdcore.services import ensemble as ensembles
from fdcore.services import runs
from tests.pages.conftest import expected_force_delta, words

# The embedded model, and one of the tests' that gives 1.5 times its force.
OTHER, MISSING = "orb-v2", "orb-v3-direct-inf-mpa"


def open_example(app, example_id: str = "ice_ladder"):
    app.switch_page("pages/ensemble.py")
    app.query_params["example"] = example_id
    return app.run()


def members(app, *ids: str):
    app.multiselect(key="ensemble-members").set_value([services.default_model_id(), *ids]).run()
    if app.checkbox:
        app.checkbox(key="ensemble-mixing").check().run()
    return app


def start(app):
    app.button(key="ensemble-start").click().run()
    assert not app.exception
    return app


def metric(app, label: str) -> str:
    return next(m.value for m in app.metric if m.label == label)


def only_run() -> runs.Run:
    [run] = [r for r in runs.list_runs(runs.Viewer.operator()) if r.task == "ensemble"]
    return run


def test_nothing_chosen_offers_an_example(app):
    app.switch_page("pages/ensemble.py").run()
    assert not app.exception
    app.button(key="try_example").click().run()
    # Further seeds of the default model come with the app: with it they are an ensemble at once.
    chosen = app.multiselect(key="ensemble-members").value
    assert chosen[0] == services.default_model_id() and chosen == list(ensembles.default_members(chosen[0]))
    assert len(chosen) > 1 and not app.button(key="ensemble-start").disabled


def test_methods_are_mixed_only_when_a_person_says_so(app):
    open_example(app)
    app.multiselect(key="ensemble-members").set_value([services.default_model_id(), OTHER]).run()
    assert app.button(key="ensemble-start").disabled
    assert "trained to reproduce different methods" in words(app)
    app.checkbox(key="ensemble-mixing").check().run()
    assert not app.button(key="ensemble-start").disabled


def test_one_member_is_no_ensemble(app):
    members(open_example(app))
    assert app.button(key="ensemble-start").disabled
    assert "at least two members" in words(app)


def test_numbers_are_those_of_the_members(app):
    start(members(open_example(app), OTHER))
    run = only_run()
    assert run.state == "done"
    found = ensembles.of_run(run)
    frames = services.example_source(next(e for e in services.examples() if e.id == "ice_ladder"))
    structures = services.read_sources([frames]).structures
    assert len(found.spreads) == len(structures) == 12
    for spread in found.spreads:
        own = spread.evaluation.forces_direct
        expected = ensemble.ensemble_spread(np.stack([own, 1.5 * own]))
        assert spread.ensemble_spread == pytest.approx(expected, rel=1e-12)
    largest = max(s.ensemble_spread for s in found.spreads)
    assert float(metric(app, "Largest U_var")) == pytest.approx(largest, rel=5e-3)
    n = structures[0].n_atoms
    assert float(metric(app, "Largest U_Delta")) == pytest.approx(expected_force_delta(n), rel=5e-3)
    assert metric(app, "Confidence head") == "–"
    assert "fdcore ensemble ice_ladder.extxyz --models fd-orb-small-v1,orb-v2 --mix-methods" in words(app)
    # The address names the run; a reload finds it.
    assert app.query_params["run"] in (run.id, [run.id])


def test_a_member_that_is_not_there_is_named(app):
    start(members(open_example(app), OTHER, MISSING))
    said = words(app)
    assert f"{MISSING} is left out" in said and "could not be fetched" in said
    assert len(ensembles.of_run(only_run()).spreads[0].members) == 2


def test_without_two_members_it_fails_with_a_reason(app):
    start(members(open_example(app), MISSING))
    assert only_run().state == "failed"
    assert "Fewer than two members" in words(app)


def test_stopped_in_the_middle_it_shows_what_there_is_and_goes_on(app, workshop):
    workshop.hold = True
    start(members(open_example(app), OTHER))
    workshop.stop_midway()
    app.run()
    run = only_run()
    assert run.state == "cancelled"
    before = len(ensembles.of_run(run).spreads)
    assert 0 < before < 12
    assert f"**Stopped** after {before} of 12 structures" in words(app)
    workshop.hold = False
    app.button(key="go_on").click().run()
    done = runs.list_runs(runs.Viewer.operator())[0]
    assert done.state == "done" and len(ensembles.of_run(done).spreads) == 12


def test_labels_in_the_file_rank_the_estimates(app, tmp_path):
    """Reference forces in an extended xyz: r_s of both estimates with the errors, as the JSON says it, too."""
    import ase.io

    from fdcore import data, ensemble_files

    frames = ase.io.read(data.path("examples", "ice_ladder.extxyz"), ":")
    for k, atoms in enumerate(frames):
        atoms.new_array("forces", np.full((len(atoms), 3), 0.1 * k))
    path = tmp_path / "labelled.extxyz"
    ase.io.write(path, frames)
    app.switch_page("pages/ensemble.py").run()
    app.file_uploader[0].set_value([("labelled.extxyz", path.read_bytes(), "text/plain")]).run()
    start(members(app, OTHER))
    found = ensembles.of_run(only_run())
    rows = ensemble.rankings(found)
    assert {r.estimate for r in rows} == {"force_delta", "ensemble_spread"}
    document = json.loads(ensemble_files.as_json(found))
    by = {(r["estimate"], r["error"]): r for r in document["rankings"]}
    # The spread grows with the distance from the mean position; so does the error against forces that are nearly constant.
    spreads, errors = zip(*[(s.ensemble_spread, s.error_direct) for s in found.spreads], strict=True)
    assert by["ensemble_spread", "error_direct"]["r_s"] == pytest.approx(spearmanr(spreads, errors).statistic)
    assert by["ensemble_spread", "error_direct"]["n"] == 12
    assert "Which of them ranks the error?" in json.dumps(
        [json.loads(c.proto.spec) for c in app.get("vega_lite_chart")]
    )


def test_another_browser_sees_nothing_of_it(app):
    start(members(open_example(app), OTHER))
    run = only_run()
    fresh = type(app).from_file(str(app._script_path), default_timeout=60)
    fresh.switch_page("pages/ensemble.py")
    fresh.query_params["run"] = run.id
    fresh.run()
    assert not fresh.exception
    assert "Largest U_var" not in words(fresh)
