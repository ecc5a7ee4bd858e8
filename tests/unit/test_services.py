"""What pages ask: cost before a run, examples, the command that repeats a result."""

from __future__ import annotations

import functools
import shlex

import numpy as np
import pytest
from ase.build import bulk, molecule

from fdcore import services
from fdcore.records import Failure, Score, Structure

UNKNOWN_TO_EMBEDDED = {"MOF-5.cif", "CaPd_NH2.extxyz"}


@pytest.fixture(scope="module")
def model():
    return services.load_model()


@pytest.fixture(scope="module")
def loaded():
    """Embedded models by id, each loaded once."""
    return functools.cache(services.load_model)


@pytest.mark.parametrize("example", services.examples(), ids=lambda e: e.file)
def test_every_example_reads_and_scores_or_says_why_not(loaded, example):
    parsed = services.read_sources([services.example_source(example)])
    assert not parsed.failures
    model = loaded(example.model or services.suggested_model(parsed.structures))
    results = list(services.score(model, parsed.structures))
    assert len(results) == len(parsed.structures)
    if example.file in UNKNOWN_TO_EMBEDDED:
        assert all(isinstance(r, Failure) for r in results)
        covering = services.models_covering(parsed.structures[0].numbers)
        assert len(covering) >= 5
        assert covering[0].id in results[0].hint
    else:
        assert all(isinstance(r, Score) for r in results)


def test_the_examples_say_what_they_promise(model):
    def scores(file):
        example = next(e for e in services.examples() if e.file == file)
        return list(services.score(model, services.read_sources([services.example_source(example)]).structures))

    # Twelve steps out: U_Delta ranks the frames by how far they were displaced.
    ladder = [s.evaluation.force_delta for s in scores("ice_ladder.extxyz")]
    assert np.corrcoef(np.argsort(np.argsort(ladder)), np.arange(12))[0, 1] > 0.9
    # The atom that was moved, or a neighbour of it, stands out.
    (one,) = scores("Mg17Al12_one_atom.extxyz")
    moved = 4
    order = np.argsort(-one.evaluation.force_delta_per_atom)
    distances = one.structure.to_atoms().get_distances(moved, list(order[:3]), mic=True)
    assert distances.min() < 3.5
    displaced = scores("Mg17Al12_displaced.extxyz")[0].verdict
    assert displaced.percentile > 95
    assert displaced.evidence[0].status in ("look", "fail")
    # Perfect rock salt, compressed or not: symmetry leaves the two forces nothing to disagree about.
    assert scores("NaCl_compressed.vasp")[0].verdict.level == "unknown"
    assert scores("Mg17Al12.cif")[0].verdict.level in ("consistent", "caution")


def test_a_failure_in_the_middle_keeps_the_order(model):
    salt = Structure.from_atoms(bulk("NaCl", "rocksalt", a=5.7), file="a")
    gold = Structure.from_atoms(bulk("Au"), file="b")
    results = list(services.score(model, [salt, gold, salt]))
    assert [type(r) for r in results] == [Score, Failure, Score]
    assert results[1].file == "b"
    assert "Au" in results[1].error


def test_a_shortage_of_memory_keeps_what_is_scored_and_says_so_of_the_rest(model, monkeypatch):
    salt = [Structure.from_atoms(bulk("NaCl", "rocksalt", a=5.6 + 0.05 * k), file=f"{k}") for k in range(4)]
    evaluate, calls = type(model)._evaluate, []

    def short_of_memory(self, structures):
        calls.append(len(structures))
        if len(calls) > 2:
            raise MemoryError("rehearsed")
        return evaluate(self, structures)

    monkeypatch.setattr(type(model), "_evaluate", short_of_memory)
    monkeypatch.setattr(type(model), "batch_edges", 1)
    results = list(services.score(model, salt))
    assert calls == [1, 1, 1]
    assert [type(r) for r in results] == [Score, Score, Failure, Failure]
    assert [r.file for r in results[2:]] == ["2", "3"]
    assert all("memory ran out" in r.error and "smaller" in r.hint for r in results[2:])


