"""The Dynamics page: what is asked, what is shown while it runs and afterwards, and that the numbers are those of the record."""

from __future__ import annotations

import json

import pytest
from streamlit.testing.v1 import AppTest

from fdcore import motion, motion_files, mts_advice, services
from fdcore.human import plus_minus
from fdcore.services import runs
from tests.pages.conftest import ROOT, expected_force_delta, progress_text, words
from tests.pages.test_score_page import GOLD, NACL

ME = runs.Viewer("tab:me")
TWO = NACL + "\n" + NACL.replace("Na 0.0 0.0 0.0", "Na 0.1 0.0 0.0") + "\n"


@pytest.fixture
def page(app):
    """The Dynamics page of ME, nothing chosen."""
    app.session_state["fd_session_owner"] = ME.owner
    app.run()
    app.switch_page("pages/dynamics.py")
    return app.run()


@pytest.fixture
def salt(page):
    """An uploaded crystal and settings that run in a moment."""
    page.file_uploader[0].set_value([("salt.extxyz", NACL.encode(), "text/plain")]).run()
    return short(page)


def short(page):
    set_number(page, "motion-md-steps", 16)
    set_number(page, "motion-md-equilibrate_steps", 4)
    return page


def set_number(page, key: str, value) -> None:
    page.number_input(key=key).set_value(value).run()
    assert not page.exception


def start(page):
    page.button(key="motion-start").click().run()
    assert not page.exception
    return page


def newest() -> runs.Run:
    return runs.list_runs(ME)[0]


def test_a_molecule_begins_with_a_model_of_molecules_until_the_person_names_one(page):
    page.selectbox(key="example").set_value("aspirin").run()
    assert page.selectbox(key="model").value == "fd-orb-molecules-v1"
    # The same choice stands on the page beside it.
    page.switch_page("pages/adversarial.py")
    page.run()
    assert page.selectbox(key="model").value == "fd-orb-molecules-v1"
    page.selectbox(key="model").set_value(services.default_model_id()).run()
    page.selectbox(key="example").set_value("paracetamol").run()
    assert page.selectbox(key="model").value == services.default_model_id()


def shown_drift(page) -> str:
    return next(m.value for m in page.metric if m.label == "Drift")


def test_without_a_structure_a_working_example_is_offered(page):
    assert not page.exception
    assert page.title[0].value.endswith("?") and not page.metric
    page.button(key="try_example").click().run()
    assert not page.exception
    assert page.button(key="motion-start").label == "Run dynamics"
    assert "58 atoms" in words(page) and "steps of 1 fs" in words(page)


def test_quick_look_shows_the_numbers_of_the_record(salt):
    start(salt)
    run = newest()
    assert run.state == "done" and run.spec.parameters["steps"] == 16
    found = runs.motion_of(run)
    production = motion.summary(found, 1, 0)
    assert shown_drift(salt) == plus_minus(production.drift.slope, production.drift.half_width)
    # The model's difference is the same wherever the atoms are.
    assert f"{expected_force_delta(8):#.3g} eV/Å" in words(salt)
    assert motion.sentence(production)[:20] in words(salt)
    assert f"{production.temperature_K:.0f} K" in words(salt)
    assert "fdcore md salt.extxyz" in words(salt)
    assert {"motion-CSV", "motion-extXYZ", "motion-HDF5", "motion-JSON"} <= {d.key for d in salt.get("download_button")}


def test_default_time_step_follows_hydrogen_and_presets_set_everything(page):
    page.query_params["example"] = "ice_XI"
    page.file_uploader[0].set_value([("salt.extxyz", NACL.encode(), "text/plain")]).run()
    assert page.number_input(key="motion-md-temperature_K").value == 300.0
    page.radio(key="motion-preset").set_value("paper").run()
    assert page.number_input(key="motion-md-thermostat_time_fs").value == 10.0
    assert page.number_input(key="motion-md-timestep_fs").value == 0.5
    assert page.number_input(key="motion-md-relax_fmax_eV_per_A").value == 0.05
    assert "24,000 steps of 0.5 fs, 12 ps" in words(page)


def test_multiple_time_steps_come_in_whole_rounds(salt):
    salt.radio(key="motion-md-driver").set_value("mts").run()
    start(salt)
    parameters = newest().spec.parameters
    assert parameters["driver"] == "mts" and parameters["steps"] == 16 and "mts_stride" not in parameters
    assert "--driver mts" in words(salt)


