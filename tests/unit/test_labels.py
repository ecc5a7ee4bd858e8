"""Labels: values, what travels through files, and which structure a result belongs to."""

from __future__ import annotations

import dataclasses

import ase.db
import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from fdcore import label_files, labels, reference
from fdcore.errors import ComputeError, FdcoreError, FormatError, UsageError
from fdcore.labels import Label, Labelled, LabelledSet, Provenance, match, separation, structure_with
from fdcore.records import Structure
from fdcore.services import labels as service
from fdcore.spec import Spec
from fdcore.structures import read_paths
from fdcore.tasks import label as label_task
from fdcore.tasks.run import execute

TOLD = Provenance(
    "gpaw",
    "5.4",
    {"cutoff_eV": 700.0, "xc": "PBE", "spin": "auto"},
    {"kpoints": [4, 4, 4]},
    "2026-11-25T20:00:00+00:00",
)


def crystal(seed: int = 0, size: float = 0.1) -> Structure:
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.positions += np.random.default_rng(seed).normal(scale=size, size=atoms.positions.shape)
    return Structure.from_atoms(atoms, file="set.extxyz", index=seed)


def water() -> Structure:
    made = Structure.from_atoms(molecule("H2O"))
    return dataclasses.replace(made, file="water.xyz", charge=0, spin=1)


def labelled(structure: Structure, seed: int = 0, told: Provenance = TOLD) -> Label:
    rng = np.random.default_rng(100 + seed)
    return Label(float(rng.normal(scale=50)), rng.normal(size=(structure.n_atoms, 3)), told)


def frame(structure: Structure, label: Label) -> Structure:
    return dataclasses.replace(structure_with(structure, label), file="labels.extxyz")


# ---- records -------------------------------------------------------------------------------------------------------


def test_a_set_tells_labelled_failed_and_unasked_apart():
    a, b, c = crystal(0), crystal(1), crystal(2)
    known = LabelledSet((Labelled(a, labelled(a)), Labelled(b, ComputeError("no SCF", "try")), Labelled(c)))
    assert [s for s, _ in known.labelled] == [a]
    assert known.unlabelled == (c,) and known.without == (b, c)
    assert [f.error for f in known.failed] == ["no SCF"]
    assert known.methods == (TOLD.method,) and "gpaw 5.4 (cutoff_eV 700.0" in TOLD.method
    kept = known.with_labels({0: ComputeError("worse"), 2: labelled(c)})
    assert kept.items[0] == known.items[0], "a failure does not take a label away"
    assert len(kept.labelled) == 2


@pytest.mark.parametrize("bad", [np.full((8, 3), np.nan), np.zeros((7, 3)), np.zeros(24)])
def test_what_is_no_label_is_refused(bad):
    with pytest.raises(UsageError):
        Labelled(crystal(), Label(0.0, bad, TOLD))
    with pytest.raises(UsageError):
        Label(np.inf, np.zeros((8, 3)), TOLD)


def test_the_origin_survives_json():
    assert Provenance.from_json(TOLD.to_json()) == TOLD
    for text in ("[]", "{", '{"reference": 3}', '{"reference": "x", "odd": 1}'):
        with pytest.raises(FormatError):
            Provenance.from_json(text)


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def half() -> LabelledSet:
    structures = [crystal(0), water(), crystal(1), crystal(2)]
    found = {0: labelled(structures[0]), 1: labelled(structures[1], 1), 2: ComputeError('the "SCF" failed', "")}
    return LabelledSet(tuple(map(Labelled, structures))).with_labels(found)


