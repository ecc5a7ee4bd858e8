"""How a long list is divided: the same way every time on a CPU, by what is measured on a GPU; and what a compiler may change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk
from doubles import Double

import fdcore
from fdcore.errors import FdcoreError, UsageError
from fdcore.models import base
from fdcore.models.base import OutOfMemory
from fdcore.records import Evaluation, Structure

GB = 1e9


class Counting(Double):
    """An edge per atom; a batch of more than `most` atoms does not fit."""

    most = 10**9

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(fdcore.models.card("fd-orb-small-v1"), device, "float32")
        self.batches: list[int] = []

    def _edge_count(self, structure):
        return float(structure.n_atoms)

    def _evaluate(self, structures):
        atoms = sum(s.n_atoms for s in structures)
        if atoms > self.most:
            raise OutOfMemory
        self.batches.append(atoms)
        return [Evaluation(0.0, np.zeros((s.n_atoms, 3)), np.zeros((s.n_atoms, 3))) for s in structures]


def salts(count: int) -> list[Structure]:
    return [fdcore.structures.validate(Structure.from_atoms(bulk("NaCl", "rocksalt", a=5.64) * (50, 1, 1)))] * count


def test_a_number_of_edges_is_all_that_divides_a_list():
    model = Counting()
    # What was learnt of speed, and what is free, must not matter.
    model.seconds_per_edge = 1e3
    found = list(model.evaluate_each(salts(10), edges=300))
    assert len(found) == 10 and model.batches == [300, 300, 300, 100]


@pytest.fixture
def gpu(monkeypatch) -> dict[str, float]:
    """A card of 100 GB that is not there: what torch would say of it."""
    state = {"allocated": 2 * GB, "reserved": 30 * GB, "peak": 0.0, "free": 50 * GB}

    class Properties:
        total_memory = 100 * GB

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (state["free"], 100 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: state["reserved"])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: state["allocated"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: state["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    return state


def test_what_torch_keeps_for_later_is_free(gpu):
    assert base.available_bytes("cuda") == 78 * GB


def test_a_gpu_learns_what_an_edge_needs(gpu):
    model = Counting("cuda")
    model.gpu_batch_edges = 10**12
    assert model.full_batch_edges() == pytest.approx(0.7 * 100 * GB), "1 byte per edge, as the family says"
    gpu["peak"] = 2 * GB + 600 * 5_000_000
    list(model.evaluate_each(salts(6), edges=600))
    assert model.full_batch_edges() == pytest.approx(0.7 * 100 * GB / 5_000_000)
    assert model.memory_bytes(salts(1)[0]) == pytest.approx(100 * 5_000_000)
    # Of a smaller batch, which has less overhead, nothing is unlearnt; of a few edges nothing is learnt.
    gpu["peak"] = 2 * GB + 600 * 10
    list(model.evaluate_each(salts(6), edges=600))
    gpu["peak"] = 90 * GB
    list(model.evaluate_each(salts(1), edges=600))
    assert model.full_batch_edges() == pytest.approx(14_000)


def test_what_did_not_fit_is_halved_and_not_tried_again(gpu):
    model = Counting("cuda")
    model.most = 350
    found = list(model.evaluate_each(salts(8), edges=model.full_batch_edges()))
    assert len(found) == 8 and not any(isinstance(f, FdcoreError) for f in found)
    assert max(model.batches) <= 350 and sum(model.batches) == 800
    assert model.full_batch_edges() == 200, "half of the smallest batch that did not fit"


def test_a_processor_is_filled_by_a_constant():
    model = Counting()
    before = model.full_batch_edges()
    list(model.evaluate_each(salts(8)))
    assert model.full_batch_edges() == before == model.batch_edges


def test_families_without_a_compiler_say_so():
    with pytest.raises(UsageError, match="cannot be compiled") as error:
        Counting().compile()
    assert "--compile" in error.value.hint


def test_without_a_compiler_on_the_machine_it_is_said(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    model = fdcore.load_model(device="cpu")
    model._tiled = None
    with pytest.raises(UsageError, match=r"C\+\+ compiler"):
        model.compile()


def test_what_goes_through_in_tiles_is_not_compiled():
    with pytest.raises(UsageError, match="as fast without") as error:
        fdcore.load_model(device="cpu").compile()
    assert "GPU" in error.value.hint


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_numbers():
    plain, compiled = fdcore.load_model(device="cpu"), fdcore.load_model(device="cpu")
    # As on a GPU, where there are no tiles.
    compiled._tiled = None
    compiled.compile()
    several = []
    for k in range(1, 6):
        atoms = bulk("NaCl", "rocksalt", a=5.64) * (k, 2, 1)
        atoms.rattle(0.05, seed=k)
        several.append(atoms)
    for one, two in zip(plain.evaluate(several), compiled.evaluate(several), strict=True):
        assert one.energy == pytest.approx(two.energy, rel=1e-6)
        for name in ("forces_direct", "forces_conservative"):
            wanted, found = getattr(one, name), getattr(two, name)
            assert np.linalg.norm(found - wanted) < 2e-5 * np.linalg.norm(wanted)
        assert one.force_delta == pytest.approx(two.force_delta, rel=1e-4)
    for one, two in zip(plain.gradients(several[:2]), compiled.gradients(several[:2]), strict=True):
        np.testing.assert_array_equal(one.force_delta_gradient, two.force_delta_gradient)
