"""The Runs page: what is shown of a history, and what can be done with it."""

from __future__ import annotations

import io
import json
import zipfile

import pandas as pd
import pytest
import sqlalchemy as sa

from fdcore import services
from fdcore.errors import UnknownRunError
from fdcore.jobs.engine import Engine
from fdcore.services import runs
from fdcore.spec import ModelChoice
from fdcore.store import schema
from fdcore.store.runs import Store
from pages.parts import history
from tests.pages.conftest import expected_force_delta, progress_text, words

ME = runs.Viewer("tab:me")


@pytest.fixture
def page(app):
    """The Runs page of ME."""
    app.session_state["fd_session_owner"] = ME.owner
    app.run()
    app.switch_page("pages/runs.py")
    return app


def read(*example_ids: str):
    """Shipped examples, as if they had been uploaded."""
    return services.read_sources([services.example_source(e) for e in services.examples() if e.id in example_ids])


def submit(*example_ids: str, viewer=ME) -> runs.Run:
    """A scoring run of shipped examples, titled by the first."""
    parsed = read(*example_ids)
    model = ModelChoice(services.default_model_id())
    return runs.submit_score(viewer, parsed.structures, model, title=example_ids[0], refusals=parsed.failures)


def select(page, *rows: int):
    """Select rows of the table of ended runs, as a click does."""
    ended = [r for r in runs.list_runs(ME) if not r.active]
    page.session_state[history.table_key(ended)] = {"selection": {"rows": list(rows), "columns": [], "cells": []}}
    return page.run()


def test_empty_history_points_to_the_score_page(page):
    page.run()
    assert not page.exception
    assert "Nothing has run yet" in words(page)


def test_ended_runs_are_listed_newest_first_with_their_result(page):
    submit("NaCl")
    submit("ice_ladder")
    page.run()
    assert not page.exception
    [table] = [d.value for d in page.dataframe]
    assert list(table["title"]) == ["ice_ladder", "NaCl"]
    assert list(table["found"]) == ["12 scored", "1 scored"]
    assert list(table["state"]) == ["Done", "Done"]
    assert (table["ended"] > pd.Timestamp("2020-01-01", tz="UTC")).all()


def test_runs_of_others_are_not_listed(page):
    submit("NaCl", viewer=runs.Viewer("tab:other"))
    page.run()
    assert "Nothing has run yet" in words(page)


def test_active_runs_say_how_far_and_what_they_wait_for(page, workshop):
    workshop.hold = True
    first, second = submit("ice_ladder"), submit("NaCl")
    store = workshop.engine.store
    store.hello("local", "here", 1, "0", {"quick": 1})
    _, attempt = store.begin_attempt(first.id, "local")
    store.progress(first.id, attempt, 6, 12, "scored 6 of 12 structures", 30.0, 10)
    page.run()
    assert not page.exception
    assert "1 running, 1 waiting" in words(page)
    said = progress_text(page)
    assert "Scored 6 of 12 structures, about 30 s left" in said
    assert "Next among short runs, when the one that runs now has ended" in said
    page.button(key=f"stop-{second.id}").click().run()
    assert runs.get(ME, second.id).state == "cancelled"
    page.button(key=f"stop-{first.id}").click().run()
    assert runs.get(ME, first.id).cancel_requested
    assert page.button(key=f"stop-{first.id}").disabled


def copies(store, run_id: str, n: int, *, later: float) -> None:
    """n more runs like this one, each `later` seconds younger than the one before."""
    table = schema.runs
    with store.begin() as connection:
        row = dict(connection.execute(sa.select(table).where(table.c.id == run_id)).one()._mapping)
        made = [{**row, "id": f"{k:032x}", "created_at": row["created_at"] + later * (k + 1)} for k in range(n)]
        connection.execute(sa.insert(table), made)


