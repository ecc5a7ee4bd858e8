"""A recorded attack and its files: every format is read back by the program that it is meant for."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import zipfile
from dataclasses import replace
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule

import fdcore
from fdcore import adversarial, adversarial_files, services, validation, validation_words
from fdcore import reference as references
from fdcore.adversarial_plots import climb_charts, errors_chart, map_chart
from fdcore.attack.settings import Choice
from fdcore.errors import ComputeError, UsageError
from fdcore.records import Structure
from fdcore.services import adversarial as attacks
from fdcore.services import default_model_id, labels, runs
from fdcore.spec import ModelChoice
from fdcore.statistics import rank_correlation
from fdcore.tasks.attack import AttackParameters
from fdcore.tasks.run import execute
from fdcore.tasks.validate import ValidateTask
from fdcore.validation import Compared

ASKED = {"count": 4, "starts": 3, "steps": 10, "rise": 2.0, "apart": 0.2, "relax_fmax_eV_per_A": None}


@pytest.fixture(scope="module")
def model():
    return fdcore.load_model(device="cpu")


def attack_on(structures, model, folder: Path, seed: int = 3, **asked) -> adversarial.Adversarial:
    choice = ModelChoice(default_model_id(), "float32", "cpu")
    spec = runs.spec_of("attack", structures, choice, attacks.parameters_of({**ASKED, **asked}), seed=seed)
    outcome = execute(spec, structures, lambda _: model, folder)
    assert outcome.state == "done", outcome
    return adversarial.read(folder, spec, structures, outcome.summary)


@pytest.fixture(scope="module")
def salt() -> Structure:
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(0.05, seed=3)
    return Structure.from_atoms(atoms, file="salt.cif", index=0)


@pytest.fixture(scope="module")
def attack(salt, model, tmp_path_factory):
    return attack_on([salt], model, tmp_path_factory.mktemp("attack") / "1")


@pytest.fixture(scope="module")
def items(attack):
    found = adversarial.dataset(attack)
    assert len(found) == 4
    return found


def labels_for(items) -> list[Compared]:
    return [
        Compared(k, i.structure, i.force_delta, 0.1, 0.2, i.energy, -30.0 - k, np.full_like(i.forces_direct, 0.5 + k))
        for k, i in enumerate(items)
    ]


# ---- what was recorded ---------------------------------------------------------------------------------------------


def test_record_says_what_the_model_says(attack, items, model, salt):
    origin = attack.origins[0]
    assert origin.force_delta == pytest.approx(model.evaluate([salt])[0].force_delta, rel=1e-4)
    for item in items:
        [seen] = model.evaluate([item.structure])
        assert item.force_delta == pytest.approx(seen.force_delta, rel=1e-3)
        assert np.sqrt((item.force_delta_per_atom**2).mean()) == pytest.approx(item.force_delta, rel=1e-5)
        assert item.rise == pytest.approx(item.force_delta / origin.force_delta, rel=1e-6)
        assert item.rise >= 2
        assert item.above_eV_per_atom == pytest.approx((item.energy - origin.energy) / 8, abs=1e-9)
        assert item.weight == pytest.approx(np.exp(-max(0, item.above_eV_per_atom) / (8.617e-5 * 1000)), rel=1e-3)


def test_dataset_is_a_pure_function_of_the_record(attack):
    again = adversarial.read(attack.folder, attack.spec, attack.structures, attack.result)
    assert again.selected == attack.selected
    spread = attack.choose(Choice(4, 2.0, True, 0.2))
    assert spread.rows != attack.selected.rows


def test_what_is_missing_is_said(salt, model, tmp_path):
    found = attack_on([salt], model, tmp_path / "1", count=500, starts=1, steps=2, rise=50.0)
    assert not adversarial.dataset(found)
    assert "No structure has reached 50 times" in adversarial.sentence(found)
    assert "More starts" in adversarial.shortage(found)
    files = adversarial_files.archived(found)
    assert "dataset.extxyz" not in files and json.loads(str(files["attack.json"]))["results"] == []


def test_a_file_that_gave_nothing_is_named(salt, model, tmp_path):
    other = replace(salt, positions=salt.positions + 0.02 * np.sin(np.arange(24)).reshape(8, 3), file="other.cif")
    found = attack_on([salt, other], model, tmp_path / "1", count=1, starts=2, steps=3, rise=1.0)
    [said] = adversarial.without(found)
    absent = next(n for k, n in enumerate(("salt.cif", "other.cif")) if k != adversarial.dataset(found)[0].parent)
    assert said.startswith(f"Nothing from {absent}: ") and said in adversarial_files.document(found)["without"]
    strict = replace(found, spec=replace(found.spec, parameters={**found.spec.parameters, "count": 4}))
    assert adversarial.without(strict) == [] and len({i.parent for i in adversarial.dataset(strict)}) == 2


def test_a_run_so_far_can_be_read(attack, salt, tmp_path):
    nothing = adversarial.read(None, attack.spec, [salt], None)
    assert nothing.selected.rows == () and adversarial.dataset(nothing) == []
    assert adversarial.read(tmp_path, attack.spec, [salt], None).n_steps == 0


def test_starts_follow_the_count():
    assert AttackParameters().starts_for(1) == 5
    assert AttackParameters(count=100).starts_for(1) == 50
    assert AttackParameters(count=2).starts_for(1) == 4
    assert AttackParameters(count=2).starts_for(9) == 9
    assert AttackParameters(starts=7).starts_for(1) == 7


# ---- files ---------------------------------------------------------------------------------------------------------


def test_extxyz_reads_back_with_everything(attack, items):
    frames = ase.io.read(io.StringIO(adversarial_files.dataset_extxyz(attack)), ":", format="extxyz")
    assert len(frames) == 4
    for atoms, item in zip(frames, items, strict=True):
        np.testing.assert_allclose(atoms.positions, item.structure.positions, atol=1e-7)
        np.testing.assert_allclose(atoms.cell.array, item.structure.cell, atol=1e-7)
        np.testing.assert_allclose(atoms.arrays["forces_direct"], item.forces_direct, atol=1e-6)
        np.testing.assert_allclose(atoms.arrays["force_delta_per_atom"], item.force_delta_per_atom, atol=1e-6)
        assert atoms.info["force_delta_eV_per_A"] == pytest.approx(item.force_delta)
        assert atoms.info["seed"] == 3 and atoms.info["model"] == default_model_id()
        assert len(atoms.info["weights_sha256"]) == 64
        assert (atoms.info["parent"], atoms.info["start"], atoms.info["step"]) == ("salt.cif", item.start, item.step)
        # The model's own energy is no label.
        assert atoms.calc is None and "forces" not in atoms.arrays and "energy" not in atoms.info


def read_extxyz(text: str) -> list[ase.Atoms]:
    return ase.io.read(io.StringIO(text), ":", format="extxyz")


def test_content_id_is_that_of_the_file(attack, salt, model, tmp_path):
    """Whoever reads a file can check that it holds what it says, to the last bit."""
    strained = attack_on([salt], model, tmp_path / "1", strain=True, steps=6, rise=1.0)
    water = Structure.from_atoms(molecule("H2O"), file="water.xyz")
    molecules = attack_on([replace(water, charge=0, spin=1)], model, tmp_path / "2", steps=4, rise=1.0, apart=0.0)
    for found in (attack, strained, molecules):
        frames = read_extxyz(adversarial_files.dataset_extxyz(found))
        frames += read_extxyz(adversarial_files.parents_extxyz(found))
        path = tmp_path / f"{found.spec.sha256[:8]}.db"
        path.write_bytes(adversarial_files.dataset_db(found))
        stored = list(ase.db.connect(path).select())
        assert len(frames) == len(stored) + 1 > 2
        for atoms in frames:
            assert Structure.from_atoms(atoms).content_id == atoms.info["content_sha256"]
        for row, atoms in zip(stored, frames, strict=False):
            assert row.data["fdcore"]["content_sha256"] == atoms.info["content_sha256"]
            np.testing.assert_array_equal(row.toatoms().positions, atoms.positions)
    assert not np.array_equal(frames[0].positions, frames[-1].positions)
    assert np.abs(adversarial.dataset(strained)[0].structure.cell - salt.cell).max() > 1e-3


def test_origins_are_in_the_files_so_that_every_multiple_can_be_computed_again(salt, model, tmp_path):
    other = replace(salt, positions=salt.positions + 0.03 * np.sin(np.arange(24)).reshape(8, 3), file="other.cif")
    asked = {"relax_fmax_eV_per_A": 0.2, "relax_steps": 5, "starts": 4, "steps": 6, "rise": 1.2}
    found = attack_on([salt, other], model, tmp_path / "1", **asked)
    origins = [found.origins[k].structure for k in (0, 1)]
    compared = labels_for(adversarial.dataset(found))
    compared.append(replace(compared[0], structure=origins[0]))
    archive = adversarial_files.archived(found, None, compared, "X")
    parents = {a.info["id"]: a for a in read_extxyz(str(archive["parents.extxyz"]))}
    assert list(parents) == ["parent000", "parent001"]
    about = json.loads(str(archive["provenance.json"]))
    assert [o["content_sha256"] for o in about["origins"]] == [a.info["content_sha256"] for a in parents.values()]
    assert [o["given_sha256"] for o in about["origins"]] == [salt.content_id, other.content_id]
    for k, (atoms, seen) in enumerate(zip(parents.values(), model.evaluate(origins), strict=True)):
        # What stands in the file is what the model says of what stands in the file, and no label.
        assert atoms.info["model_energy_eV"] == pytest.approx(seen.energy, abs=1e-4)
        assert atoms.info["force_delta_eV_per_A"] == pytest.approx(seen.force_delta, rel=1e-3)
        assert atoms.calc is None and "energy" not in atoms.info and "forces" not in atoms.arrays
        assert about["origins"][k]["model_energy_eV"] == atoms.info["model_energy_eV"]
        assert about["origins"][k]["relaxed"] and np.abs(atoms.positions - found.structures[k].positions).max() > 1e-3
    assert parents["parent000"].info["error_conservative_eV_per_A"] == pytest.approx(0.2)
    frames = read_extxyz(str(archive["dataset.extxyz"]))
    path = tmp_path / "dataset.db"
    path.write_bytes(bytes(archive["dataset.db"]))  # type: ignore[arg-type]
    rows = list(ase.db.connect(path).select())
    assert len(frames) == len(rows) == 4 and {a.info["parent_id"] for a in frames} == set(parents)
    # No origin among what is trained on.
    assert not {Structure.from_atoms(a).content_id for a in frames} & {s.content_id for s in origins}
    for atoms, row in zip(frames, rows, strict=True):
        info, parent = atoms.info, parents[atoms.info["parent_id"]]
        assert info["parent_sha256"] == parent.info["content_sha256"]
        for energy, force_delta in (
            (info["origin_energy_eV"], info["origin_force_delta_eV_per_A"]),
            (parent.info["model_energy_eV"], parent.info["force_delta_eV_per_A"]),
            (row.origin_energy, row.origin_force_delta),
        ):
            assert info["above_origin_eV_per_atom"] == pytest.approx((info["model_energy_eV"] - energy) / 8, abs=1e-9)
            assert info["rise"] == pytest.approx(info["force_delta_eV_per_A"] / force_delta, rel=1e-9)


def test_labels_stand_where_programs_look_for_them(attack, items, tmp_path):
    known = validation.by_content(labels_for(items))
    frames = ase.io.read(io.StringIO(adversarial_files.dataset_extxyz(attack, known)), ":", format="extxyz")
    assert [a.get_potential_energy() for a in frames] == [-30, -31, -32, -33]
    np.testing.assert_allclose(frames[2].get_forces(), 2.5)
    path = tmp_path / "dataset.db"
    path.write_bytes(adversarial_files.dataset_db(attack, known))
    rows = list(ase.db.connect(path).select())
    assert [r.energy for r in rows] == [-30, -31, -32, -33]
    np.testing.assert_allclose(rows[1].forces, 1.5)


def test_database_reads_in_ase_and_is_searchable(attack, items, tmp_path):
    path = tmp_path / "dataset.db"
    path.write_bytes(adversarial_files.dataset_db(attack))
    database = ase.db.connect(path)
    assert len(database) == 4
    row = database.get(name=adversarial_files.identity(items[1]))
    np.testing.assert_allclose(row.positions, items[1].structure.positions)
    np.testing.assert_allclose(row.data["forces_conservative"], items[1].forces_conservative)
    assert row.data["fdcore"]["parent"] == "salt.cif"
    assert not row.get("energy") and row.model == default_model_id()
    middle = sorted(i.force_delta for i in items)[1]
    assert len(list(database.select(f"force_delta>{middle}"))) == 2
    with sqlite3.connect(path) as raw:
        assert raw.execute("pragma integrity_check").fetchone() == ("ok",)


def test_database_reads_in_the_fine_tuning_of_orb(attack, items, model, tmp_path):
    from orb_models.common.dataset.ase_sqlite_dataset import AseSqliteDataset
    from orb_models.common.dataset.property_definitions import PropertyConfig

    path = tmp_path / "dataset.db"
    path.write_bytes(adversarial_files.dataset_db(attack, validation.by_content(labels_for(items))))
    targets = PropertyConfig(graph_names=["energy"], node_names=["forces"])
    dataset = AseSqliteDataset("adversarial", path, model.adapter, target_config=targets)
    assert len(dataset) == 4
    graph = dataset[2]
    assert float(graph.system_targets["energy"]) == pytest.approx(-32)
    np.testing.assert_allclose(graph.node_targets["forces"].numpy(), 2.5)
    assert len(graph.senders) == len(model.graphs([items[2].structure]).senders)


def test_database_reads_in_fairchem(attack, items, tmp_path):
    from fairchem.core.datasets.ase_datasets import AseDBDataset

    path = tmp_path / "dataset.db"
    path.write_bytes(adversarial_files.dataset_db(attack, validation.by_content(labels_for(items))))
    dataset = AseDBDataset({"src": str(path), "a2g_args": {"r_energy": True, "r_forces": True}})
    assert len(dataset) == 4
    data = dataset[3]
    assert float(data.energy) == pytest.approx(-33)
    np.testing.assert_allclose(data.forces.numpy(), 3.5)
    # It wraps positions into the cell.
    apart = np.linalg.solve(items[3].structure.cell.T, (data.pos.numpy() - items[3].structure.positions).T)
    np.testing.assert_allclose(apart - np.round(apart), 0.0, atol=1e-5)


def test_cif_reads_back(attack, items):
    frames = ase.io.read(io.BytesIO(adversarial_files.dataset_cif(attack).encode()), ":", format="cif")
    assert len(frames) == 4
    for atoms, item in zip(frames, items, strict=True):
        expected = item.structure.to_atoms()
        assert atoms.get_chemical_formula() == expected.get_chemical_formula()
        np.testing.assert_allclose(atoms.get_all_distances(mic=True), expected.get_all_distances(mic=True), atol=1e-3)


@pytest.mark.parametrize("dft_set", sorted(adversarial_files.DFT_SETS))
def test_vasp_folder_reads_back_and_names_its_potentials(attack, items, dft_set, tmp_path):
    from pymatgen.io.vasp.inputs import Incar, Kpoints, Poscar

    files = adversarial_files.vasp_folder(items[0].structure, dft_set)
    poscar, incar = Poscar.from_str(files["POSCAR"]), Incar.from_str(files["INCAR"])
    order = json.loads(files["order.json"])
    assert sorted(order) == list(range(8))
    expected = items[0].structure
    assert [s.specie.symbol for s in poscar.structure] == [expected.symbols[k] for k in order]
    offset = poscar.structure.cart_coords - expected.positions[order]
    fractions = np.linalg.solve(expected.cell.T, offset.T)
    np.testing.assert_allclose(fractions - np.round(fractions), 0.0, atol=1e-9)
    assert incar["NSW"] == 0 and incar["ENCUT"] >= 520
    assert ("KPOINTS" in files) != ("KSPACING" in incar)
    if "KPOINTS" in files:
        assert Kpoints.from_str(files["KPOINTS"]).num_kpts == 0
    assert "Na" in files["POTCAR.spec"] and "Cl" in files["POTCAR.spec"]
    assert "POTCAR" not in files, "potentials are licensed"


def test_unknown_dft_set_is_refused(items):
    with pytest.raises(UsageError, match="no DFT input set"):
        adversarial_files.vasp_folder(items[0].structure, "MySet")


def test_zip_explains_itself(attack, items):
    content = adversarial_files.dataset_zip(attack, {"dtype": "float32"}, labels_for(items), "CHGNet")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        readme = archive.read("README.txt").decode()
        about = json.loads(archive.read("provenance.json"))
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open("dataset.csv"))))
        climb = list(csv.DictReader(io.TextIOWrapper(archive.open("climb.csv"))))
        document = json.loads(archive.read("attack.json"))
        with archive.open("dataset.extxyz") as stream:
            frames = ase.io.read(io.TextIOWrapper(stream), ":", format="extxyz")
    assert {"dataset.db", "dataset.cif"} <= names
    first = adversarial_files.identity(items[0])
    assert {f"vasp/{first}/{n}" for n in ("POSCAR", "INCAR", "KPOINTS", "POTCAR.spec", "order.json")} <= names
    assert "What they are not" in readme and "reference CHGNet" in readme
    given = attack.parameters
    assert set(about["parameters"]) == set(AttackParameters.__dataclass_fields__) == set(document["parameters"])
    assert about["parameters"]["window_eV_per_atom"] == given.window_eV_per_atom and about["parameters"]["starts"] == 3
    assert float(rows[0]["boltzmann_weight_temperature_K"]) == 1000
    assert about["spec"]["seed"] == 3 and about["provenance"]["dtype"] == "float32"
    assert [r["id"] for r in rows] == [adversarial_files.identity(i) for i in items]
    assert float(rows[0]["error_conservative_eV_per_A"]) == pytest.approx(0.2)
    assert len(climb) == attack.n_steps and sum(r["in_dataset"] == "True" for r in climb) == 4
    assert len(frames) == 4 and len(document["results"]) == 4
    assert document["reference"]["bands"][0]["n"] == 4


def test_unlabelled_zip_warns_of_its_own_forces(attack):
    readme = adversarial_files.archived(attack)["README.txt"]
    assert "carry no labels" in str(readme)


def test_molecules_have_everything_but_cells(model, tmp_path):
    # Two waters: hydrogen and oxygen are what the model knows.
    atoms = molecule("H2O")
    other = molecule("H2O")
    other.translate([0.3, 2.9, 0.4])
    s = Structure.from_atoms(atoms + other, file="waters.xyz")
    found = attack_on([s], model, tmp_path / "1", rise=1.0, steps=4, count=2, apart=0.0)
    files = adversarial_files.archived(found)
    assert "dataset.extxyz" in files and "dataset.db" in files
    assert "dataset.cif" not in files and not [n for n in files if n.startswith("vasp/")]
    with pytest.raises(UsageError, match="molecule"):
        adversarial_files.vasp_folder(adversarial.dataset(found)[0].structure)


def test_document_is_plain_json_also_where_nothing_was_to_begin_with(model, tmp_path):
    perfect = Structure.from_atoms(bulk("Al", cubic=True), file="al.cif")
    found = attack_on([perfect], model, tmp_path / "1", steps=4, count=2)
    document = json.loads(adversarial_files.document_json(found))
    assert all(r["rise"] is None for r in document["results"])
    assert any(s["rattled"] and "symmetry" in s["rattled"] for s in document["starts"])
    assert "where they agreed at the start" in document["text"]


def test_charts_hold_what_they_say(attack, items):
    u, energy = climb_charts(attack, 0)
    assert len(str(u.to_dict())) > 1000 and energy.to_dict()["title"]["text"].startswith("What it costs")
    points = map_chart(attack).data
    assert (points["what"] == "in the dataset").sum() == 4
    assert len(errors_chart(labels_for(items), "X").to_dict()["datasets"]) == 2


# ---- a reference ---------------------------------------------------------------------------------------------------


def test_labelled_frames_are_recognised_after_rounding_and_wrapping(attack, items):
    frames = []
    for k, item in enumerate(items):
        s = item.structure
        moved = np.round(s.positions, 4)
        moved[k] += s.cell[0]
        frames.append(replace(s, positions=moved, labels={"forces_eV_per_A": np.zeros((8, 3)), "energy_eV": 1.0}))
    other = replace(frames[0], positions=frames[0].positions[::-1])
    found = attacks.labelled(attack, [*frames, other, items[0].structure])
    assert [row for _, row in found] == [i.row for i in items]
    assert all(s.labels["energy_eV"] == 1.0 for s, _ in found)


def test_truth_task_compares_with_labels(items, model, tmp_path):
    given = [replace(i.structure, labels={"forces_eV_per_A": i.forces_direct, "energy_eV": -1.0}) for i in items]
    given.append(items[0].structure)
    spec = runs.spec_of("validate", given, ModelChoice(default_model_id(), "float32", "cpu"))
    outcome = execute(spec, given, lambda _: model, tmp_path / "1")
    assert outcome.summary["compared"] == 4 and outcome.summary["failed"] == 1
    compared, failed = validation.read(tmp_path / "1", spec, given)
    # Labelled with F_nc: its error is rounding, that of F_c is U_Delta.
    for c, item in zip(compared, items, strict=True):
        assert c.error_direct < 1e-3
        assert c.error_conservative == pytest.approx(item.force_delta, rel=1e-3)
        assert c.energy_reference == -1.0
    assert "no reference forces" in failed[0].error


def test_any_ase_calculator_by_its_name(items):
    found = references.register("ase.calculators.lj:LennardJones")
    [answer] = references.truths(found, [items[0].structure])
    assert answer.forces_reference.shape == (8, 3)
    assert references.register("ase.calculators.lj:LennardJones") is found
    for wrong in ("no.such.module:Thing", "ase.calculators.lj:Nothing"):
        with pytest.raises(UsageError, match="cannot be imported"):
            references.register(wrong)
    with pytest.raises(UsageError, match="no reference"):
        references.register("rm -rf")
    with pytest.raises(UsageError, match="no reference"):
        references.reference("dance")


def test_calculator_of_the_command_line_is_made_once(items, monkeypatch, tmp_path):
    """It may load a network of gigabytes."""
    (tmp_path / "costly.py").write_text(
        "from ase.calculators.lj import LennardJones\nmade = []\n\ndef heavy():\n    made.append(1)\n    return LennardJones()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(references, "REFERENCES", dict(references.REFERENCES))
    found = references.register("costly:heavy")
    import costly  # type: ignore[import-not-found]

    assert len(costly.made) == 1
    answers = list(references.truths(references.reference(found.id), [i.structure for i in items]))
    assert len(answers) == 4 and len(costly.made) == 1
    # Another comparison gets another one: the first may remember structures.
    assert len(list(references.truths(found, [items[0].structure]))) == 1 and len(costly.made) == 2


def test_missing_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(references, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as error:
        references.reference("chgnet")
    assert "pip install 'force-delta[chgnet]'" in error.value.hint
    # GPAW has an environment of its own, which may be here.
    assert not any(o.is_here for o in labels.offered_references() if o.id != "gpaw")


def test_reference_that_fails_on_one_goes_on_with_the_next(items):
    class Moody:
        def __init__(self):
            self.parameters = {}

        def get_potential_energy(self, atoms, **_):
            if np.allclose(atoms.positions, items[0].structure.positions):
                raise RuntimeError("SCF did not converge")
            return 1.0

        def get_forces(self, atoms):
            return np.zeros((len(atoms), 3))

    moody = references.Reference("moody", "Moody", "", "", "", Moody)
    first, second = references.truths(moody, [items[0].structure, items[1].structure])
    assert isinstance(first, ComputeError) and "SCF did not converge" in str(first)
    assert second.energy == 1.0


@pytest.mark.slow
def test_chgnet_ranks_the_errors_of_three_materials(model, tmp_path):
    """The claim is r_s(U_Delta, eps_c) >= 0.9 for all structures together; benchmarks/attack.py measures it with 300 (0.97)."""
    pytest.importorskip("chgnet", reason="the optional extra chgnet is not installed")
    compared: list[Compared] = []
    for name in ("Mg17Al12", "LGPS", "ice_XI"):
        example = next(e for e in services.examples() if e.id == name)
        structures = services.read_sources([services.example_source(example)]).structures
        asked = {"count": 10, "starts": 6, "steps": 25, "rise": 5.0, "apart": 0.3, "relax_fmax_eV_per_A": 0.05}
        found = attack_on(structures, model, tmp_path / name / "1", seed=1, **asked)
        listed, climbs = attacks.to_compare(found, also=12)
        answers = references.truths(references.reference("chgnet"), listed)
        for k, (s, climb, seen, answer) in enumerate(zip(listed, climbs, model.evaluate(listed), answers, strict=True)):
            errors = [
                fdcore.delta.rms_difference(f, answer.forces_reference)
                for f in (seen.forces_direct, seen.forces_conservative)
            ]
            forces = answer.forces_reference
            compared.append(
                Compared(k, s, seen.force_delta, *errors, seen.energy, answer.energy, forces, (name, climb))
            )
    pooled = validation.bands(compared)[0].conservative
    assert pooled.n >= 50 and pooled.groups >= 15
    assert pooled.r_s >= 0.9
    assert pooled.low > 0.6


def test_chgnet_ranks_the_errors_of_one_small_crystal(attack, model):
    """Far fewer structures, all of one material: less to rank."""
    pytest.importorskip("chgnet", reason="the optional extra chgnet is not installed")
    structures, _ = attacks.to_compare(attack, also=8)
    answers = list(references.truths(references.reference("chgnet"), structures))
    seen = model.evaluate(structures)
    errors = [
        fdcore.delta.rms_difference(e.forces_conservative, a.forces_reference)
        for e, a in zip(seen, answers, strict=True)
    ]
    assert rank_correlation([e.force_delta for e in seen], errors).r_s > 0.7


def test_tblite_gives_forces_of_a_molecule():
    pytest.importorskip("tblite", reason="the optional extra tblite is not installed")
    s = Structure.from_atoms(molecule("H2O"))
    [answer] = references.truths(references.reference("gfn2"), [s])
    assert answer.energy == pytest.approx(-138.0, abs=1.0)
    assert np.abs(answer.forces_reference).max() < 2.0


# ---- rank correlation ----------------------------------------------------------------------------------------------


def test_rank_correlation_is_spearmans():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = np.round(x + rng.normal(size=60), 1)
    found = rank_correlation(x, y)
    assert found.r_s == pytest.approx(spearmanr(x, y).statistic)
    assert found.low < found.r_s < found.high and found.high - found.low < 0.5
    assert rank_correlation(x, np.exp(x)).r_s == 1.0
    assert rank_correlation([1, 2], [1, 2]).r_s is None
    assert rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]).r_s is None
    with pytest.raises(UsageError):
        rank_correlation([1, 2, np.nan], [1, 2, 3])


def test_bootstrap_interval_covers_the_truth():
    rng = np.random.default_rng(1)
    # Spearman's rho of a bivariate normal with correlation r is 6/pi asin(r/2).
    truth_value, hits = 6 / np.pi * np.arcsin(0.35), 0
    for _ in range(120):
        x = rng.normal(size=80)
        y = 0.7 * x + np.sqrt(1 - 0.49) * rng.normal(size=80)
        found = rank_correlation(x, y, samples=300)
        hits += found.low <= truth_value <= found.high
    assert 0.85 <= hits / 120 <= 1.0


@pytest.mark.parametrize("copies", [2, 5])
def test_what_is_there_twice_does_not_narrow_the_interval(copies):
    rng = np.random.default_rng(2)
    x = rng.normal(size=40)
    y = x + rng.normal(size=40)
    once = rank_correlation(x, y)
    again = rank_correlation(np.tile(x, copies), np.tile(y, copies), groups=np.tile(np.arange(40), copies).tolist())
    assert (again.r_s, again.groups, again.n) == (pytest.approx(once.r_s), 40, 40 * copies)
    assert (again.low, again.high) == (pytest.approx(once.low), pytest.approx(once.high))
    # As if they were new they would narrow it.
    naive = rank_correlation(np.tile(x, copies), np.tile(y, copies))
    assert naive.high - naive.low < 0.8 * (once.high - once.low)


def test_interval_of_climbs_covers_the_truth_where_that_of_structures_does_not():
    """Ten climbs of eight structures that are nearly alike: the pairs within one say little new."""
    rng = np.random.default_rng(3)
    value, hits, naive_hits, n = 6 / np.pi * np.arcsin(0.25), 0, 0, 150
    groups = np.repeat(np.arange(15), 8).tolist()
    for _ in range(n):
        mean = rng.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], 15)
        x, y = (np.repeat(mean, 8, axis=0) + 0.1 * rng.normal(size=(120, 2))).T
        found, naive = rank_correlation(x, y, groups=groups, samples=200), rank_correlation(x, y, samples=200)
        hits += found.low <= value <= found.high
        naive_hits += naive.low <= value <= naive.high
    assert hits / n > 0.85
    assert naive_hits / n < 0.65


def test_too_few_climbs_have_no_interval():
    x = np.arange(12.0)
    found = rank_correlation(x, x, groups=[0, 1, 2, 3] * 3)
    assert found.r_s == 1.0 and found.low is None and found.high is None
    assert found.text == "1.00 (all in order)"
    assert rank_correlation(x, np.roll(x, 1), groups=[0, 1, 2, 3] * 3).text == "0.54"
    with pytest.raises(UsageError):
        rank_correlation(x, x, groups=[0, 1])


def test_comparison_knows_which_climb_each_structure_comes_from(attack, model, tmp_path):
    given, climbs = attacks.to_compare(attack, also=8)
    assert len(climbs) == len(given) == len({s.content_id for s in given}) > 6
    # One start was not displaced: its first step is the origin, which belongs to it then.
    assert set(climbs) == {0, 1, 2}
    labelled = [replace(s, labels={"forces_eV_per_A": np.zeros((8, 3))}) for s in given]
    choice = ModelChoice(default_model_id(), "float32", "cpu")
    spec = runs.spec_of("validate", labelled, choice, {"climbs": climbs})
    execute(spec, labelled, lambda _: model, tmp_path / "1")
    compared, _ = validation.read(tmp_path / "1", spec, labelled)
    assert [c.climb for c in compared] == climbs
    bands = validation.bands(compared)
    assert bands[0].conservative.groups == 3 and "fewer than 5 climbs" in validation_words.interval_text(bands)
    assert f"{len(given)} structures of 3 climbs" in validation_words.sentence(bands, "X")
    alone = validation.bands([replace(c, climb=None) for c in [*compared, *compared]])
    # Unknown climbs: each stands for itself, but only once.
    assert alone[0].conservative.groups == len(compared) and "over whole climbs" in validation_words.interval_text(
        alone
    )
    with pytest.raises(UsageError, match="climbs are named"):
        ValidateTask().check(runs.spec_of("validate", labelled, choice, {"climbs": [1]}))
    with pytest.raises(UsageError, match="one whole number per structure"):
        ValidateTask().check(runs.spec_of("validate", labelled, choice, {"climbs": "all"}))


def test_bands_are_thirds_of_u():
    def one(k: float) -> Compared:
        s = Structure([1], [[0, 0, k]], np.zeros((3, 3)), (False,) * 3)
        return Compared(int(k), s, k, k**2, 30 - k, 0.0, None, np.zeros((1, 3)))

    found = validation.bands([one(float(k)) for k in range(1, 31)])
    assert [b.name for b in found] == ["all", "lowest third", "middle third", "highest third"]
    assert (found[2].low, found[2].high) == (11.0, 20.0)
    assert found[0].conservative.r_s == -1.0 and found[0].direct.r_s == 1.0
    assert [b.conservative.n for b in found] == [30, 10, 10, 10]
    assert len(validation.bands([one(float(k)) for k in range(8)])) == 1
    assert "r_s = -1.00" in validation_words.sentence(found, "X")
    assert validation_words.sentence([], "X").startswith("No structure could be compared")
    assert "1 structure was compared with X" in validation_words.sentence(validation.bands([one(1.0)]), "X")
    assert "2 structures were compared" in validation_words.sentence(validation.bands([one(1.0), one(2.0)]), "X")
    same = [replace(one(k), force_delta=1.0) for k in (1.0, 2.0, 3.0)]
    assert "there is nothing to rank" in validation_words.sentence(validation.bands(same), "X")
