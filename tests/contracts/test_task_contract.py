"""What every task promises (fdcore/tasks/base.py), over every row of the table of tasks."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from fdcore import services
from fdcore.errors import UsageError
from fdcore.models.base import Model
from fdcore.records import Evaluation, Gradients, Structure
from fdcore.spec import ModelChoice, Spec
from fdcore.store import structures as stored
from fdcore.store.series import Checkpoint
from fdcore.tasks import TASKS, task
from fdcore.tasks.base import Job, Note, Progress, Rows, Savable


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
        raise NotImplementedError


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


def _job(name: str) -> Job:
    if name == "drill":
        return Job(Spec("drill", None, "", 0, {"steps": 6, "step_seconds": 0.0}, seed=3))
    if name == "score":
        inputs = _structures()
        choice = ModelChoice(services.default_model_id())
        spec = Spec("score", choice, stored.inputs_sha256(inputs), len(inputs))
        return Job(spec, inputs, Arithmetic(services.card(choice.id), "cpu", "float64"))
    if name == "truth":
        inputs = tuple(
            replace(s, labels={"energy_eV": 1.0, "forces_eV_per_A": np.cos(s.positions)} if k else {})
            for k, s in enumerate(_structures())
        )
        choice = ModelChoice(services.default_model_id())
        spec = Spec("truth", choice, stored.inputs_sha256(inputs), len(inputs))
        return Job(spec, inputs, Arithmetic(services.card(choice.id), "cpu", "float64"))
    if name == "attack":
        inputs = (_structures()[0], _structures()[1])
        choice = ModelChoice(services.default_model_id())
        spec = Spec("attack", choice, stored.inputs_sha256(inputs), len(inputs), ATTACK, seed=5)
        return Job(spec, inputs, Arithmetic(services.card(choice.id), "cpu", "float64"))
    if name in MOTION:
        inputs = (_structures()[0], _structures()[1])[: 1 if name == "mts-advisor" else 2]
        choice = ModelChoice(services.default_model_id())
        spec = Spec(name, choice, stored.inputs_sha256(inputs), len(inputs), MOTION[name], seed=5)
        return Job(spec, inputs, Arithmetic(services.card(choice.id), "cpu", "float64"))
    pytest.fail(f"a new task: say here how a small {name} is asked for, and the contract runs over it")


class Record:
    """What a run has yielded, as a recorder would keep it."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict]] = {}
        self.notes: list[dict] = []

    def copy(self) -> Record:
        other = Record()
        other.rows = {k: list(v) for k, v in self.rows.items()}
        other.notes = list(self.notes)
        return other

    def add(self, record) -> None:
        if isinstance(record, Rows):
            self.rows.setdefault(record.table, []).append({k: np.array(v) for k, v in record.columns.items()})
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


@pytest.fixture(params=sorted(TASKS))
def job(request) -> Job:
    return _job(request.param)


def test_begins_with_progress_and_ends_at_its_total(job):
    kinds, states, result = _run(job, Record())
    assert isinstance(kinds[0], Progress) and kinds[0].done == 0
    progress = [k for k in kinds if isinstance(k, Progress)]
    assert progress[-1].done == progress[-1].total > 0
    assert [p.done for p in progress] == sorted(p.done for p in progress)
    assert states, "it can be interrupted somewhere"
    json.dumps(result, allow_nan=False)


def test_rows_are_those_it_declares(job):
    kept = Record()
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
    whole = Record()
    _, states, result = _run(job, whole)
    for state, recorded, done in states:
        continued = recorded.copy()
        kinds, _, again = _run(replace(job, state=state), continued)
        assert isinstance(kinds[0], Progress) and kinds[0].done == done, "it says how far it was"
        assert _unmeasured(again) == _unmeasured(result)
        assert continued.text() == whole.text()


def test_same_spec_gives_the_same_record(job):
    first, second = Record(), Record()
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


def test_names_agree():
    for name in TASKS:
        assert task(name).name == name and task(name).unit
    with pytest.raises(UsageError, match="no task"):
        task("dance")