@pytest.mark.parametrize("name", ["x.extxyz", "x.db"])
def test_written_and_read_back(half, tmp_path, name):
    path = tmp_path / name
    if name.endswith(".db"):
        path.write_bytes(label_files.as_database(half))
    else:
        path.write_text(label_files.as_extxyz(half))
    parsed = read_paths([path])
    assert not parsed.failures and len(parsed.structures) == 2
    back = LabelledSet.of(parsed.structures)
    for (s, ours), (t, theirs) in zip(half.labelled, back.labelled, strict=True):
        np.testing.assert_allclose(theirs.forces_reference, ours.forces_reference, atol=1e-8, rtol=0)
        np.testing.assert_allclose(t.positions, s.positions, atol=1e-8, rtol=0)
        assert theirs.energy == pytest.approx(ours.energy, abs=1e-8)
        assert (t.charge, t.spin) == (s.charge, s.spin)
        assert dataclasses.replace(theirs.provenance, file="") == ours.provenance
        assert theirs.provenance.file.endswith(name)
    # And found again by content.
    matching = match(half.structures, parsed.structures)
    assert sorted(matching.labels) == [0, 1] and not matching.unused
    assert all(m.distance_A < 1e-7 for m in matching.matches)


def test_ase_finds_the_labels_where_fine_tuning_looks(half, tmp_path):
    path = tmp_path / "x.extxyz"
    path.write_text(label_files.as_extxyz(half))
    for atoms, (_, label) in zip(ase.io.read(path, index=":"), half.labelled, strict=True):
        assert atoms.get_potential_energy() == pytest.approx(label.energy, abs=1e-8)
        np.testing.assert_allclose(atoms.get_forces(), label.forces_reference, atol=1e-8)
        np.testing.assert_allclose(atoms.arrays["REF_forces"], label.forces_reference, atol=1e-8)
        assert atoms.info["REF_energy"] == pytest.approx(label.energy, abs=1e-8)
        assert atoms.info["label_reference"] == "gpaw" and "cutoff_eV=700.0" in atoms.info["label_settings"]
    (tmp_path / "x.db").write_bytes(label_files.as_database(half))
    for row, (s, label) in zip(ase.db.connect(tmp_path / "x.db").select(), half.labelled, strict=True):  # pyright: ignore
        assert row.energy == label.energy
        np.testing.assert_array_equal(row.forces, label.forces_reference)
        np.testing.assert_array_equal(row.positions, s.positions)


def test_those_without_a_label_are_listed_without_numbers(half, tmp_path):
    path = tmp_path / "rest.extxyz"
    path.write_text(label_files.unlabelled_extxyz(half))
    frames = ase.io.read(path, index=":")
    assert len(frames) == 2 and all(a.calc is None and "REF_energy" not in a.info for a in frames)
    assert frames[0].info["label_error"] == "the 'SCF' failed"
    assert all(not s.labels for s in read_paths([path]).structures)
    document = label_files.document(half)
    assert [len(document[k]) for k in ("results", "unlabelled", "errors")] == [2, 1, 1]


def test_vasp_inputs_for_those_without(half):
    folders, refused = label_files.vasp_folders([*half.without, water()])
    assert len(folders) == 2 and all(
        {"POSCAR", "INCAR", "POTCAR.spec", "order.json"} <= set(f) for f in folders.values()
    )
    assert [f.file for f in refused] == ["water.xyz"]


def test_a_label_from_vasp_comes_home(tmp_path):
    """Out as VASP inputs, which sorts the atoms, and back: refused as it is, found with reorder."""
    atoms = crystal().to_atoms()[[0, 1, 2, 3, 5, 4, 7, 6]]
    atoms.numbers[[0, 3]] = atoms.numbers[[3, 0]]
    structure = Structure.from_atoms(atoms)
    [files] = label_files.vasp_folders([structure])[0].values()
    (tmp_path / "POSCAR").write_text(files["POSCAR"])
    [poscar] = read_paths([tmp_path / "POSCAR"]).structures
    assert not np.array_equal(poscar.numbers, structure.numbers)
    label = labelled(structure)
    [order] = [labels.atom_order(poscar, structure)]
    back = frame(poscar, dataclasses.replace(label, forces_reference=label.forces_reference[order]))
    refused = match([structure], [back])
    assert not refused.labels and "another order" in refused.unused[0].error and "--reorder" in refused.unused[0].hint
    found = match([structure], [back], reorder=True)
    assert found.matches[0].reordered and "put back into order" in found.text
    np.testing.assert_array_equal(found.labels[0].forces_reference, label.forces_reference)


# ---- matching ------------------------------------------------------------------------------------------------------

