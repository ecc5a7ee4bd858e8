"""What every model must fulfil, run over every model: the embedded ones with their weights, the published ones at full
size with random weights through the official loading path."""

from __future__ import annotations

import functools

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

import fdcore
from fdcore.errors import FdcoreError, UnsupportedStructureError, UsageError
from fdcore.models import FAMILIES, list_models
from fdcore.models.selfcheck import check_gradients

EMBEDDED = [c.id for c in list_models() if c.family == "embedded" and not c.member_of]
# Further seeds of an embedded model only differ in its weights.
SEEDS = [c.id for c in list_models() if c.member_of]
# One id per architecture and neighbour cap in the usual run; every other published id only differs in its weights.
ARCHITECTURES = [
    "orb-v3-direct-inf-mpa",
    "orb-v3-direct-20-mpa",
    "orb-v3-direct-omol",
    "orb-d3-xs-v2",
    "orb-d3-sm-v2",
    "orb-d3-v2",
]
OTHERS = [c.id for c in list_models() if c.family == "orb" and c.kind == "direct" and c.id not in ARCHITECTURES]
# A small architecture, saved as the published checkpoints are, in a worker of its own.
ISOLATED = ["eqv2-small"]
# fairchem: one at full size in the usual run, one of its other architecture smaller than published; the rest by hand.
SMALLER = {"small-allscaip": "allscaip-md-direct-all-omol"}
FAIRCHEM = ["esen-sm-direct-all-omol", *SMALLER]
FAIRCHEM_SLOW = ["esen-md-direct-all-omol", "esen-md-direct-all-oc25", "allscaip-md-direct-all-omol"]
MODELS = EMBEDDED + ARCHITECTURES + ISOLATED + FAIRCHEM
# Exported in one precision each.
FILES = ["metatomic"]
CONTRACTED = [*MODELS, *FILES, *(pytest.param(m, marks=pytest.mark.slow) for m in FAIRCHEM_SLOW)]


@pytest.fixture(scope="session")
def load(random_checkpoint, eqv2_model):
    @functools.cache
    def loaded(model_id: str, dtype: str = "float32"):
        if model_id in ISOLATED:
            return eqv2_model("small", dtype)
        if model_id in FILES:
            pytest.importorskip(model_id, reason=f"the optional extra {model_id} is not installed")
        name = f"{model_id}-{dtype}" if model_id in FILES else model_id
        weights = None if model_id in EMBEDDED + SEEDS else random_checkpoint(name)
        return fdcore.load_model(SMALLER.get(model_id, model_id), device="cpu", dtype=dtype, weights=weights)

    return loaded


def crystal() -> ase.Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(0.08, seed=3)
    return atoms


def water(sigma: float = 0.05) -> ase.Atoms:
    atoms = molecule("H2O")
    atoms.rattle(sigma, seed=4)
    atoms.info.update(charge=0, spin=1)
    return atoms


def dimer() -> ase.Atoms:
    """Two water molecules: a molecule with a net orientation and enough neighbours."""
    first, second = water(), water(0.02)
    second.translate([0.3, 2.9, 0.4])
    atoms = first + second
    atoms.info.update(charge=0, spin=1)
    return atoms


def structure_for(model) -> ase.Atoms:
    """Periodic where the model reads crystals, else a molecule."""
    return crystal() if reads_crystals(model) else dimer()


def reads_crystals(model) -> bool:
    return not model.card.needs_charge_spin and not model.card.covers([11, 17])


def tolerance(model) -> float:
    """Rounding only (eV/Å): results may differ by the order of a sum, nothing else."""
    return 1e-10 if model.dtype == "float64" else 2e-4


def close(a, b, model) -> None:
    assert abs(a.energy - b.energy) < max(1e-9, tolerance(model)) * (1 + abs(b.energy))
    np.testing.assert_allclose(a.forces_direct, b.forces_direct, atol=tolerance(model))
    np.testing.assert_allclose(a.forces_conservative, b.forces_conservative, atol=tolerance(model))


