"""The paper's figures and tables: their parts, what they say, and the command, with small efforts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from fdcore import reproduction, reproduction_report, services
from fdcore.cli import main
from fdcore.errors import UsageError
from fdcore.reproduce import published
from fdcore.reproduce.protocols import EQUIFORMER, MODELS, ORB, SYSTEMS, TEN, parts
from fdcore.reproduce.settings import PRESETS, TARGETS, Reproduction, targets_of
from fdcore.services import reproduce
from fdcore.tasks.reproduce import ReproduceParameters
from fdcore.tasks.run import Limits, execute

MODEL = services.default_model_id()
SECOND = "fd-orb-small-v1-s1"
SMALL = {
    "relax_steps": 2,
    "equilibrate_ps": 0.004,
    "nve_ps": 0.02,
    "nvt_ps": 0.02,
    "drift_ps": 0.02,
    "drift_frames": 2,
    "climbs": 2,
    "climb_steps": 3,
    "climbed": 5,
    "sigmas": [0.0, 0.1],
    "copies": 3,
}
LOOP = {
    "count": 2,
    "starts": 2,
    "attack_steps": 2,
    "attack_relax_fmax_eV_per_A": None,
    "epochs": 1,
    "batch": 4,
    "held_out": 0.0,
    "apart": 0.0,
    "picoseconds": 0.004,
    "timestep_fs": 1.0,
    "seeds": 2,
    "sigmas_A": [0.1],
    "per_sigma": 1,
    "relax_steps": 1,
}


@pytest.fixture
def salt(tmp_path) -> Path:
    path = tmp_path / "salt.cif"
    path.write_bytes(services.example_source(next(e for e in services.examples() if e.id == "NaCl")).data)
    return path


def command(salt: Path, out: Path, *more: str, effort=SMALL, models=f"{MODEL},{SECOND}") -> list[str]:
    words = ["reproduce", *more, "--structures", str(salt), "--models", models, "--out", str(out)]
    for name, value in effort.items():
        words += ["--set", f"{name}={json.dumps(value)}"]
    return words


def question(salt: Path, *targets: str, reference: str = "none") -> reproduce.Question:
    structures = services.read_paths([str(salt)]).structures
    return reproduce.question(targets, structures=structures, chosen=[MODEL, SECOND], reference=reference, effort=SMALL)


# ---- protocols ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_every_part_finds_what_it_needs(preset):
    shipped = {e.id: e for e in services.examples()}
    names = tuple(dict.fromkeys(n for listed in SYSTEMS[preset].values() for n in listed))
    structures = [services.read_sources([services.example_source(shipped[n])]).structures[0] for n in names]
    asked = Reproduction(tuple(TARGETS), preset, names, references=("gpaw",) * len(names))
    found = parts(asked, structures)
    done: set[str] = set()
    for part in found.parts:
        assert part.name not in done and "/" not in part.name and part.weight > 0
        assert not part.source.part or part.source.part in done
        done.add(part.name)
    assert set(found.of) == set(TARGETS) and all(found.of.values())
    for target in TARGETS:
        assert set(found.of[target]) <= done


def test_the_full_protocol_is_the_papers():
    assert set(MODELS["paper"]["table1"]) == set(ORB + EQUIFORMER) and len(ORB) == 5 and len(EQUIFORMER) == 7
    assert len(TEN) == 10 and SYSTEMS["paper"]["table1"] == TEN
    asked = reproduce.question(["fig1", "fig5"], preset="paper", reference="none")
    for part in asked.parts:
        assert part.parameters["timestep_fs"] == 0.5 and part.parameters["steps"] == 20_000
        assert part.parameters["relax_fmax_eV_per_A"] == 0.05
        assert part.parameters["temperature_K"] == (200.0 if "ice" in part.name else 300.0)
    assert {p.parameters["driver"] for p in asked.parts} == {"direct", "conservative"}


def test_published_numbers_are_complete():
    by_model = {m: [p for p in published.TABLE2 if p.model == m] for m in {p.model for p in published.TABLE2}}
    assert {m: len(rows) for m, rows in by_model.items()} == {
        "orb-v3-direct-inf-mpa": 14,
        "orb-v3-direct-20-mpa": 2,
        "orb-d3-xs-v2": 4,
        "eqV2_dens_31M_mp": 6,
    }
    assert all(-1 <= r <= 1 for p in published.TABLE2 for r in (p.direct, p.conservative))
    known = {c.id for c in services.all_models()}
    assert {p.model for p in published.TABLE2} <= known


def test_what_there_is_not():
    with pytest.raises(UsageError, match="no 'fig9'"):
        targets_of(("fig9",))
    with pytest.raises(UsageError, match="no setting 'banana'"):
        reproduce.question(["fig1"], effort={"banana": 1})
    assert targets_of(("table1", "all")) == tuple(TARGETS)
    assert targets_of(("table1", "fig1")) == ("fig1", "table1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("climbs", 0),
        ("climbs", 1.5),
        ("climbs", 10**11),
        ("climbed", 0),
        ("copies", 0),
        ("drift_seeds", 0),
        ("relax_steps", -1),
        ("nve_ps", 0),
        ("nve_ps", 1e9),
        ("nvt_ps", math.nan),
        ("water_ps", math.inf),
        ("drift_ps", "long"),
        ("timestep_heavy_fs", 0),
        ("timestep_heavy_fs", 1000),
        ("sigmas", 0.1),
        ("sigmas", []),
        ("sigmas", [-1]),
        ("loop", 0),
        ("loop", {"epochs": -1}),
    ],
)
def test_a_setting_that_cannot_be_used_is_told_before_anything_runs(salt, name, value):
    structures = services.read_paths([str(salt)]).structures
    with pytest.raises(UsageError):
        reproduce.question(["all"], structures=structures, reference="chgnet", effort={name: value})


def test_who_labels_and_what_is_said_where_nobody_does(salt, monkeypatch):
    from fdcore import reference as references

    absent = replace(references.REFERENCES["chgnet"], module="no_such_module_at_all")
    monkeypatch.setitem(references.REFERENCES, "chgnet", absent)
    structures = services.read_paths([str(salt)]).structures
    asked = reproduce.question(["fig2"], structures=structures, chosen=[MODEL])
    assert ReproduceParameters.of(asked.spec).references == ("",)
    assert any("force-delta[chgnet]" in note for note in asked.notes)
    assert [p.task for p in asked.parts] == ["attack"], "the attack is still made"


# ---- what is found -----------------------------------------------------------------------------------------------------


def done(asked: reproduce.Question, folder: Path, previous=(), stop_at: float = math.inf):
    """One attempt, stopped after so many of the moments at which it could be; how it ended, and how many there were."""
    looked = [0]

    def should_stop() -> bool:
        looked[0] += 1
        return looked[0] >= stop_at

    outcome = execute(
        asked.spec,
        asked.structures,
        lambda spec: services.load_model(spec.model.id, "cpu", "float32"),
        folder,
        previous=previous,
        should_stop=should_stop,
        limits=Limits(),
    )
    return outcome.state, looked[0]


def without_clocks(document: dict) -> dict:
    out = {k: v for k, v in document.items() if k not in ("seconds", "provenance")}
    for row in out["targets"]["table1"]["rows"]:
        row.pop("relative_cost")
    out["targets"]["table1"].pop("sentences")
    return out


@pytest.mark.timeout(300)
def test_stopped_twice_it_finds_the_same(salt, tmp_path):
    from fdcore import reference as references

    springs = references.register("springs:Springs").id
    asked = question(salt, "fig1", "fig2", "fig3", "table1", reference=springs)
    state, moments = done(asked, tmp_path / "whole")
    assert state == "done"
    whole = reproduction.read(tmp_path / "whole", asked.spec, asked.structures)
    assert not whole.failed

    assert done(asked, tmp_path / "1", stop_at=0.4 * moments)[0] == "cancelled"
    first = reproduction.read(tmp_path / "1", asked.spec, asked.structures)
    assert 0 < len(first.seconds) < len(asked.parts), "stopped on the way"
    assert any("not done" in m for f in reproduction.findings(first) for m in f.missing)
    assert done(asked, tmp_path / "2", [tmp_path / "1"], stop_at=0.3 * moments)[0] == "cancelled"
    assert done(asked, tmp_path / "3", [tmp_path / "1", tmp_path / "2"])[0] == "done"
    again = reproduction.read(tmp_path / "3", asked.spec, asked.structures)
    a, b = (without_clocks(reproduction_report.document(r, {})) for r in (whole, again))
    assert a == b

    by = {f.target.id: f for f in reproduction.findings(again)}
    # Shown correlations are those of the points that are drawn.
    for what, key in (("eps_nc", "error_direct"), ("eps_c", "error_conservative")):
        points = [p for p in by["fig2"].points if p["what"] == what]
        assert len(points) == by["fig2"].rows[0]["n"] >= 3
        r = spearmanr([p["x"] for p in points], [p["y"] for p in points]).statistic
        assert by["fig2"].rows[0][f"r_s_{key}"] == pytest.approx(r, abs=1e-12)
    [single] = [r for r in by["table1"].rows if r["model"] == "mean over models"]
    of_each = [r["r_s_force_delta"] for r in by["table1"].rows if r["model"] in (MODEL, SECOND)]
    assert len(of_each) == 2 and single["r_s_force_delta"] == pytest.approx(np.mean(of_each))
    assert single["relative_cost"] > 0
    assert {r["driver"] for r in by["fig1"].rows} == {"F_nc", "F_c"}
    # Driven by F_c the energy stays where it was; by F_nc it need not.
    assert len(by["fig3"].rows) == 2 and all(r["error_direct_eV_per_A"] > 0 for r in by["fig3"].rows)


def test_a_part_that_cannot_be_done_costs_nothing_else(salt, tmp_path, monkeypatch):
    from fdcore import reference as references

    def broken():
        raise RuntimeError("no licence")

    absent = replace(references.REFERENCES["chgnet"], make=broken)
    monkeypatch.setitem(references.REFERENCES, "chgnet", absent)
    asked = question(salt, "fig1", "fig2", reference="chgnet")
    assert done(asked, tmp_path / "1")[0] == "done"
    found = reproduction.read(tmp_path / "1", asked.spec, asked.structures)
    fig1, fig2 = reproduction.findings(found)
    assert len(fig1.rows) == 2 and not fig1.missing
    assert not fig2.rows or fig2.rows[0]["r_s_error_direct"] is None
    document = reproduction_report.document(found, {})
    json.dumps(document, allow_nan=False)


# ---- what it says ------------------------------------------------------------------------------------------------------


def energy_row(driver: str, drift: float | None, because: str = "completed", ci: float | None = 0.001) -> dict:
    return {
        "system": "ice",
        "model": "m",
        "driver": driver,
        "drift_meV_per_atom_per_ps": drift,
        "drift_ci": ci,
        "stopped_because": because,
    }


def test_the_opposite_of_the_paper_is_said():
    [said] = reproduction._energy_sentences([energy_row("F_nc", 5.0), energy_row("F_c", 0.01)])
    assert said.endswith(": as the paper finds.")
    [said] = reproduction._energy_sentences([energy_row("F_nc", 0.01), energy_row("F_c", -5.0)])
    assert "NOT as the paper finds" in said
    [said] = reproduction._energy_sentences([energy_row("F_nc", 19.0, ci=47.0), energy_row("F_c", 0.0)])
    assert "+19 ± 47 meV/atom/ps" in said and said.endswith("as the paper finds, but the intervals overlap.")
    [said] = reproduction._energy_sentences([energy_row("F_nc", 5.0, ci=None), energy_row("F_c", 0.01)])
    assert said.endswith("as the paper finds, in a run too short for an interval.")
    blown, _ = reproduction._energy_sentences([energy_row("F_nc", 90.0, "temperature"), energy_row("F_c", 0.0)])
    assert "driven by F_nc blew up" in blown


def test_fluctuations_that_cannot_be_told_apart():
    def row(driver, value, error):
        return {
            "system": "s",
            "model": "m",
            "driver": driver,
            "temperature_fluctuation_K": value,
            "temperature_fluctuation_error_K": error,
        }

    [said] = reproduction._fluctuation_sentences([row("F_nc", 20.0, 1.0), row("F_c", 10.0, 1.0)])
    assert said.endswith("as the paper finds.") and "NOT" not in said
    [said] = reproduction._fluctuation_sentences([row("F_nc", 10.0, 1.0), row("F_c", 20.0, 1.0)])
    assert "NOT as the paper finds" in said
    [said] = reproduction._fluctuation_sentences([row("F_nc", 20.0, 9.0), row("F_c", 10.0, 1.0)])
    assert "too alike" in said and "(standard errors)" in said
    [said] = reproduction._fluctuation_sentences([row("F_nc", 20.0, None), row("F_c", 10.0, None)])
    assert "too short a run for standard errors" in said and "too alike" in said


def test_seeds_are_not_called_models_of_another_kind():
    def differs(*targets: str, chosen=()) -> str:
        asked = reproduce.question(targets, reference="none", chosen=chosen)
        return " ".join(reproduction.what_differs(reproduction.read(None, asked.spec, asked.structures)))

    assert "other seeds of the same small network" in differs("fig7")
    assert "other seeds" not in differs("fig3") and "other seeds" not in differs("fig7", chosen=[MODEL])


def test_one_system_is_no_range():
    row = {"system": "salt", "way": "adversarial attack", "r_s_error_conservative": 1.0, "r_s_error_direct": 0.7}
    [said] = reproduction._rank_sentences([row])
    assert said == "Adversarial attack: U_Delta ranks eps_c with r_s = 1.00 and eps_nc with 0.70 on one system."


# ---- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_the_command_leaves_numbers_figures_and_the_page(salt, tmp_path, capfd):
    out = tmp_path / "out"
    effort = {**SMALL, "loop": LOOP}
    code = main(command(salt, out, "fig1", "fig4", "--reference", "springs:Springs", "--json", "-", effort=effort))
    document = json.loads(capfd.readouterr().out)
    assert code == 0
    assert set(document["targets"]) == {"fig1", "fig4"} and document["errors"] == []
    # Base, F_nc only, both, second generation.
    assert [r["nve_runs"] for r in document["targets"]["fig4"]["rows"]] == [2, 2, 2, 2]
    table = pd.read_csv(out / "fig1.csv")
    assert table["drift_meV_per_atom_per_ps"].tolist() == pytest.approx(
        [r["drift_meV_per_atom_per_ps"] for r in document["targets"]["fig1"]["rows"]]
    )
    assert (out / "fig1.png").read_bytes().startswith(b"\x89PNG") and "<svg" in (out / "fig4.svg").read_text()
    page = (out / "report.html").read_text()
    assert (
        "Figure 1" in page
        and "driven by F_nc is unstable" in page
        and "http" not in page.replace("http://www.w3.org", "")
    )
    # Again, it is already done; another question does not overwrite it.
    assert main(command(salt, out, "fig1", "--reference", "none")) == 2
    assert "another run" in capfd.readouterr().err


def test_a_command_that_was_stopped_says_how_it_goes_on(salt, tmp_path, capfd, monkeypatch):
    from fdcore.cli import reproduce as cli
    from fdcore.tasks.run import Outcome

    monkeypatch.setattr(cli, "carry_out", lambda *a, **k: Outcome("cancelled"))
    assert main(command(salt, tmp_path / "out", "fig1", "--reference", "none")) == 130
    assert "stopped; nothing was made yet, the same command goes on from here" in capfd.readouterr().err


def test_a_plan_does_nothing(salt, tmp_path, capfd):
    out = tmp_path / "out"
    assert main(command(salt, out, "all", "--reference", "none", "--plan")) == 0
    printed = capfd.readouterr().out
    assert "attack-fd-orb-small-v1-salt" in printed and not out.exists()


def test_wrong_usage_is_told_before_anything_is_read(salt, tmp_path, capfd):
    assert main(command(salt, tmp_path / "out", "fig12")) == 2
    assert "no 'fig12'" in capfd.readouterr().err
    assert main(command(tmp_path / "nothing.cif", tmp_path / "out", "fig1")) == 1
    assert "nothing.cif" in capfd.readouterr().err and not (tmp_path / "out").exists()


def test_the_command_that_repeats_it(salt):
    asked = question(salt, "fig1", "table1")
    line = reproduce.command_line(["salt.cif"], asked.spec)
    assert line.startswith(
        f"fdcore reproduce fig1 table1 --preset quick --structures salt.cif --models {MODEL},{SECOND}"
    )
    assert "--reference none" in line and "--set relax_steps=2" in line
