"""Every path through the Score page, with the values that are shown."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from fdcore import services
from fdcore.services import runs
from fdcore.structures import Limits
from pages.parts import session
from tests.pages.conftest import ROOT, expected_force_delta, progress_text, words

NACL = '8\nLattice="5.64 0 0 0 5.64 0 0 0 5.64" Properties=species:S:1:pos:R:3 pbc="T T T"\n' + "\n".join(
    f"{symbol} {x * 2.82} {y * 2.82} {z * 2.82}"
    for x in range(2)
    for y in range(2)
    for z in range(2)
    for symbol in [("Na", "Cl")[(x + y + z) % 2]]
)
GOLD = "2\n\nAu 0 0 0\nAu 0 0 2.9\n"


def open_example(app, example_id: str):
    app.query_params["example"] = example_id
    return app.run()


def upload(app, *files: tuple[str, bytes]):
    app.run()
    app.file_uploader[0].set_value([(name, data, "application/octet-stream") for name, data in files])
    return app.run()


def test_start_offers_choices_and_a_working_example(app):
    app.run()
    assert not app.exception
    assert app.title[0].value.endswith("?")
    assert [b for b in app.button if b.key == "try_example"], "a button that gives a result"
    assert not app.metric, "no number before there is one"
    app.button(key="try_example").click().run()
    assert not app.exception
    assert app.metric[0].label == "U_Delta"


def test_example_shows_the_number_that_the_model_gives(app):
    open_example(app, "NaCl")
    assert not app.exception
    assert app.metric[0].value == f"{expected_force_delta(8):#.3g} eV/Å"
    assert "Na4Cl4" in words(app)


def test_verdict_stands_as_a_word_with_its_evidence(app):
    text = words(open_example(app, "NaCl"))
    assert any(f" {word}]" in text for word in ("Consistent", "Caution", "Unreliable", "Unknown"))
    for name in ("Agreement of the two forces", "Single atoms", "Closest atoms", "Size of the forces", "Elements"):
        assert name in text
    assert "What it does not tell" in text


def test_the_atom_that_disagrees_is_named_and_can_be_pointed_at(app):
    open_example(app, "NaCl")
    [point] = [b for b in app.button if b.key and b.key.startswith("evidence-1-")]
    first = point.label
    point.click().run()
    assert not app.exception
    assert f"**{first}**" in words(app)
    assert "u_i **0.300** eV/Å" in words(app)


def test_atoms_table_starts_with_the_worst(app):
    open_example(app, "NaCl")
    [atoms] = [d.value for d in app.dataframe if "force_delta_eV_per_A" in d.value and "atom" in d.value]
    assert atoms["atom"].iloc[0] == 0
    assert atoms["force_delta_eV_per_A"].iloc[0] == pytest.approx(0.3)
    assert len(atoms) == 8


def test_upload_scores_at_once_and_forgets_the_example_in_the_address(app):
    open_example(app, "NaCl")
    assert "NaCl" in app.query_params["example"]
    app.file_uploader[0].set_value([("mine.extxyz", NACL.encode(), "text/plain")]).run()
    assert not app.exception
    assert app.metric[0].value == f"{expected_force_delta(8):#.3g} eV/Å"
    assert "mine.extxyz" in words(app)
    assert "example" not in app.query_params


def test_a_broken_file_says_which_and_what_to_do(app):
    text = words(upload(app, ("torn.cif", b"data_x\nloop_\n_cell")))
    assert not app.exception
    assert "torn.cif" in text and "was not scored" in text
    assert not app.metric, "never a stale number"


def test_refused_element_is_named_and_other_models_are_offered(app):
    upload(app, ("gold.xyz", GOLD.encode()))
    text = words(app)
    assert not app.exception
    assert "was not trained on Au" in text
    offered = [b for b in app.button if b.key and b.key.startswith("use-")]
    assert offered
    offered[0].click().run()
    assert services.card(app.selectbox(key="model").value).covers([79]) == ()


def test_many_files_are_sorted_and_failures_keep_their_reason(app):
    one_atom_more = NACL.replace("8\n", "9\n", 1) + "\nNa 1.41 1.41 1.41"
    upload(
        app, ("a.extxyz", one_atom_more.encode()), ("b.extxyz", NACL.encode()), ("torn.cif", b"data_x\nloop_\n_cell")
    )
    assert not app.exception
    table = app.dataframe[0].value
    assert list(table["file"]) == ["b.extxyz", "a.extxyz", "torn.cif"]
    assert table["force_delta_eV_per_A"].iloc[0] == pytest.approx(expected_force_delta(8))
    assert table["verdict"].iloc[2] == "failed"
    assert table["error"].iloc[2]
    assert "3 structures" in words(app)


def test_many_files_can_be_filtered(app):
    upload(app, ("a.extxyz", NACL.encode()), ("torn.cif", b"data_x\nloop_\n_cell"))
    app.text_input(key="filter_text").input("torn").run()
    assert list(app.dataframe[0].value["file"]) == ["torn.cif"]
    app.text_input(key="filter_text").input("nothing like this").run()
    assert "No row passes the filter" in words(app)


def test_two_files_of_one_name_stay_two(app):
    upload(app, ("POSCAR.xyz", NACL.encode()), ("POSCAR.xyz", NACL.encode()))
    assert set(app.dataframe[0].value["file"]) == {"POSCAR.xyz", "POSCAR.xyz (2)"}


def test_pasted_text_is_scored(app):
    app.run()
    app.text_area[0].input(NACL)
    [submit] = [b for b in app.button if b.label == "Use this text"]
    submit.click().run()
    assert not app.exception
    assert app.metric[0].value == f"{expected_force_delta(8):#.3g} eV/Å"
    assert "pasted.txt" in app.code[0].value


def test_a_model_that_is_not_here_states_its_cost_first(app):
    app.query_params["model"] = "orb-v3-direct-inf-mpa"
    open_example(app, "NaCl")
    text = words(app)
    assert "102 MB" in text and not app.metric
    app.button(key="start").click().run()
    assert not app.exception
    assert "could not be fetched" in words(app) and "Connect to the network" in words(app)


def test_model_that_needs_charge_and_spin_asks_for_both(app):
    app.query_params["model"] = "orb-v3-direct-omol"
    app.run()
    assert [n.label for n in app.number_input] == ["Total charge (e)", "Spin multiplicity 2S+1"]


def test_precision_is_a_setting_and_part_of_the_command(app):
    open_example(app, "NaCl")
    app.radio[0].set_value("float64").run()
    assert not app.exception
    assert app.code[0].value == "fdcore score NaCl.cif --model fd-orb-small-v1 --dtype float64"


def test_large_work_waits_for_a_click_and_can_be_stopped(app, monkeypatch):
    estimate = services.Estimate(
        seconds=500.0, memory_MB=1.0, available_MB=9.0, fits=True, measured=True, text="about 8 min, 1 MB of 9 MB free"
    )
    monkeypatch.setattr(services, "estimate", lambda *a, **k: estimate)
    open_example(app, "NaCl")
    assert "about 8 min" in words(app) and not app.metric
    app.button(key="start").click().run()
    assert app.metric


def test_stopped_run_keeps_what_it_has_and_goes_on(app, workshop):
    workshop.hold = True
    open_example(app, "ice_ladder")
    assert not app.exception and not app.dataframe
    assert "Waiting for a worker" in progress_text(app), "who waits for what"
    workshop.stop_midway()
    app.run()
    [first] = runs.list_runs(runs.Viewer.operator())
    kept = first.done
    assert 3 <= kept < 12
    assert f"Stopped after {kept:.0f} of 12 structures" in words(app)
    assert len(app.dataframe[0].value) == kept
    app.button(key="go_on").click().run()
    workshop.run_all()
    app.run()
    assert not app.exception
    table = app.dataframe[0].value
    assert sorted(table["index"]) == list(range(12)), "each frame once"
    second = runs.list_runs(runs.Viewer.operator())[0]
    assert second.parent == first.id
    [attempt] = runs.attempts(second)
    assert attempt.number == 1


def test_running_score_shows_how_far_and_can_be_stopped(app, workshop):
    workshop.hold = True
    open_example(app, "ice_ladder")
    [run] = runs.list_runs(runs.Viewer.operator())
    run, attempt = workshop.engine.store.begin_attempt(run.id, "workshop")
    workshop.engine.store.progress(run.id, attempt, 3, 12, "scored 3 of 12 structures", 42.0, 1000)
    app.run()
    assert "Scored 3 of 12 structures, about 42 s left" in progress_text(app)
    app.button(key="stop").click().run()
    assert runs.get(runs.Viewer.operator(), run.id).cancel_requested
    assert app.button(key="stop").disabled


def test_failed_run_says_why_and_shows_no_number(app, workshop):
    workshop.hold = True
    open_example(app, "NaCl")
    [run] = runs.list_runs(runs.Viewer.operator())
    run, attempt = workshop.engine.store.begin_attempt(run.id, "workshop")
    workshop.engine.store.end(
        run.id, attempt, "failed", error="The run needed more memory than there is.", hint="Use a smaller structure."
    )
    app.run()
    assert not app.exception and not app.metric, "never a stale number"
    assert "needed more memory" in words(app) and "smaller structure" in words(app)


def test_same_question_is_answered_from_the_history(app, workshop):
    open_example(app, "NaCl")
    app.selectbox(key="example").set_value("ice_ladder").run()
    app.selectbox(key="example").set_value("NaCl").run()
    assert app.metric[0].value == f"{expected_force_delta(8):#.3g} eV/Å"
    assert runs.count_runs(runs.Viewer.operator()) == 2


def test_same_structure_beside_another_broken_file_names_that_one(app):
    upload(app, ("b.extxyz", NACL.encode()), ("torn.cif", b"data_x\nloop_\n_cell"))
    assert "torn.cif" in list(app.dataframe[0].value["file"])
    app.file_uploader[0].set_value([("b.extxyz", NACL.encode(), "text/plain"), ("empty.xyz", b"", "text/plain")]).run()
    assert list(app.dataframe[0].value["file"]) == ["b.extxyz", "empty.xyz"]


def test_earlier_run_is_taken_into_use_with_its_structures(app, workshop):
    upload(app, ("mine.extxyz", NACL.encode()))
    app.selectbox(key="example").set_value("ice_ladder").run()
    first = runs.list_runs(runs.Viewer.operator())[-1]
    app.button(key=f"earlier-{first.id}").click().run()
    assert not app.exception
    assert app.metric[0].value == f"{expected_force_delta(8):#.3g} eV/Å"
    assert app.query_params["run"] == first.id
    assert runs.count_runs(runs.Viewer.operator()) == 2, "its result was there already"


def test_uploaded_run_is_named_in_the_address_and_opens_from_it(app, workshop):
    upload(app, ("mine.extxyz", NACL.encode()))
    run_id = app.query_params["run"]
    owner_id = app.session_state["fd_session_owner"]
    other = AppTest.from_file(str(ROOT / "ui.py"), default_timeout=60)
    other.query_params["run"] = run_id
    other.run()
    assert not other.metric and "belongs to somebody else" in words(other), "not for another browser"
    same = AppTest.from_file(str(ROOT / "ui.py"), default_timeout=60)
    same.session_state["fd_session_owner"] = owner_id
    same.query_params["run"] = run_id
    same.run()
    assert not same.exception, same.exception
    assert same.metric[0].value == f"{expected_force_delta(8):#.3g} eV/Å"
    assert "mine.extxyz" in words(same)
    shared = AppTest.from_file(str(ROOT / "ui.py"), default_timeout=60)
    shared.query_params["run"] = run_id
    shared.query_params["key"] = runs.share(runs.Viewer(owner_id), run_id)
    shared.run()
    assert shared.metric[0].value == f"{expected_force_delta(8):#.3g} eV/Å"


def test_quota_is_said_with_the_next_step(app, workshop, monkeypatch):
    monkeypatch.setattr(workshop.engine.store, "config", replace(workshop.engine.config, max_active_runs=1))
    workshop.hold = True
    open_example(app, "NaCl")
    app.selectbox(key="example").set_value("ice_ladder").run()
    assert "as many as this server allows" in words(app) and "cancel one" in words(app)


def test_choice_survives_the_other_page(app):
    open_example(app, "NaCl")
    app.switch_page("pages/how_it_works.py").run()
    assert not app.exception
    app.switch_page("pages/score.py").run()
    assert not app.exception
    assert app.metric[0].value == f"{expected_force_delta(8):#.3g} eV/Å"
    assert app.selectbox(key="example").value == "NaCl"


def test_unknown_names_in_the_address_are_ignored(app):
    app.query_params["model"] = "<script>alert(1)</script>"
    open_example(app, "../../etc/passwd")
    assert not app.exception
    assert not app.metric and "script" not in words(app)


def test_markup_in_names_is_shown_as_text(app):
    upload(app, ("**bold**[x](http://example.org).xyz", GOLD.encode()))
    raw = "\n".join(str(e.value) for e in app.error)
    assert r"\*\*bold\*\*\[x\]\(http\://example\.org\)" in raw


def test_limits_are_those_of_the_reader(app):
    app.run()
    assert f"{Limits().max_atoms:,} atoms" in app.file_uploader[0].label


def test_scene_travels_as_numbers():
    from fdcore.scene import scene
    from tests.pages.conftest import KnownModel

    [structure] = services.read_sources([services.Source("NaCl.extxyz", NACL.encode())]).structures
    model = KnownModel(services.card(services.default_model_id()), "cpu", "float64")
    [score] = services.score(model, [structure])
    drawn = json.loads(json.dumps(scene(score)))
    assert len(drawn["positions"]) == 24 and len(drawn["element"]) == 8
    assert drawn["values"]["force_delta"]["top"] == pytest.approx(0.3)
    gap = np.array(drawn["forces_direct"]) - np.array(drawn["forces_conservative"])
    assert np.sqrt(np.mean(gap.reshape(-1, 3)[0] ** 2)) == pytest.approx(0.3, abs=1e-4)


def test_session_key_depends_on_content_only():
    first = session.Choice("upload", "a", (services.Source("a", b"1"),))
    assert first.key == session.Choice("example", "b", (services.Source("a", b"1"),)).key
    assert first.key != session.Choice("upload", "a", (services.Source("a", b"2"),)).key


def test_a_molecule_gets_the_model_that_knows_molecules_until_the_person_names_one(app):
    """Nobody chose a model: the one that has seen such structures is taken, said to be so, and left again for a crystal."""
    open_example(app, "aspirin")
    assert not app.exception
    assert app.selectbox(key="model").value == "fd-orb-molecules-v1"
    assert "Chosen for these structures" in words(app)
    assert app.metric[0].value == f"{expected_force_delta(21):#.3g} eV/Å"
    assert "aspirin" in app.query_params["example"] and "model" not in app.query_params
    app.selectbox(key="example").set_value("NaCl").run()
    assert app.selectbox(key="model").value == services.default_model_id()
    assert "Chosen for these structures" not in words(app)
    # A periodic box, but of a liquid: its card names the model.
    app.selectbox(key="example").set_value("water_box").run()
    assert app.selectbox(key="model").value == "fd-orb-molecules-v1"
    # Named by the person: it stays, and says what it cannot read.
    app.selectbox(key="model").set_value(services.default_model_id()).run()
    app.selectbox(key="example").set_value("aspirin").run()
    assert app.selectbox(key="model").value == services.default_model_id()
    assert "was not trained on C" in words(app)
    assert services.default_model_id() in app.query_params["model"]
    app.button(key="use-fd-orb-molecules-v1").click().run()
    assert app.metric[0].label == "U_Delta"
