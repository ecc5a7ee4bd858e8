"""Every path through the Validate page, with the values that are shown."""

from __future__ import annotations

import json

import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator

from fdcore import services, shipped_labels
from fdcore.services import runs
from fdcore.services import validation as validations
from tests.pages.conftest import GAP, expected_force_delta, words


def labelled_frames(n: int = 24, periodic: bool = True):
    """Labelled with F_c of the model that the tests know, plus something that grows with the frame: eps_c is that. Two systems."""
    out = []
    for k in range(n):
        atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True) if periodic else molecule("CH4")
        atoms.positions += 0.01 * np.cos(np.arange(3.0 * len(atoms)).reshape(-1, 3) + k)
        conservative = atoms.positions.mean(axis=0) - atoms.positions
        atoms.calc = SinglePointCalculator(atoms, energy=-1.5 * len(atoms), forces=conservative + 0.02 * (1 + k))
        atoms.info |= {"system": "even" if k % 2 == 0 else "odd", "sigma_A": round(0.05 * (k % 3), 2)}
        out.append(atoms)
    return out


def upload(app, tmp_path, frames, name="labelled.extxyz"):
    path = tmp_path / name
    ase.io.write(path, frames)
    app.switch_page("pages/validate.py").run()
    app.file_uploader[0].set_value([(name, path.read_bytes(), "text/plain")]).run()
    assert not app.exception
    return app


def start(app):
    app.button(key="validate-start").click().run()
    assert not app.exception
    return app


def only_run() -> runs.Run:
    [run] = [r for r in runs.list_runs(runs.Viewer.operator()) if r.task == "validate"]
    return run


def charts(app) -> str:
    return json.dumps([json.loads(c.proto.spec) for c in app.get("vega_lite_chart")])


def test_nothing_chosen_offers_the_shipped_labels(app, monkeypatch, tmp_path):
    """With a stand-in for the file, so that the page does not depend on it."""
    import hashlib

    path = tmp_path / "pbe-gpaw.extxyz"
    ase.io.write(path, [*labelled_frames(22), *labelled_frames(3, periodic=False)])
    content = path.read_bytes()
    made = shipped_labels.ShippedLabels(
        "pbe-gpaw", "PBE, a stand-in", "", "GPAW", "CC0", 25, hashlib.sha256(content).hexdigest(), path, {}
    )
    monkeypatch.setattr(validations, "shipped", lambda: made)
    app.switch_page("pages/validate.py").run()
    assert not app.exception and "consensus failures" in words(app)
    app.button(key="shipped").click().run()
    assert not app.exception
    said = words(app)
    # Crystals and molecules each have their own model unless somebody names one.
    assert "fd-orb-small-v1: 22 structures" in said and "fd-orb-molecules-v1: 3 structures" in said
    assert "25 structures, 191 atoms: about" in said
    start(app)
    run = only_run()
    assert run.state == "done" and run.spec.parameters["further"] == ["fd-orb-molecules-v1"]
    assert app.radio(key="validate-model").options == [
        "fd-orb-small-v1 (22 structures)",
        "fd-orb-molecules-v1 (3 structures)",
    ]
    app.radio(key="validate-model").set_value("fd-orb-molecules-v1").run()
    assert not app.exception and "against the labels" in words(app).lower()
    # Nobody needs the file on a command line.
    assert "fdcore validate" in words(app) and "pbe-gpaw.extxyz" not in app.code[-1].value


def test_shipped_labels_that_are_not_here_are_said_to_be_so(app, monkeypatch, tmp_path):
    monkeypatch.setattr(shipped_labels.data, "path", lambda *parts: tmp_path / parts[-1])
    shipped_labels.shipped.cache_clear()
    app.switch_page("pages/validate.py").run()
    app.button(key="shipped").click().run()
    assert not app.exception and "not part of this installation" in words(app)
    shipped_labels.shipped.cache_clear()


def test_numbers_are_those_of_the_forces(app, tmp_path):
    start(upload(app, tmp_path, labelled_frames()))
    run = only_run()
    assert run.state == "done" and app.query_params["run"] in (run.id, [run.id])
    compared, failures = validations.of_run(run)
    assert not failures and len(compared) == 24
    for k, c in enumerate(compared):
        assert c.error_conservative == pytest.approx(0.02 * (1 + k), abs=1e-6)
        assert c.force_delta == pytest.approx(expected_force_delta(8), rel=1e-6)
        expected = np.sqrt(((GAP - 0.02 * (1 + k)) ** 2 * 7 + (0.3 - 0.02 * (1 + k)) ** 2) / 8)
        assert c.error_direct == pytest.approx(expected, abs=1e-6)
    said = words(app)
    # The model says the same U_Delta everywhere: there is nothing to rank, and the page says so.
    assert "the same U_Delta or the same error" in said
    metric = {m.label: m.value for m in app.metric}
    assert float(metric["eps_c, median"]) == pytest.approx(0.02 * 13, rel=5e-3)
    assert float(metric["Energy"]) == pytest.approx(0.0, abs=1e-3)
    assert "eps_c is about" in said and "fdcore validate labelled.extxyz --model fd-orb-small-v1" in said
    drawn = charts(app)
    for title in (
        "Error of F_c against U_Delta",
        "Is U_Delta as large as the error?",
        "Which structures have a large error?",
        "F_nc against the reference",
    ):
        assert title in drawn, title


