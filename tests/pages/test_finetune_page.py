"""Every path through the Fine-tune page, with the values that are shown. The models are real: training needs a network."""

from __future__ import annotations

import io
import json
import shlex
import zipfile

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from streamlit.testing.v1 import AppTest

from fdcore import drift_report, drifts, finetuning, finetuning_files, label_files, services
from fdcore.cli.parser import build_parser
from fdcore.models import load_model
from fdcore.services import finetune, labels, runs, stability
from fdcore.services import generations as loops
from fdcore.spec import ModelChoice
from tests.pages.conftest import ROOT, words

BASE = "fd-orb-small-v1"


@pytest.fixture(scope="module", autouse=True)
def packages():
    """Loading the packages of the models takes longer on a busy machine than a page may take to draw."""
    load_model(BASE, "cpu", "float32")


@pytest.fixture(autouse=True)
def real_models(workshop, monkeypatch):
    """The worker of these tests loads what is asked for."""
    known = type(workshop).run.__globals__

    def load(spec):
        return None if spec.model is None else load_model(spec.model.id, "cpu", spec.model.dtype)

    monkeypatch.setitem(known, "load", load)
    monkeypatch.setitem(known, "load_further", lambda model_id: load_model(model_id, "cpu", "float32"))
    monkeypatch.setattr(services, "model_is_here", lambda card: card.weights in ("embedded", "local"))


def salt(n: int = 6, labelled: int | None = None) -> bytes:
    """n displaced frames of rock salt with made-up labels; only the first `labelled` have them."""
    rng = np.random.default_rng(0)
    frames = []
    for k in range(n):
        atoms = bulk("NaCl" if k % 2 else "MgO", "rocksalt", a=5.64 if k % 2 else 4.21, cubic=True)
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        pull = rng.normal(0, 0.3, atoms.positions.shape)
        if labelled is None or k < labelled:
            atoms.calc = SinglePointCalculator(atoms, forces=pull - pull.mean(axis=0), energy=-25.0 - k)
        frames.append(atoms)
    text = io.StringIO()
    ase.io.write(text, frames, format="extxyz")
    return text.getvalue().encode()


def open_page(app):
    app.switch_page("pages/finetune.py").run()
    assert not app.exception, app.exception
    return app


def upload(app, data: bytes, name: str = "salt.extxyz", where: str = "tune-upload"):
    [box] = [u for u in app.get("file_uploader") if u.proto.id.count(where)]
    box.set_value((name, data, "chemical/x-extxyz")).run()
    assert not app.exception, app.exception
    return app


def step(app, name: str):
    app.session_state["fd_tune_step"] = name
    app.run()
    assert not app.exception, app.exception
    return app


def metric(app, label: str) -> str:
    return next(m.value for m in app.metric if m.label == label)


def only_run(task: str) -> runs.Run:
    [run] = runs.list_runs(runs.Viewer.operator(), tasks=(task,))
    return run


def train(app, epochs: int = 2):
    """Six labelled frames, two epochs, no look at forgetting."""
    upload(open_page(app), salt())
    step(app, "train")
    app.number_input(key="tune-train-epochs").set_value(epochs).run()
    app.toggle(key="tune-replay").set_value(False).run()
    app.button(key="tune-start").click().run()
    assert not app.exception, app.exception
    return only_run("finetune")


def parsed(line: str):
    return build_parser().parse_args(shlex.split(line)[1:])


# ---- structures and labels ---------------------------------------------------------------------------------------------


def test_nothing_chosen_offers_an_example_that_is_ready_to_start(app):
    open_page(app)
    assert "Close the loop" in words(app)
    app.button(key="try_example").click().run()
    assert not app.exception, app.exception
    start = app.button(key="tune-loop-go")
    assert not start.disabled and "stages:" in words(app) and "the time of chgnet" in words(app)
    assert app.query_params["step"] in ("loop", ["loop"])


def test_half_labelled_files_work_and_say_what_is_missing(app):
    upload(open_page(app), salt(labelled=4))
    assert "**6 structures** of salt.extxyz, 4 labelled" in words(app)
    step(app, "labels")
    assert [metric(app, m) for m in ("Structures", "Labelled", "Failed", "Without")] == ["6", "4", "0", "2"]
    assert "does not say by what it was labelled" in words(app)
    step(app, "train")
    assert app.button(key="tune-start").label == "Fine-tune on 4 structures"