def test_active_run_is_shown_however_many_have_ended_since(page, workshop, monkeypatch):
    ended = submit("NaCl")
    workshop.hold = True
    waiting = submit("ice_ladder")
    copies(workshop.engine.store, ended.id, 510, later=60.0)
    asked, ask = [], Store.outline
    monkeypatch.setattr(Store, "outline", lambda self, viewer: asked.append(viewer) or ask(self, viewer))
    page.run()
    assert not page.exception
    assert "0 running, 1 waiting" in words(page) and "1 to 200 of 511 runs" in words(page)
    assert page.button(key=f"stop-{waiting.id}")
    assert len(page.dataframe[0].value) == history.ROWS
    assert len(asked) == 2, "once for the page and once for the live list: it is not drawn over and over"


def test_long_lists_have_pages(page, workshop, monkeypatch):
    monkeypatch.setattr(history, "CARDS", 2)
    monkeypatch.setattr(history, "ROWS", 3)
    ended = submit("NaCl")
    copies(workshop.engine.store, ended.id, 4, later=60.0)
    workshop.hold = True
    active = [submit(name) for name in ("ice_ladder", "aspirin", "LGPS")]
    page.run()
    assert not page.exception
    shown = {b.key for b in page.button}
    assert [f"stop-{r.id}" in shown for r in active] == [True, True, False]
    assert list(page.dataframe[0].value["title"]) == ["NaCl"] * 3 and "1 to 3 of 5 runs" in words(page)
    page.session_state["active-page-of-2"] = page.session_state["ended-page-of-2"] = 2
    page.run()
    assert not page.exception
    shown = {b.key for b in page.button}
    assert [f"stop-{r.id}" in shown for r in active] == [False, False, True]
    assert len(page.dataframe[0].value) == 2 and "4 to 5 of 5 runs" in words(page)
    page.button(key=f"stop-{active[2].id}").click().run()
    assert not page.exception, "the second page of active runs is gone"
    assert f"stop-{active[0].id}" in {b.key for b in page.button}


def test_while_runs_are_active_a_worker_is_asked_for(page, workshop, monkeypatch):
    asked = []
    monkeypatch.setattr(Engine, "app_is_open", lambda self: asked.append("worker"))
    monkeypatch.setattr(Engine, "page_is_open", lambda self: asked.append("worker and model"))
    submit("NaCl")
    page.run()
    assert asked == []
    workshop.hold = True
    submit("ice_ladder")
    page.run()
    assert not page.exception
    assert asked == ["worker"]


MOVES = {
    "relax": ({"steps": 3, "fmax_eV_per_A": 1e-6}, "not converged after 3 iterations"),
    "md": ({"steps": 8, "monitor_every": 2}, "8 steps, U_Delta {u} eV/Å on average"),
    "mts-advisor": (
        {"steps": 8, "strides": [1, 2], "equilibrate_steps": 2, "relax_fmax_eV_per_A": None},
        "4 of 4 arms complete, 8 steps each",
    ),
}


@pytest.mark.parametrize("task", MOVES)
def test_result_of_what_moved_is_said_in_words(page, task):
    parameters, said = MOVES[task]
    structures = read("NaCl").structures
    spec = runs.spec_of(task, structures, ModelChoice(services.default_model_id()), parameters)
    run = runs.submit(ME, spec, structures, title="salt", lane="quick")
    assert run.state == "done", run.error
    page.run()
    assert not page.exception
    [found] = page.dataframe[0].value["found"]
    assert found == said.format(u=f"{expected_force_delta(8):#.3g}")


def test_stopped_run_says_how_far_it_came(page, workshop):
    workshop.hold = True
    submit("ice_ladder")
    workshop.stop_midway()
    page.run()
    [found] = page.dataframe[0].value["found"]
    run = runs.list_runs(ME)[0]
    assert run.state == "cancelled" and found == f"cancelled, {run.done / 12:.0%} done"


def test_one_run_shows_how_it_was_made_and_opens(page):
    run = submit("NaCl")
    select(page.run(), 0)
    assert not page.exception
    text = words(page)
    assert "NaCl" in text and "Score of 1 structure with fd-orb-small-v1" in text
    facts = {row[0]: row[1] for t in page.table for row in t.value.to_numpy().tolist()}
    assert facts["Run"] == run.id and run.spec_sha256.startswith(facts["Spec (SHA-256)"])
    page.button(key="open").click().run()
    assert not page.exception
    assert page.metric[0].value == f"{expected_force_delta(8):#.3g} eV/Å"