def test_groups_and_the_bound_can_be_chosen(app, tmp_path):
    start(upload(app, tmp_path, labelled_frames()))
    group = app.selectbox(key="validate-group")
    assert group.options[0] == "system" and group.value == "system" and "sigma_a" in group.options
    table = app.dataframe[0].value
    assert {"system: even", "system: odd"} <= set(table["structures"])
    group.set_value("sigma_a").run()
    assert not app.exception
    assert any(name.startswith("displacement: ") for name in app.dataframe[0].value["structures"])
    app.number_input(key="validate-above").set_value(0.25).run()
    assert "eps_c is above 0.250 eV/Å in 12 of 24 structures" in words(app)
    assert "--group-by sigma_a --above 0.25" in words(app)


def test_without_labels_it_cannot_start_and_says_what_to_do(app, tmp_path):
    upload(app, tmp_path, [bulk("NaCl", "rocksalt", a=5.6, cubic=True)], "bare.extxyz")
    assert app.button(key="validate-start").disabled
    assert "None of these structures brings reference forces" in words(app)


def test_what_cannot_be_compared_is_named_and_the_others_are(app, tmp_path):
    frames = labelled_frames(20)
    frames[3].calc = None
    uranium = bulk("U", "bcc", a=3.5)
    uranium.calc = SinglePointCalculator(uranium, energy=0.0, forces=np.zeros((1, 3)))
    start(upload(app, tmp_path, [*frames, uranium]))
    assert only_run().state == "done" and len(validations.of_run(only_run())[0]) == 19
    said = words(app)
    assert "was not compared" in said and "It has no reference forces" in said and "U" in said
    assert len(app.dataframe[-1].value) == 19


def test_an_ensemble_beside_it(app, tmp_path):
    upload(app, tmp_path, labelled_frames(20))
    app.multiselect(key="validate-members").set_value(["fd-orb-small-v1"]).run()
    assert app.button(key="validate-start").disabled and "at least two members" in words(app)
    app.multiselect(key="validate-members").set_value(["fd-orb-small-v1", "fd-orb-small-v1-s1"]).run()
    start(app)
    run = only_run()
    assert run.spec.parameters["ensemble"] == ["fd-orb-small-v1", "fd-orb-small-v1-s1"]
    compared, _ = validations.of_run(run)
    assert all(c.ensemble_spread > 0 for c in compared)
    assert any("r_s, mean within groups" in d.value.columns for d in app.dataframe)


def test_stopped_in_the_middle_it_shows_what_there_is_and_goes_on(app, workshop, tmp_path):
    workshop.hold = True
    start(upload(app, tmp_path, labelled_frames()))
    workshop.stop_midway()
    app.run()
    assert only_run().state == "cancelled"
    before = len(validations.of_run(only_run())[0])
    assert 0 < before < 24 and f"**Stopped** after {before} of 24 structures" in words(app)
    workshop.hold = False
    app.button(key="go_on").click().run()
    newest = runs.list_runs(runs.Viewer.operator())[0]
    assert newest.state == "done" and len(validations.of_run(newest)[0]) == 24


def test_a_link_opens_it_and_the_runs_page_too(app, tmp_path):
    start(upload(app, tmp_path, labelled_frames()))
    run = only_run()
    key = runs.share(runs.Viewer.operator(), run.id)
    fresh = type(app).from_file(str(app._script_path), default_timeout=60)
    fresh.switch_page("pages/validate.py")
    fresh.query_params["run"], fresh.query_params["key"] = run.id, key
    fresh.run()
    assert not fresh.exception and "eps_c, median" in words(fresh)
    stranger = type(app).from_file(str(app._script_path), default_timeout=60)
    stranger.switch_page("pages/validate.py")
    stranger.query_params["run"] = run.id
    stranger.run()
    assert not stranger.exception and "eps_c, median" not in words(stranger)


def test_an_ended_run_is_exported_with_its_report(app, tmp_path):
    import io
    import zipfile

    start(upload(app, tmp_path, labelled_frames()))
    content = runs.archive_bytes(runs.Viewer.operator(), only_run().id)
    archive = zipfile.ZipFile(io.BytesIO(content))
    names = archive.namelist()
    assert "validation/report.html" in names and "validation/roc.svg" in names
    document = json.loads(archive.read("validation/validation.json"))
    assert len(document["results"]) == 24 and services.default_model_id() == document["models"][0]["model"]
