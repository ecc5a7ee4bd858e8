"""What a recorded run says, as numbers, files and charts: each read back and compared with what was put in."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import ase.io
import h5py
import numpy as np
import pandas as pd
import pytest
from ase import units
from hypothesis import given
from hypothesis import strategies as st

from fdcore import motion, motion_files, motion_plots, mts_advice
from fdcore.dynamics.settings import Leg
from fdcore.human import plus_minus
from fdcore.motion import Motion, Track
from fdcore.records import Failure
from fdcore.spec import ModelChoice, Spec
from fdcore.statistics import Slope
from fdcore.tasks.run import execute
from fdcore.units import KB
from tests.dynamics.springs import SpringModel, crystal, thermal_displacements

MODEL = ModelChoice("fd-orb-small-v1")
MD = {
    "steps": 60,
    "timestep_fs": 5.0,
    "monitor_every": 10,
    "frame_every": 20,
    "equilibrate_steps": 20,
    "thermostat": "vrescale",
    "stop_closest": 0.0,
}


def recorded(folder, task: str, parameters: dict, structures=None, swirl: float = 0.05) -> Motion:
    """A run of springs from the first record to what is read of it."""
    structures = structures or [crystal()]
    spec = Spec(task, MODEL, "", len(structures), parameters)
    outcome = execute(spec, structures, lambda _: SpringModel(swirl), folder)
    assert outcome.state == "done", outcome.error
    return motion.read(folder, spec, structures, outcome.summary)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("motion") / "1"


@pytest.fixture(scope="module")
def found(folder) -> Motion:
    return recorded(folder, "md", MD)


def made(conserved_eV, kinetic_eV=None, u=None, steps: int = 1000) -> Motion:
    """One crystal whose conserved quantity is this, recorded at every step of 1 fs."""
    n = len(conserved_eV)
    structure = crystal()
    kinetic = np.full(n, 2.0) if kinetic_eV is None else kinetic_eV
    columns = {
        "step": np.arange(n),
        "time_ps": np.arange(n) * 1e-3,
        "energy_potential_eV": np.asarray(conserved_eV) - kinetic,
        "energy_kinetic_eV": kinetic,
        "conserved_eV": np.asarray(conserved_eV, float),
        "temperature_K": 2 * kinetic / ((3 * structure.n_atoms - 3) * KB),
        "temperature_by_element_K": np.full((n, 2), 300.0),
        "net_momentum": np.zeros(n),
        "closest_A": np.full(n, 2.8),
        "force_delta_eV_per_A": np.full(n, np.nan) if u is None else u,
        "worst_atom": np.full(n, -1),
        "worst_atom_eV_per_A": np.full(n, np.nan) if u is None else u,
    }
    spec = Spec("md", MODEL, "", 1, {"steps": steps, "timestep_fs": 1.0})
    track = Track(0, 0, columns)
    leg = Leg(steps=steps, timestep_fs=1.0)
    return Motion(spec, (structure,), (structure,), (leg,), None, {(0, 0): track}, {}, (), None)


# ---- numbers -------------------------------------------------------------------------------------------------------


def test_drift_has_the_units_it_says():
    """64 atoms that gain 0.32 eV in a picosecond gain 5 meV each; put into motion that is 5 meV / (3/2 k_B) at 3N - 3."""
    found = motion.summary(made(np.linspace(0.0, 0.32, 1001), kinetic_eV=2 + 0.1 * np.sin(np.arange(1001))), 0, 0)
    assert found.drift.slope == pytest.approx(5.0)
    assert found.drift_K_per_ps.slope == pytest.approx(0.32 / (0.5 * (3 * 64 - 3) * KB), rel=1e-6)
    assert found.drift_over_fluctuation_per_ps == pytest.approx(0.32 / (0.1 * np.sqrt(0.5)), rel=1e-2)
    assert "drifts by +5" in motion.sentence(found)


def test_energy_that_only_fluctuates_has_no_drift():
    noise = 0.01 * np.random.default_rng(0).standard_normal(1001)
    found = motion.summary(made(noise), 0, 0)
    assert not found.drift.significant and found.drift.low < 0 < found.drift.high
    assert "No drift can be told" in motion.sentence(found)


def test_within_a_vibration_nothing_is_said_of_a_drift():
    """A part of an oscillation looks like a trend, however densely it is recorded."""
    for steps in (20, 80, 200):
        found = motion.summary(made(0.01 * np.sin(2 * np.pi * np.arange(steps) / 150)), 0, 0)
        assert found.drift.half_width is None and "Too short" in motion.sentence(found)
    assert motion.summary(made(0.01 * np.sin(np.arange(300))), 0, 0).drift.half_width is not None


def test_what_is_too_short_says_so():
    found = motion.summary(made([0.0, 0.1, 0.2]), 0, 0)
    assert found.drift.half_width is None and "Too short" in motion.sentence(found)
    assert motion.summary(replace(made([0.0]), tracks={}), 0, 0).drift is None


def test_force_delta_is_averaged_where_it_was_computed():
    u = np.full(1001, np.nan)
    u[::100] = np.arange(11.0)
    found = motion.summary(made(np.zeros(1001), u=u), 0, 0)
    assert found.force_delta_mean == 5.0 and found.force_delta_max == 10.0
    assert motion.summary(made(np.zeros(1001)), 0, 0).force_delta_mean is None, "missing, not zero"


def test_why_it_ended(found):
    short = replace(made(np.zeros(11)), result={"steps_done": [10], "seconds": [0.0, 2.0]})
    note = {"leg": 0, "system": 0, "step": 10, "ended": "temperature", "text": "Too hot."}
    assert motion.summary(replace(short, notes=(note,)), 0, 0).stopped_because == "temperature"
    assert motion.summary(short, 0, 0).steps_per_second == 5.0
    assert motion.summary(replace(short, result=None), 0, 0).stopped_because == "cancelled"
    assert motion.summary(found, 1, 0).stopped_because == "completed"


def test_several_replicas_have_the_interval_of_their_spread():
    u = np.where(np.arange(1001) % 10 == 0, 0.5, np.nan)
    runs = [motion.summary(made(np.linspace(0, 0.064 * s, 1001), u=s * u), 0, 0) for s in (1.0, 2.0, 3.0)]
    pooled = motion.pooled(runs)
    assert pooled.drift.slope == pytest.approx(2.0)
    # Student's t with two degrees of freedom, standard deviation 1, three runs.
    assert pooled.drift.half_width == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4)
    # Everything else is of all three as well.
    ratio = pooled.drift_K_per_ps.slope / pooled.drift.slope
    assert pooled.drift_K_per_ps.half_width == pytest.approx(ratio * pooled.drift.half_width)
    assert pooled.force_delta_mean == pytest.approx(1.0) and pooled.force_delta_max == 1.5
    short = [*runs[:2], motion.summary(made(np.linspace(0, 0.064, 101)), 0, 0)]
    assert motion.pooled(short).drift.half_width is None, "one of them is too short"
    assert motion.pooled(runs[:1]) is runs[0]


@given(st.floats(-1e5, 1e5), st.floats(1e-6, 1e5))
def test_measured_numbers_are_said_within_their_error(value, half):
    shown, error = plus_minus(value, half).split(" ± ")
    assert abs(float(shown) - value) <= 0.06 * half + 0.006 * abs(value)
    assert float(error) == pytest.approx(half, rel=0.06)


# ---- files ---------------------------------------------------------------------------------------------------------


def test_json_has_the_names_of_the_design(found):
    bad = Failure("bad.xyz", "It is broken.", "Mend it.")
    document = json.loads(motion_files.md_json(found, [bad], {"fdcore": "1"}))
    summary, series = document["summary"], document["series"]
    assert {"drift_meV_per_atom_per_ps", "drift_ci", "temperature_K", "force_delta_mean", "steps_done"} <= set(summary)
    assert summary["stopped_because"] == "completed" and summary["steps_done"] == 60
    assert set(summary["temperature_K"]) == {"all", "Na", "Cl"}
    low, high = summary["drift_ci"]
    assert low < summary["drift_meV_per_atom_per_ps"] < high
    assert len({len(column) for column in series.values()}) == 1 and series["step"] == list(range(61))
    np.testing.assert_allclose(
        series["energy_total_eV"], np.add(series["energy_potential_eV"], series["energy_kinetic_eV"])
    )
    # U every ten steps; what was not computed is null, never zero.
    computed = [u is not None for u in series["force_delta_eV_per_A"]]
    assert computed == [k % 10 == 0 for k in range(61)]
    [error] = document["errors"]
    assert (error["file"], error["error"], error["hint"]) == ("bad.xyz", "It is broken.", "Mend it.")
    assert document["provenance"] == {"fdcore": "1"}
    assert Spec.from_json(json.dumps(document["spec"])) == found.spec
    [only] = document["systems"]
    assert [leg["ensemble"] for leg in only["legs"]] == ["nvt"]


def test_csv_reads_back(found):
    table = pd.read_csv(io.StringIO(motion_files.series_csv(found)))
    assert list(table["leg"].unique()) == ["equilibration", "production"] and len(table) == 21 + 61
    part = table[table["leg"] == "production"]
    np.testing.assert_allclose(part["conserved_eV"], found.tracks[1, 0].columns["conserved_eV"])
    assert part["force_delta_eV_per_A"].notna().sum() == 7


def test_trajectory_reads_back_with_both_forces(found, folder):
    frames = list(motion.frames(found, folder))
    listed = ase.io.read(io.StringIO(motion_files.trajectory_extxyz(found, folder)), ":", format="extxyz")
    assert [a.info["step"] for a in listed] == [0, 20, 40, 60] == [f.step for f in frames]
    for atoms, frame in zip(listed, frames, strict=True):
        np.testing.assert_allclose(atoms.positions, frame.positions, atol=1e-7)
        np.testing.assert_allclose(atoms.get_velocities() * units.fs, frame.velocities, atol=1e-8)
        np.testing.assert_allclose(atoms.arrays["forces_direct"], frame.forces_direct, atol=1e-7)
        u = atoms.arrays["force_delta_per_atom"]
        difference = atoms.arrays["forces_direct"] - atoms.arrays["forces_conservative"]
        np.testing.assert_allclose(u, np.sqrt((difference**2).sum(1) / 3), atol=1e-6)
        assert atoms.info["force_delta"] == pytest.approx(np.sqrt(np.mean(u**2)), abs=1e-6)
        assert atoms.pbc.all() and atoms.cell.volume == pytest.approx(11.2**3)


def test_kinetic_energy_of_a_frame_is_that_of_the_series(found, folder):
    """Velocities in Å/fs, masses in amu: the frame and the series must agree in eV."""
    last = ase.io.read(io.StringIO(motion_files.trajectory_extxyz(found, folder)), "-1", format="extxyz")
    track = found.tracks[1, 0].columns
    assert last.get_kinetic_energy() == pytest.approx(track["energy_kinetic_eV"][-1], rel=1e-6)


def test_hdf5_reads_back(found, folder):
    with h5py.File(io.BytesIO(motion_files.trajectory_hdf5(found, folder, 0))) as file:
        assert file["position_A"].shape == (4, 64, 3) and list(file["step"]) == [0, 20, 40, 60]
        frames = list(motion.frames(found, folder))
        np.testing.assert_array_equal(file["velocity_A_per_fs"][2], frames[2].velocities)
        np.testing.assert_array_equal(file["forces_conservative_eV_per_A"][3], frames[3].forces_conservative)
        assert list(file["numbers"]) == list(crystal().numbers) and json.loads(file.attrs["spec"])["task"] == "md"


def test_relaxed_structures_and_their_document(tmp_path):
    displaced = crystal()
    moved = displaced.positions + thermal_displacements(displaced, 200.0, np.random.default_rng(1))
    displaced = replace(displaced, positions=moved)
    found = recorded(tmp_path / "1", "relax", {"driver": "conservative", "fmax_eV_per_A": 0.01}, [displaced])
    document = json.loads(motion_files.relax_json(found, tmp_path / "1"))
    [row] = document["results"]
    assert row["converged"] is True and row["fmax_eV_per_A"] < 0.01 and row["energy_change_eV"] < 0
    # The springs' minimum is the lattice, wherever the whole of it stands.
    shift = np.array(row["positions_A"]) - crystal().positions
    assert np.abs(shift - shift.mean(0)).max() < 0.01
    assert row["series"]["iteration"][-1] == row["iterations"] == len(row["series"]["energy_eV"]) - 1
    [relaxed] = motion.relaxed_structures(found, tmp_path / "1").values()
    np.testing.assert_array_equal(relaxed.positions, row["positions_A"])
    assert len(pd.read_csv(io.StringIO(motion_files.relaxation_csv(found)))) == row["iterations"] + 1


def test_files_of_the_archive(found, folder):
    files = motion_files.archived(found, folder, [], None)
    assert set(files) == {"motion.json", "series.csv", "trajectory.extxyz"}


# ---- the advisor ---------------------------------------------------------------------------------------------------

ADVISOR = {
    "steps": 400,
    "strides": [1, 2, 8],
    "timestep_fs": 2.0,
    "equilibrate_steps": 100,
    "relax_fmax_eV_per_A": None,
    "thermostat": "langevin",
}


def test_advice_is_the_largest_stride_that_stays_near_the_conservative_run(tmp_path):
    found = recorded(tmp_path / "1", "mts-advisor", {**ADVISOR, "tolerance_meV_per_atom_per_ps": 1.0}, swirl=0.2)
    advice = mts_advice.advice(found)
    by_name = {arm.name: arm for arm in advice.arms}
    assert list(by_name) == ["conservative", "M = 1", "M = 2", "M = 8", "direct"]
    assert abs(by_name["conservative"].drift.slope) < 0.5 and by_name["conservative"].temperature_error_K == 0
    assert abs(by_name["direct"].drift.slope) > 5 and by_name["direct"].allowed is False
    # M = 1 is the conservative run, to the last digit that matters.
    assert by_name["M = 1"].drift.slope == pytest.approx(by_name["conservative"].drift.slope, abs=1e-6)
    rows = {len(track) for (leg, _), track in found.tracks.items() if 1 <= leg <= 4}
    assert rows == {51}, "every arm is recorded as often: what is compared is what drives"
    colours = values_of_scale(
        motion_plots.drift_charts([motion_plots.line(found, k, 0, found.legs[k].name) for k in range(1, 6)])
    )
    assert len(set(colours)) == 5
    allowed = [arm.stride for arm in advice.arms if arm.stride and arm.allowed]
    assert advice.recommended == max(allowed) and f"every {advice.recommended} steps" in advice.text
    document = json.loads(motion_files.advice_json(found))
    assert document["recommended_mts_stride"] == advice.recommended and len(document["arms"]) == 5
    chart = motion_plots.advice_chart(advice).to_dict()
    assert "Drift against speed" in json.dumps(chart["title"])


def test_no_advice_where_nothing_stays_near(tmp_path):
    parameters = {**ADVISOR, "strides": [16, 32], "tolerance_meV_per_atom_per_ps": 1e-6}
    advice = mts_advice.advice(recorded(tmp_path / "1", "mts-advisor", parameters, swirl=0.2))
    assert advice.recommended is None and "drive with F_c" in advice.text


def test_advice_waits_for_all_arms(tmp_path):
    found = recorded(tmp_path / "1", "mts-advisor", ADVISOR)
    unfinished = replace(found, result=None, tracks={k: v for k, v in found.tracks.items() if k[0] < 3})
    advice = mts_advice.advice(unfinished)
    assert advice.recommended is None and "Not all strides have run yet" in advice.text
    half = {k: v.columns["step"] <= 200 for k, v in found.tracks.items() if k[0] == 3}
    running = {
        k: replace(v, columns={n: c[half[k]] for n, c in v.columns.items()}) if k in half else v
        for k, v in found.tracks.items()
    }
    arms = mts_advice.advice(replace(found, result=None, tracks=running)).arms
    assert arms[2].allowed is None and arms[1].allowed is not None, (
        "an arm that still runs is neither within nor without"
    )


# ---- charts --------------------------------------------------------------------------------------------------------


def values_of_scale(charts) -> list[str]:
    """The colours that the lines of a chart are given."""
    return charts[0].to_dict()["layer"][0]["encoding"]["color"]["scale"]["range"]


def values_of(chart) -> pd.DataFrame:
    """Everything that a chart sends to the browser, as one table."""
    sets = chart.to_dict()["datasets"].values()
    return pd.concat([pd.DataFrame(rows) for rows in sets])


def test_long_series_stay_small_and_keep_their_spikes():
    conserved = np.zeros(100_000)
    conserved[54_321] = 6.4
    found = made(conserved, steps=100_000)
    line = motion_plots.line(found, 0, 0, "run")
    assert len(line.time) <= motion_plots.MOST_POINTS
    assert line.energy.max() == pytest.approx(100.0) and line.time[line.energy.argmax()] == pytest.approx(54.321)
    energy, _, _ = motion_plots.drift_charts([line])
    assert len(json.dumps(energy.to_dict())) < 400_000


def test_charts_show_the_fit_the_elements_and_the_stop_line(found):
    summary = motion.summary(found, 1, 0)
    line = motion_plots.line(found, 1, 0, "run", summary)
    energy, temperature, u = motion_plots.drift_charts([line], stop_above=0.7, moment_ps=0.04)
    fit = values_of(energy)
    slope = np.polyfit(fit["time"][fit["fit"].notna()], fit["fit"].dropna(), 1)[0]
    assert slope == pytest.approx(summary.drift.slope)
    assert set(values_of(temperature)["name"].dropna()) == {"all", "Na", "Cl"}
    assert 0.7 in set(values_of(u)["value"].dropna())
    for chart in (energy, temperature, u):
        assert 0.04 in set(values_of(chart)["time"].dropna()), "the moment is marked on every chart"


def test_compared_runs_share_their_charts(found):
    lines = [motion_plots.line(found, 1, 0, name, motion.summary(found, 1, 0)) for name in ("F_nc", "F_c")]
    _, temperature, _ = motion_plots.drift_charts(lines)
    assert set(values_of(temperature)["name"].dropna()) == {"F_nc", "F_c"}


def test_there_is_a_colour_for_every_arm_of_the_advisor():
    assert len(set(motion_plots.COLOURS)) == len(motion_plots.COLOURS) == len(motion_plots.DASHES) >= 7


def test_relaxation_charts(tmp_path):
    displaced = replace(crystal(), positions=crystal().positions + 0.05 * np.random.default_rng(0).random((64, 3)))
    found = recorded(tmp_path / "1", "relax", {"fmax_eV_per_A": 0.01}, [displaced])
    charts = motion_plots.relaxation_charts([("x", 64, found.descents[0])], 0.01, "direct")
    forces = values_of(charts[1])
    assert {"F_nc, which drives", "F_c, which does not"} <= set(forces["what"].dropna())


def test_summary_table_leaves_out_what_is_not_known():
    table = motion_files.summary_table([("a", motion.summary(replace(made([0.0]), tracks={}), 0, 0))])
    assert table.loc[0, "drift_meV_per_atom_per_ps"] is None


def test_slope_in_another_unit():
    assert Slope(2.0, 0.5).scaled(-3) == Slope(-6.0, 1.5)
