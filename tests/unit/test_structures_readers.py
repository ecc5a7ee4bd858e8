"""The readers against ASE and pymatgen, round trips of random structures, and the decisions each format asks for."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.spacegroup import crystal
from hypothesis import given, settings
from hypothesis import strategies as st

from fdcore.records import Structure
from fdcore.structures import Limits, Source, closest_distance, closest_per_pair
from fdcore.structures.read import read_source

GOOD = Path(__file__).parents[1] / "corpus" / "good"


def one(data: str | bytes, name: str = "paste", limits: Limits = Limits()) -> Structure:  # noqa: B008
    structures, failures = read_source(Source(name, data if isinstance(data, bytes) else data.encode()), limits)
    assert failures == [] and len(structures) == 1
    return structures[0]


def error(data: str | bytes, name: str = "paste") -> str:
    structures, failures = read_source(Source(name, data if isinstance(data, bytes) else data.encode()), Limits())
    assert structures == [] and len(failures) == 1 and failures[0].hint
    return failures[0].error


def assert_same(structure: Structure, atoms: ase.Atoms, tolerance_A: float) -> None:
    """Same species and, for each species, the same set of places up to lattice translations and the cell's orientation."""
    assert sorted(structure.numbers) == sorted(atoms.numbers)
    if not structure.periodic:
        assert np.allclose(structure.positions, atoms.positions, atol=tolerance_A)
        return
    ours = structure.positions @ np.linalg.inv(structure.cell)
    theirs = atoms.positions @ np.linalg.inv(atoms.cell.array)
    assert np.allclose(structure.cell @ structure.cell.T, atoms.cell.array @ atoms.cell.array.T, atol=0.02)
    for z in set(structure.numbers):
        a, b = ours[structure.numbers == z], theirs[atoms.numbers == z]
        difference = a[:, None] - b[None]
        difference -= np.rint(difference)
        distance = np.linalg.norm(difference @ structure.cell, axis=2)
        partner = distance.argmin(axis=1)
        assert sorted(partner) == list(range(len(b)))
        assert distance.min(axis=1).max() < tolerance_A


# --- against other libraries ---------------------------------------------------------------------------------------------

ASE_READS = [
    ("cod_1000041_NaCl.cif", "cif"),
    ("cod_1008776_urea.cif", "cif"),
    ("icsd_31322_rutile.cif", "cif"),
    ("LiFePO4_mp-19017_symmetrized.cif", "cif"),
    ("Si_mp-149_primitive.cif", "cif"),
    ("MOF-5.cif", "cif"),
    ("latin1_windows.cif", "cif"),
    ("ase_MoS2_layer.cif", "cif"),
    ("POSCAR_mp-149", "vasp"),
    ("CONTCAR", "vasp"),
    ("POSCAR_vasp4", "vasp"),
    ("Pt111_O_slab.vasp", "vasp"),
    ("POSCAR_volume_scale", "vasp"),
    ("really_a_poscar.cif", "vasp"),
    ("water.xyz", "xyz"),
    ("md22_like_ethanol.xyz", "xyz"),
    ("mptrj_like_LiFePO4.extxyz", "extxyz"),
    ("ase_written.extxyz", "extxyz"),
    ("box_but_not_periodic.extxyz", "extxyz"),
    ("positions_first.extxyz", "extxyz"),
]


@pytest.mark.parametrize(("file", "form"), ASE_READS)
def test_same_structure_as_ase(file: str, form: str) -> None:
    structures, failures = read_source(Source(file, (GOOD / file).read_bytes()), Limits())
    assert not failures
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text = (GOOD / file).read_bytes()
        stream = io.BytesIO(text) if form == "cif" else io.StringIO(text.decode("latin-1"))
        frames = ase.io.read(stream, index=":", format=form)
    assert len(frames) == len(structures)
    for structure, atoms in zip(structures, frames, strict=True):
        assert_same(structure, atoms, 0.005)


@pytest.mark.parametrize(
    "file",
    ["POSCAR_mp-149", "POSCAR_vasp4_symbols_behind", "Pt111_O_slab.vasp", "POSCAR_potcar_hashes"],
)
def test_same_poscar_as_pymatgen(file: str) -> None:
    from pymatgen.io.vasp import Poscar

    text = (GOOD / file).read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = Poscar.from_str(text).structure
    atoms = ase.Atoms([s.specie.symbol for s in theirs], theirs.cart_coords, cell=theirs.lattice.matrix, pbc=True)
    assert_same(one((GOOD / file).read_bytes(), file), atoms, 1e-6)


