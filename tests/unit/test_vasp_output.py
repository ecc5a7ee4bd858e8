"""vasprun.xml and OUTCAR against what ASE and pymatgen read from the same files; ASE databases against ASE."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import ase
import ase.db
import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from pymatgen.io.vasp.outputs import Outcar, Vasprun

from fdcore.structures import Limits, Source, read_paths, read_sources

CORPUS = Path(__file__).parents[1] / "corpus"
GOOD, BROKEN = CORPUS / "good", CORPUS / "broken"


@pytest.mark.parametrize(
    ("name", "form", "rounding"), [("vasprun_MgCl2.xml", "vasp-xml", 1e-12), ("OUTCAR_MgCl2", "vasp-out", 1e-12)]
)
def test_agrees_with_ase(name, form, rounding, tmp_path):
    # In a folder of its own: ASE takes constraints from a CONTCAR beside it.
    shutil.copy(GOOD / name, tmp_path)
    theirs = ase.io.read(tmp_path / name, index=":", format=form)
    ours = read_paths([GOOD / name]).structures
    assert len(ours) == len(theirs) == 2
    for a, s in zip(theirs, ours, strict=True):
        assert s.symbols == tuple(a.get_chemical_symbols())
        np.testing.assert_allclose(s.cell, a.cell.array, atol=1e-8)
        np.testing.assert_allclose(s.positions, a.positions, atol=1e-7)
        np.testing.assert_allclose(s.labels["forces_eV_per_A"], a.get_forces(), atol=rounding)
        # The energy whose derivative the forces are.
        assert s.labels["energy_eV"] == pytest.approx(a.get_potential_energy(force_consistent=True), abs=rounding)
        assert s.labels["energy_eV"] != pytest.approx(a.get_potential_energy(), abs=1e-3)


def test_agrees_with_pymatgen():
    run = Vasprun(str(GOOD / "vasprun_MgCl2.xml"), parse_dos=False, parse_eigen=False, parse_potcar_file=False)
    ours = read_paths([GOOD / "vasprun_MgCl2.xml"]).structures
    assert run.converged_electronic
    for step, s in zip(run.ionic_steps, ours, strict=True):
        assert s.labels["energy_eV"] == step["e_fr_energy"]
        np.testing.assert_array_equal(s.labels["forces_eV_per_A"], step["forces"])
        np.testing.assert_allclose(s.positions, step["structure"].cart_coords, atol=1e-12)
    last = read_paths([GOOD / "OUTCAR_MgCl2"]).structures[-1]
    assert last.labels["energy_eV"] == Outcar(GOOD / "OUTCAR_MgCl2").final_fr_energy


def test_both_files_of_one_calculation_say_the_same():
    for a, b in zip(*(read_paths([GOOD / n]).structures for n in ("vasprun_MgCl2.xml", "OUTCAR_MgCl2")), strict=True):
        np.testing.assert_allclose(a.labels["forces_eV_per_A"], b.labels["forces_eV_per_A"], atol=1e-6)
        assert a.labels["energy_eV"] == b.labels["energy_eV"]


def test_the_origin_is_told():
    for name in ("vasprun_MgCl2.xml", "OUTCAR_MgCl2"):
        told = json.loads(read_paths([GOOD / name]).structures[0].labels["provenance"])
        assert (told["reference"], told["version"]) == ("VASP", "6.3.2")
        assert told["settings"].items() >= {"ENCUT": 520.0, "GGA": "PE", "ISPIN": 1, "SIGMA": 0.05}.items()
        assert "free energy" in told["settings"]["energy"]


@pytest.mark.parametrize("name", ["vasprun_unconverged.xml", "OUTCAR_unconverged"])
def test_a_density_that_is_not_self_consistent_gives_no_numbers(name):
    first, second = read_paths([GOOD / name]).structures
    assert first.labels == {} and second.labels
    assert "energy and forces left out" in first.warnings[0]


def test_a_step_without_a_density_gives_no_numbers():
    """As a force field of VASP writes it."""
    text = (GOOD / "vasprun_MgCl2.xml").read_text()
    start = text.index("<calculation>") + len("<calculation>")
    text = text[:start] + text[text.index(" <structure>", start) :]
    first, _ = read_sources([Source("vasprun.xml", text.encode())]).structures
    assert first.labels == {} and "no self-consistent density" in first.warnings[0]


@pytest.mark.parametrize(
    ("old", "new"), [("<rc><c>Mg</c>", "<rc><c>Qq</c>"), (' <varray name="positions" >', ' <varray name="places" >')]
)
def test_a_vasprun_that_lacks_its_structure(old, new):
    text = (GOOD / "vasprun_MgCl2.xml").read_text().replace(old, new)
    parsed = read_sources([Source("vasprun.xml", text.encode())])
    assert not parsed.structures and parsed.failures[0].hint


def test_stars_for_a_force_give_no_numbers():
    text = (GOOD / "OUTCAR_MgCl2").read_text()
    head, _, rest = text.partition("TOTAL-FORCE (eV/Angst)\n")
    rows = rest.split("\n")
    rows[1] = rows[1][:41] + "**************" + rows[1][55:]
    changed = head + "TOTAL-FORCE (eV/Angst)\n" + "\n".join(rows)
    first, second = read_sources([Source("OUTCAR", changed.encode())]).structures
    assert first.labels == {} and "no numbers" in first.warnings[0] and second.labels


@pytest.mark.parametrize("name", ["vasprun_MgCl2.xml", "OUTCAR_MgCl2"])
def test_cut_anywhere_it_never_gives_a_wrong_number(name):
    """Every prefix holds complete steps and nothing else."""
    data = (GOOD / name).read_bytes()
    whole = read_paths([GOOD / name]).structures
    for end in range(500, len(data) - 100, 1379):
        for got, real in zip(read_sources([Source(name, data[:end])]).structures, whole, strict=False):
            assert got.content_id == real.content_id
            if got.labels:
                assert got.labels["energy_eV"] == real.labels["energy_eV"]
                np.testing.assert_array_equal(got.labels["forces_eV_per_A"], real.labels["forces_eV_per_A"])


def test_a_bomb_costs_nothing():
    """Nine levels of ten entities would be a gigabyte."""
    [failure] = read_paths([BROKEN / "vasprun_entity_bomb.xml"], Limits(max_memory_MB=600)).failures
    assert "entities" in failure.error


# ---- ASE databases -------------------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "x.db"
    rng = np.random.default_rng(1)
    crystal, water = bulk("NaCl", "rocksalt", a=5.64, cubic=True), molecule("H2O")
    water.info = {}
    with ase.db.connect(str(path)) as opened:  # pyright: ignore
        for atoms, more in ((crystal, {}), (water, {"total_charge": 1, "spin_multiplicity": 2}), (molecule("CH4"), {})):
            if "C" not in atoms.symbols:
                atoms.calc = SinglePointCalculator(atoms, energy=rng.normal(), forces=rng.normal(size=(len(atoms), 3)))
            opened.write(atoms, key_value_pairs=more)
    return path


def test_a_database_agrees_with_ase(database):
    rows = list(ase.db.connect(str(database)).select())  # pyright: ignore
    structures = read_paths([database]).structures
    for row, s in zip(rows, structures, strict=True):
        atoms = row.toatoms()
        np.testing.assert_array_equal(s.numbers, atoms.numbers)
        np.testing.assert_array_equal(s.positions, atoms.positions)
        assert s.pbc == tuple(atoms.pbc)
        if row.get("energy") is None:
            assert s.labels == {}
        else:
            assert s.labels["energy_eV"] == row.energy
            np.testing.assert_array_equal(s.labels["forces_eV_per_A"], row.forces)
    assert (structures[1].charge, structures[1].spin) == (1, 2)


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("UPDATE systems SET positions = x'00'", "positions of this row"),
        ("UPDATE systems SET numbers = 'text'", "atomic numbers of this row"),
        ("UPDATE systems SET forces = x'0102' WHERE id = 1", "forces of this row"),
    ],
)
def test_a_damaged_row_is_refused_alone(database, sql, words):
    with sqlite3.connect(database) as connection:
        connection.execute(sql)
    parsed = read_paths([database])
    assert words in parsed.failures[0].error
    assert len(parsed.structures) + len(parsed.failures) == 3


def test_a_torn_database(database):
    data = database.read_bytes()
    for end in (200, 5000, len(data) // 2, len(data) - 3000):
        parsed = read_sources([Source("x.db", data[:end])])
        assert parsed.failures and parsed.failures[-1].hint
