"""Every file reads back to the numbers that went in."""

from __future__ import annotations

import io
import json
import zipfile

import ase.io
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fdcore import export
from fdcore.records import Evaluation, Evidence, Failure, Score, Structure, Verdict


def make_score(
    n: int = 4, seed: int = 0, *, confidence: bool = False, labels: bool = False, file: str = "a.cif"
) -> Score:
    rng = np.random.default_rng(seed)
    direct, conservative = rng.normal(size=(2, n, 3))
    structure = Structure(
        numbers=rng.choice([11, 17], n),
        positions=rng.uniform(0, 5, (n, 3)),
        cell=5 * np.eye(3),
        pbc=(True, True, True),
        file=file,
        index=seed,
        labels={"forces_eV_per_A": direct + 0.1} if labels else {},
        warnings=("something was decided",),
    )
    evaluation = Evaluation(float(rng.normal()), direct, conservative, rng.uniform(0, 0.3, n) if confidence else None)
    verdict = Verdict("caution", "Use with care.", (Evidence("Closest atoms", "look", "1.2 Å", (0, 1)),), 97.5)
    return Score(structure, "fd-test", evaluation, verdict)


FAILURE = Failure(file="bad.cif", error="Not a CIF.", hint="Save it again.", index=None)
SETTINGS = {"model": "fd-test", "dtype": "float32", "weights_sha256": "ab", "device": "cpu"}


def test_json_has_the_fixed_names_and_the_numbers():
    score = make_score(confidence=True)
    document = json.loads(export.scores_json([score], [FAILURE], "fd-test", SETTINGS))
    assert document["model"] == "fd-test"
    (row,) = document["results"]
    assert (row["file"], row["index"], row["n_atoms"]) == ("a.cif", 0, 4)
    assert row["formula"] == score.structure.formula
    assert row["energy_eV"] == score.evaluation.energy
    assert row["force_delta_eV_per_A"] == score.evaluation.force_delta
    np.testing.assert_array_equal(row["force_delta_per_atom_eV_per_A"], score.evaluation.force_delta_per_atom)
    assert row["verdict"] == "caution"
    assert row["warnings"] == ["something was decided"]
    assert document["errors"] == [{"file": "bad.cif", "error": "Not a CIF.", "hint": "Save it again."}]


def test_json_refuses_to_write_what_is_not_a_number():
    score = make_score()
    broken = Score(score.structure, "m", Evaluation(float("nan"), np.zeros((4, 3)), np.zeros((4, 3))), score.verdict)
    with pytest.raises(ValueError):
        export.scores_json([broken], [], "m")


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 9), seed=st.integers(0, 10**6), confidence=st.booleans())
def test_extxyz_reads_back(n, seed, confidence):
    score = make_score(n, seed, confidence=confidence)
    atoms = ase.io.read(io.StringIO(export.scores_extxyz([score], SETTINGS)), format="extxyz")
    np.testing.assert_array_equal(atoms.numbers, score.structure.numbers)
    np.testing.assert_allclose(atoms.positions, score.structure.positions, atol=1e-7)
    np.testing.assert_allclose(atoms.cell.array, score.structure.cell)
    assert atoms.pbc.all()
    for name in ("forces_direct", "forces_conservative"):
        np.testing.assert_allclose(atoms.arrays[name], getattr(score.evaluation, name), atol=1e-7)
    np.testing.assert_allclose(
        np.ravel(atoms.arrays["force_delta_per_atom"]), score.evaluation.force_delta_per_atom, atol=1e-7
    )
    assert ("confidence" in atoms.arrays) == confidence
    assert atoms.info["force_delta_eV_per_A"] == pytest.approx(score.evaluation.force_delta, abs=1e-7)
    assert "forces" not in atoms.arrays
    assert atoms.calc is None


def test_extxyz_survives_odd_names():
    name = 'a "quoted" <b>name</b> = 1 \\ x.cif'
    atoms = ase.io.read(io.StringIO(export.scores_extxyz([make_score(file=name)])), format="extxyz")
    assert atoms.info["source_file"] == name.replace("\\", "/")


def test_csv_is_sorted_by_u_and_keeps_failures():
    scores = [make_score(seed=s) for s in range(5)]
    table = pd.read_csv(io.StringIO(export.scores_csv(scores, [FAILURE])))
    values = table["force_delta_eV_per_A"].to_numpy()
    assert (np.diff(values[:5]) <= 0).all()
    assert np.isnan(values[5])
    assert table.loc[5, "error"] == "Not a CIF."
    assert table.loc[5, "verdict"] == "failed"
    by_index = {s.structure.index: s.evaluation.force_delta for s in scores}
    for _, row in table[:5].iterrows():
        assert row["force_delta_eV_per_A"] == pytest.approx(by_index[int(row["index"])], rel=1e-12)


def test_only_failures_and_nothing():
    assert export.results_table([], [FAILURE]).loc[0, "file"] == "bad.cif"
    assert export.results_table([], []).empty


def test_per_atom_and_per_element_tables_add_up():
    score = make_score(9, 3, confidence=True)
    atoms = export.per_atom_table(score)
    assert (np.diff(atoms["force_delta_eV_per_A"]) <= 0).all()
    worst = int(score.evaluation.force_delta_per_atom.argmax())
    assert atoms.loc[0, "atom"] == worst
    assert atoms.loc[0, "element"] == score.structure.symbols[worst]
    assert atoms.loc[0, "force_direct_x_eV_per_A"] == score.evaluation.forces_direct[worst, 0]
    elements = export.per_element_table(score)
    assert elements["n_atoms"].sum() == 9
    assert elements["share_of_force_delta_squared"].sum() == pytest.approx(1)
    total = (elements["n_atoms"] * elements["force_delta_eV_per_A"] ** 2).sum() / 9
    assert np.sqrt(total) == pytest.approx(score.evaluation.force_delta)
    components = export.force_components_table(score)
    assert len(components) == 27
    difference = components["force_direct_eV_per_A"] - components["force_conservative_eV_per_A"]
    assert np.sqrt((difference**2).mean()) == pytest.approx(score.evaluation.force_delta)


def test_errors_against_labels():
    row = export.score_row(make_score(labels=True))
    assert row["error_direct_eV_per_A"] == pytest.approx(0.1)
    assert row["error_conservative_eV_per_A"] > 0.1
    assert "error_direct_eV_per_A" not in export.score_row(make_score())


def test_zip_holds_all_of_it():
    scores = [make_score(seed=1), make_score(seed=2)]
    with zipfile.ZipFile(io.BytesIO(export.scores_zip(scores, [FAILURE], "fd-test", SETTINGS))) as archive:
        assert set(archive.namelist()) == {
            "scores.json",
            "scores.csv",
            "scores.extxyz",
            "atoms/00000.csv",
            "atoms/00001.csv",
        }
        assert len(json.loads(archive.read("scores.json"))["results"]) == 2
        assert len(ase.io.read(io.StringIO(archive.read("scores.extxyz").decode()), ":", format="extxyz")) == 2
