"""Every path through the Reproduce page, with the values that are shown; efforts are small."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace

import pytest

from fdcore import reproduction, reproduction_report, services
from fdcore.reproduce import protocols
from fdcore.services import reproduce, runs
from tests.pages.conftest import words

SMALL = {"relax_steps": 2, "equilibrate_ps": 0.0, "nve_ps": 0.02, "timestep_heavy_fs": 1.0}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(protocols.EFFORTS, "quick", replace(protocols.EFFORTS["quick"], **SMALL))
    monkeypatch.setitem(protocols.SYSTEMS["quick"], "fig5", ("NaCl",))


def open_page(app, *targets: str):
    app.switch_page("pages/reproduce.py").run()
    assert not app.exception
    app.multiselect(key="reproduce-targets").set_value(list(targets)).run()
    return app


def start(app):
    app.button(key="reproduce-start").click().run()
    assert not app.exception
    return app


def only_run() -> runs.Run:
    [run] = [r for r in runs.list_runs(runs.Viewer.operator()) if r.task == reproduction.TASK]
    return run


def test_it_says_what_it_will_do_before_it_starts(app):
    open_page(app, "fig5")
    assert "2 parts, about" in words(app)
    shown = app.dataframe[0].value
    assert shown["part"].tolist() == ["nve-fd-orb-small-v1-NaCl-direct", "nve-fd-orb-small-v1-NaCl-conservative"]
    app.multiselect(key="reproduce-targets").set_value([]).run()
    assert app.button(key="reproduce-start").disabled and "Choose a figure or a table" in words(app)


def test_what_is_left_out_of_own_structures_is_told(app):
    open_page(app, "fig5")
    app.radio(key="reproduce-own").set_value("mine").run()
    app.file_uploader[0].set_value([("torn.xyz", b"hello", "text/plain")]).run()
    assert not app.exception
    assert "torn.xyz** was not read. Line 1 should hold a number of atoms" in words(app)
    assert app.button(key="reproduce-start").disabled
    frames = "".join(f"2\n\nO 0 0 0\nO 0 0 {1.2 + 0.01 * k:.2f}\n" for k in range(14))
    app.file_uploader[0].set_value([("many.xyz", frames.encode(), "text/plain")]).run()
    assert not app.exception
    assert "The first 12 of 14 structures take part." in words(app)


def test_the_papers_words_stand_beside_the_numbers(app):
    start(open_page(app, "fig5"))
    run = only_run()
    assert run.state == "done"
    [finding] = reproduction.findings(reproduce.of_run(run))
    assert "F_c of a smooth model is the most stable" in words(app)
    table = app.dataframe[0].value
    assert table["driver"].tolist() == ["F_nc", "F_c"]
    assert table["drift (meV/atom/ps)"].tolist() == [
        reproduction_report.cell(r["drift_meV_per_atom_per_ps"]) for r in finding.rows
    ]
    # Found again by its address, and asked for others.
    assert app.query_params["run"] == run.id
    app.button(key="reproduce-again").click().run()
    assert app.button(key="reproduce-start")


def test_downloads_read_back(app):
    start(open_page(app, "fig5"))
    run = only_run()
    found = reproduce.of_run(run)
    content = reproduction_report.archive(found, reproduce.provenance(run.spec, run.summary))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert {"report.html", "reproduction.json", "fig5.csv", "fig5.svg", "fig5.png"} <= set(archive.namelist())
        document = json.loads(archive.read("reproduction.json"))
    assert document["targets"]["fig5"]["rows"][0]["driver"] == "F_nc"
    assert document["provenance"]["spec"]["parameters"]["targets"] == ["fig5"]
    assert {b.label for b in app.get("download_button")} == {"Report", "Everything"}


def test_stopped_it_shows_what_there_is_and_goes_on(app, workshop):
    workshop.hold = True
    start(open_page(app, "fig5"))
    workshop.stop_midway()
    app.run()
    assert not app.exception
    assert only_run().state == "cancelled" and "Stopped" in words(app) and "not done" in words(app)
    workshop.hold = False
    app.button(key="go_on").click().run()
    assert not app.exception
    states = {r.state for r in runs.list_runs(runs.Viewer.operator()) if r.task == reproduction.TASK}
    assert "done" in states and "as the paper" in words(app).lower()


def test_own_structures_take_part_in_every_figure(app):
    app.switch_page("pages/reproduce.py")
    app.query_params["example"] = "MgO_vacancy"
    app.run()
    app.multiselect(key="reproduce-targets").set_value(["fig5"]).run()
    app.radio(key="reproduce-own").set_value("mine").run()
    assert not app.exception
    assert [p.split("-")[-2] for p in app.dataframe[0].value["part"]] == ["MgO_vacancy", "MgO_vacancy"]


def test_a_reference_that_is_not_wanted(app):
    open_page(app, "fig2")
    app.selectbox(key="reproduce-reference").set_value(reproduce.NOBODY).run()
    assert "errors are missing" in words(app)
    assert set(app.dataframe[0].value["task"]) == {"attack"}


def test_other_models_and_another_precision(app):
    open_page(app, "fig5")
    box = app.multiselect(key="reproduce-models")
    assert box.value == [] and "The preset's own: fd-orb-small-v1." in words(app)
    # Only what has both forces and is on this machine.
    offered = [o.split()[0] for o in box.options]
    cards = [services.card(i) for i in offered]
    assert len(cards) > 1 and all(c.kind == "direct" and services.model_is_here(c) for c in cards)
    box.set_value(["fd-orb-small-v1-s2"]).run()
    radios = {r.label: r for r in app.radio}
    radios["Precision"].set_value("float64").run()
    {r.label: r for r in app.radio}["Device"].set_value("cpu").run()
    assert not app.exception and "The preset's own:" not in words(app)
    assert set(app.dataframe[0].value["model"]) == {"fd-orb-small-v1-s2"}
    start(app)
    run = only_run()
    assert run.spec.parameters["models"] == ["fd-orb-small-v1-s2"]
    assert (run.spec.model.id, run.spec.model.dtype, run.spec.model.device) == ("fd-orb-small-v1-s2", "float64", "cpu")
    assert "--models fd-orb-small-v1-s2" in words(app) and "--dtype float64" in words(app)
    # Whoever opens it has its settings.
    fresh = type(app).from_file(str(app._script_path), default_timeout=60)
    fresh.switch_page("pages/reproduce.py")
    fresh.query_params["run"] = run.id
    fresh.query_params["key"] = runs.share(runs.Viewer.operator(), run.id)
    fresh.run()
    fresh.button(key="reproduce-again").click().run()
    assert not fresh.exception
    assert fresh.multiselect(key="reproduce-models").value == ["fd-orb-small-v1-s2"]
    assert {r.label: r.value for r in fresh.radio}["Precision"] == "float64"