def test_labels_are_the_references_of_the_file() -> None:
    frames = ase.io.read(GOOD / "mptrj_like_LiFePO4.extxyz", index=":")
    structures, _ = read_source(Source("m.extxyz", (GOOD / "mptrj_like_LiFePO4.extxyz").read_bytes()), Limits())
    for structure, atoms in zip(structures, frames, strict=True):
        assert structure.labels["energy_eV"] == pytest.approx(atoms.get_potential_energy())
        assert np.allclose(structure.labels["forces_eV_per_A"], atoms.get_forces())


# --- round trips ------------------------------------------------------------------------------------------------------------


def random_atoms(seed: int, n: int, periodic: bool) -> ase.Atoms:
    """Atoms on a jittered grid, so that none overlap, shifted out of the cell."""
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(4, 9, 3)) + rng.uniform(-1.5, 1.5, (3, 3))
    places = np.array(list(np.ndindex(3, 3, 3)))[rng.permutation(27)[:n]] / 3 + rng.uniform(-0.05, 0.05, (n, 3))
    places += rng.integers(-2, 3, (n, 3))
    numbers = rng.choice([1, 3, 6, 8, 17, 26, 79, 94], n)
    return ase.Atoms(
        numbers, places @ cell if periodic else (places % 1) @ cell, cell=cell if periodic else None, pbc=periodic
    )


@given(st.integers(0, 10_000), st.integers(1, 20), st.sampled_from(["extxyz", "vasp", "cif", "xyz"]))
@settings(max_examples=120, deadline=None)
def test_random_structure_survives_writing_and_reading(seed: int, n: int, form: str) -> None:
    atoms = random_atoms(seed, n, periodic=form != "xyz")
    if form == "cif":
        stream = io.BytesIO()
        ase.io.write(stream, atoms, format="cif")
        assert_same(one(stream.getvalue(), "x.cif"), atoms, 0.02)
        return
    text = io.StringIO()
    ase.io.write(text, atoms, format=form)
    assert_same(one(text.getvalue()), atoms, 1e-6)


CRYSTALS = {
    "corundum": ((4.759, 4.759, 12.991, 90, 90, 120), 167, ("Al", "O"), [(0, 0, 0.3522), (0.3064, 0, 0.25)], 30),
    "wurtzite": ((3.25, 3.25, 5.207, 90, 90, 120), 186, ("Zn", "O"), [(1 / 3, 2 / 3, 0), (1 / 3, 2 / 3, 0.3825)], 4),
    "quartz": ((4.9137, 4.9137, 5.4047, 90, 90, 120), 152, ("Si", "O"), [(0.4697, 0, 1 / 3), (0.4135, 0.2669, 0.2142)], 9),
    "pyrite": ((5.418, 5.418, 5.418, 90, 90, 90), 205, ("Fe", "S"), [(0, 0, 0), (0.3848, 0.3848, 0.3848)], 12),
    "calcite": ((4.99, 4.99, 17.06, 90, 90, 120), 167, ("Ca", "C", "O"), [(0, 0, 0), (0, 0, 0.25), (0.2568, 0, 0.25)], 30),
    "graphite": ((2.464, 2.464, 6.711, 90, 90, 120), 194, ("C", "C"), [(0, 0, 0.25), (1 / 3, 2 / 3, 0.25)], 4),
    "garnet": ((11.459,) * 3 + (90,) * 3, 230, ("Mg", "Al", "Si", "O"),
               [(1 / 8, 0, 1 / 4), (0, 0, 0), (3 / 8, 0, 1 / 4), (0.0330, 0.0503, 0.6533)], 160),
    "perovskite": ((3.905,) * 3 + (90,) * 3, 221, ("Sr", "Ti", "O"), [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)], 5),
    "monazite": ((6.7880, 7.0163, 6.4650, 90, 103.43, 90), 14, ("La", "P"),
                 [(0.2815, 0.1607, 0.1007), (0.3048, 0.1630, 0.6121)], 8),
}  # fmt: skip


@pytest.mark.parametrize("name", CRYSTALS)
@pytest.mark.parametrize("digits", [3, 4, 6])
def test_symmetry_makes_the_right_atoms_however_few_digits_are_given(name: str, digits: int) -> None:
    import gemmi

    cell, group, symbols, places, n = CRYSTALS[name]
    setting = gemmi.get_spacegroup_reference_setting(group)
    lines = ["data_x"]
    lines += [
        f"_cell_{k} {v}"
        for k, v in zip(
            ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"), cell, strict=True
        )
    ]
    lines += ["loop_", "_space_group_symop_operation_xyz", *(f"'{op.triplet()}'" for op in setting.operations())]
    lines += ["loop_", "_atom_site_label", "_atom_site_type_symbol", *(f"_atom_site_fract_{x}" for x in "xyz")]
    lines += [
        f"{s}{i} {s} " + " ".join(f"{v:.{digits}f}" for v in p)
        for i, (s, p) in enumerate(zip(symbols, places, strict=True))
    ]
    structure = one("\n".join(lines) + "\n", "x.cif")
    assert structure.n_atoms == n
    assert structure.warnings == ()
    exact = crystal(symbols, places, spacegroup=setting.number, setting=2 if ":2" in setting.xhm() else 1, cellpar=cell)
    assert_same(structure, exact, 0.01 if digits == 3 else 0.002)