def test_repeat_makes_a_second_run_with_the_same_spec(page):
    run = submit("NaCl")
    select(page.run(), 0)
    page.button(key="repeat").click().run()
    [again, old] = runs.list_runs(ME)
    assert old.id == run.id and again.parent == run.id and again.spec_sha256 == run.spec_sha256
    assert again.state == "done"


def test_selection_does_not_move_to_another_run(page):
    run = submit("NaCl")
    select(page.run(), 0)
    assert "Score of 1 structure" in words(page)
    submit("ice_ladder")
    page.run()
    assert not page.exception
    assert list(page.dataframe[0].value["title"]) == ["ice_ladder", "NaCl"]
    text = words(page)
    assert "Score of 1 structure" in text and "Score of 12 structures" not in text, "still the one that was chosen"
    page.button(key="delete-now").click().run()
    assert [r.title for r in runs.list_runs(ME)] == ["ice_ladder"] and run.title == "NaCl"


def test_share_and_stop_sharing(page):
    run = submit("NaCl")
    select(page.run(), 0)
    page.button(key="share").click().run()
    key = runs.get(ME, run.id).share
    assert key is not None and len(key) >= 32
    assert any(f"http://localhost/?run={run.id}&key={key}" in c.value for c in page.code)
    assert runs.get(runs.Viewer("tab:other"), run.id, key).id == run.id
    page.button(key="unshare").click().run()
    with pytest.raises(UnknownRunError):
        runs.get(runs.Viewer("tab:other"), run.id, key)


def test_shared_run_can_be_looked_at_but_not_changed(app):
    run = submit("NaCl", viewer=runs.Viewer("tab:other"))
    key = runs.share(runs.Viewer("tab:other"), run.id)
    app.run()
    app.switch_page("pages/runs.py")
    app.query_params["run"], app.query_params["key"] = run.id, key
    app.run()
    assert not app.exception
    assert "NaCl" in words(app)
    keys = {b.key for b in app.button}
    assert "open" in keys and not keys & {"repeat", "delete-now", "share", "unshare"}


def test_compare_shows_both_runs_side_by_side(page):
    submit("NaCl")
    runs.retry(ME, runs.list_runs(ME)[0].id)
    select(page.run(), 0, 1)
    assert not page.exception
    table = next(d.value for d in page.dataframe if "formula" in d.value and "file" in d.value)
    values = [c for c in table.columns if c.endswith("force_delta_eV_per_A")]
    assert len(values) == 2 and len(table) == 1
    assert table[values].to_numpy().ravel() == pytest.approx([expected_force_delta(8)] * 2)


def test_delete_removes_the_run_and_its_files(page, workshop):
    run = submit("NaCl")
    folder = workshop.engine.config.runs / run.id
    assert folder.is_dir()
    select(page.run(), 0)
    page.button(key="delete-now").click().run()
    assert not page.exception
    assert runs.count_runs(ME) == 0 and not folder.exists()
    assert "Nothing has run yet" in words(page)


def test_export_explains_itself_and_reads_back(page):
    run = submit("ice_ladder")
    buffer = io.BytesIO()
    runs.export(ME, run.id, buffer)
    with zipfile.ZipFile(buffer) as archive:
        names = set(archive.namelist())
        assert {
            "README.txt",
            "run.json",
            "inputs.extxyz",
            "scores.json",
            "scores.csv",
            "scores.extxyz",
            "series.h5",
        } <= names
        told = json.loads(archive.read("run.json"))
        scores = json.loads(archive.read("scores.json"))
        text = b"".join(archive.read(n) for n in names).decode("latin-1")
    assert told["spec"]["model"]["id"] == "fd-orb-small-v1" and told["spec_sha256"] == run.spec_sha256
    assert [a["outcome"] for a in told["attempts"]] == ["done"]
    assert len(scores["results"]) == 12
    assert scores["results"][0]["force_delta_eV_per_A"] == pytest.approx(expected_force_delta(24))
    assert ME.owner not in text, "made to be passed on"
