"""Every path through the Screen page, with the values that are shown."""

from __future__ import annotations

import io

import ase.io
import pandas as pd
import pyarrow.parquet as pq
import pytest
from ase.build import bulk
from streamlit.testing.v1 import AppTest

from fdcore.services import runs, screening
from fdcore.services.screening import Brought, Filter
from fdcore.spec import ModelChoice
from fdcore.store import database
from pages.parts import screen_table
from tests.pages.conftest import ROOT, expected_force_delta, progress_text, words

BROKEN = b"data_x\n_cell_length_a 3\nloop_\n_atom_site_label\n"
TABLE = "One row per structure, the largest U_Delta first, failures last. Selecting one shows it below."


def salts(count: int = 7) -> bytes:
    """Of 2, 4, 6, ... atoms: U_Delta falls with the size (KnownModel)."""
    out = io.StringIO()
    for k in range(count):
        atoms = bulk("NaCl" if k % 2 else "MgO", "rocksalt", a=5.64 if k % 2 else 4.21) * (k + 1, 1, 1)
        ase.io.write(out, atoms, format="extxyz")
    return out.getvalue().encode()


def open_page(app):
    app.switch_page("pages/screen.py").run()
    assert not app.exception
    return app


def bring(app, **files: bytes):
    uploads = [(name.replace("_", "."), content, "text/plain") for name, content in files.items()]
    app.file_uploader(key="screen-files").set_value(uploads).run()
    assert not app.exception
    return app


def start(app):
    app.button(key="screen-start").click().run()
    assert not app.exception
    return app


def screened(app):
    return start(bring(open_page(app), salts_extxyz=salts(), broken_cif=BROKEN))


def only_run() -> runs.Run:
    [run] = [r for r in runs.list_runs(runs.Viewer.operator()) if r.task == screening.TASK]
    return run


def shown_table(app) -> pd.DataFrame:
    [table] = [d.value for d in app.dataframe if "worst_atom" in d.value]
    return table


def select(app, *rows: int):
    """As a click on rows of the table."""
    key = app.session_state["fd_screen_table_key"]
    app.session_state[key] = {"selection": {"rows": list(rows), "columns": [], "cells": []}}
    app.run()
    assert not app.exception
    return app


def test_before_anything_is_brought(app):
    open_page(app)
    said = words(app)
    assert app.button(key="screen-start").disabled and "Bring files first" in said
    assert "histogram" in said and app.button(key="screen-example")


def test_files_are_ranked_and_the_failed_have_their_reason(app):
    screened(app)
    run = only_run()
    assert run.state == "done" and app.query_params["run"] == run.id
    said = words(app)
    largest = expected_force_delta(2)
    assert f"{largest:.3g}" in said and "salts.extxyz" in said and "1 failed" in said.replace("*", "")
    table = shown_table(app)
    assert len(table) == 8
    assert table["force_delta_eV_per_A"][0] == pytest.approx(largest)
    assert table["force_delta_eV_per_A"].iloc[:7].is_monotonic_decreasing
    assert table["verdict"].iloc[-1] == "Failed" and table["file"].iloc[-1] == "broken.cif"
    reasons = next(d.value for d in app.dataframe if "Reason" in d.value)
    assert reasons["Structures"].tolist() == [1]
    bins = next(d.value for d in app.dataframe if "from_eV_per_A" in d.value)
    assert bins["structures"].sum() == 7
    assert {b.label for b in app.get("download_button")} == {"Parquet", "CSV", "Summary"}
    assert "fdcore screen salts.extxyz broken.cif --model" in said


def test_the_shipped_examples_are_one_click_away(app):
    open_page(app).button(key="screen-example").click().run()
    assert not app.exception
    run = only_run()
    assert run.title == "the shipped examples" and run.summary["scored"] > 5
    app.button(key="screen-again").click().run()
    assert not app.exception and app.button(key="screen-start")