# --- decisions --------------------------------------------------------------------------------------------------------------

CELL = "".join(f"_cell_length_{x} 4.0\n" for x in "abc") + "".join(
    f"_cell_angle_{x} 90\n" for x in ("alpha", "beta", "gamma")
)
LOOP = "loop_\n_atom_site_label\n_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n"


def cif(sites: str, symmetry: str = "_symmetry_space_group_name_H-M 'P 1'\n") -> str:
    return "data_x\n" + CELL + symmetry + LOOP + sites


@pytest.mark.parametrize(
    ("species", "z"),
    [("Na1+", 11), ("O2-", 8), ("Fe3+", 26), ("FE", 26), ("cl", 17), ("Cl1-", 17), ("Na+", 11), ("Uani", None), ("H2O", None),
     ("OH", None), ("X", None), ("Wat", None), ("M1", None), ("?", None), ("T", 1), ("D", 1), ("Dy3+", 66), ("DY", 66), ("Ti4+", 22)],
)  # fmt: skip
def test_types_of_cif_sites(species: str, z: int | None) -> None:
    data = cif(f"A1 {species} 0 0 0\n")
    if z is None:
        assert "no element" in error(data)
        return
    structure = one(data)
    assert structure.numbers.tolist() == [z]
    assert (structure.warnings == ("deuterium read as hydrogen",)) == (species in ("D", "T"))


@pytest.mark.parametrize(
    ("label", "formula", "z"),
    [
        ("CA1", "C8 H9", 6),
        ("CA1", "Ca O", 20),
        ("OW1", "H2 O", 8),
        ("HO1", "H O", 1),
        ("Co1", "C O", 27),
        ("Si12A", "O2 Si", 14),
    ],
)
def test_labels_without_types_are_read_with_the_formula(label: str, formula: str, z: int) -> None:
    data = (
        f"data_x\n_chemical_formula_sum '{formula}'\n"
        + CELL
        + LOOP.replace("_atom_site_type_symbol\n", "")
        + f"{label} 0 0 0\n"
    )
    assert one(data).numbers.tolist() == [z]


def test_operations_decide_over_names_and_gaps_are_told() -> None:
    only_identity = "_symmetry_space_group_name_H-M 'F m -3 m'\nloop_\n_symmetry_equiv_pos_as_xyz\n'x, y, z'\n"
    structure = one(cif("Na1 Na 0 0 0\n", only_identity))
    assert structure.n_atoms == 1 and "lists only x,y,z" in structure.warnings[0]
    torn = "loop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\n-x,-y,z\n-x,y,-z\n"
    assert "not a complete group" in one(cif("Na1 Na .1 .2 .3\n", torn)).warnings[0]
    assert one(cif("Na1 Na .1 .2 .3\n", "")).warnings == ("the file names no symmetry: read as P1",)
    unknown = "loop_\n_symmetry_equiv_pos_as_xyz\n?\n"
    assert one(cif("Na1 Na .1 .2 .3\n", unknown)).warnings == ("the file names no symmetry: read as P1",)
    twice = "loop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\n-x,-y,-z\nX,Y,Z\n'-X, -Y, -Z'\n"
    structure = one(cif("Na1 Na .1 .2 .3\n", twice))
    assert structure.n_atoms == 2 and structure.warnings == ()


def test_near_duplicates_merge_and_different_elements_do_not() -> None:
    structure = one(cif("Na1 Na 0 0 0\nNa2 Na 0.01 0 0\nNa3 Na 0.99 1.0 0\nCl1 Cl .5 .5 .5\n"))
    assert structure.formula == "NaCl" and structure.warnings == ("merged 2 duplicate sites",)
    assert "overlap" in error(cif("Na1 Na 0 0 0\nK1 K 0.01 0 0\n"))
    # Half an Å apart is no duplicate of one atom and no bond either: it is left to the user's eyes, not merged.
    assert one(cif("Na1 Na 0 0 0\nNa2 Na 0.125 0 0\n")).n_atoms == 2


