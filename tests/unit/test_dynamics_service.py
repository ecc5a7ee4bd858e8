"""What may be asked of dynamics: presets that follow the structure, the cost before the start, the command that repeats it."""

from __future__ import annotations

import shlex
from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from fdcore import services
from fdcore.cli.motion import _parameters
from fdcore.cli.parser import build_parser
from fdcore.dynamics import settings as dynamics_settings
from fdcore.records import Structure
from fdcore.services import dynamics, runs
from fdcore.spec import ModelChoice, Spec
from fdcore.store import database

CARD = services.card(services.default_model_id())
MODEL = ModelChoice(CARD.id)
ME = runs.Viewer("tab:me")


def example(name: str) -> Structure:
    found = {e.id: e for e in services.examples()}[name]
    return services.read_sources([services.example_source(found)]).structures[0]


def salt(repeat: int = 1) -> Structure:
    return Structure.from_atoms(bulk("NaCl", "rocksalt", a=5.65, cubic=True) * repeat, file="salt.xyz")


# ---- presets -------------------------------------------------------------------------------------------------------


def test_ice_is_recognised_and_cold():
    ice, water = example("ice_XI"), Structure.from_atoms(molecule("H2O"))
    assert dynamics.is_ice(ice) and not dynamics.is_ice(water) and not dynamics.is_ice(salt())
    assert dynamics.default_temperature_K([ice]) == 200.0 and dynamics.default_temperature_K([ice, salt()]) == 300.0
    melted = replace(ice, positions=np.random.default_rng(0).random(ice.positions.shape) * ice.cell.diagonal())
    assert not dynamics.is_ice(melted)


def test_the_papers_protocol():
    paper = dynamics.PRESETS["paper"].parameters([example("ice_XI")])
    assert paper["timestep_fs"] == 0.5 and paper["steps"] * 0.5e-3 == 10.0 and paper["thermostat_time_fs"] == 10.0
    assert paper["relax_fmax_eV_per_A"] == 0.05 and paper["temperature_K"] == 200.0
    assert paper["thermostat"] == "nose-hoover" and paper["ensemble"] == "nve"


@pytest.mark.parametrize("preset", dynamics.PRESETS)
def test_presets_are_runs(preset):
    for structures in ([salt()], [example("ice_XI")]):
        parameters = dynamics.parameters_of("md", dynamics.PRESETS[preset].parameters(structures))
        legs, *_ = dynamics.plan_parts(Spec("md", MODEL, "", 1, parameters), structures)
        # 0.5 fs where there is hydrogen, in every preset.
        assert legs[-1].timestep_fs == (0.5 if preset == "paper" or structures[0].numbers.min() == 1 else 1.0)


def test_what_cannot_move_is_named_and_the_others_go_on():
    gold = Structure.from_atoms(bulk("Au", cubic=True), file="gold.xyz")
    one = Structure.from_atoms(bulk("Na"), file="one.xyz")
    good, refused = dynamics.movable(CARD, [gold, salt(), one])
    assert [s.file for s in good] == ["salt.xyz"] and [f.file for f in refused] == ["gold.xyz", "one.xyz"]
    assert "Au" in refused[0].error and "single atom" in refused[1].error


# ---- cost ----------------------------------------------------------------------------------------------------------


def cost(structure: Structure, pace: float | None = None, **parameters) -> services.Estimate:
    spec = Spec("md", MODEL, "", 1, dynamics.parameters_of("md", parameters))
    return dynamics.estimate(CARD, [structure], spec, pace)


def test_small_cells_are_not_free():
    """A hundred thousand steps take a quarter of an hour however few atoms there are."""
    assert cost(Structure.from_atoms(molecule("H2O")), steps=100_000).seconds > 300


def test_cost_follows_what_is_asked():
    plain = cost(salt(3), steps=1000, monitor_every=1000)
    assert cost(salt(3), steps=2000, monitor_every=2000).seconds == pytest.approx(2 * plain.seconds, rel=0.01)
    assert 1.5 < cost(salt(3), steps=1000, driver="conservative").seconds / plain.seconds < 2.5
    assert 1.05 < cost(salt(3), steps=1000, driver="mts").seconds / plain.seconds < 1.4
    assert cost(salt(3), steps=1000, replicas=4).memory_MB == pytest.approx(4 * plain.memory_MB)
    measured = cost(salt(3), 2.0, steps=1000, monitor_every=1000)
    assert (
        measured.seconds == pytest.approx(2 * plain.seconds) and "guess" in plain.text and "guess" not in measured.text
    )
    assert not cost(salt(30), steps=10, replicas=1000).fits


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """An engine of this test that nobody serves."""
    monkeypatch.setenv("FDCORE_DATA", str(tmp_path))
    monkeypatch.setenv("FDCORE_WORKER", "none")
    runs.current.cache_clear()
    yield runs.current()
    database.dispose(runs.current().config)
    runs.current.cache_clear()


def test_what_takes_long_does_not_stand_where_seconds_count(engine):
    def lane(**parameters) -> str:
        return dynamics.submit(ME, "md", [salt()], MODEL, parameters, title="x").lane

    assert lane(steps=100) == "quick" and lane(steps=100_000) == "long"


def test_pace_is_learnt_from_what_was_run(engine):
    assert dynamics.measured_pace(ME, CARD, "float32") is None
    run = dynamics.submit(ME, "md", [salt()], MODEL, {"steps": 1000}, title="x")
    guess = dynamics.estimate(CARD, [salt()], run.spec).seconds
    engine.store.hello("local", "here", 1, "0", {"quick": 1})
    _, attempt = engine.store.begin_attempt(run.id, "local")
    summary = {"seconds": [0.0, 3 * guess], "steps_done": [1000]}
    engine.store.end(run.id, attempt, "done", summary=summary)
    assert dynamics.measured_pace(ME, CARD, "float32") == pytest.approx(3.0)
    assert dynamics.measured_pace(runs.Viewer("tab:other"), CARD, "float32") is None


# ---- repeat this ---------------------------------------------------------------------------------------------------

PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "steps": st.integers(1, 400).map(lambda n: 64 * n),
        "ensemble": st.sampled_from(dynamics_settings.ENSEMBLES),
        "driver": st.sampled_from(dynamics_settings.DRIVERS),
        "timestep_fs": st.none() | st.floats(0.1, 5.0),
        "temperature_K": st.floats(1.0, 2000.0),
        "thermostat": st.sampled_from(dynamics_settings.THERMOSTATS),
        "mts_stride": st.sampled_from([1, 2, 4, 16]),
        "frame_every": st.none() | st.integers(0, 100),
        "replicas": st.integers(1, 20),
        "relax_fmax_eV_per_A": st.none() | st.floats(0.001, 1.0),
        "stop_above": st.none() | st.floats(0.01, 5.0),
        "stop_temperature_K": st.none() | st.floats(100.0, 20_000.0),
    },
)


@settings(deadline=None)
@given(PARAMETERS, st.integers(0, 2**31), st.sampled_from(["a.cif", "my file's.cif", "-x.cif"]))
def test_command_line_that_is_shown_repeats_the_run(parameters, seed, file):
    kept = dynamics.parameters_of("md", parameters)
    spec = Spec("md", replace(MODEL, dtype="float64"), "", 1, kept, seed=seed)
    words = shlex.split(dynamics.command_line([file], spec))
    assert words[0] == "fdcore"
    read = build_parser().parse_args(words[1:])
    assert [f.removeprefix("./") for f in read.files] == [file] and read.seed == seed and read.dtype == "float64"
    assert _parameters("md", read, [salt()]) == kept