@pytest.mark.parametrize("model_id", CONTRACTED)
class TestContract:
    def test_shapes_units_and_records(self, load, model_id):
        model = load(model_id)
        atoms = structure_for(model)
        (ev,) = model.evaluate(atoms)
        n = len(atoms)
        assert ev.forces_direct.shape == ev.forces_conservative.shape == (n, 3)
        assert ev.force_delta_per_atom.shape == (n,)
        difference = ev.forces_direct - ev.forces_conservative
        assert ev.force_delta == pytest.approx(np.sqrt((difference**2).sum() / (3 * n)), rel=1e-12)
        assert ev.force_delta == pytest.approx(np.sqrt((ev.force_delta_per_atom**2).mean()), rel=1e-12)
        assert ev.force_delta > 0
        assert (ev.confidence is not None) == model.card.confidence_head
        if ev.confidence is not None:
            assert ev.confidence.shape == (n,)
            assert ((ev.confidence > 0) & (ev.confidence < 0.3)).all()
        with pytest.raises(ValueError):
            ev.forces_direct[0] = 0.0

    def test_input_is_untouched(self, load, model_id):
        model = load(model_id)
        atoms = structure_for(model)
        atoms.positions += 20.0  # outside the cell: the package's adapter wraps
        atoms.info["note"] = "mine"
        before, info = atoms.copy(), dict(atoms.info)
        model.evaluate([atoms])
        model.gradients([atoms])
        assert atoms == before
        assert atoms.info == info
        assert torch.get_default_dtype() == torch.float32

    def test_batch_equals_single(self, load, model_id):
        model = load(model_id, "float64")
        other = structure_for(model)
        other.rattle(0.1, seed=9)
        several = [structure_for(model), other, structure_for(model)]
        for together, alone in zip(model.evaluate(several), several, strict=True):
            close(together, model.evaluate(alone)[0], model)

    def test_permutation_of_atoms(self, load, model_id):
        model = load(model_id, "float64")
        atoms = structure_for(model)
        order = np.random.default_rng(0).permutation(len(atoms))
        permuted = atoms[order]
        permuted.info = dict(atoms.info)
        a, b = model.evaluate([atoms, permuted])
        np.testing.assert_allclose(b.forces_direct, a.forces_direct[order], atol=1e-9)
        np.testing.assert_allclose(b.forces_conservative, a.forces_conservative[order], atol=1e-9)
        assert b.energy == pytest.approx(a.energy, abs=1e-8)

    def test_translation(self, load, model_id):
        """Any shift of all atoms, and a lattice vector for single atoms of a crystal, change nothing."""
        model = load(model_id, "float64")
        atoms = structure_for(model)
        moved = atoms.copy()
        moved.positions += [0.37, -1.21, 2.9]
        if atoms.pbc.all():
            moved.positions[2] += 2 * atoms.cell[1] - atoms.cell[0]
        a, b = model.evaluate([atoms, moved])
        # Capped graphs are chosen in single precision; well separated shells choose the same neighbours.
        np.testing.assert_allclose(b.forces_direct, a.forces_direct, atol=1e-8)
        np.testing.assert_allclose(b.forces_conservative, a.forces_conservative, atol=1e-8)

    def test_rotation(self, load, model_id):
        """Orb is not equivariant by construction, so only the energy-like scalars are bounded: a quarter turn about an axis
        must map F_c exactly as it maps E's gradient, which the finite-difference test covers; here a rotation of crystal and
        cell together must give finite, repeatable numbers and the same neighbour graph."""
        model = load(model_id, "float64")
        atoms = structure_for(model)
        turned = atoms.copy()
        turned.rotate(35, (1, 2, 3), rotate_cell=True)
        a, b = model.evaluate([atoms, turned])
        assert np.isfinite(b.forces_direct).all()
        norms_a, norms_b = (np.linalg.norm(e.forces_direct, axis=1) for e in (a, b))
        if model_id in EMBEDDED:
            # Trained with rotation augmentation: equivariant to less than half of its own errors.
            own = model.card.held_out["eps_nc, same structures (eV/Å)"]
            np.testing.assert_allclose(norms_b, norms_a, atol=0.4 * own)

    def test_species_change_at_equal_count(self, load, model_id):
        model = load(model_id)
        atoms = structure_for(model)
        first = model.evaluate(atoms)[0]
        swapped = atoms.copy()
        swapped.numbers = swapped.numbers[::-1].copy()
        changed = model.evaluate(swapped)[0]
        again = model.evaluate(atoms)[0]
        assert changed.energy != pytest.approx(first.energy, abs=1e-3)
        close(again, first, model)

    def test_gradients_against_finite_differences(self, load, model_id):
        model = load(model_id, "float64")
        check = check_gradients(model)
        assert check.passed, check
        assert check.forces_conservative_scale > 1e-4
        assert check.force_delta_gradient_scale > 1e-4

    def test_gradients_of_a_molecule(self, load, model_id):
        model = load(model_id, "float64")
        check = check_gradients(model, dimer())
        assert check.passed, check

    def test_gradient_record_belongs_to_the_evaluation(self, load, model_id):
        model = load(model_id, "float64")
        atoms = structure_for(model)
        (g,) = model.gradients(atoms)
        close(g.evaluation, model.evaluate(atoms)[0], model)
        np.testing.assert_array_equal(g.energy_gradient, -g.evaluation.forces_conservative)
        # U does not change under a translation, so its gradient sums to zero.
        np.testing.assert_allclose(g.force_delta_gradient.sum(axis=0), 0.0, atol=1e-8)

    def test_isolated_atom(self, load, model_id):
        model = load(model_id)
        atom = ase.Atoms("H")
        atom.info.update(charge=0, spin=2)
        if not model.reads_single_atoms:
            with pytest.raises(UnsupportedStructureError, match="single atom"):
                model.evaluate(atom)
            return
        (ev,) = model.evaluate(atom)
        assert np.isfinite(ev.energy)
        np.testing.assert_allclose(ev.forces_conservative, 0.0)
        # One atom: the mean force is removed, both forces are zero, and U has no gradient there.
        (g,) = model.gradients(atom)
        assert g.at_zero
        assert not g.force_delta_gradient.any()

    def test_mixed_batch(self, load, model_id):
        """A crystal, a molecule and a single atom together, in any order."""
        model = load(model_id, "float64")
        atom = ase.Atoms("H")
        atom.info.update(charge=0, spin=2)
        several = [crystal(), water(), atom, crystal()] if reads_crystals(model) else [water(), atom, dimer()]
        if not model.reads_single_atoms:
            several.remove(atom)
        for together, alone in zip(model.evaluate(several), several, strict=True):
            close(together, model.evaluate(alone)[0], model)

    def test_jacobian_products_are_those_of_differences(self, load, model_id):
        """v . (J w) and (v J) . w of both forces, along random directions: by differentiation and by differences."""
        model = load(model_id, "float64")
        atoms = structure_for(model)
        rng = np.random.default_rng(3)
        v, w = rng.normal(size=(2, 1, len(atoms), 3))
        if not model.pulls_back:
            # Then it says so, and gives no numbers.
            with pytest.raises(UsageError, match="no derivatives"):
                model.pull_back(atoms, v, force="direct")
            return
        step = 1e-5
        plus, minus = model.displaced(atoms, np.concatenate([step * w, -step * w]))
        for force in ("direct", "conservative"):
            back = model.pull_back(atoms, v, force=force)
            numeric = (getattr(plus, f"forces_{force}") - getattr(minus, f"forces_{force}")) / (2 * step)
            scale = np.linalg.norm(numeric) * np.linalg.norm(v)
            assert scale > 0 and abs((back * w).sum() - (v[0] * numeric).sum()) < 1e-5 * scale

    def test_single_precision_is_close_to_double(self, load, model_id):
        single, double = load(model_id, "float32"), load(model_id, "float64")
        a, b = single.evaluate(structure_for(single))[0], double.evaluate(structure_for(single))[0]
        scale = np.abs(b.forces_conservative).max()
        np.testing.assert_allclose(a.forces_conservative, b.forces_conservative, atol=2e-3 * scale)
        assert a.force_delta == pytest.approx(b.force_delta, rel=1e-2)

    def test_a_bad_structure_does_not_stop_the_others(self, load, model_id):
        model = load(model_id)
        good = structure_for(model)
        unknown = ase.Atoms("U2" if "U" not in model.card.elements else "Rn2", positions=[[0, 0, 0], [0, 0, 3]])
        unknown.info.update(charge=0, spin=1)
        results = list(model.evaluate_each([good, unknown, good]))
        assert isinstance(results[1], UnsupportedStructureError)
        close(results[0], results[2], model)
        with pytest.raises(FdcoreError, match="not trained on"):
            model.evaluate([good, unknown])


