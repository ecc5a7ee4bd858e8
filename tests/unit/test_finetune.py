"""Fine-tuning: gradients of the losses, what is held out, exact resumption, and models that load everywhere by name or path."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fdcore import data, delta, models, services
from fdcore.distribution import reference_distribution
from fdcore.errors import UnknownModelError, UsageError, WeightsError
from fdcore.finetune.product import write
from fdcore.finetune.settings import Finetuning
from fdcore.finetune.training import Checked, Ended, Step, Training, draw_held_out, learning_rate
from fdcore.models import finetuned
from fdcore.models.orb_training import Example, OrbTraining, Weights
from fdcore.models.twice import TwiceRMSNorm
from fdcore.services import finetune
from fdcore.tasks.finetune import examples_of

STEP = {
    "labelled_by": "CHGNet",
    "inputs_sha256": "",
    "n_structures": 4,
    "n_held_out": 0,
    "seed": 0,
    "settings": {},
    "versions": {},
    "best_epoch": 1,
    "epochs_done": 1,
    "energy_shifts_eV": {},
    "checks": [],
}


@pytest.fixture(scope="module")
def labelled():
    return services.read_paths([str(data.path("labels", "fd-orb-small-v1.extxyz"))]).structures


@pytest.fixture(scope="module")
def small(labelled) -> list[Example]:
    return [e for e in examples_of(labelled).values() if e.structure.n_atoms <= 12][:6]


@pytest.fixture(scope="module")
def base():
    return services.load_model()


@pytest.fixture
def no_models(tmp_path, monkeypatch):
    """A machine on which nothing has been fine-tuned."""
    monkeypatch.setenv("FDCORE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(finetuned, "_places", {})
    reference_distribution.cache_clear()
    yield tmp_path
    reference_distribution.cache_clear()


def _run(training: Training):
    return [e for e in training.run() if e is not None]


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", ["all", "heads", "low-rank"])
@pytest.mark.parametrize("weights", [Weights(0, 1, 0), Weights(0.7, 1.3, 2.0)], ids=["F_nc only", "both"])
def test_gradient_of_the_loss_is_exact(small, parts, weights):
    training = OrbTraining(services.load_model(dtype="float64"), parts, 2, seed=3)
    examples, turns = dict(enumerate(small[:3])), np.repeat(np.eye(3)[None], 3, 0)
    rng = np.random.default_rng(5)
    if parts == "low-rank":
        # Where B is zero A has no gradient.
        with torch.no_grad():
            for name, parameter in training.parameters.items():
                if name.endswith(".up"):
                    parameter.copy_(torch.as_tensor(rng.normal(scale=0.01, size=parameter.shape)))
    training.losses(examples, weights, turns)
    slopes = {n: None if p.grad is None else p.grad.clone() for n, p in training.parameters.items()}
    chosen = [n for n in training.parameters if "norm" in n][:2] + list(rng.choice(list(training.parameters), 6))
    checked = 0
    for name in dict.fromkeys(chosen):
        parameter, slope = training.parameters[name], slopes[name]
        if slope is None:
            assert name.startswith("heads.energy") and weights.energy == 0
            continue
        direction = torch.as_tensor(rng.normal(size=tuple(parameter.shape)))
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * 1e-5 * direction)
            ends.append(training.losses(examples, weights, turns)["loss"])
            with torch.no_grad():
                parameter.sub_(sign * 1e-5 * direction)
        expected = float((slope * direction).sum())
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(expected, rel=2e-5, abs=1e-10), name
        checked += 1
    assert checked >= 3


def test_norm_with_written_out_derivatives_has_the_gradients_of_the_plain_one():
    rng = torch.Generator().manual_seed(0)
    plain = nn.RMSNorm(7, dtype=torch.float64)
    with torch.no_grad():
        plain.weight.copy_(torch.rand(7, generator=rng, dtype=torch.float64))
    other = TwiceRMSNorm(plain)
    x = torch.randn((5, 7), generator=rng, dtype=torch.float64, requires_grad=True)
    found = []
    for norm in (plain, other):
        (slope,) = torch.autograd.grad(norm(x).pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad((slope.sin()).sum() + norm(x).sum(), [x, plain.weight]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_pieces_of_a_batch_have_the_gradient_of_the_whole(base, labelled):
    same = [e for e in examples_of(labelled).values() if e.structure.n_atoms == 8][:4]
    assert len(same) == 4
    settings = Finetuning(held_out=0.0, batch=4, epochs=1, rotate=False)
    found = []
    for limit in (1e9, 1.0):
        training = Training(base, same, settings, seed=0)
        training.limit = limit
        [step] = [e for e in _run(training) if isinstance(e, Step)]
        found.append(step)
    assert found[0].loss == pytest.approx(found[1].loss, rel=1e-5)
    assert found[0].slope == pytest.approx(found[1].slope, rel=1e-4)


def test_a_rotation_turns_everything_with_it(base, small):
    """The losses of a model that is nearly equivariant hardly change, which they would if forces stayed behind."""
    from scipy.spatial.transform import Rotation

    training = OrbTraining(base, "all", 1, 0)
    examples = dict(enumerate(small[:3]))
    straight = training.losses(examples, Weights(1, 1, 1), np.repeat(np.eye(3)[None], 3, 0))
    turns = Rotation.random(3, np.random.default_rng(1)).as_matrix()
    turned = training.losses(examples, Weights(1, 1, 1), turns)
    behind = {k: replace(e, forces_reference=e.forces_reference @ turns[k].T) for k, e in examples.items()}
    wrong = OrbTraining(base, "all", 1, 0).losses(behind, Weights(1, 1, 1), np.repeat(np.eye(3)[None], 3, 0))
    for name in ("direct", "conservative"):
        assert abs(turned[name] - straight[name]) < 0.3 * abs(wrong[name] - straight[name])


# ---- the training ----------------------------------------------------------------------------------------------------


def test_it_learns_and_leaves_the_base_and_the_normalisers_alone(base, small):
    before = {n: t.clone() for n, t in base.module.state_dict().items()}
    training = Training(
        base, small, Finetuning(held_out=0.0, epochs=25, batch=2, learning_rate=1e-3, rotate=False), seed=0
    )
    events = _run(training)
    checks = {(c.when, c.part): c for c in events if isinstance(c, Checked)}
    first, last = checks["before", "train"], checks["after", "train"]
    assert last.error_conservative < 0.6 * first.error_conservative
    assert last.error_direct < 0.8 * first.error_direct and last.force_delta < 0.7 * first.force_delta
    assert isinstance(events[-1], Ended) and events[-1].epochs_done == 25
    after = training.result().module.state_dict()
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert any(n.startswith("model.") for n in moved) and not any("normalizer" in n or "reference" in n for n in moved)
    for name, tensor in base.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    # What is told is what the model says.
    errors = [
        delta.rms_difference(e.forces_direct, x.forces_reference)
        for e, x in zip(training.result().evaluate([x.structure for x in small]), small, strict=True)
    ]
    atoms = [x.structure.n_atoms for x in small]
    assert last.error_direct == pytest.approx(np.sqrt(np.average(np.square(errors), weights=atoms)), rel=1e-6)


def test_f_nc_only_does_not_compute_the_others(base, small):
    training = Training(base, small[:2], Finetuning(train="direct", held_out=0.0, epochs=1), seed=0)
    [step] = [e for e in _run(training) if isinstance(e, Step)]
    assert step.loss_energy is None and step.loss_conservative is None and step.loss == step.loss_direct


def test_heads_alone_leave_the_rest(base, small):
    training = Training(base, small[:2], Finetuning(parts="heads", held_out=0.0, epochs=2), seed=0)
    _run(training)
    after, before = training.result().module.state_dict(), base.module.state_dict()
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved and all(n.startswith(("heads.energy.mlp", "heads.forces.mlp")) for n in moved)


def test_low_rank_changes_matrices_by_that_rank(base, small):
    training = Training(
        base, small[:3], Finetuning(parts="low-rank", rank=2, held_out=0.0, epochs=6, learning_rate=1e-2), seed=0
    )
    _run(training)
    after, before = training.result().module.state_dict(), base.module.state_dict()
    assert set(after) == set(before)
    changes = [
        (after[n] - before[n]).double()
        for n in before
        if n.startswith("model.") and not torch.equal(after[n], before[n])
    ]
    assert changes
    for change in changes:
        singular = torch.linalg.svdvals(change)
        # Rounding of the sum in single precision is all that is left beyond.
        assert singular[2:].max() < 1e-3 * singular[0] if len(singular) > 2 else True


def test_stops_when_it_is_no_longer_better_and_keeps_the_best(base, small):
    settings = Finetuning(held_out=0.3, epochs=40, patience=2, learning_rate=0.05, batch=2, clip=100.0)
    training = Training(base, small, settings, seed=0)
    events = _run(training)
    # Epoch 0 is the base.
    scores = {
        e.epoch: np.hypot(e.error_direct, e.error_conservative)
        for e in events
        if isinstance(e, Checked) and e.part == "held-out" and e.when != "after"
    }
    end = events[-1]
    assert isinstance(end, Ended) and end.reason == "no longer better" and end.epochs_done == end.best_epoch + 2 < 40
    assert end.best_epoch == min(scores, key=lambda k: scores[k])
    after = next(e for e in events if isinstance(e, Checked) and (e.when, e.part) == ("after", "held-out"))
    assert np.hypot(after.error_direct, after.error_conservative) == pytest.approx(scores[end.best_epoch], rel=1e-6)


def test_labels_of_another_zero_shift_the_reference_energies(base, small):
    moved = [
        replace(e, energy=e.energy + 300.0 * np.count_nonzero(e.structure.numbers == e.structure.numbers[0]))
        for e in small[:1] * 2
    ]
    training = Training(base, moved, Finetuning(held_out=0.0, epochs=1), seed=0)
    _run(training)
    assert training.shifts and sum(training.shifts.values()) > 100
    [found] = training.result().evaluate([moved[0].structure])
    assert abs(found.energy - moved[0].energy) / moved[0].structure.n_atoms < 1.0
    kept = Training(base, small[:2], Finetuning(held_out=0.0, epochs=1), seed=0)
    _run(kept)
    assert kept.shifts == {}, "labels of the model's own zero are taken as they are"


def test_a_loss_that_is_no_number_ends_it_in_words(base, small):
    broken = [replace(small[0], energy=float("nan"))]
    with pytest.raises(Exception, match="no longer a number"):
        _run(Training(base, broken, Finetuning(held_out=0.0, zero="model"), seed=0))


@given(
    n=st.integers(1, 40),
    share=st.floats(0.0, 0.9),
    seed=st.integers(0, 99),
    kinds=st.integers(1, 10),
)
def test_whole_groups_are_held_out(n, share, seed, kinds):
    groups = [k % kinds for k in range(n)]
    out = draw_held_out(n, share, seed, groups)
    assert (sorted(set(out)) == out and len(out) < n) or n == 0
    inside = {groups[k] for k in out}
    assert all((groups[k] in inside) == (k in out) for k in range(n))
    if share > 0 and len(set(groups)) > 1:
        assert out
    assert draw_held_out(n, share, seed, groups) == out


def test_learning_rate_rises_then_falls_to_zero():
    rates = [learning_rate(k, 200, 1e-3) for k in range(200)]
    top = int(np.argmax(rates))
    assert rates[0] < 1.1e-4 and 9 <= top <= 10 and max(rates) == pytest.approx(1e-3)
    assert all(a >= b for a, b in zip(rates[top:], rates[top + 1 :], strict=False)) and rates[-1] < 1e-6


def test_what_cannot_be_asked():
    for wrong, words in (
        ({"train": "energy"}, "no train"),
        ({"epochs": 0}, "epochs"),
        ({"direct_weight": 0.0}, "loss of F_nc"),
        ({"learning_rate": "fast"}, "learning-rate"),
        ({"held_out": 1.0}, "held-out"),
    ):
        with pytest.raises(UsageError, match=words):
            Finetuning(**wrong)


def test_other_families_say_what_they_can_do():
    said = finetune.can_train(services.card("eqV2_31M_mp"))
    assert "its package trains with its own launcher" in said
    assert finetune.can_train(services.card("orb-v3-direct-inf-mpa")) == ""
    assert "no direct" in finetune.can_train(services.card("orb-v3-conservative-inf-mpa")) or finetune.can_train(
        services.card("orb-v3-conservative-inf-mpa")
    )


# ---- what comes out --------------------------------------------------------------------------------------------------


@pytest.fixture
def made(base, small, no_models):
    training = Training(base, small[:4], Finetuning(held_out=0.0, epochs=1), seed=0)
    _run(training)
    folder = no_models / "here"
    card = write(folder, training, base, STEP)
    return training, folder, card


def test_loads_by_path_and_then_by_name(made, small):
    training, folder, card = made
    expected = training.result().evaluate([e.structure for e in small])
    with pytest.raises(UnknownModelError, match="no fine-tuned model"):
        models.card(card.id)
    for name in (str(folder), str(folder / finetuned.WEIGHTS), card.id):
        model = services.load_model(name)
        assert model.card.id == card.id and model.card.family == "finetuned" and model.weights_sha256 == card.sha256
        for a, b in zip(model.evaluate([e.structure for e in small]), expected, strict=True):
            assert a.energy == b.energy
            np.testing.assert_array_equal(a.forces_direct, b.forces_direct)
            np.testing.assert_array_equal(a.forces_conservative, b.forces_conservative)
    assert services.model_is_here(card)


def test_lineage_grows(made, small):
    _, folder, card = made
    model = services.load_model(str(folder))
    training = Training(model, small[:2], Finetuning(held_out=0.0, epochs=1), seed=1)
    _run(training)
    second = write(folder.parent / "second", training, model, STEP)
    assert second.id != card.id and second.summary.startswith("fd-orb-small-v1 fine-tuned twice")
    lineage = finetuned.read(folder.parent / "second")[1]["lineage"]
    assert [(s["base"], s["base_sha256"][:8]) for s in lineage] == [
        ("fd-orb-small-v1", services.card("fd-orb-small-v1").sha256[:8]),
        (card.id, card.sha256[:8]),
    ]


def test_equal_trainings_make_equal_files(base, small, no_models):
    names = []
    for k in range(2):
        training = Training(base, small[:2], Finetuning(held_out=0.0, epochs=1), seed=0)
        _run(training)
        names.append(write(no_models / str(k), training, base, STEP).sha256)
    assert names[0] == names[1]


def test_a_replay_set_gives_a_distribution_of_its_own(base, small, labelled, no_models):
    replay = [e for e in examples_of(labelled).values() if e.structure.n_atoms <= 16][:24]
    assert len(replay) >= 20
    training = Training(base, small[:2], Finetuning(held_out=0.0, epochs=1), seed=0, replay=replay)
    _run(training)
    card = write(no_models / "m", training, base, STEP)
    services.card(str(no_models / "m"))
    known = reference_distribution(card.id)
    u = sorted(e.force_delta for e in training.result().evaluate([e.structure for e in replay]))
    assert known is not None
    np.testing.assert_allclose(known.values, u, atol=1e-6)
    [score] = services.score(services.load_model(card.id), [small[0].structure])
    assert score.verdict.percentile is not None


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: (f / finetuned.CARD).write_text("{"), "cannot be read"),
        (lambda f: (f / finetuned.CARD).write_text(json.dumps({"format": "x"})), "format"),
        (lambda f: (f / finetuned.CARD).write_text(" " * 6_000_000), "too large"),
        (lambda f: (f / finetuned.WEIGHTS).write_bytes(b"\0" * 100), "not the ones"),
        (lambda f: (f / finetuned.WEIGHTS).unlink(), "not the ones"),
    ],
    ids=["no JSON", "other format", "too large", "other weights", "no weights"],
)
def test_a_damaged_folder_says_so(made, harm, words):
    _, folder, _ = made
    harm(folder)
    with pytest.raises(WeightsError, match=words):
        services.load_model(str(folder))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", "ft-../../etc"),
        ("id", "ft-a\nb"),
        ("cutoff_A", "six"),
        ("elements", "NaCl"),
        ("trained_on", [1, 2]),
        ("held_out", "x"),
        ("neighbour_cap", -5),
        ("summary", {"a": 1}),
        ("family", "orb"),
        ("kind", "conservative"),
    ],
)
def test_a_card_of_a_stranger_is_read_strictly(made, name, value):
    _, folder, _ = made
    document = json.loads((folder / finetuned.CARD).read_text())
    document["card"][name] = value
    (folder / finetuned.CARD).write_text(json.dumps(document))
    with pytest.raises(WeightsError, match="cannot be read"):
        services.card(str(folder))


def test_a_card_without_end_is_refused(made):
    _, folder, _ = made
    (folder / finetuned.CARD).write_text("[" * 1_000_000)
    with pytest.raises(WeightsError, match="cannot be read"):
        services.card(str(folder))
    document = {"format": finetuned.FORMAT, "card": {}, "architecture": "ft-x", "lineage": 7}
    (folder / finetuned.CARD).write_text(json.dumps(document))
    with pytest.raises(WeightsError, match="cannot be read"):
        services.card(str(folder))


def test_a_ruined_model_is_not_kept_and_called_so(base, small):
    """The base competes on the held-out structures."""
    settings = Finetuning(held_out=0.3, epochs=2, learning_rate=0.5, clip=100.0)
    training = Training(base, small, settings, seed=0)
    events = _run(training)
    assert isinstance(events[-1], Ended) and events[-1].best_epoch == 0
    after, before = training.result().module.state_dict(), base.module.state_dict()
    assert all(torch.equal(after[n], before[n]) for n in before)


def test_a_deleted_run_says_so(made, no_models):
    _, folder, card = made
    place = finetuned.models_folder() / card.id
    place.parent.mkdir(parents=True)
    place.symlink_to(folder)
    finetuned._places.clear()
    assert services.load_model(card.id).card.id == card.id
    shutil.rmtree(folder)
    with pytest.raises(UnknownModelError, match="was deleted"):
        services.card(card.id)


def test_a_published_architecture_is_trained_and_loads_again(random_checkpoint, small, no_models):
    """Full size with random weights, through the package's own loader both times."""
    name = "orb-v3-direct-20-mpa"
    model = services.load_model(name, weights=random_checkpoint(name))
    settings = Finetuning(held_out=0.0, epochs=1, parts="heads", learning_rate=1e-3, zero="model")
    training = Training(model, small[:2], settings, seed=0)
    _run(training)
    after, before = training.result().module.state_dict(), model.module.state_dict()
    moved = {n.split(".")[1] for n in before if not torch.equal(after[n], before[n])}
    assert moved == {"energy", "forces", "confidence"}, "the confidence head expects the new errors"
    card = write(no_models / "orb", training, model, STEP)
    again = services.load_model(str(no_models / "orb"))
    assert again.card.confidence_head and finetuned.architecture_of(card) == name
    for a, b in zip(
        again.evaluate([small[0].structure]), training.result().evaluate([small[0].structure]), strict=True
    ):
        assert a.energy == b.energy
        np.testing.assert_array_equal(a.forces_conservative, b.forces_conservative)
        np.testing.assert_array_equal(a.forces_direct, b.forces_direct)