SET = tuple(crystal(k, 0.02) for k in range(6))


@settings(max_examples=60, deadline=None)
@given(
    order=st.permutations(range(len(SET))),
    decimals=st.integers(6, 12),
    moves=st.lists(st.integers(-30, 30), min_size=24, max_size=24),
    missing=st.sets(st.integers(0, 5), max_size=3),
)
def test_rounded_wrapped_and_shuffled_frames_find_their_structure(order, decimals, moves, missing):
    frames = []
    images = np.array(moves).reshape(8, 3)
    for k in order:
        if k not in missing:
            s = SET[k]
            moved = np.round(s.positions + images @ s.cell, decimals)
            frames.append(
                frame(dataclasses.replace(s, positions=moved, cell=np.round(s.cell, decimals)), labelled(s, k))
            )
    matching = match(SET, frames)
    assert sorted(matching.labels) == sorted(set(range(6)) - missing)
    assert not matching.unused
    for k, label in matching.labels.items():
        np.testing.assert_array_equal(label.forces_reference, labelled(SET[k], k).forces_reference)


@settings(max_examples=60, deadline=None)
@given(atom=st.integers(0, 7), axis=st.integers(0, 2), by=st.floats(3e-5, 0.3), cell=st.booleans())
def test_a_near_miss_is_refused(atom, axis, by, cell):
    s = SET[0]
    positions, vectors = s.positions.copy(), s.cell.copy()
    if cell:
        vectors[axis, axis] += by
    else:
        positions[atom, axis] += by
    other = dataclasses.replace(s, positions=positions, cell=vectors)
    matching = match([s], [frame(other, labelled(s))])
    assert not matching.labels and "none of the structures" in matching.unused[0].error
    assert separation(s, other) == pytest.approx(by, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(8)))
def test_a_permutation_is_never_silent(order):
    s = SET[0]
    label = labelled(s)
    there = dataclasses.replace(s, numbers=s.numbers[order], positions=s.positions[order])
    back = frame(there, dataclasses.replace(label, forces_reference=label.forces_reference[order]))
    allowed = match([s], [back], reorder=True)
    np.testing.assert_array_equal(allowed.labels[0].forces_reference, label.forces_reference)
    assert bool(match([s], [back]).labels) == (list(order) == list(range(8)))


def test_copies_share_a_label_and_contradictions_are_errors():
    s = SET[0]
    first, again, other = labelled(s), labelled(s), labelled(s, 9)
    assert sorted(match([s, SET[1], s], [frame(s, first)]).labels) == [0, 2]
    assert match([s], [frame(s, first), frame(s, again)]).labels[0] == frame_label(s, first)
    contradiction = match([s], [frame(s, first), frame(s, other)]).labels[0]
    assert isinstance(contradiction, FdcoreError) and "say different things" in contradiction.message


def frame_label(s: Structure, label: Label) -> Label:
    return dataclasses.replace(label, provenance=dataclasses.replace(label.provenance, file="labels.extxyz"))


def test_two_structures_within_rounding_are_not_guessed_between():
    s = SET[0]
    twin = dataclasses.replace(s, positions=s.positions + 1e-5)
    between = dataclasses.replace(s, positions=s.positions + 4e-6)
    matching = match([s, twin], [frame(between, labelled(s))])
    assert not matching.labels and "two different structures" in matching.unused[0].error
    near = dataclasses.replace(s, positions=s.positions + 1e-8)
    assert sorted(match([s, twin], [frame(near, labelled(s))]).labels) == [0]


def test_what_makes_another_structure():
    s = water()
    label = labelled(s)
    for changed in (
        {"charge": 1},
        {"spin": 3},
        {"pbc": (True,) * 3, "cell": 9 * np.eye(3)},
        {"numbers": np.array([8, 1, 9])},
    ):
        other = dataclasses.replace(s, **changed)
        assert not match([s], [frame(other, label)]).labels, changed
    silent = dataclasses.replace(s, charge=None, spin=None)
    assert match([s], [frame(silent, label)]).labels
    assert "No reference forces" in match([s], [s]).unused[0].error