@pytest.mark.parametrize("model_id", OTHERS)
def test_other_published_models_load_and_evaluate(load, model_id):
    model = load(model_id)
    (ev,) = model.evaluate(structure_for(model))
    assert ev.force_delta > 0
    assert model.adapter.max_num_neighbors == model.card.neighbour_cap
    assert model.adapter.radius == model.card.cutoff_A
    assert (ev.confidence is not None) == model.card.confidence_head


@pytest.mark.parametrize("model_id", SEEDS)
def test_further_seeds_load_and_evaluate(load, model_id):
    model, first = load(model_id), load(fdcore.card(model_id).member_of)
    assert model.card.n_parameters == first.card.n_parameters and model.card.elements == first.card.elements
    ours, theirs = model.evaluate(structure_for(model))[0], first.evaluate(structure_for(first))[0]
    assert ours.force_delta > 0
    # Another seed, not another copy.
    assert np.abs(ours.forces_direct - theirs.forces_direct).max() > 1e-3


def test_every_family_is_covered():
    """A new family must join this file: its models are either embedded or listed."""
    assert set(FAMILIES) == {"embedded", "orb", "eqv2", "fairchem", "chgnet", "mace", "metatomic"}
    direct = {c.id for c in list_models() if c.family == "fairchem" and c.kind == "direct"}
    assert direct <= {*FAIRCHEM, *FAIRCHEM_SLOW}


def test_cards_match_the_architectures(load):
    for model_id in EMBEDDED + ARCHITECTURES + FAIRCHEM:
        if model_id in SMALLER:
            continue
        model = load(model_id)
        # Buffers are not parameters, and the published counts are rounded.
        count = sum(p.numel() for p in model.module.parameters())
        assert count == pytest.approx(fdcore.card(model_id).n_parameters, rel=0.02)
        assert model.conditioned == model.card.needs_charge_spin