def test_a_fault_of_the_program_is_not_taken_for_a_shortage(model, monkeypatch):
    def wrong(self, structures):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(type(model), "_evaluate", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        list(services.score(model, [Structure.from_atoms(bulk("NaCl", "rocksalt", a=5.7))]))


def test_estimate_grows_with_size_and_knows_when_it_does_not_fit(model, monkeypatch):
    small = Structure.from_atoms(bulk("NaCl", "rocksalt", a=5.7))
    large = Structure.from_atoms(bulk("NaCl", "rocksalt", a=5.7) * (10, 10, 10))
    a, b = services.estimate(model, [small]), services.estimate(model, [large])
    assert b.seconds == pytest.approx(1000 * a.seconds, rel=0.01)
    assert b.memory_MB == pytest.approx(1000 * a.memory_MB, rel=0.01)
    assert a.fits
    assert "free" in a.text
    monkeypatch.setattr(type(model), "available_bytes", lambda self: 1e6)
    assert not services.estimate(model, [large]).fits
    unloaded = services.estimate(services.card("orb-v3-direct-inf-mpa"), [large])
    assert not unloaded.measured
    assert unloaded.seconds > b.seconds


def test_the_speed_is_learnt(model):
    atoms = bulk("NaCl", "rocksalt", a=5.7, cubic=True) * (2, 2, 1)
    structures = [Structure.from_atoms(atoms)] * 3
    for _ in range(3):
        list(services.score(model, structures))
    assert model.speed_is_measured
    assert "guess" not in services.estimate(model, structures).text


def test_command_line_repeats_the_page():
    assert services.command_line(["a b.cif"], services.default_model_id()) == (
        f"fdcore score 'a b.cif' --model {services.default_model_id()}"
    )
    text = services.command_line(["$(rm).cif"], "orb-v2", dtype="float64", charge=0, spin=1)
    assert shlex.split(text) == [
        "fdcore", "score", "$(rm).cif", "--model", "orb-v2", "--dtype", "float64", "--charge", "0", "--spin", "1"
    ]  # fmt: skip


def test_the_default_model_is_here_and_first():
    assert services.list_models()[0].id == services.default_model_id()
    assert services.model_is_here(services.list_models()[0])
    assert services.list_models()[0] in services.available_models()


def test_the_suggested_model_has_seen_such_structures():
    """Water molecules hold the elements of ice, but the model that knows ice has seen no molecule."""
    water, salt = Structure.from_atoms(molecule("H2O")), Structure.from_atoms(bulk("NaCl", "rocksalt", a=5.7))
    ice = next(e for e in services.examples() if e.id == "ice_XI")
    ice = services.read_sources([services.example_source(ice)]).structures[0]
    default, molecules = services.default_model_id(), "fd-orb-molecules-v1"
    assert services.suggested_model([water]) == molecules
    assert services.suggested_model([ice]) == default
    assert services.suggested_model([salt]) == default
    assert services.suggested_model([ice, water]) == default
    assert services.suggested_model([]) == default
    # Nothing that travels with the package knows gold, or salt and aspirin at once.
    assert services.suggested_model([Structure.from_atoms(bulk("Au"))]) == default
    assert services.suggested_model([salt, Structure.from_atoms(molecule("CH4"))]) == default


def test_a_model_of_crystals_does_not_call_a_molecule_fine(model, loaded):
    water = Structure.from_atoms(molecule("H2O"))
    (wrong,) = services.score(model, [water])
    assert wrong.verdict.level == "unreliable"
    assert any(e.name == "Kind of structure" and e.status == "fail" for e in wrong.verdict.evidence)
    (right,) = services.score(loaded("fd-orb-molecules-v1"), [water])
    assert right.verdict.level in ("consistent", "caution")
    assert all(e.name != "Kind of structure" for e in right.verdict.evidence)