def test_wrong_setting_is_said_where_it_was_made(salt):
    set_number(salt, "motion-md-thermostat_time_fs", 0.1)
    assert "thermostat time is 0.1" in words(salt) and not [b for b in salt.button if b.key == "motion-start"]


def test_element_the_model_does_not_know_is_named(page):
    page.file_uploader[0].set_value([("gold.xyz", GOLD.encode(), "text/plain")]).run()
    assert not page.exception
    assert "was not trained on Au" in words(page) and not [b for b in page.button if b.key == "motion-start"]


def test_broken_file_is_said(page):
    page.file_uploader[0].set_value([("torn.cif", b"data_x\nloop_\n_cell", "text/plain")]).run()
    assert not page.exception and "torn.cif" in words(page)


def test_while_it_waits_and_runs_it_can_be_stopped_and_goes_on(salt, workshop):
    workshop.hold = True
    start(salt)
    run = newest()
    assert run.state == "queued" and {"pause", "stop"} <= {b.key for b in salt.button}
    workshop.stop_midway()
    salt.run()
    assert not salt.exception
    assert "Everything up to here is kept" in words(salt) and "of 20 steps" in words(salt)
    stopped = runs.motion_of(newest())
    assert 0 < sum(len(t) for t in stopped.tracks.values()) < 22
    workshop.hold = False
    salt.button(key="go_on").click().run()
    assert not salt.exception
    again = newest()
    assert again.state == "done" and again.parent == run.id
    # Gone on with, it is the run that nobody stopped.
    assert list(runs.motion_of(again).tracks[1, 0].columns["step"]) == list(range(17))
    assert motion.summary(runs.motion_of(again), 1, 0).stopped_because == "completed"


def test_pause_is_called_so(salt, workshop):
    workshop.hold = True
    start(salt)
    salt.button(key="pause").click().run()
    assert not salt.exception and "Paused" in words(salt)
    assert newest().state == "cancelled"


def test_failed_run_says_why_and_offers_to_go_on(salt, workshop):
    workshop.hold = True
    start(salt)
    store, run = workshop.engine.store, newest()
    store.hello("local", "here", 1, "0", {"quick": 1})
    _, attempt = store.begin_attempt(run.id, "local")
    store.end(run.id, attempt, "failed", error="The run needed more memory than there is.", hint="Use a smaller cell.")
    salt.run()
    assert "needed more memory" in words(salt) and "Use a smaller cell" in words(salt)
    assert not salt.metric, "never a stale number"


def test_stop_above_is_said_and_what_was_computed_is_shown(salt):
    set_number(salt, "motion-md-stop_above", 0.01)
    start(salt)
    assert "is above the bound of 0.01 eV/Å" in words(salt)
    assert shown_drift(salt) is not None


def test_runs_are_laid_over_each_other(salt):
    start(salt)
    first = newest()
    salt.button(key="motion-settings-again").click().run()
    salt.radio(key="motion-md-driver").set_value("conservative").run()
    start(salt)
    salt.multiselect(key="motion-compare").set_value([first.id]).run()
    assert not salt.exception
    [table] = [d.value for d in salt.dataframe if "drift_meV_per_atom_per_ps" in d.value]
    assert list(table["driver"]) == ["conservative", "direct"]
    slopes = [motion.summary(runs.motion_of(r), 1, 0).drift.slope for r in (newest(), first)]
    assert list(table["drift_meV_per_atom_per_ps"]) == pytest.approx(slopes)


def test_relaxation_says_where_it_ended(salt):
    salt.radio(key="motion-kind").set_value("relax").run()
    set_number(salt, "motion-relax-steps", 3)
    start(salt)
    run = newest()
    assert run.task == "relax" and run.state == "done"
    [descent] = runs.motion_of(run).descents.values()
    assert descent.text.split(":")[0] in words(salt) and "fdcore relax salt.extxyz" in words(salt)


