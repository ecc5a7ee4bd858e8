"""Labelling as a run: submitted, killed in the middle, gone on with, read, exported."""

from __future__ import annotations

import io
import zipfile

import ase.io
import numpy as np
import pytest
from ase.build import bulk

from fdcore.records import Structure
from fdcore.services import labels, runs
from fdcore.store.records import Viewer
from tests.jobs.conftest import until


@pytest.fixture
def here(engine, monkeypatch):
    monkeypatch.setattr(runs, "current", lambda: engine)
    return engine


def test_a_run_of_labels_survives_its_process(here, config, workers):
    pytest.importorskip("chgnet")
    rng = np.random.default_rng(0)
    structures = []
    for k in range(40):
        atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
        atoms.positions += rng.normal(scale=0.05, size=(8, 3))
        structures.append(Structure.from_atoms(atoms, file="set.extxyz", index=k))
    viewer = Viewer("somebody")
    run = labels.submit(viewer, structures, "chgnet", title="labels")
    assert labels.submit(viewer, structures, "chgnet", title="again").id == run.id
    assert [i.label for i in labels.of_run(run)] == [None] * 40
    worker = workers(config)
    until(lambda: runs.get(viewer, run.id).done >= 3, 120, "the first labels")
    worker.kill_children()
    until(lambda: not runs.get(viewer, run.id).active, 180, "the end of the run")
    ended = runs.get(viewer, run.id)
    assert ended.state == "done" and ended.summary is not None and ended.summary["labelled"] == 40, ended
    known = labels.of_run(ended)
    assert len(known.labelled) == 40 and len(known.methods) == 1
    with zipfile.ZipFile(io.BytesIO(runs.archive_bytes(viewer, run.id))) as archive:
        frames = ase.io.read(io.StringIO(archive.read("labelled.extxyz").decode()), index=":", format="extxyz")
        assert {"labels.json", "labelled.db"} <= set(archive.namelist())
    for (_, label), atoms in zip(known.labelled, frames, strict=True):
        np.testing.assert_allclose(atoms.get_forces(), label.forces_reference, atol=1e-8)
    assert "--reference chgnet" in labels.command_line(["set.extxyz"], ended.spec)
