"""What is made of a comparison with a reference: groups, energies, large errors, consensus failures, sentences, files."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace

import ase.io
import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.db import connect

from fdcore import services, validation, validation_plots, validation_report, validation_words
from fdcore.errors import UsageError
from fdcore.records import Failure, Structure
from fdcore.validation import Compared, large
from fdcore.validation_report import Report

MODEL = services.default_model_id()


def structure(k: int, symbols: str = "NaCl", **tags: str) -> Structure:
    atoms = Atoms(symbols, positions=np.arange(3.0 * len(Atoms(symbols))).reshape(-1, 3) + 0.01 * k)
    return replace(Structure.from_atoms(atoms, file="many.extxyz", index=k), tags=tags)


def one(
    k: int, u: float, direct: float, conservative: float, *, model: str = MODEL, symbols: str = "NaCl", **tags: str
) -> Compared:
    """With forces that have exactly this U_Delta and these errors: along x, y and z in turn."""
    s = structure(k, symbols, **tags)
    n = s.n_atoms
    f_c, f_nc = np.zeros((n, 3)), np.zeros((n, 3))
    reference = np.zeros((n, 3))
    f_c[:, 0] = np.sqrt(3) * conservative
    # |F_nc|^2 and |F_nc - F_c|^2 are given: its part along F_c follows.
    along = (direct**2 + conservative**2 - u**2) / (2 * conservative) * np.sqrt(3)
    f_nc[:, 0], f_nc[:, 1] = along, np.sqrt(max(3 * direct**2 - along**2, 0.0))
    return Compared(k, s, u, direct, conservative, -1.0 * n, -1.0 * n, reference, None, model, f_nc, f_c)


def sweep(n: int = 60, **more) -> list[Compared]:
    """U_Delta grows with the error, with some noise; five systems."""
    rng = np.random.default_rng(8)
    u = np.geomspace(0.01, 1.0, n)
    noise = rng.lognormal(0, 0.15, (2, n))
    out = []
    for k in range(n):
        c = 1.2 * u[k] * noise[0, k]
        d = float(np.sqrt(c**2 + u[k] ** 2) * min(noise[1, k], 1.3))
        out.append(one(k, float(u[k]), d, float(c), system=f"system {k % 5}", sigma_a=f"{0.1 * (k % 3):.1f}", **more))
    return out


def test_pooled_bands_groups_and_means_are_told_together():
    [found] = validation.validate(sweep())
    assert (
        found.group_by == "system" and found.drawn == "groups" and set(found.names) == {f"system {k}" for k in range(5)}
    )
    assert [b.name for b in found.bands] == ["all", "lowest third", "middle third", "highest third"]
    assert [b.conservative.n for b in found.groups] == [12] * 5 and [b.name for b in found.sigmas] == [
        "0.0",
        "0.1",
        "0.2",
    ]
    assert found.pooled.conservative.r_s > found.bands[1].conservative.r_s
    assert found.within_conservative.mean == pytest.approx(np.mean([b.conservative.r_s for b in found.groups]))
    said = validation_words.headline(found, "X")
    assert "60 structures of 5 groups" in said and "inflated" in said and "within one system" in said
    assert "third of U_Delta's range" in said
    rows = validation_report.rank_cells(found)
    assert [r[0] for r in rows[:5]] == [
        "all together (pooled)",
        "lowest third of U_Delta",
        "middle third of U_Delta",
        "highest third of U_Delta",
        "mean within one system (5)",
    ]
    assert rows[-1][0] == "displaced by 0.2 Å"


def test_models_are_told_apart():
    other = [replace(c, model_id="fd-orb-molecules-v1") for c in sweep(20)]
    found = validation.validate([*sweep(30), *other])
    assert [(v.model_id, len(v.compared)) for v in found] == [(MODEL, 30), ("fd-orb-molecules-v1", 20)]
    document = json.loads(validation_report.as_json(Report(tuple(found), "X")))
    assert [m["model"] for m in document["models"]] == [MODEL, "fd-orb-molecules-v1"]
    assert len(document["results"]) == 50 and document["results"][-1]["model"] == "fd-orb-molecules-v1"


def test_groups_are_what_the_files_say_or_a_formula():
    listed = [
        structure(k, "NaCl" if k % 2 else "MgO", config_type="a" if k < 4 else "b", unique=str(k)) for k in range(8)
    ]
    assert validation.group_keys(listed) == ("config_type", "formula")
    assert validation.names_of(listed, "Formula")[:2] == ["MgO", "NaCl"]
    assert validation.names_of(listed, "config_type") == ["a"] * 4 + ["b"] * 4
    with pytest.raises(UsageError, match="No structure says its 'colour'") as raised:
        validation.names_of(listed, "colour")
    assert "config_type" in raised.value.hint
    assert validation.group_keys([structure(k) for k in range(4)]) == ()
    [alone] = validation.validate([replace(c, structure=replace(c.structure, tags={})) for c in sweep(20)])
    assert alone.group_by == "" and alone.groups == () and alone.drawn == "structures"
    assert "mean within" not in json.dumps(validation_report.rank_cells(alone))


def test_energy_error_is_free_of_every_zero_of_energy():
    rng = np.random.default_rng(0)
    numbers = [np.array([11] * a + [17] * b) for a, b in rng.integers(1, 6, (30, 2))]
    zeros = {11: -3.7, 17: 12.0}
    reference = rng.normal(size=30)
    error = 0.01 * rng.normal(size=30)
    energy = [r + sum(zeros[z] for z in z_) + e * len(z_) for r, z_, e in zip(reference, numbers, error, strict=True)]
    found = validation.energy_errors(energy, list(reference), numbers)
    assert found.fitted == 2 and found.elements == (11, 17)
    # A shift per element takes a little of the noise with it, and nothing else.
    counts = np.array([[np.mean(z_ == 11), np.mean(z_ == 17)] for z_ in numbers])
    left = error - counts @ np.linalg.lstsq(counts, error, rcond=None)[0]
    np.testing.assert_allclose(found.per_atom, left, atol=1e-9)
    assert found.rms == pytest.approx(np.sqrt((left**2).sum() / 28))
    # One composition tells no elements apart: the mean shift.
    same = validation.energy_errors([1.0, 2.0, 3.0, 2.0, 9.0], [0.0, 0.0, 0.0, 0.0, None], [np.array([11, 17])] * 5)
    assert same.fitted == 1 and np.isnan(same.per_atom[4])
    np.testing.assert_allclose(same.per_atom[:4], [-0.5, 0, 0.5, 0], atol=1e-12)


def test_too_few_energies_are_no_number():
    found = validation.energy_errors([1.0, 2.0], [0.0, None], [np.array([11])] * 2)
    assert found.fitted == 0 and found.rms is None and np.isnan(found.per_atom).all()
    [nothing] = validation.validate([replace(c, energy_reference=None) for c in sweep(20)])
    assert "no energies" in validation_words.energies(nothing)


def test_what_is_large_is_given_usual_or_the_median():
    errors = np.linspace(0.01, 0.3, 30)
    assert large(errors) == validation.Large(0.1, "usual")
    assert large(errors, 0.2) == validation.Large(0.2, "given")
    assert large(errors / 100).why == "median" and large(errors / 100).above == pytest.approx(np.median(errors) / 100)
    [found] = validation.validate(sweep(), above=0.5)
    assert found.direct.structures.bad == sum(c.error_direct > 0.5 for c in found.compared)
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="cannot be looked for"):
            validation.validate(sweep(), above=wrong)


def test_planted_consensus_failure_is_listed_and_nothing_else():
    quiet = sweep()
    [before] = validation.validate(quiet)
    assert before.consensus == () and "no consensus failure" in validation_words.consensus(before)
    # Both forces agree to 0.012 eV/Å and are wrong by 1.5.
    planted = one(99, 0.012, 1.5, 1.5, system="system 1", sigma_a="0.1")
    [found] = validation.validate([*quiet, planted])
    assert [found.compared[k].position for k in found.consensus] == [99]
    [row] = validation_report.consensus_rows(found)
    assert (row["file"], row["index"], row["consensus_failure"]) == ("many.extxyz", 99, True)
    assert "In 1 of 61 structures" in validation_words.consensus(found)
    [few] = validation.validate(quiet[:8])
    assert few.consensus == () and "cannot be told" in validation_words.consensus(few)


def test_consensus_needs_both_forces_wrong():
    u, good = np.r_[np.full(10, 0.01), np.linspace(0.2, 1, 20)], np.r_[np.full(10, 0.02), np.linspace(0.2, 1, 20)]
    direct, conservative = good.copy(), good.copy()
    direct[0] = 5.0
    assert validation.consensus_failures(u, direct, conservative, (0.1, 0.1)) == []
    conservative[0] = 5.0
    direct[1] = conservative[1] = 3.0
    assert validation.consensus_failures(u, direct, conservative, (0.1, 0.1)) == [0, 1]
    assert validation.consensus_failures(u, direct, conservative, (4.0, 4.0)) == [0]
    # A U_Delta within what is ordinary for the model is small, too; errors that it accounts for are no secret.
    direct[29] = conservative[29] = 2.5
    assert validation.consensus_failures(u, direct, conservative, (0.1, 0.1)) == [0, 1]
    assert validation.consensus_failures(u, direct, conservative, (0.1, 0.1), bound=1.0) == [0, 1, 29]
    direct[29] = 1.9
    assert validation.consensus_failures(u, direct, conservative, (0.1, 0.1), bound=1.0) == [0, 1]


def test_atoms_have_a_curve_of_their_own_and_the_verdict_a_place_on_it():
    [found] = validation.validate(sweep())
    assert found.direct.atoms.n == sum(c.structure.n_atoms for c in found.compared)
    # Every atom of these is like its structure.
    assert found.direct.atoms.area == pytest.approx(found.direct.structures.area)
    alarm = found.conservative.alarm
    assert alarm.threshold == found.bound and alarm.flagged == sum(c.force_delta > found.bound for c in found.compared)
    assert f"points at {alarm.caught} of the {alarm.bad}" in validation_words.alarmed(
        found.conservative, "error_conservative"
    )
    [unknown] = validation.validate([replace(c, model_id="orb-v2") for c in sweep()])
    assert unknown.bound is None and validation_words.alarmed(unknown.direct, "error_direct") == ""


def test_a_calibrated_model_is_called_so_in_words_and_in_json():
    """Both errors are as large as U_Delta, with a little scatter."""
    rng = np.random.default_rng(3)
    compared = []
    for k, u in enumerate(np.geomspace(0.01, 1, 60)):
        error = float(u * rng.lognormal(0, 0.05))
        compared.append(one(k, float(u), error, error, system=f"s{k % 6}"))
    [found] = validation.validate(compared)
    assert found.calibration_direct.calibrated is True
    assert "U_Delta is about as large as eps_nc here" in validation_words.calibrated(
        found.calibration_direct, "error_direct"
    )
    document = json.loads(validation_report.as_json(Report((found,), "X")))
    assert document["models"][0]["calibration"]["error_direct"]["calibrated"] is True


def test_an_ensemble_stands_beside():
    compared = [replace(c, ensemble_spread=1.0 / (1 + k)) for k, c in enumerate(sweep())]
    [found] = validation.validate(compared)
    by = {(e.estimate, e.error): e for e in found.estimates}
    assert by["force_delta", "error_conservative"].pooled.r_s > 0.9
    assert by["ensemble_spread", "error_conservative"].pooled.r_s < -0.9
    assert by["ensemble_spread", "error_direct"].within.mean < -0.8
    assert "U_var -" in validation_words.beside(found)
    [none] = validation.validate(sweep())
    assert none.estimates == () and validation_words.beside(none) == ""


def test_sentences_say_what_was_planted():
    """eps_c is 1.2 times U_Delta, and eps_nc about 1.5."""
    [found] = validation.validate(sweep())
    said = " ".join(validation_words.sentences(found, "X"))
    assert found.calibration_conservative.factor == pytest.approx(1.2, rel=0.1)
    assert "U_Delta is not calibrated; here eps_nc is about 1.5" in said
    assert "fitted on half of the groups" in said and "area under the ROC curve" in said
    assert "consensus" in said and "energy" in said and "nan" not in said.lower()
    [same] = validation.validate([replace(c, force_delta=0.1) for c in sweep(20)])
    assert "nothing to rank" in " ".join(validation_words.sentences(same, "X"))


def test_files_read_back_and_hold_no_number_that_json_does_not_know(tmp_path):
    compared = [*sweep(), one(99, 0.012, 1.5, 1.5, system="system 1", sigma_a="0.1")]
    compared[3] = replace(compared[3], energy_reference=None)
    report = Report(
        tuple(validation.validate(compared)),
        "X",
        ("vasp 6.4 PBE",),
        (Failure("bad.xyz", "torn", "mend it"),),
        {"seed": 0},
    )
    archive = zipfile.ZipFile(io.BytesIO(validation_report.archive(report)))
    names = set(archive.namelist())
    figures = {"error_conservative", "error_direct", "parity_conservative", "parity_direct", "calibration", "roc"}
    assert names == {"report.html", "validation.json", "structures.csv", "ranks.csv"} | {
        f"{f}.{e}" for f in figures for e in ("svg", "png")
    }
    document = json.loads(archive.read("validation.json"), parse_constant=lambda c: pytest.fail(f"{c} in JSON"))
    assert document["results"][3]["error_energy_meV_per_atom"] is None
    assert document["errors"] == [{"file": "bad.xyz", "error": "torn", "hint": "mend it"}]
    assert document["models"][0]["consensus_failures"][0]["index"] == 99
    rows = pd.read_csv(io.BytesIO(archive.read("structures.csv")))
    assert len(rows) == 62 and rows["error"].notna().sum() == 1 and rows["consensus_failure"].eq(True).sum() == 1
    page = archive.read("report.html").decode()
    assert page.count("<svg") == 6 and "bad.xyz" in page and "vasp 6.4 PBE" in page and "Consensus failures" in page
    # It asks nobody for anything.
    assert not {"<script", "<link", "<img", "src=", "@import", "url(http"} & {
        p for p in ("<script", "<link", "<img", "src=", "@import", "url(http") if p in page
    }
    assert archive.read("roc.png").startswith(b"\x89PNG")


def test_a_report_of_few_structures_is_a_report():
    """One, two and five structures, and a single one that has no error at all."""
    for n in (1, 2, 5):
        report = Report(tuple(validation.validate(sweep(60)[:n])), "X")
        assert "<svg" in validation_report.html(report)
        json.loads(validation_report.as_json(report))
    exact = [replace(sweep(2)[0], force_delta=0.0, error_direct=0.0, error_conservative=0.0)]
    assert "<svg" in validation_report.html(Report(tuple(validation.validate(exact)), "X"))


def test_many_groups_are_coloured_by_a_coarser_name_or_the_largest():
    compared = [
        one(k, 0.1 + k / 100, 0.2, 0.2, system=f"s{k % 20}", group="a" if k % 20 < 10 else "b") for k in range(60)
    ]
    [found] = validation.validate(compared)
    assert len(set(found.names)) == 20 and set(validation_plots.groups_shown(found)) == {"a", "b"}
    [bare] = validation.validate(
        [replace(c, structure=replace(c.structure, tags={"system": c.structure.tags["system"]})) for c in compared]
    )
    shown = validation_plots.groups_shown(bare)
    assert len(set(shown)) == 10 and validation_plots.OTHERS in shown


def test_parity_of_many_atoms_shows_the_worst_and_says_so():
    compared = [one(k, 0.1, 0.2, 0.2, symbols="NaCl" * 20) for k in range(60)]
    bad = replace(compared[0], forces_conservative=compared[0].forces_conservative + 5.0)
    [found] = validation.validate([bad, *compared[1:]])
    chart = validation_plots.parity(found, "conservative").to_dict()
    data = next(d for d in chart["datasets"].values() if len(d) > 2)
    assert len(data) == validation_plots.MOST_COMPONENTS
    assert sum(abs(d["model"] - d["reference"]) > 3 for d in data) == 40 * 3
    assert "2,000 components that differ most" in json.dumps(chart["title"])


# ---- what files say ------------------------------------------------------------------------------------------------


def test_tags_come_from_extended_xyz_and_databases_and_survive_the_store(tmp_path):
    from fdcore.store.structures import decode, encode

    atoms = Atoms("NaCl", positions=[[0, 0, 0], [0, 0, 2.4]])
    atoms.info = {
        "System": "rock salt",
        "sigma_A": 0.05,
        "charge": 0,
        "energy": -1.0,
        "label_reference": "x",
        "note": "n" * 200,
    }
    ase.io.write(tmp_path / "a.extxyz", atoms)
    with connect(tmp_path / "b.db") as db:
        db.write(Atoms("NaCl", positions=atoms.positions), key_value_pairs={"system": "rock salt", "sigma_a": 0.05})
    for name in ("a.extxyz", "b.db"):
        [s] = services.read_paths([str(tmp_path / name)]).structures
        assert s.tags == {"system": "rock salt", "sigma_a": "0.05"}, name
        assert decode(encode(s)[1]).tags == s.tags


def test_tags_are_few_short_and_no_lines():
    from fdcore.structures.origin import LONGEST_TAG, MOST_TAGS, tags_of

    many = {f"k{k}": "v" for k in range(100)} | {
        "system": "a\nb\x00c",
        "long": "x" * 500,
        "total_energy": 1.0,
        "stress": "1 2 3",
    }
    found = tags_of(many)
    assert len(found) == MOST_TAGS and next(iter(found)) == "system" and found["system"] == "a bc"
    assert not {"long", "total_energy", "stress"} & set(found) and all(len(v) <= LONGEST_TAG for v in found.values())