def test_advice_becomes_the_next_run(salt, monkeypatch):
    # They move for a moment only, and no more is asked of them.
    monkeypatch.setattr(motion, "SHORTEST_PS", 0.0)
    # The model pulls all atoms to one place: it is not relaxed, and moves for a moment only.
    salt.session_state["fd_motion_changes"] = {"mts-advisor": {"relax_fmax_eV_per_A": None, "timestep_fs": 0.02}}
    salt.radio(key="motion-kind").set_value("mts-advisor").run()
    set_number(salt, "motion-mts-advisor-steps", 160)
    set_number(salt, "motion-mts-advisor-equilibrate_steps", 5)
    set_number(salt, "motion-mts-advisor-tolerance_meV_per_atom_per_ps", 1e6)
    start(salt)
    advice = mts_advice.advice(runs.motion_of(newest()))
    assert advice.recommended == 16 and advice.text.split(":")[0] in words(salt)
    [table] = [d.value for d in salt.dataframe if "ns_per_day" in d.value]
    assert list(table["arm"]) == ["conservative", *(f"M = {m}" for m in (1, 2, 4, 8, 16)), "direct"]
    salt.button(key="use-advice").click().run()
    assert not salt.exception
    assert salt.radio(key="motion-md-driver").value == "mts"
    assert salt.number_input(key="motion-md-mts_stride").value == 16


def test_several_structures_are_one_batch_or_one_of_them(page):
    page.file_uploader[0].set_value([("two.extxyz", TWO.encode(), "text/plain")]).run()
    short(page)
    page.selectbox(key="motion-which").select_index(2).run()
    start(page)
    found = runs.motion_of(newest())
    assert len(found.systems) == 2 and "mean drift" not in words(page), "different structures have no mean"
    [table] = [d.value for d in page.dataframe if "drift_meV_per_atom_per_ps" in d.value]
    assert list(table["run"]) == ["two.extxyz:0", "two.extxyz:1"]
    page.button(key="motion-settings-again").click().run()
    page.selectbox(key="motion-which").select_index(1).run()
    start(page)
    assert newest().spec.n_structures == 1


def test_link_opens_the_run_and_nobody_elses(salt):
    start(salt)
    run = newest()
    drift = shown_drift(salt)
    assert run.id in salt.query_params["run"]

    for owner, found in ((ME.owner, True), ("tab:other", False)):
        fresh = AppTest.from_file(str(ROOT / "ui.py"), default_timeout=60)
        fresh.session_state["fd_session_owner"] = owner
        # A link is read where a session begins.
        fresh.switch_page("pages/dynamics.py")
        fresh.query_params["run"] = run.id
        fresh.run()
        assert not fresh.exception
        assert bool(fresh.metric) == found
        if found:
            assert shown_drift(fresh) == drift
            # What the run had is what the next one would have, not what a preset has.
            fresh.button(key="motion-settings-again").click().run()
            assert fresh.number_input(key="motion-md-steps").value == 16
            assert fresh.number_input(key="motion-md-temperature_K").value == 300.0


def test_another_structure_leaves_the_address_and_the_run(salt, workshop):
    workshop.hold = True
    start(salt)
    assert "run" in salt.query_params
    salt.selectbox(key="example").set_value("NaCl").run()
    assert not salt.exception and "run" not in salt.query_params
    assert newest().state == "queued" and "goes on" in "".join(t.value for t in salt.toast)


def test_question_that_was_answered_is_not_computed_again(salt):
    start(salt)
    first = newest()
    salt.button(key="motion-settings-again").click().run()
    start(salt)
    assert newest().id == first.id


def test_cost_is_said_before_the_start(salt):
    assert "steps of 1 fs" in words(salt) and "free" in words(salt)
    start(salt)
    salt.button(key="motion-settings-again").click().run()
    assert not salt.exception


def test_more_than_fits_is_refused_with_the_next_step(salt, monkeypatch):
    monkeypatch.setattr("fdcore.services.dynamics.available_bytes", lambda device: 1.0)
    salt.run()
    assert salt.button(key="motion-start").disabled and "Fewer replicas" in words(salt)


def test_progress_says_how_far(salt, workshop):
    workshop.hold = True
    start(salt)
    store, run = workshop.engine.store, newest()
    store.hello("local", "here", 1, "0", {"quick": 1})
    _, attempt = store.begin_attempt(run.id, "local")
    store.progress(run.id, attempt, 12, 40, "production: 0.002 of 0.03 ps", 30.0, 10)
    salt.run()
    assert "0.002 of 0.03 ps" in progress_text(salt)


def test_document_of_the_page_is_that_of_the_command_line(salt):
    start(salt)
    run = newest()
    document = json.loads(motion_files.document_json(runs.motion_of(run), runs.folder(run)))
    assert document["summary"]["steps_done"] == 16
    assert services.default_model_id() == document["spec"]["model"]["id"]
