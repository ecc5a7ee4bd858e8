"""What every task promises (fdcore/tasks/base.py), over every row of the table of tasks."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.calculators.lj import LennardJones

from fdcore import config as configuration
from fdcore import data, services, tables
from fdcore import reference as references
from fdcore.errors import UsageError, WeightsError
from fdcore.models.base import Model
from fdcore.records import Evaluation, Gradients, Structure
from fdcore.screening.inputs import INPUTS
from fdcore.spec import ModelChoice, Spec
from fdcore.store import structures as stored
from fdcore.store.files import screen_folder
from fdcore.store.runs import Store, new_token
from fdcore.store.series import Checkpoint
from fdcore.tasks import TASKS, task
from fdcore.tasks.base import Job, Note, Product, Progress, Rows, Savable


class Arithmetic(Model):
    """Forces that follow from the positions alone."""

    bytes_per_edge = 1.0

    def _edge_count(self, structure):
        return 1.0

    def _evaluate(self, structures):
        return [Evaluation(float(s.positions.sum()), np.sin(s.positions), np.cos(s.positions)) for s in structures]

    def _gradients(self, structure, method):
        evaluation = self._evaluate([structure])[0]
        # d/dr of (sin r - cos r)^2 / 3N under the root.
        r, u = structure.positions, evaluation.force_delta
        slope = (np.sin(r) - np.cos(r)) * (np.cos(r) + np.sin(r)) / (3 * structure.n_atoms * u)
        return Gradients(evaluation, slope, -evaluation.forces_conservative)

    def _displaced(self, structure, displacements):
        return self._evaluate([replace(structure, positions=structure.positions + d) for d in displacements])


class Strict(LennardJones):
    """A reference that refuses gold."""

    def calculate(self, atoms=None, *rest):
        if atoms is not None and 79 in atoms.numbers:
            raise RuntimeError("no gold")
        super().calculate(atoms, *rest)


def _structures() -> tuple[Structure, ...]:
    made = [
        Structure(np.array([11, 17]), np.full((2, 3), 0.1 * k) + np.eye(3)[:2], 5 * np.eye(3), (True,) * 3, index=k)
        for k in range(4)
    ]
    # One that the model refuses: its failure is part of the record.
    made[2] = replace(made[2], numbers=np.array([79, 79]))
    return tuple(made)


MOTION = {
    "md": {
        "steps": 8,
        "driver": "mts",
        "mts_stride": 2,
        "monitor_every": 2,
        "frame_every": 4,
        "equilibrate_steps": 4,
        "thermostat": "langevin",
        "replicas": 2,
        "relax_fmax_eV_per_A": 1.4,
        "relax_steps": 3,
        # One of the two structures gets there, one does not.
        "stop_above": 0.62,
        "stop_closest": 0.0,
        "stop_temperature_K": None,
    },
    "relax": {"steps": 4, "fmax_eV_per_A": 0.1},
    "mts-advisor": {
        "steps": 4,
        "strides": [1, 2],
        "equilibrate_steps": 2,
        "relax_fmax_eV_per_A": None,
        "timestep_fs": 0.5,
    },
}
ATTACK = {
    "steps": 5,
    "starts": 5,
    "patience": 2,
    "window_eV_per_atom": 0.5,
    "relax_fmax_eV_per_A": 0.5,
    "relax_steps": 3,
    "count": 3,
    "rise": 1.0,
}


def _other(name: str) -> Arithmetic:
    """A second member of an ensemble; the third is not there."""
    if name == "orb-v3-direct-20-mpa":
        raise WeightsError("Its weights could not be downloaded.", "Check the network.")
    return Arithmetic(services.card(name), "cpu", "float64")


def _job(name: str) -> Job:
    if name == "drill":
        return Job(Spec("drill", None, "", 0, {"steps": 6, "step_seconds": 0.0}, seed=3))
    if name == "score":
        inputs = _structures()
        choice = ModelChoice(services.default_model_id())
        spec = Spec("score", choice, stored.inputs_sha256(inputs), len(inputs))
        return Job(spec, inputs, Arithmetic(services.card(choice.id), "cpu", "float64"))
    if name == "validate":
        inputs = tuple(
            replace(s, labels={"energy_eV": 1.0, "forces_eV_per_A": np.cos(s.positions)} if k else {})
            for k, s in enumerate(_structures())
        )
        choice = ModelChoice(services.default_model_id())
        spec = Spec("validate", choice, stored.inputs_sha256(inputs), len(inputs))
        return Job(spec, inputs, Arithmetic(services.card(choice.id), "cpu", "float64"))
    if name == "label":
        strict = references.Reference("strict", "Strict", "A stand-in.", "", "", Strict)
        references.REFERENCES.setdefault("strict", strict)
        inputs = _structures()
        return Job(Spec("label", None, stored.inputs_sha256(inputs), len(inputs), {"reference": "strict"}), inputs)
    if name == "attack":
        inputs = (_structures()[0], _structures()[1])
        choice = ModelChoice(services.default_model_id())
        spec = Spec("attack", choice, stored.inputs_sha256(inputs), len(inputs), ATTACK, seed=5)
        return Job(spec, inputs, Arithmetic(services.card(choice.id), "cpu", "float64"))
    if name == "ensemble":
        inputs = _structures()
        choice = ModelChoice(services.default_model_id())
        parameters = {"members": [choice.id, "orb-v2", "orb-v3-direct-20-mpa"], "mix_methods": True}
        spec = Spec("ensemble", choice, stored.inputs_sha256(inputs), len(inputs), parameters)
        return Job(
            spec,
            inputs,
            Arithmetic(services.card(choice.id), "cpu", "float64"),
            load_further=lambda name: _other(name),
        )
    if name == "finetune":
        # The task knows only the Orb family: a small one that is not its own.
        labelled = services.read_paths([str(data.path("labels", "fd-orb-small-v1.extxyz"))]).structures
        inputs = tuple(s for s in labelled if s.n_atoms <= 12)[:7]
        choice = ModelChoice(services.default_model_id())
        parameters = {
            "epochs": 2,
            "batch": 2,
            "held_out": 0.2,
            "n_replay": 2,
            "groups": (0, 0, 1, 1, 2),
            "rank": 2,
            "parts": "low-rank",
            "learning_rate": 0.001,
        }
        spec = Spec(name, choice, stored.inputs_sha256(inputs), len(inputs), parameters, seed=4)
        return Job(spec, inputs, services.load_model(choice.id, "cpu", "float32"))
    if name == "generations":
        labelled = services.read_paths([str(data.path("labels", "fd-orb-small-v1.extxyz"))]).structures
        inputs = (
            services.read_paths([str(data.path("examples", "NaCl.cif"))]).structures[0],
            *[s for s in labelled if s.n_atoms <= 8][:2],
        )
        choice = ModelChoice(services.default_model_id())
        parameters = {
            "reference": references.register("springs:Springs").id,
            "n_replay": 2,
            "count": 2,
            "starts": 2,
            "attack_steps": 2,
            "attack_relax_fmax_eV_per_A": None,
            "epochs": 1,
            "batch": 4,
            "held_out": 0.0,
            "apart": 0.0,
            "picoseconds": 0.002,
            "timestep_fs": 1.0,
            "seeds": 1,
            "sigmas_A": (0.1,),
            "per_sigma": 1,
            "relax_steps": 1,
        }
        spec = Spec(name, choice, stored.inputs_sha256(inputs), len(inputs), parameters, seed=4)
        products = Path(tempfile.mkdtemp(dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")))
        return Job(spec, inputs, services.load_model(choice.id, "cpu", "float32"), products=products)
    if name == "reproduce":
        strict = references.Reference("strict", "Strict", "A stand-in.", "", "", Strict)
        references.REFERENCES.setdefault("strict", strict)
        inputs = _structures()[:1]
        choice = ModelChoice(services.default_model_id())
        parameters = {
            "targets": ["fig2", "fig3", "table1"],
            "names": ["salt"],
            "own": True,
            "models": [choice.id, "fd-orb-small-v1-s1"],
            "references": ["strict"],
            "effort": {
                "relax_steps": 0,
                "equilibrate_ps": 0.0,
                "drift_ps": 0.001,
                "drift_frames": 2,
                "climbs": 2,
                "climb_steps": 2,
                "climbed": 3,
                "sigmas": [0.1],
                "copies": 2,
            },
        }
        spec = Spec(name, choice, stored.inputs_sha256(inputs), len(inputs), parameters, seed=4)
        products = Path(tempfile.mkdtemp(dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")))
        model = Arithmetic(services.card(choice.id), "cpu", "float64")
        return Job(spec, inputs, model, load_further=lambda name: _other(name), products=products)
    if name == "report":
        # The second is the one that the model refuses.
        inputs = _structures()[1:3]
        choice = ModelChoice(services.default_model_id(), "float64")
        parameters = {
            "exact_atoms": 0,
            "loops": 1,
            "lines": 1,
            "line_points": 5,
            "copies": 1,
            "picoseconds": 0.004,
            "equilibrate_ps": 0.002,
            "timestep_fs": 1.0,
        }
        spec = Spec(name, choice, stored.inputs_sha256(inputs), len(inputs), parameters, seed=5)
        return Job(spec, inputs, Arithmetic(services.card(choice.id), "cpu", "float64"))
    if name == "stability":
        inputs = _structures()[:2]
        choice = ModelChoice(services.default_model_id())
        parameters = {
            "models": ("orb-v2",),
            "picoseconds": 0.004,
            "timestep_fs": 1.0,
            "seeds": 2,
            "sigmas_A": (0.1,),
            "per_sigma": 2,
            "relax_steps": 2,
        }
        spec = Spec(name, choice, stored.inputs_sha256(inputs), len(inputs), parameters, seed=5)
        model = Arithmetic(services.card(choice.id), "cpu", "float64")
        return Job(spec, inputs, model, load_further=lambda name: _other(name))
    if name == "screen":
        config = configuration.from_environment()
        Store(config).migrate()
        token = new_token()
        inputs = screen_folder(config, token) / INPUTS
        inputs.mkdir(parents=True)
        ase.io.write(inputs / "salts.extxyz", [s.to_atoms() for s in _structures()])
        (inputs / "broken.cif").write_text("data_x\n_cell_length_a 3\nloop_\n_atom_site_label\n")
        choice = ModelChoice(services.default_model_id(), "float64")
        parameters = {"screen": token, "source": ["salts.extxyz", "broken.cif"], "check_share": 0.5, "chunk": 2}
        spec = Spec(name, choice, stored.inputs_sha256(()), 0, parameters)
        return Job(spec, (), Arithmetic(services.card(choice.id), "cpu", "float64"))
    if name == "check":
        choice = ModelChoice(services.default_model_id(), "float64")
        spec = Spec("check", choice, stored.inputs_sha256(()), 0, {"components": 4}, seed=2)
        return Job(spec, (), Arithmetic(services.card(choice.id), "cpu", "float64"))
    if name in MOTION:
        inputs = (_structures()[0], _structures()[1])[: 1 if name == "mts-advisor" else 2]
        choice = ModelChoice(services.default_model_id())
        spec = Spec(name, choice, stored.inputs_sha256(inputs), len(inputs), MOTION[name], seed=5)
        return Job(spec, inputs, Arithmetic(services.card(choice.id), "cpu", "float64"))
    pytest.fail(f"a new task: say here how a small {name} is asked for, and the contract runs over it")


CLOCK = ("seconds", "made_at")


class Record:
    """What a run has yielded, as a recorder would keep it."""

    def __init__(self, products: Path | None = None) -> None:
        self.products = products
        self.rows: dict[str, list[dict]] = {}
        self.notes: list[dict] = []

    def copy(self) -> Record:
        other = Record(self.products)
        other.rows = {k: list(v) for k, v in self.rows.items()}
        other.notes = list(self.notes)
        return other

    def add(self, record) -> None:
        if isinstance(record, Rows):
            # What a clock says may differ: that it is a time is checked, and no more.
            clock = [np.asarray(v) for k, v in record.columns.items() if k in CLOCK]
            assert all((v >= 0).all() for v in clock)
            kept = {k: np.array(v) for k, v in record.columns.items()}
            self.rows.setdefault(record.table, []).append(
                {k: np.zeros_like(v) if k in CLOCK else v for k, v in kept.items()}
            )
        elif isinstance(record, Product):
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder) if self.products is None else self.products / record.name
                place.mkdir(exist_ok=True)
                record.write(place)
                assert any(place.iterdir())
        elif isinstance(record, Note):
            self.notes.append(dict(record.values))

    def text(self) -> str:
        return json.dumps(
            [{t: [{k: v.tolist() for k, v in r.items()} for r in rs] for t, rs in self.rows.items()}, self.notes]
        )


def _through_a_file(state: Checkpoint) -> Checkpoint:
    """As a recorder writes and reads it: plain JSON and arrays."""
    values = json.loads(json.dumps(dict(state.values), allow_nan=False))
    return Checkpoint(values, {k: np.array(v) for k, v in state.arrays.items()})


def _run(job: Job, kept: Record):
    """All of a run: (records, states with what had been recorded and how far it was at each, result)."""
    states, kinds = [], []
    run = task(job.spec.task).run(job)
    while True:
        try:
            record = next(run)
        except StopIteration as end:
            return kinds, states, end.value
        kinds.append(record)
        kept.add(record)
        if isinstance(record, Savable):
            done = [k.done for k in kinds if isinstance(k, Progress)][-1]
            states.append((_through_a_file(record.take()), kept.copy(), done))


def _unmeasured(result: dict) -> dict:
    """Without what a clock says: that is the only thing that may differ."""
    return {k: v for k, v in result.items() if not k.endswith("seconds")}


# What is done stands elsewhere, where others go on with it meanwhile: it may be further than the state that was saved.
SHARED = ("screen",)


@pytest.fixture(params=sorted(TASKS))
def job(request, monkeypatch, tmp_path) -> Job:
    monkeypatch.setenv("FDCORE_DATA", str(tmp_path / "data"))
    return _job(request.param)


def test_begins_with_progress_and_ends_at_its_total(job):
    kinds, states, result = _run(job, Record(job.products))
    assert isinstance(kinds[0], Progress) and kinds[0].done == 0
    progress = [k for k in kinds if isinstance(k, Progress)]
    assert progress[-1].done == progress[-1].total > 0
    assert [p.done for p in progress] == sorted(p.done for p in progress)
    assert states, "it can be interrupted somewhere"
    json.dumps(result, allow_nan=False)


def test_rows_are_those_it_declares(job):
    kept = Record(job.products)
    _run(job, kept)
    tables = task(job.spec.task).tables(job.spec, job.structures)
    assert set(kept.rows) <= set(tables)
    for name, parts in kept.rows.items():
        for part in parts:
            assert set(part) == set(tables[name])
            assert len({len(v) for v in part.values()}) == 1
            for column, values in part.items():
                assert values.shape[1:] == tables[name][column].shape
                assert np.can_cast(values.dtype, tables[name][column].dtype, "same_kind")


def test_continued_from_any_state_it_ends_the_same(job):
    whole = Record(job.products)
    _, states, result = _run(job, whole)
    for state, recorded, done in states:
        continued = recorded.copy()
        kinds, _, again = _run(replace(job, state=state), continued)
        further = job.spec.task in SHARED and kinds[0].done > done
        assert isinstance(kinds[0], Progress) and (further or kinds[0].done == done), "it says how far it was"
        assert _unmeasured(again) == _unmeasured(result)
        assert continued.text() == whole.text()


def test_same_spec_gives_the_same_record(job):
    first, second = Record(job.products), Record(job.products)
    _run(job, first)
    _run(job, second)
    assert first.text() == second.text()


def test_unknown_parameter_is_refused_before_anything_runs(job):
    kind = task(job.spec.task)
    kind.check(job.spec)
    with pytest.raises(UsageError, match="no parameter 'banana'"):
        kind.check(replace(job.spec, parameters={**job.spec.parameters, "banana": 1}))


def test_parameter_of_the_wrong_kind_is_refused_before_anything_runs(job):
    numbers = [k for k, v in job.spec.parameters.items() if isinstance(v, int | float)]
    for name in numbers:
        with pytest.raises(UsageError):
            task(job.spec.task).check(replace(job.spec, parameters={**job.spec.parameters, name: "many"}))


def test_its_result_is_said_in_words(job):
    """On the Runs page, from the summary alone."""
    if job.spec.task in ("drill", "warm"):
        assert job.spec.task not in tables.FOUND, "no work of a person's"
        return
    result = _run(job, Record(job.products))[2]
    said = tables.FOUND[job.spec.task](result)
    assert said and any(c.isdigit() for c in said)


def test_names_agree():
    for name in TASKS:
        assert task(name).name == name and task(name).unit
    with pytest.raises(UsageError, match="no task"):
        task("dance")
