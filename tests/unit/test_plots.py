"""Charts, scenes and table rows: what they are given is what they show."""

from __future__ import annotations

import json

import ase.build
import numpy as np
import pandas as pd
import pytest

from fdcore import export, plots, tables
from fdcore.distribution import ReferenceDistribution
from fdcore.records import Evaluation, Failure, Score, Structure, Verdict
from fdcore.scene import scene

REFERENCE = ReferenceDistribution("none", tuple(np.linspace(0.01, 0.2, 100)), (), "test")


def score_of(atoms, gap=0.1, seed=0):
    noise = np.random.default_rng(seed)
    conservative = noise.normal(size=(len(atoms), 3))
    direct = conservative + gap * noise.normal(size=(len(atoms), 3))
    return Score(
        Structure.from_atoms(atoms, file="x.cif"),
        "none",
        Evaluation(0.0, direct, conservative),
        Verdict("unknown", "", ()),
    )


def rows_of(chart) -> list[list[dict]]:
    return list(chart.to_dict()["datasets"].values())


@pytest.mark.parametrize("value", [0.0, 1e-9, 0.05, 40.0])
def test_reference_bar_shows_any_value_inside_its_axis(value):
    chart = plots.reference_bar(value, REFERENCE).to_dict()
    [low, high] = chart["layer"][0]["encoding"]["x"]["scale"]["domain"]
    marks = [row for rows in chart["datasets"].values() for row in rows if row.get("what") == "this structure"]
    assert marks[0]["value"] == value
    assert 0 < low <= marks[0]["low"] <= high


def test_reference_bar_counts_every_known_structure():
    bins = [row["count"] for rows in rows_of(plots.reference_bar(0.05, REFERENCE)) for row in rows if "count" in row]
    assert sum(bins) == len(REFERENCE.values)


def test_parity_shows_every_component_of_a_small_structure():
    table = export.force_components_table(score_of(ase.build.bulk("NaCl", "rocksalt", a=5.6, cubic=True)))
    assert max(len(rows) for rows in rows_of(plots.force_parity(table))) == 24


def test_parity_of_a_large_structure_keeps_the_worst_and_says_so():
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.6, cubic=True) * (8, 8, 8)
    table = export.force_components_table(score_of(atoms))
    chart = plots.force_parity(table)
    shown = pd.DataFrame(max(rows_of(chart), key=len))
    assert len(shown) <= plots.MOST_POINTS
    assert f"{len(table):,}" in chart.to_dict()["title"]["subtitle"]
    gap = (table["force_direct_eV_per_A"] - table["force_conservative_eV_per_A"]).abs()
    shown_gap = (shown["force_direct_eV_per_A"] - shown["force_conservative_eV_per_A"]).abs()
    assert shown_gap.max() == gap.max()


def test_element_bars_take_the_table_as_it_is():
    table = export.per_element_table(score_of(ase.build.molecule("CH3CH2OH")))
    shown = max(rows_of(plots.element_bars(table)), key=len)
    assert [row["element"] for row in shown] == list(table["element"])


def test_scene_wraps_crystals_and_leaves_molecules_alone():
    crystal = ase.build.bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    crystal.positions += [100.0, 0.0, 0.0]
    drawn = scene(score_of(crystal))
    assert np.abs(np.reshape(drawn["positions"], (-1, 3))).max() < 5.7
    assert drawn["cell"] is not None
    molecule = ase.build.molecule("H2O")
    molecule.positions += [100.0, 0.0, 0.0]
    drawn = scene(score_of(molecule))
    assert np.reshape(drawn["positions"], (-1, 3))[:, 0].min() > 90
    assert drawn["cell"] is None


def test_scale_reaches_the_ordinary_range_so_that_agreement_looks_calm():
    drawn = scene(score_of(ase.build.molecule("H2O"), gap=1e-6), REFERENCE)
    assert drawn["values"]["force_delta"]["top"] == REFERENCE.quantile(0.95)
    assert json.loads(json.dumps(drawn)) == drawn


def test_both_forces_share_one_scale():
    values = scene(score_of(ase.build.molecule("H2O"), gap=2.0))["values"]
    assert values["force_direct"]["top"] == values["force_conservative"]["top"]


def test_rows_are_filtered_by_verdict_and_text_and_named_by_file_and_frame():
    table = export.results_table(
        [score_of(ase.build.molecule("H2O"))],
        [Failure("torn.cif", "no cell", "bring one"), Failure("y.xyz", "gold", "", 3)],
    )
    assert list(tables.filter_results(table, ["failed"])["file"]) == ["torn.cif", "y.xyz"]
    assert list(tables.filter_results(table, text="NO CELL")["file"]) == ["torn.cif"]
    assert tables.row_key(table, 0) == ("x.cif", 0)
    assert tables.row_key(table, 1) == ("torn.cif", None)
    assert tables.row_key(table, 2) == ("y.xyz", 3)
    assert "warnings" not in tables.columns_with_content(table, ["file", "warnings", "absent"])


def test_atom_row_agrees_with_the_table():
    score = score_of(ase.build.molecule("CH3CH2OH"))
    table = export.per_atom_table(score)
    for _, row in table.iterrows():
        one = tables.atom_row(score, int(row["atom"]))
        for name, value in one.items():
            assert value == row[name] or value == pytest.approx(row[name])