def test_site_close_to_its_symmetry_element_is_moved_onto_it() -> None:
    mirror = "loop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\n-x,y,z\n"
    structure = one(cif("Na1 Na 0.03 0 0\n", mirror))
    assert structure.n_atoms == 1 and structure.positions[0, 0] == pytest.approx(0)
    assert "moved 1 site onto a symmetry element" in structure.warnings[0]
    assert one(cif("Na1 Na 0.1 0 0\n", mirror)).n_atoms == 2


def test_cif_cell_follows_the_crystallographic_convention() -> None:
    data = (
        cif("Na1 Na .1 .2 .3\n")
        .replace("gamma 90", "gamma 110")
        .replace("alpha 90", "alpha 80")
        .replace("beta 90", "beta 95")
    )
    expected = ase.geometry.cellpar_to_cell([4, 4, 4, 80, 95, 110])
    assert np.allclose(one(data).cell, expected, atol=1e-12)


def xyz(comment: str, rows: str = "H 0 0 0\nH 0 0 0.74\n") -> str:
    return f"2\n{comment}\n{rows}"


@pytest.mark.parametrize(
    ("comment", "charge", "spin"),
    [
        ("charge=1", 1, None),
        ("charge = -2  spin = 3", -2, 3),
        ('total_charge="0" multiplicity=2', 0, 2),
        ("CHARGE=+1 Spin_Multiplicity=1", 1, 1),
        ("charge=0.0 spin=1.0", 0, 1),
        ("discharge=4 charge_model=none", None, None),
        ("charge 1 spin 2", None, None),
        ("note='charge=5' charge=1", 1, None),
        ('a="charge=5"', None, None),
    ],
)
def test_charge_and_spin_of_the_comment_line(comment: str, charge: int | None, spin: int | None) -> None:
    structure = one(xyz(comment))
    assert (structure.charge, structure.spin) == (charge, spin)


def test_spin_zero_means_not_given() -> None:
    structure = one(xyz("charge=0 spin=0"))
    assert structure.spin is None and "spin=0" in structure.warnings[0]


@pytest.mark.parametrize("pbc", ['"T T T"', "T", "[T, T, T]", "{T T T}", '"1 1 1"', "[True, True, True]", "'t t t'"])
def test_spellings_of_pbc(pbc: str) -> None:
    assert one(xyz(f'Lattice="5 0 0 0 5 0 0 0 5" pbc={pbc}')).periodic


def test_reference_labels_that_are_not_finite_are_left_out() -> None:
    head = "Properties=species:S:1:pos:R:3:forces:R:3 energy=nan"
    structure = one(xyz(head, "H 0 0 0 0 0 nan\nH 0 0 .74 0 0 0\n"))
    assert structure.labels == {} and len(structure.warnings) == 2


def test_an_exported_result_is_no_reference() -> None:
    head = "Properties=species:S:1:pos:R:3:forces_direct:R:3:forces_conservative:R:3 energy_eV=-31.7"
    assert one(xyz(head, "H 0 0 0 0 0 1 0 0 1\nH 0 0 .74 0 0 -1 0 0 -1\n")).labels == {}


def test_text_without_any_structure_is_told() -> None:
    assert "no structure" in error(b"\x1a", "x.xyz")


def test_forces_of_a_plain_xyz_have_no_unit_and_are_no_labels() -> None:
    assert one(xyz("-1.16", "H 0 0 0 0 0 1\nH 0 0 .74 0 0 -1\n")).labels == {}


def test_names_lead_where_the_content_is_silent() -> None:
    assert "at least 7 lines" in error("nothing\n", "POSCAR_mp-1234")
    assert "broken" in error("nothing\n", "x.cif")
    assert "number of atoms" in error("nothing\n", "run.extxyz")
    assert "not recognised" in error("nothing\n", "notes")
    assert "not recognised" in error("nothing\n", "poscardata.txt")


def test_hints_carry_only_tame_names() -> None:
    _, failures = read_source(Source("$(rm -rf ~).pdb", b"HEADER    X\n"), Limits())
    assert "rm -rf" not in failures[0].hint and "ase convert FILE" in failures[0].hint


def test_urea_has_its_bonds() -> None:
    urea = one((GOOD / "cod_1008776_urea.cif").read_bytes(), "urea.cif")
    pairs = closest_per_pair(urea, 3.0)
    assert pairs["C-O"][0] == pytest.approx(1.26, abs=0.01)
    assert pairs["C-N"][0] == pytest.approx(1.34, abs=0.01)
    assert closest_distance(urea)[0] == pytest.approx(pairs["H-N"][0])  # type: ignore[index]