def test_filters(app):
    screened(app)
    app.text_input(key="screen-filter-elements").set_value("na, cl").run()
    table = shown_table(app)
    assert len(table) == 3 and set(table["elements"]) == {"Cl-Na"}
    app.text_input(key="screen-filter-elements").set_value("Xx").run()
    assert "not the symbol" in words(app) + "".join(str(w.value) for w in app.warning)
    assert len(shown_table(app)) == 3, "what makes no sense changes nothing"
    app.button(key="screen-all").click().run()
    app.number_input(key="screen-filter-least_atoms").set_value(6).run()
    app.number_input(key="screen-filter-most_atoms").set_value(10).run()
    assert sorted(shown_table(app)["n_atoms"]) == [6, 8, 10]
    app.number_input(key="screen-filter-least").set_value(expected_force_delta(8)).run()
    assert sorted(shown_table(app)["n_atoms"]) == [6, 8]
    app.number_input(key="screen-filter-most").set_value(1e-9).run()
    assert not [d for d in app.dataframe if "worst_atom" in d.value]
    assert "No structure passes the filter" in words(app)
    app.button(key="screen-all").click().run()
    assert len(shown_table(app)) == 8
    app.button(key="screen-show-failed").click().run()
    assert shown_table(app)["file"].tolist() == ["broken.cif"]


def test_one_structure_is_shown_with_its_atoms(app):
    select(screened(app), 0)
    [scored] = [r for r in runs.list_runs(runs.Viewer.operator()) if r.task == "score"]
    assert scored.spec.n_structures == 1 and scored.state == "done"
    assert any(m.label == "U_Delta" and m.value.startswith(f"{expected_force_delta(2):.3f}") for m in app.metric)
    select(app, 7)
    assert "broken.cif was not scored" in words(app).replace("*", "")


@pytest.mark.parametrize("label", screen_table.PAGES)
def test_a_selection_goes_to_another_page(app, label):
    select(screened(app), 1, 3)
    app.button(key=f"screen-send-{label}").click().run()
    assert not app.exception
    [scored] = [r for r in runs.list_runs(runs.Viewer.operator()) if r.task == "score"]
    assert [s.n_atoms for s in runs.inputs(scored)] == [4, 8]
    choice = app.session_state["fd_choice"]
    assert choice.run == scored.id and choice.label == "2 of salts.extxyz and 1 other file"
    assert not app.button or all(b.key != "screen-again" for b in app.button), "it is another page"


def test_while_it_waits_and_stopped_and_gone_on_with(app, workshop):
    workshop.hold = True
    app.session_state["fd_screen"] = {"folder": None, "hands": 1, "chunk": 2, "check_share": 0.0}
    screened(app)
    assert "Waiting for a worker" in progress_text(app)
    assert "first structures will show here" in words(app)
    workshop.stop_midway()
    app.run()
    assert not app.exception
    run = only_run()
    assert run.state == "cancelled" and "Stopped after" in words(app).replace("*", "")
    done = len(shown_table(app))
    assert 0 < done < 8 and {b.label for b in app.get("download_button")} == {"Parquet", "CSV", "Summary"}
    part = pq.read_table(io.BytesIO(screening.table_bytes(run, "parquet")))
    assert len(part) == done
    workshop.hold = False
    app.button(key="go_on").click().run()
    assert not app.exception
    assert len(shown_table(app)) == 8 and "Stopped" not in words(app)


def test_stopped_before_it_began(app, workshop):
    workshop.hold = True
    screened(app)
    app.button(key="screen-stop").click().run()
    assert not app.exception
    assert only_run().state == "cancelled" and "before it began" in words(app)


def test_all_failed(app):
    start(bring(open_page(app), a_cif=BROKEN, b_cif=BROKEN))
    said = words(app)
    assert "None of 2 structures could be scored" in said and "2 failed" in said.replace("*", "")
    assert len(shown_table(app)) == 2


