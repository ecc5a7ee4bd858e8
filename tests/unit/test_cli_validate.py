"""`fdcore validate` as a person types it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from fdcore import data, load_model, services, shipped_labels, validation
from fdcore.cli import main
from fdcore.cli.parser import build_parser
from fdcore.errors import UsageError
from fdcore.label_units import unit_doubt
from fdcore.services import validation as validations
from fdcore.spec import ModelChoice
from fdcore.structures import read_sources

MODEL = "fd-orb-small-v1"


@pytest.fixture(scope="module")
def frames():
    """Salt, more and more displaced, labelled with the force of another seed; one frame is labelled with something far away from what both
    forces of the model say: the frame of the smallest displacement, on which they agree."""
    other = load_model("fd-orb-small-v1-s1", "cpu")
    out = []
    for k in range(20):
        atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
        atoms.rattle(0.01 * (1 + k // 2), seed=k)
        [seen] = other.evaluate(atoms)
        forces = np.array(seen.forces_conservative) + (3.0 if k == 1 else 0.0)
        atoms.calc = SinglePointCalculator(atoms, energy=seen.energy - 7.0 * len(atoms), forces=forces)
        atoms.info |= {"system": f"part {k % 2}", "sigma_A": round(0.01 * (1 + k // 2), 2)}
        out.append(atoms)
    return out


@pytest.fixture
def labelled(frames, tmp_path):
    path = tmp_path / "labelled.extxyz"
    ase.io.write(path, frames)
    return path


def test_words_a_document_and_every_file(labelled, tmp_path, capfd):
    places = {name: tmp_path / f"v.{name}" for name in ("json", "csv", "html", "zip")}
    options = [x for name, path in places.items() for x in (f"--{name}", str(path))]
    assert main(["validate", str(labelled), "--model", MODEL, "--device", "cpu", "--above", "1", *options]) == 0
    printed = capfd.readouterr()
    assert (
        "20 structures" in printed.out
        and "all together (pooled)" in printed.out
        and "mean within one system" in printed.out
    )
    assert "consensus failure: " in printed.out and "labelled.extxyz:1, Na4Cl4" in printed.out
    document = json.loads(places["json"].read_text(), parse_constant=lambda c: pytest.fail(f"{c} in JSON"))
    [model] = document["models"]
    assert [r["index"] for r in model["consensus_failures"]] == [1]
    roc = model["roc"]["error_direct"]
    assert (roc["above_eV_per_A"], roc["above_is"], roc["structures"]["bad"]) == (1.0, "given", 1)
    assert (model["group_by"], len(model["groups"]), model["bands"][0]["n"]) == ("system", 2, 20)
    # The labels' zero of energy lies 7 eV per atom lower, and is no error.
    assert model["energy"]["shifts_fitted"] == 1 and model["energy"]["rms_meV_per_atom"] < 200
    assert document["provenance"]["model"] == MODEL and document["errors"] == []
    row = document["results"][1]
    assert row["error_direct_eV_per_A"] == pytest.approx(3.0, rel=0.05) and row["group"] == "part 1"
    [seen] = load_model(MODEL, "cpu").evaluate(ase.io.read(labelled, 4))
    reference = ase.io.read(labelled, 4).get_forces()
    expected = float(np.sqrt(((seen.forces_conservative - reference) ** 2).mean()))
    assert document["results"][4]["error_conservative_eV_per_A"] == pytest.approx(expected, rel=1e-3)
    assert places["zip"].stat().st_size > 10_000 and places["html"].read_text().count("<svg") == 6
    assert len(places["csv"].read_text().splitlines()) == 21


def test_json_on_standard_output_is_one_document_and_a_bad_file_stops_nothing(labelled, tmp_path, capfd):
    torn, bare = tmp_path / "torn.extxyz", tmp_path / "bare.extxyz"
    torn.write_text("8\nLattice")
    ase.io.write(bare, [bulk("NaCl", "rocksalt", a=5.6, cubic=True), bulk("U", "bcc", a=3.5)])
    files = [str(torn), str(labelled), str(bare)]
    assert main(["validate", *files, "--model", MODEL, "--device", "cpu", "--json", "-"]) == 1
    printed = capfd.readouterr()
    document = json.loads(printed.out, parse_constant=lambda c: pytest.fail(f"{c} in JSON"))
    assert len(document["results"]) == 20
    reasons = {(e["file"].rsplit("/", 1)[-1], e.get("index")): e["error"] for e in document["errors"]}
    assert set(reasons) == {("torn.extxyz", None), ("bare.extxyz", 0), ("bare.extxyz", 1)}
    assert "no reference forces" in reasons["bare.extxyz", 0]
    assert printed.err.count("failed:") >= 2
    assert main(["validate", str(torn), "--json", "-"]) == 1
    assert json.loads(capfd.readouterr().out)["results"] == []


def test_an_element_that_the_model_does_not_know_is_a_row_with_the_reason(tmp_path, capfd):
    atoms = bulk("U", "bcc", a=3.5)
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((1, 3)))
    ase.io.write(tmp_path / "u.extxyz", atoms)
    assert main(["validate", str(tmp_path / "u.extxyz"), "--model", MODEL, "--device", "cpu", "--json", "-"]) == 1
    document = json.loads(capfd.readouterr().out)
    assert document["results"] == [] and "U" in document["errors"][0]["error"]


def test_every_structure_has_the_model_that_suits_it(frames, tmp_path, capfd):
    from ase.build import molecule

    water = molecule("H2O")
    water.calc = SinglePointCalculator(water, energy=-1.0, forces=np.zeros((3, 3)))
    path = tmp_path / "mixed.extxyz"
    ase.io.write(path, [*frames[:3], water, frames[3]])
    assert main(["validate", str(path), "--device", "cpu", "--json", "-"]) == 0
    printed = capfd.readouterr()
    document = json.loads(printed.out)
    assert [(m["model"], m["n"]) for m in document["models"]] == [(MODEL, 4), ("fd-orb-molecules-v1", 1)]
    assert {r["formula"]: r["model"] for r in document["results"]} == {"Na4Cl4": MODEL, "H2O": "fd-orb-molecules-v1"}
    assert "fd-orb-molecules-v1 for 1 structure" in printed.err


def test_an_ensemble_ranks_beside_it(labelled, capfd):
    members = "fd-orb-small-v1-s1,fd-orb-small-v1-s2,fd-orb-small-v1-s3"
    options = ["--model", MODEL, "--device", "cpu", "--ensemble", members, "--json", "-"]
    assert main(["validate", str(labelled), *options]) == 0
    document = json.loads(capfd.readouterr().out)
    [model] = document["models"]
    assert {(e["estimate"], e["error"]) for e in model["estimates"]} == {
        (estimate, error)
        for estimate in ("force_delta", "ensemble_spread")
        for error in ("error_direct", "error_conservative")
    }
    from fdcore.ensemble import ensemble_spread

    atoms = ase.io.read(labelled, 7)
    forces = [load_model(m, "cpu").evaluate(atoms)[0].forces_direct for m in members.split(",")]
    assert document["results"][7]["ensemble_spread_eV_per_A"] == pytest.approx(
        ensemble_spread(np.stack(forces)), rel=1e-3
    )
    # Models that reproduce different methods do not make an ensemble unless somebody says so.
    assert main(["validate", str(labelled), "--ensemble", f"{MODEL},fd-orb-molecules-v1"]) == 2
    assert "different methods" in capfd.readouterr().err


def test_stopped_and_repeated_it_goes_on(labelled, tmp_path, capfd, monkeypatch):
    from fdcore.tasks import validate

    seen, evaluated = [], validate._Models.evaluated

    def slowly(self, model_id, structure):
        seen.append(structure.index)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return evaluated(self, model_id, structure)

    monkeypatch.setattr(validate._Models, "evaluated", slowly)
    command = [
        "validate",
        str(labelled),
        "--model",
        MODEL,
        "--device",
        "cpu",
        "--record",
        str(tmp_path / "kept"),
        "--json",
        "-",
    ]
    assert main(command) == 130
    capfd.readouterr()
    assert main(command) == 0
    document = json.loads(capfd.readouterr().out)
    assert [r["index"] for r in document["results"]] == list(range(20))


def test_wrong_usage_is_known_before_anything_runs(labelled, tmp_path, capfd):
    for options, words in (
        (["--above", "0"], "--above 0.0 is no error"),
        (["--group-by", "colour"], "No structure says its 'colour'"),
        (["--json", "-", "--csv", "-"], "Only one document"),
        (["--zip", "-"], "needs a path"),
        (["--reference", "dance"], "no reference"),
        (["--ensemble", MODEL], "from 2 to"),
        (["--ensemble", "nobody,nothing"], "There is no model"),
        (["--html", str(tmp_path / "no" / "x.html")], "Nothing can be written"),
    ):
        assert main(["validate", str(labelled), *options]) == 2, options
        assert words in capfd.readouterr().err


def test_command_line_of_a_page_repeats_it():
    listed = services.read_paths([str(data.path("examples", "NaCl.cif"))]).structures
    spec = validations.spec_of(
        listed, validations.one_for_all(MODEL, listed), members=[MODEL, "fd-orb-small-v1-s1"], dtype="float64"
    )
    line = validations.command_line(["a b.xyz"], spec, suggested_models=False, group_by="formula", above=0.25, seed=3)
    given = build_parser().parse_args(line.replace("'a b.xyz'", "x.xyz").split()[1:])
    assert (given.files, given.model, given.dtype, given.group_by, given.above, given.seed) == (
        ["x.xyz"], MODEL, "float64", "formula", 0.25, 3,
    )  # fmt: skip
    assert given.ensemble == [MODEL, "fd-orb-small-v1-s1"]
    own = validations.command_line([], spec, suggested_models=True)
    assert own == f"fdcore validate --dtype float64 --ensemble {MODEL},fd-orb-small-v1-s1"


# ---- the labels that travel with the package -----------------------------------------------------------------------


def test_shipped_labels_are_those_of_their_card_and_every_one_reads():
    labels = shipped_labels.shipped()
    assert hashlib.sha256(labels.path.read_bytes()).hexdigest() == labels.sha256
    parsed = read_sources([labels.source()])
    assert not parsed.failures and len(parsed.structures) == labels.count
    assert all("forces_eV_per_A" in s.labels and "energy_eV" in s.labels for s in parsed.structures)
    assert {"system", "group", "sigma_a"} <= set(parsed.structures[0].tags)
    assert validation.group_keys(parsed.structures)[0] == "system"
    assert all("gpaw" in str(s.labels["provenance"]) for s in parsed.structures)


def test_a_handful_of_shipped_labels_is_compared_with_the_embedded_models(tmp_path, capfd):
    parsed = read_sources([shipped_labels.shipped().source()]).structures
    some = [*[s for s in parsed if s.periodic][:4], *[s for s in parsed if not s.periodic][:3]]
    atoms = []
    for s in some:
        a = s.to_atoms()
        a.info.update(s.tags)
        a.calc = SinglePointCalculator(a, energy=s.labels["energy_eV"], forces=s.labels["forces_eV_per_A"])
        atoms.append(a)
    ase.io.write(tmp_path / "some.extxyz", atoms)
    assert main(["validate", str(tmp_path / "some.extxyz"), "--device", "cpu", "--json", "-"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert [m["n"] for m in document["models"]] == [4, 3]
    # Embedded models are small, and their teachers are not PBE: wrong by less than forces at bonds, and by more than nothing.
    assert all(1e-3 < r["error_conservative_eV_per_A"] < 20 for r in document["results"])


def test_a_seed_that_cannot_be_used_is_told(labelled, capfd):
    assert main(["validate", str(labelled), "--seed", "-3"]) == 2
    assert "The seed is -3" in capfd.readouterr().err


def test_labels_that_are_not_finite_are_told_once(frames, tmp_path, capfd):
    atoms = frames[0].copy()
    forces = np.array(frames[0].get_forces())
    forces[0, 0] = np.nan
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=forces)
    path = tmp_path / "torn.extxyz"
    ase.io.write(path, [atoms, frames[2]])
    assert main(["validate", str(path), "--model", MODEL, "--device", "cpu"]) == 1
    printed = capfd.readouterr()
    assert f"failed: {path} (frame 0): It has no reference forces, or some that are not finite." in printed.err
    # Of one structure nothing is said that takes several.
    assert "U_Delta tells structures with a large eps_c from others cannot be told from 1 structure" in printed.out
    assert "median" not in printed.out and "points at" not in printed.out


def test_few_labelled_structures_are_no_climbs(frames, tmp_path, capfd):
    path = tmp_path / "few.extxyz"
    ase.io.write(path, frames[:4])
    assert main(["validate", str(path), "--model", MODEL, "--device", "cpu"]) == 0
    printed = capfd.readouterr().out
    assert "No intervals: fewer than 5 structures say nothing about others." in printed and "climb" not in printed


def test_without_a_file_the_shipped_labels_are_taken(labelled, monkeypatch, capfd):
    content = labelled.read_bytes()
    made = shipped_labels.ShippedLabels(
        "x", "Stand-in", "", "by hand", "", 20, hashlib.sha256(content).hexdigest(), labelled, {}
    )
    monkeypatch.setattr(validations, "shipped", lambda: made)
    assert main(["validate", "--model", MODEL, "--device", "cpu", "--json", "-"]) == 0
    printed = capfd.readouterr()
    assert len(json.loads(printed.out)["results"]) == 20 and "no file given: Stand-in, 20 structures" in printed.err


def test_without_shipped_labels_it_says_so(monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(shipped_labels.data, "path", lambda *parts: tmp_path / parts[-1])
    shipped_labels.shipped.cache_clear()
    assert main(["validate"]) == 2
    assert "are not part of this installation" in capfd.readouterr().err
    shipped_labels.shipped.cache_clear()


def test_a_changed_file_of_labels_is_refused(tmp_path):
    path = tmp_path / "x.extxyz"
    path.write_text("changed")
    made = shipped_labels.ShippedLabels("x", "X", "", "", "", 1, "0" * 64, path, {})
    with pytest.raises(UsageError, match="not the file that its card describes"):
        made.source()


def test_judges_name_every_structure_once():
    listed = services.read_paths(
        [str(data.path("examples", n)) for n in ("NaCl.cif", "aspirin.xyz", "ice_XI.cif")]
    ).structures
    own = validations.suggested(listed)
    spec = validations.spec_of(listed, own)
    assert spec.model == ModelChoice(own.ids[0], weights_sha256=spec.model.weights_sha256)
    assert sum(len(part) for part in own.of_model(listed).values()) == len(listed)
    with pytest.raises(UsageError, match="2 model_of are named for 3"):
        validations.ValidateTask().check(replace(spec, parameters={"further": list(own.ids[1:]), "model_of": [0, 0]}))
    with pytest.raises(UsageError, match="a model that there is not"):
        validations.ValidateTask().check(replace(spec, parameters={"model_of": [0, 1, 0]}))


UNIT_CASES = {"kcal/mol/Å": 23.06, "Hartree/Bohr": 1 / 51.42, "once too often": 51.42}


@pytest.mark.parametrize("unit", UNIT_CASES)
def test_labels_in_another_unit_are_doubted(unit, frames, tmp_path, capfd):
    path, others = tmp_path / "units.extxyz", [a.copy() for a in frames[2:8]]
    model = load_model(MODEL, "cpu")
    for atoms, seen in zip(others, model.evaluate(others), strict=True):
        forces = np.array(seen.forces_conservative) * UNIT_CASES[unit] * 1.02
        atoms.calc = SinglePointCalculator(atoms, energy=seen.energy, forces=forces)
    ase.io.write(path, others)
    options = ["--model", MODEL, "--device", "cpu", "--json", str(tmp_path / "v.json")]
    assert main(["validate", str(path), *options]) == 0
    printed = capfd.readouterr().out
    assert "Warning: the forces of the labels point as the model's do" in printed and unit in printed
    assert "labels: origin unknown; the file does not say what made them; the model's training reference" in printed
    document = json.loads((tmp_path / "v.json").read_text())
    assert document["labels"] == [validations.ORIGIN_UNKNOWN]
    [one] = document["models"]
    assert unit in one["unit_doubt"]["looks_like"]
    assert one["unit_doubt"]["over_forces_conservative"] == pytest.approx(1.02 * UNIT_CASES[unit], rel=1e-3)


def test_a_unit_is_doubted_for_a_reason_only():
    rng = np.random.default_rng(0)
    own = rng.normal(size=(40, 3))
    assert unit_doubt(own, own) is None
    # Large and alike, but the ratio of no unit; the ratio of one, but unlike.
    assert unit_doubt(30.0 * own, own) is None
    assert unit_doubt(23.06 * rng.normal(size=(40, 3)), own) is None
    assert unit_doubt(23.06 * own, own).unit == "kcal/mol/Å"
    assert unit_doubt(23.06 * own * 1.06, own) is None
    absurd = unit_doubt(400.0 * own, own)
    assert absurd.median > 100 and absurd.ratio is None
    assert unit_doubt(400.0 * own, None) == absurd
    # A few torn atoms are no other unit, and forces that are nearly zero have no ratio.
    torn = own.copy()
    torn[:10] *= 1e4
    assert unit_doubt(torn, own) is None
    assert unit_doubt(23.06e-4 * own, 1e-4 * own) is None
    assert unit_doubt(np.zeros((4, 3)), own[:4]) is None and unit_doubt(np.zeros((0, 3)), None) is None


def test_absurd_labels_are_doubted_and_ordinary_ones_not(labelled, frames, tmp_path, capfd):
    assert main(["validate", str(labelled), "--model", MODEL, "--device", "cpu"]) == 0
    assert "Warning" not in capfd.readouterr().out
    path, others = tmp_path / "absurd.extxyz", [a.copy() for a in frames[:4]]
    rng = np.random.default_rng(1)
    for atoms in others:
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=rng.normal(size=(8, 3)) * 500)
    ase.io.write(path, others)
    assert main(["validate", str(path), "--model", MODEL, "--device", "cpu"]) == 0
    assert "eV/Å, as in no ordinary structure: are they in another unit?" in capfd.readouterr().out
