"""Stability measurements: what is read from their tables, and the report."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from fdcore import drift_report, drifts
from fdcore.errors import UsageError
from fdcore.records import Structure
from fdcore.stability.ladder import ladder
from fdcore.stability.settings import Stability
from fdcore.tasks.stability import StabilityParameters

NAMES = ("base", "<b>tuned</b>")
# meV/atom/ps of each seed, under each model.
SLOPES = np.array([[6.0, 4.0, -5.0, 7.0, 3.0], [1.0, 2.0, -0.5, 1.5, 0.8]])


@pytest.fixture
def structure() -> Structure:
    return Structure(
        np.array([11, 17]), np.array([[0.0, 0, 0], [2.8, 0, 0]]), 5.6 * np.eye(3), (True,) * 3, file="a.cif"
    )


def _tables(structure: Structure, slopes: np.ndarray = SLOPES) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    rows = []
    for model, of_model in enumerate(slopes):
        for seed, slope in enumerate(of_model):
            time = np.linspace(0, 10, 101)
            energy = 3.0 + slope * time * structure.n_atoms / 1000 + rng.normal(0, 1e-5, 101)
            rows += [(model, 0, seed, t, e, 150.0, 0.03) for t, e in zip(time, energy, strict=True)]
    names = ("model", "parent", "seed", "time_ps", "conserved_eV", "temperature_K", "force_delta_eV_per_A")
    series = {n: np.array(c) for n, c in zip(names, zip(*rows, strict=True), strict=True)}
    u = np.array([0.1, 0.2, 0.4, 0.05, 0.1, 0.2])
    errors = {
        "model": np.array([0, 0, 0, 1, 1, 1]),
        "rung": np.array([0, 1, 2, 0, 1, 2]),
        "force_delta_eV_per_A": u,
        "error_direct_eV_per_A": 0.5 * u,
        "error_conservative_eV_per_A": 2 * u,
        "error_energy_eV_per_atom": np.array([0.001, -0.003, 0.005, 0, 0, np.nan]),
    }
    return {
        "series": series,
        "errors": errors,
        "ladder": {"sigma_A": np.array([0.02, 0.02, 0.1])},
        "relaxations": {
            "model": np.array([0, 1]),
            "iterations": np.array([12, 30]),
            "converged": np.array([1, 0]),
            "moved_A": np.array([0.1, 0.2]),
        },
    }


@pytest.fixture
def found(structure):
    result = {"dynamics_seconds": [10.0, 20.0], "steps_done": [1000, 1000]}
    parameters = StabilityParameters(models=("other",), reference="chgnet")
    return drifts.measured(_tables(structure), (), result, NAMES, (structure,), parameters)


def test_drift_is_the_mean_magnitude_over_the_seeds(found):
    base, tuned = found.models
    assert [r.drift.slope for r in base.runs] == pytest.approx(SLOPES[0], abs=0.02)
    assert base.drift.value == pytest.approx(5.0, abs=0.02) and base.signed_drift.value == pytest.approx(3.0, abs=0.02)
    # Student's t with 4 degrees of freedom: 2.776.
    assert base.drift.half_width == pytest.approx(2.776 * np.abs(SLOPES[0]).std(ddof=1) / 5**0.5, rel=0.02)
    assert tuned.drift.value == pytest.approx(1.16, abs=0.02)
    assert base.steps_per_second == 100 and tuned.steps_per_second == 50


def test_a_change_is_paired_by_seed(found):
    change = np.abs(SLOPES[1]) - np.abs(SLOPES[0])
    assert found.changes[0] is None
    assert found.changes[1].value == pytest.approx(change.mean(), abs=0.03)
    assert found.changes[1].half_width == pytest.approx(2.776 * change.std(ddof=1) / 5**0.5, rel=0.03)
    said = " ".join(drifts.sentences(found))
    assert "5 seeds, runs of 10 ps" in said and "drifts less than base" in said and "0.23 times that of base" in said


def test_a_change_that_is_smaller_than_its_error_is_called_so(structure):
    same = np.stack([SLOPES[0], SLOPES[0] + np.array([0.5, -0.6, 0.4, 0.3, -0.7])])
    found = drifts.measured(_tables(structure, same), (), None, NAMES, (structure,), StabilityParameters())
    assert any("cannot be told from" in s for s in drifts.sentences(found))
    worse = drifts.measured(_tables(structure, SLOPES[::-1]), (), None, NAMES, (structure,), StabilityParameters())
    assert any("drifts MORE" in s for s in drifts.sentences(worse))


def test_bands_and_ranks(found):
    rows = drifts.band_rows(found)
    assert [(r["model"], r["sigma_A"], r["n"]) for r in rows][:2] == [("base", 0.02, 2), ("base", 0.1, 1)]
    assert rows[0]["force_delta_eV_per_A"] == pytest.approx(np.sqrt((0.1**2 + 0.2**2) / 2))
    assert rows[0]["error_conservative_eV_per_A"] == pytest.approx(2 * rows[0]["force_delta_eV_per_A"])
    assert rows[0]["error_energy_meV_per_atom"] == pytest.approx(2.0)
    assert rows[3]["error_energy_meV_per_atom"] is None, "not known is not zero"
    assert found.models[0].ranks_conservative.r_s == pytest.approx(1.0)


def test_distribution_of_u(found):
    assert found.models[0].force_delta_displaced.tolist() == [0.1, 0.2, 0.4]
    assert len(found.models[0].force_delta_nve) == 101 * 5
    drawn = drift_report.figures(found)["force_delta"].to_dict()
    values = [row["u"] for data in drawn["datasets"].values() for row in data if row["where"] == "displaced copies"]
    assert sorted(values) == sorted([0.1, 0.2, 0.4, 0.05, 0.1, 0.2])


def test_runs_that_ended_early_are_told(structure):
    notes = ({"model": 1, "parent": 0, "seed": 2, "ended": "temperature", "text": "", "step": 5},)
    found = drifts.measured(_tables(structure), notes, None, NAMES, (structure,), StabilityParameters())
    assert [m.ended_early for m in found.models] == [0, 1]
    said = " ".join(drifts.sentences(found))
    assert (
        "1 of 5 runs of <b>tuned</b> blew up" in said
        and "is LESS stable than base" in said
        and "drifts less" not in said
    )
    # Its slope until then is no drift.
    assert found.models[1].drift.value == pytest.approx(np.delete(SLOPES[1], 2).mean(), abs=0.02)
    assert found.changes[1].n == 4


def test_few_seeds_are_called_few(structure):
    found = drifts.measured(_tables(structure, SLOPES[:, :2]), (), None, NAMES, (structure,), StabilityParameters())
    said = " ".join(drifts.sentences(found))
    assert "Fewer than 5 seeds say little" in said and "times that of" not in said


def test_nothing_yet(structure):
    found = drifts.measured({}, (), None, NAMES, (structure,), StabilityParameters())
    assert drifts.sentences(found) == [] and drifts.band_rows(found) == []
    assert all(r["drift_abs_meV_per_atom_per_ps"] is None for r in drifts.model_rows(found))
    assert "Stability of 2 models" in drift_report.html(found, {})


def test_report_is_one_page_without_anything_from_outside(found):
    page = drift_report.html(found, {"spec": {"file": "<script>alert(1)</script>"}}, ["1 < 2"])
    assert "<script" not in page and "&lt;b&gt;tuned" in page and "1 &lt; 2" in page
    assert "<b>tuned" not in page, "what a user called it is no markup, in tables as in figures"
    assert page.count("<svg") == 4
    for text in ("href=", "src=", "@import", "url(http"):
        assert text not in page.replace('xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    for figure in drift_report.figures(found).values():
        root = ElementTree.fromstring(drift_report.svg(figure))
        assert root.tag.endswith("svg") and len(list(root.iter())) > 20


def test_archive_reads_back(found):
    with zipfile.ZipFile(io.BytesIO(drift_report.archive(found, {"seed": 1}))) as archived:
        names = set(archived.namelist())
        assert names == {"report.html", "stability.json", "models.csv", "bands.csv"} | {
            f"{n}.{e}" for n in ("drift", "energy", "errors", "force_delta") for e in ("svg", "png")
        }
        assert archived.read("drift.png").startswith(b"\x89PNG")
        document = json.loads(archived.read("stability.json"))
        table = pd.read_csv(io.BytesIO(archived.read("models.csv")))
    assert document["models"][0]["drift_abs_meV_per_atom_per_ps"] == pytest.approx(5.0, abs=0.02)
    assert table["drift_abs_meV_per_atom_per_ps"].tolist() == pytest.approx([5.0, 1.16], abs=0.02)
    assert len(document["runs"]) == 10 and document["provenance"] == {"seed": 1}


def test_ladder_depends_on_seed_and_place_alone(structure):
    once = ladder([structure], (0.1, 0.2), 3, 5)
    assert [(r.sigma_A, r.parent) for r in once] == [(0.1, 0)] * 3 + [(0.2, 0)] * 3
    more = ladder([structure, structure], (0.1, 0.2), 3, 5)
    for a, b in zip(once, more, strict=False):
        np.testing.assert_array_equal(a.structure.positions, b.structure.positions)
    many = ladder([structure], (0.1,), 400, 1)
    moved = np.concatenate([r.structure.positions - structure.positions for r in many])
    assert moved.std() == pytest.approx(0.1, rel=0.05)


def test_settings_become_a_leg():
    leg = Stability(picoseconds=10.0).leg(0.5)
    assert (leg.steps, leg.ensemble, leg.driver, leg.timestep_fs) == (20000, "nve", "direct", 0.5)
    assert leg.steps * leg.timestep_fs == 10_000
    for wrong in ({"seeds": 0}, {"sigmas_A": "0.1"}, {"sigmas_A": (3.0,)}, {"picoseconds": 0.0}):
        with pytest.raises(UsageError):
            Stability(**wrong)


def test_the_picture_of_what_will_come_has_the_measured_numbers():
    """Of docs/method.md, whose table is the source."""
    from fdcore import finetuning_plots

    text = (Path(__file__).parents[2] / "docs" / "method.md").read_text()
    for _, drift, half in finetuning_plots.MEASURED:
        assert f"{drift} ± {half:g}" in text or f"{drift} ± {half:.2f}" in text
    assert finetuning_plots.measured_loop().to_dict()["layer"]