def test_nothing_in_the_folder(app, tmp_path, monkeypatch):
    (tmp_path / "library" / "empty").mkdir(parents=True)
    (tmp_path / "library" / "full").mkdir(parents=True)
    (tmp_path / "library" / "full" / "salts.extxyz").write_bytes(salts(3))
    monkeypatch.setenv("FDCORE_SCREEN_FOLDER", str(tmp_path / "library"))
    database.dispose(runs.current().config)
    monkeypatch.setattr(runs.current(), "config", runs.configuration.from_environment())
    open_page(app)
    assert app.selectbox(key="screen-folder").options == ["empty", "full"]
    app.selectbox(key="screen-folder").set_value("empty").run()
    assert not app.file_uploader and "Everything in empty" in words(app).replace("*", "")
    start(app)
    assert "There is no structure in what was screened" in words(app)
    app.button(key="screen-again").click().run()
    app.selectbox(key="screen-folder").set_value("full").run()
    start(app)
    assert len(shown_table(app)) == 3


def test_found_again_by_its_address_and_by_the_history(app):
    screened(app)
    run = only_run()
    again = AppTest.from_file(str(ROOT / "ui.py"), default_timeout=60)
    again.session_state["fd_session_owner"] = app.session_state["fd_session_owner"]
    again.switch_page("pages/screen.py")
    again.query_params["run"] = run.id
    again.run()
    assert not again.exception and len(shown_table(again)) == 8
    stranger = AppTest.from_file(str(ROOT / "ui.py"), default_timeout=60)
    stranger.switch_page("pages/screen.py")
    stranger.query_params["run"] = run.id
    stranger.run()
    assert not stranger.exception and not [d for d in stranger.dataframe if "worst_atom" in d.value]


def test_a_shared_one_can_be_looked_at_and_not_changed(app, workshop):
    workshop.hold = True
    screened(app)
    run = only_run()
    key = runs.share(runs.Viewer.operator(), run.id)
    other = AppTest.from_file(str(ROOT / "ui.py"), default_timeout=60)
    other.switch_page("pages/screen.py")
    other.query_params["run"] = run.id
    other.query_params["key"] = key
    other.run()
    assert not other.exception and "Waiting for a worker" in progress_text(other)
    assert not [b for b in other.button if b.key == "screen-stop"]


def test_several_hands(app, workshop):
    workshop.hold = True
    open_page(app)
    app.number_input(key="screen-hands").set_value(2).run()
    start(bring(app, salts_extxyz=salts()))
    both = [r for r in runs.list_runs(runs.Viewer.operator()) if r.task == screening.TASK]
    assert sorted(r.title for r in both) == ["salts.extxyz (hand 1 of 2)", "salts.extxyz (hand 2 of 2)"]
    workshop.run_all()
    app.run()
    assert not app.exception and len(shown_table(app)) == 7


def test_a_model_that_is_not_here_says_so_first(app):
    open_page(app)
    app.selectbox(key="model").set_value("orb-v2").run()
    assert "are fetched from their publisher" in words(app)
    assert "Download" in app.button(key="screen-start").label


def test_refused_for_its_quota(app, monkeypatch):
    known = runs.current()
    monkeypatch.setattr(known.store, "config", runs.configuration.replace(known.config, max_owner_MB=1))
    screening.start(runs.Viewer("x"), ModelChoice("fd-orb-small-v1"), brought=[Brought("a.xyz", io.BytesIO(b"1"))])
    with known.store.begin() as connection:
        connection.exec_driver_sql("UPDATE fd_runs SET bytes = 2000000")
    open_page(app)
    with known.store.begin() as connection:
        owner = app.session_state["fd_session_owner"]
        connection.exec_driver_sql("UPDATE fd_runs SET owner = ?", (owner,))
    start(bring(app, salts_extxyz=salts()))
    assert "kept runs hold" in "".join(str(t.value) for t in app.toast)
    assert screening.Filter() == Filter()