def test_labels_from_a_file_are_matched_by_content_and_not_by_order(app):
    upload(open_page(app), salt(labelled=0))
    step(app, "labels")
    frames = ase.io.read(io.StringIO(salt().decode()), ":", format="extxyz")
    text = io.StringIO()
    ase.io.write(text, frames[::-1][:5], format="extxyz")
    upload(app, text.getvalue().encode(), "made.extxyz", "tune-labels")
    assert metric(app, "Labelled") == "5" and "5 structures found in the labelled files" in words(app)
    known = app.session_state["fd_tune_set"].known
    for structure, label in known.labelled:
        [frame] = [f for f in frames if np.allclose(f.positions, structure.positions, atol=1e-6)]
        assert label.energy == pytest.approx(frame.get_potential_energy())
    # What is taken away reads back, with the labels and without those that have none.
    back = ase.io.read(io.StringIO(label_files.as_extxyz(known)), ":", format="extxyz")
    assert len(back) == 5 and sorted(f.get_potential_energy() for f in back) == pytest.approx([-30, -29, -28, -27, -26])
    with zipfile.ZipFile(io.BytesIO(label_files.vasp_zip(known.without))) as made:
        assert sum(name.endswith("POSCAR") for name in made.namelist()) == 1


def test_a_reference_labels_what_has_none_and_failures_keep_their_reason(app, monkeypatch):
    pytest.importorskip("tblite")
    upload(open_page(app), salt(3, labelled=1))
    step(app, "labels")
    app.selectbox(key="tune-reference").set_value("gfn1").run()
    app.button(key="tune-label").click().run()
    assert not app.exception, app.exception
    run = only_run("label")
    made = labels.of_run(run)
    assert run.spec.n_structures == 2
    assert metric(app, "Labelled") == str(1 + len(made.labelled)) and metric(app, "Failed") == str(len(made.failed))
    assert app.query_params["run"] in (run.id, [run.id])
    if made.labelled:
        assert "different methods" in words(app)
    again = parsed(labels.command_line(["unlabelled.extxyz"], run.spec))
    assert (again.reference, again.files) == ("gfn1", ["unlabelled.extxyz"])
    # Another tab finds it again by its address.
    other = AppTest.from_file(str(ROOT / "ui.py"), default_timeout=60)
    other.session_state["fd_session_owner"] = app.session_state["fd_session_owner"]
    other.switch_page("pages/finetune.py")
    other.query_params["run"] = run.id
    other.run()
    assert not other.exception and metric(other, "Structures") == "2"
    assert metric(other, "Labelled") == str(len(made.labelled))


# ---- training ----------------------------------------------------------------------------------------------------------


def test_a_model_is_made_and_is_found_by_its_name_everywhere_but_by_nobody_else(app):
    run = train(app)
    assert run.state == "done", run.error
    found = finetune.of_run(run)
    assert finetuning.sentence(found) in words(app)
    card = finetune.model_of(run)
    assert card is not None and card.id in words(app)
    assert app.query_params["run"] in (run.id, [run.id])
    # The table shows what the service says.
    table = next(d.value for d in app.dataframe if "before" in d.value.columns)
    assert table["before"].tolist() == pytest.approx([r["before"] for r in finetuning.error_rows(found)])
    assert table["after"].tolist() == pytest.approx([r["after"] for r in finetuning.error_rows(found)])
    with zipfile.ZipFile(io.BytesIO(finetuning_files.model_zip(found.model_folder))) as made:
        assert json.loads(made.read(f"{card.id}/card.json"))["card"]["id"] == card.id
        assert f"{card.id}/model.safetensors" in made.namelist()
    assert finetuning_files.losses_csv(found).count("\n") == 3
    for page in ("score", "dynamics", "adversarial", "ensemble"):
        app.switch_page(f"pages/{page}.py").run()
        assert not app.exception, app.exception
        assert card.id in [o.split("  ·")[0] for o in app.selectbox(key="model").options], page
    app.switch_page("pages/models.py").run()
    listed = next(d.value for d in app.dataframe if "model" in d.value.columns)
    assert card.id in listed["model"].tolist()
    other = AppTest.from_file(str(ROOT / "ui.py"), default_timeout=60).run()
    assert card.id not in [o.split("  ·")[0] for o in other.selectbox(key="model").options]


def test_a_model_in_use_whose_run_is_deleted_is_replaced_with_a_message(app):
    run = train(app)
    card = finetune.model_of(run)
    app.button(key="tune-use").click().run()
    app.switch_page("pages/score.py").run()
    assert app.selectbox(key="model").value == card.id
    runs.delete(runs.Viewer.operator(), run.id)
    app.run()
    assert not app.exception
    assert app.selectbox(key="model").value == BASE
    assert f"The run that made {card.id} was deleted" in words(app)
    assert card.id not in [o.split("  ·")[0] for o in app.selectbox(key="model").options]


def test_lineage_is_shown_on_the_models_page(app):
    train(app)
    app.button(key="tune-use").click().run()
    app.switch_page("pages/models.py").run()
    assert not app.exception, app.exception
    assert f"from {BASE}: F_c and F_nc together, 6 structures" in words(app).replace("**", "")