def test_a_frame_whose_density_failed_says_why():
    s = dataclasses.replace(SET[0], warnings=("the density did not become self-consistent",))
    assert "did not become self-consistent" in match([s], [s]).unused[0].error


# ---- the task ------------------------------------------------------------------------------------------------------


def test_chgnet_labels_are_chgnets_own(tmp_path):
    pytest.importorskip("chgnet")
    from chgnet.model.dynamics import CHGNetCalculator

    structures = [crystal(k) for k in range(3)]
    spec = service.spec_of(structures, "chgnet")
    outcome = execute(spec, structures, lambda _: None, tmp_path / "1")
    assert outcome.state == "done" and outcome.summary is not None
    assert (outcome.summary["labelled"], outcome.summary["failed"]) == (3, 0)
    made = label_task.read(tmp_path / "1", spec, structures)
    for s, label in made.labelled:
        atoms = s.to_atoms()
        atoms.calc = CHGNetCalculator(use_device="cpu")
        np.testing.assert_allclose(label.forces_reference, atoms.get_forces(), atol=1e-5)
        assert label.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
        assert label.provenance.reference == "chgnet" and label.provenance.version.startswith("0.4")
        assert label.provenance.made_at.startswith("20")


def test_stopped_it_keeps_what_it_had_and_goes_on(tmp_path, monkeypatch):
    asked: list[int] = []

    def answering(_):
        def answer(s):
            asked.append(s.index)
            if s.index == 1:
                raise ComputeError("no SCF", "try")
            return reference.Truth(float(s.index), s.positions, {"kpoints": [s.index]})

        return answer

    monkeypatch.setitem(
        reference.REFERENCES, "fake", reference.Reference("fake", "Fake", "", "", "", lambda: None, answering=answering)
    )
    structures = [crystal(k) for k in range(5)]
    spec = Spec("label", None, "", 5, {"reference": "fake"}, versions={"fake": "1"})
    stopped = execute(spec, structures, lambda _: None, tmp_path / "1", should_stop=lambda: len(asked) >= 3)
    assert stopped.state == "cancelled" and asked == [0, 1, 2]
    part = label_task.read(tmp_path / "1", spec, structures)
    assert [type(i.label).__name__ for i in part] == ["Label", "ComputeError", "Label", "NoneType", "NoneType"]
    done = execute(spec, structures, lambda _: None, tmp_path / "2", previous=[tmp_path / "1"])
    assert done.state == "done" and asked == [0, 1, 2, 3, 4], "nothing is asked twice"
    whole = label_task.read(tmp_path / "2", spec, structures)
    assert [s.index for s, _ in whole.labelled] == [0, 2, 3, 4]
    assert [f.error for f in whole.failed] == ["no SCF"]
    for s, label in whole.labelled:
        assert label.energy == s.index and label.provenance.details == {"kpoints": [s.index]}
        np.testing.assert_array_equal(label.forces_reference, s.positions)


def test_settings_and_references_that_there_are_not():
    for name, given_settings, words in (
        ("chgnet", {"cutoff_eV": 1}, "no setting 'cutoff_eV'"),
        ("gpaw", {"cutoff": 1}, "Known are cutoff_eV"),
        ("gpaw", {"xc": "B3LYP"}, "Known are PBE"),
        ("dance", {}, "no reference"),
    ):
        with pytest.raises(UsageError, match=words):
            reference.reference(name, given_settings)


def test_what_a_file_says_of_a_structure_is_written_with_its_label(tmp_path):
    """A validation groups by it; a quote or a backslash in it breaks no file."""
    tagged = dataclasses.replace(
        Structure.from_atoms(molecule("H2O"), file="w.xyz"), tags={"system": 'the "wet" one', "sigma_a": "0.05"}
    )
    known = LabelledSet.of([tagged]).with_labels({0: Label(-1.0, np.zeros((3, 3)), Provenance("test"))})
    path = tmp_path / "x.extxyz"
    path.write_text(label_files.as_extxyz(known))
    [back] = read_paths([path]).structures
    assert back.tags["system"] == "the 'wet' one" and back.tags["sigma_a"] == "0.05"