def test_a_training_that_is_stopped_keeps_what_it_has_and_goes_on(app, workshop):
    workshop.hold = True
    train(app, epochs=8)
    workshop.stop_midway()
    app.run()
    run = only_run("finetune")
    assert run.state == "cancelled" and f"**Stopped** after {run.done:,.0f} of 8 steps" in words(app)
    workshop.hold = False
    app.button(key="go_on").click().run()
    assert not app.exception, app.exception
    again = runs.list_runs(runs.Viewer.operator(), tasks=("finetune",))
    assert {r.state for r in again} == {"done", "cancelled"}
    assert "find it by this name" in words(app)


def test_history_opens_a_training_on_its_page(app):
    run = train(app)
    other = AppTest.from_file(str(ROOT / "ui.py"), default_timeout=60)
    other.session_state["fd_session_owner"] = app.session_state["fd_session_owner"]
    other.switch_page("pages/runs.py")
    other.query_params["run"] = run.id
    other.run()
    assert "Fine-tuning of 6 structures" in words(other)
    other.button(key="open").click().run()
    assert not other.exception, other.exception
    assert finetuning.sentence(finetune.of_run(run)) in words(other)
    with zipfile.ZipFile(io.BytesIO(runs.archive_bytes(runs.Viewer.operator(), run.id))) as made:
        assert {"model/model.safetensors", "model/card.json", "losses.csv", "errors.csv"} <= set(made.namelist())


def test_stability_of_what_was_made(app):
    train(app)
    app.button(key="go-stability").click().run()
    assert not app.exception, app.exception
    assert len(app.multiselect(key="tune-compared").value) == 2
    app.number_input(key="tune-stability-picoseconds").set_value(0.05).run()
    for name, value in (("per_sigma", 1), ("relax_steps", 2)):
        app.number_input(key=f"tune-stability-{name}").set_value(value).run()
    app.text_input(key="tune-stability-sigmas").set_value("0.05, 0.1").run()
    app.button(key="tune-measure").click().run()
    assert not app.exception, app.exception
    run = only_run("stability")
    assert run.state == "done", run.error
    found = stability.of_run(run)
    for sentence in drifts.sentences(found):
        assert sentence in words(app)
    assert [b.sigma_A for b in found.models[0].bands] == [0.05, 0.1] and len(found.models[1].runs) == 5
    with zipfile.ZipFile(io.BytesIO(drift_report.archive(found, {}))) as made:
        assert {"report.html", "drift.svg", "drift.png", "stability.json", "models.csv"} <= set(made.namelist())


# ---- the lines that repeat ---------------------------------------------------------------------------------------------


def _structures():
    return services.read_sources([services.Source("salt.extxyz", salt())]).structures


def test_line_of_a_fine_tuning_is_read_as_the_same_parameters():
    given = {"train": "direct", "epochs": 3, "rotate": False, "parts": "low-rank", "rank": 2, "learning_rate": 1e-4}
    spec = finetune.spec_of(_structures(), (), ModelChoice(BASE), given, seed=4, groups=[0, 0, 1, 1, 2, 2])
    again = parsed(finetune.command_line(["salt.extxyz"], spec))
    told = {k: getattr(again, k) for k in finetune.FLAGS if hasattr(again, k)}
    groups = told.pop("groups")
    same = finetune.spec_of(_structures(), (), ModelChoice(again.base), told, seed=again.seed, groups=groups)
    assert again.replay == "none" and same.sha256 == spec.sha256


def test_line_of_a_measurement_is_read_as_the_same_spec():
    given = {"picoseconds": 2.0, "seeds": 7, "sigmas_A": [0.1, 0.2], "timestep_fs": 0.25}
    ids = [BASE, "fd-orb-small-v1-s1"]
    spec = stability.spec_of(_structures(), ids, given, seed=3)
    again = parsed(stability.command_line(["salt.extxyz"], spec))
    flags = {k: v.replace("-", "_") for k, v in stability.FLAGS.items()}
    told = {k: getattr(again, f) for k, f in flags.items() if hasattr(again, f)}
    assert stability.spec_of(_structures(), again.models, told, seed=again.seed).sha256 == spec.sha256


def test_line_of_a_loop_is_read_as_the_same_spec():
    pytest.importorskip("tblite")
    given = {"reference": "gfn1", "generations": 1, "also_direct": False, "count": 7, "spread": False, "seeds": 6}
    spec = loops.spec_of(_structures(), (), ModelChoice(BASE), given, seed=2)
    again = parsed(loops.command_line(["salt.extxyz"], spec))
    flags = {k: v.replace("-", "_") for k, v in loops.FLAGS.items()}
    told = {k: getattr(again, f) for k, f in flags.items() if hasattr(again, f)}
    assert loops.spec_of(_structures(), (), ModelChoice(again.base), told, seed=again.seed).sha256 == spec.sha256
