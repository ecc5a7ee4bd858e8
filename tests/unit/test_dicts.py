"""Structures as plain JSON, held against the objects of pymatgen and ASE that wrote them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest
from ase.io.jsonio import encode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymatgen.core import DummySpecies, Lattice, Molecule
from pymatgen.core import Structure as Crystal

from fdcore.records import Failure, Structure
from fdcore.structures import Limits, Source
from fdcore.structures.read import read_source

ROOT = Path(__file__).parents[2]
NAMES = ["H", "Li", "O", "Na", "Si", "Cl", "Fe", "Au", "Pu"]
BOX = [[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 4.0]]


def read(document: Any, name: str = "x.json") -> tuple[list[Structure], list[Failure]]:
    text = document if isinstance(document, str) else json.dumps(document)
    return read_source(Source(name, text.encode()), Limits())


def one(document: Any, name: str = "x.json") -> Structure:
    structures, failures = read(document, name)
    assert failures == [] and len(structures) == 1
    return structures[0]


def error(document: Any) -> str:
    structures, failures = read(document)
    assert structures == [] and len(failures) == 1 and failures[0].hint
    assert "could not be read (" not in failures[0].error
    return failures[0].error


def places(seed: int, n: int) -> np.ndarray:
    """Fractional places on a jittered grid, so that none overlap, some outside of the cell."""
    rng = np.random.default_rng(seed)
    grid = np.array(list(np.ndindex(3, 3, 3)))[rng.permutation(27)[:n]] / 3
    return grid + rng.uniform(-0.05, 0.05, (n, 3)) + rng.integers(-1, 2, (n, 3))


def crystal(seed: int, n: int, **more: Any) -> Crystal:
    rng = np.random.default_rng(seed)
    matrix = np.diag(rng.uniform(5, 9, 3)) + rng.uniform(-1.2, 1.2, (3, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Crystal(Lattice(matrix), list(rng.choice(NAMES, n)), places(seed, n), **more)


# --- pymatgen --------------------------------------------------------------------------------------------------------------


@given(
    st.integers(0, 10_000), st.integers(1, 20), st.sampled_from([0, 1]), st.sampled_from([None, -2, 1]), st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_crystal_of_pymatgen_is_read_as_it_was(
    seed: int, n: int, verbosity: int, charge: int | None, oxidised: bool
) -> None:
    theirs = crystal(seed, n, charge=charge)
    if oxidised and charge is None:
        theirs.add_oxidation_state_by_element(dict.fromkeys(NAMES, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = one(json.loads(json.dumps(theirs.as_dict(verbosity=verbosity), default=str)))
    assert ours.pbc == (True, True, True)
    assert ours.numbers.tolist() == [site.specie.Z for site in theirs]
    assert np.allclose(ours.positions, theirs.cart_coords, atol=1e-10)
    assert np.array_equal(ours.cell, theirs.lattice.matrix)
    assert ours.charge == round(theirs.charge)
    assert ours.spin is None
    assert any("oxidation states" in w for w in ours.warnings) == (oxidised and charge is None)


@given(st.integers(0, 10_000), st.integers(1, 20), st.sampled_from([-1, 0, 2]), st.sampled_from([None, 1, 2, 3]))
@settings(max_examples=40, deadline=None)
def test_molecule_of_pymatgen_is_read_as_it_was(seed: int, n: int, charge: int, spin: int | None) -> None:
    rng = np.random.default_rng(seed)
    theirs = Molecule(
        list(rng.choice(NAMES, n)), places(seed, n) * 6, charge=charge, spin_multiplicity=spin, charge_spin_check=False
    )
    ours = one(theirs.as_dict())
    assert ours.pbc == (False, False, False) and not ours.cell.any()
    assert ours.numbers.tolist() == [site.specie.Z for site in theirs]
    assert np.array_equal(ours.positions, theirs.cart_coords)
    assert (ours.charge, ours.spin) == (charge, theirs.spin_multiplicity)


def test_disorder_is_refused_in_the_words_used_for_cif() -> None:
    half = Crystal(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}, "Cl"], [[0, 0, 0], [0.5] * 3], labels=["A", "B"])
    cif, in_dict = (read_source(Source(n, d.encode()), Limits())[1][0] for n, d in
                    (("x.cif", half.to(fmt="cif")), ("x.json", half.to_json())))  # fmt: skip
    assert in_dict.error == "1 partly occupied site: “A”." and "partly occupied site" in cif.error
    assert in_dict.hint == cif.hint
    vacancy = Crystal(Lattice.cubic(4), [{"Na": 0.5}, "Cl"], [[0, 0, 0], [0.5] * 3])
    assert "1 partly occupied site" in error(vacancy.to_json())


def test_periodicity_in_some_directions_is_refused_as_elsewhere() -> None:
    layer = Crystal(Lattice(BOX, pbc=(True, True, False)), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3])
    assert "periodic in some directions only (pbc T T F)" in error(layer.to_json())


def test_species_that_are_no_elements_are_refused() -> None:
    dummy = Crystal(Lattice.cubic(4), ["Na", DummySpecies("X")], [[0, 0, 0], [0.5] * 3])
    assert "no element" in error(dummy.to_json())


def test_charge_of_oxidation_states_that_are_no_whole_number_is_left_out() -> None:
    magnetite = Crystal(Lattice.cubic(4), ["Fe2.67+", "O2-"], [[0, 0, 0], [0.5] * 3])
    ours = one(magnetite.to_json())
    assert ours.charge is None and ours.numbers.tolist() == [26, 8]
    assert ours.warnings == ("the oxidation states of the file add up to 0.67 e: read without a charge",)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "not a whole number" in error(Crystal(Lattice.cubic(4), ["Fe"], [[0, 0, 0]], charge=0.5).to_json())


def test_what_a_document_says_beside_its_structure_becomes_tags() -> None:
    document = {"material_id": "mp-149", "band_gap": 0.6, "structure": crystal(0, 3).as_dict(), "deep": {"no": 1}}
    ours = one(document)
    assert ours.tags == {"material_id": "mp-149", "band_gap": "0.6"} and ours.n_atoms == 3
    many = {**{f"key{i}": i for i in range(50)}, **document}
    assert next(iter(one(many).tags)) == "material_id"


# --- OPTIMADE ----------------------------------------------------------------------------------------------------------------


def optimade(**changes: Any) -> dict[str, Any]:
    """Rock salt's primitive atoms in a cubic box, as OPTIMADE 1.1 writes them."""
    attributes = {
        "nsites": 2,
        "nelements": 2,
        "chemical_formula_reduced": "ClNa",
        "dimension_types": [1, 1, 1],
        "nperiodic_dimensions": 3,
        "lattice_vectors": BOX,
        "cartesian_site_positions": [[0, 0, 0], [2, 2, 2]],
        "species_at_sites": ["Na", "chloride"],
        "species": [
            {"name": "Na", "chemical_symbols": ["Na"], "concentration": [1.0]},
            {"name": "chloride", "chemical_symbols": ["Cl"], "concentration": [1.0], "mass": None},
        ],
        "structure_features": [],
    }
    return {"id": "mpf_1", "type": "structures", "attributes": {**attributes, **changes}}


def test_optimade_entry_and_answer_are_read() -> None:
    for document in (optimade(), {"data": [optimade()], "meta": {}}, {"data": optimade()}, [optimade()],
                     {"id": "mpf_1", **optimade()["attributes"]}):  # fmt: skip
        ours = one(document)
        assert ours.numbers.tolist() == [11, 17] and ours.pbc == (True, True, True)
        assert ours.positions.tolist() == [[0, 0, 0], [2, 2, 2]] and ours.cell.tolist() == BOX
        assert ours.tags == {"id": "mpf_1"} and ours.charge is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"species": [{"name": "Na", "chemical_symbols": ["Na", "K"], "concentration": [0.5, 0.5]},
                      {"name": "chloride", "chemical_symbols": ["Cl"], "concentration": [1.0]}]}, "1 partly occupied site: “Na”"),
        ({"species": [{"name": "Na", "chemical_symbols": ["Na", "vacancy"], "concentration": [0.5, 0.5]},
                      {"name": "chloride", "chemical_symbols": ["Cl"], "concentration": [1.0]}]}, "1 partly occupied site: “Na”"),
        ({"species": [{"name": "Na", "chemical_symbols": ["X"], "concentration": [1.0]},
                      {"name": "chloride", "chemical_symbols": ["Cl"], "concentration": [1.0]}]}, "no element"),
        ({"species": [{"name": "Na", "chemical_symbols": ["Na"], "concentration": [1.0], "attached": ["H"], "nattached": [3]},
                      {"name": "chloride", "chemical_symbols": ["Cl"], "concentration": [1.0]}]}, "attached"),
        ({"species": [{"name": "Na", "chemical_symbols": ["Na"], "concentration": [1.0]}]}, "not among the species"),
        ({"species": [{"name": "Na"}]}, "chemical_symbols"),
        ({"species": None}, "no element"),
        ({"dimension_types": [1, 1, 0]}, "periodic in some directions only (pbc T T F)"),
        ({"dimension_types": None, "nperiodic_dimensions": 1}, "periodic in some directions only (pbc T F F)"),
        ({"dimension_types": [1, 1]}, "not three times"),
        ({"structure_features": ["implicit_atoms"]}, "without a place"),
        ({"structure_features": ["assemblies"], "assemblies": [{}]}, "partly occupied"),
        ({"cartesian_site_positions": [[0, 0, 0]]}, "1 x 3 numbers, not 2 x 3"),
        ({"cartesian_site_positions": [[0, 0, None], [2, 2, 2]]}, "not a finite number"),
        ({"cartesian_site_positions": "here"}, "not all numbers"),
        ({"lattice_vectors": [[4, 0, 0], [0, 4, 0]]}, "2 x 3 numbers, not 3 x 3"),
        ({"lattice_vectors": None}, "Å long"),
        ({"species_at_sites": "Na"}, "no species_at_sites"),
    ],
)  # fmt: skip
def test_optimade_that_cannot_be_used_says_why(changes: dict[str, Any], words: str) -> None:
    assert words in error(optimade(**changes))


def test_optimade_molecule_has_no_cell() -> None:
    ours = one(optimade(dimension_types=[0, 0, 0], nperiodic_dimensions=0, lattice_vectors=None))
    assert not ours.periodic and not ours.cell.any()
    ours = one(optimade(dimension_types=[0, 0, 0], lattice_vectors=[None] * 3))
    assert not ours.periodic


def test_optimade_agrees_with_pymatgen() -> None:
    theirs = crystal(7, 9)
    symbols = [site.specie.symbol for site in theirs]
    ours = one(
        optimade(
            lattice_vectors=theirs.lattice.matrix.tolist(),
            cartesian_site_positions=theirs.cart_coords.tolist(),
            species_at_sites=symbols,
            species=[{"name": s, "chemical_symbols": [s], "concentration": [1.0]} for s in sorted(set(symbols))],
        )
    )
    same = one(theirs.as_dict())
    assert np.array_equal(ours.numbers, same.numbers) and np.allclose(ours.positions, same.positions, atol=1e-10)


# --- ASE -----------------------------------------------------------------------------------------------------------------


def atoms(seed: int, n: int, periodic: bool) -> ase.Atoms:
    theirs = crystal(seed, n)
    found = ase.Atoms([s.specie.symbol for s in theirs], theirs.cart_coords, cell=theirs.lattice.matrix, pbc=periodic)
    if not periodic:
        found.cell = None
    return found


@given(st.integers(0, 10_000), st.integers(1, 20), st.booleans())
@settings(max_examples=40, deadline=None)
def test_atoms_of_ase_are_read_as_they_were(seed: int, n: int, periodic: bool) -> None:
    theirs = atoms(seed, n, periodic)
    database = io.StringIO()
    ase.io.write(database, theirs, format="json")
    plain = {key: np.asarray(value).tolist() for key, value in theirs.todict().items()}
    for document in (plain, encode(theirs), database.getvalue()):
        ours = one(document)
        assert np.array_equal(ours.numbers, theirs.numbers) and np.array_equal(ours.positions, theirs.positions)
        assert np.array_equal(ours.cell, theirs.cell.array) and ours.pbc == (periodic,) * 3


def test_plain_dictionary_with_labels_charge_and_without_pbc() -> None:
    ours = one({"symbols": ["Na", "Cl"], "positions": [[0, 0, 0], [2, 2, 2]], "cell": [4, 4, 4], "energy": -6.5,
                "forces": [[0, 0, 1], [0, 0, -1]], "charge": 1, "info": {"spin": 2, "mp_id": "mp-1"}})  # fmt: skip
    assert ours.cell.tolist() == BOX and ours.periodic
    assert ours.warnings == ("the file gives a cell without pbc: read as periodic",)
    assert (ours.charge, ours.spin, ours.labels["energy_eV"]) == (1, 2, -6.5)
    assert np.asarray(ours.labels["forces_eV_per_A"]).tolist() == [[0, 0, 1], [0, 0, -1]]
    assert ours.tags == {"mp_id": "mp-1"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"numbers": [11, 17.5]}, "not all whole numbers"),
        ({"numbers": [11, 10**400]}, "not all numbers"),
        ({"numbers": [11, 200]}, "no element"),
        ({"numbers": [11]}, "2 x 3 numbers, not 1 x 3"),
        ({"numbers": 11}, "no numbers"),
        ({"numbers": [1] * 20_001}, "20,001 atoms"),
        ({"positions": [[0, 0, 0], [0, 0, 0.01]]}, "overlap"),
        ({"positions": [[0, 0, 0], [0, 0, float("nan")]]}, "not a finite number"),
        ({"pbc": "yes"}, "not three times"),
        ({"cell": [[1, 2], [3]]}, "not all numbers"),
        ({"charge": "high"}, "not a whole number"),
        ({"positions": {"__ndarray__": [[2, 3], "float64", [0, 0]]}}, "does not fit its shape"),
    ],
)
def test_dictionary_that_cannot_be_used_says_why(changes: dict[str, Any], words: str) -> None:
    good = {"numbers": [11, 17], "positions": [[0, 0, 0], [2, 2, 2]], "cell": BOX, "pbc": [True] * 3}
    assert words in error({**good, **changes})


# --- documents ---------------------------------------------------------------------------------------------------------------


def test_list_keeps_the_good_ones_and_their_places() -> None:
    structures, failures = read([optimade(), 5, optimade(dimension_types=[1, 1, 0]), crystal(1, 3).as_dict()])
    assert [s.index for s in structures] == [0, 3]
    assert [f.index for f in failures] == [1, 2]


def test_names_of_a_dictionary_of_structures_become_tags() -> None:
    structures, failures = read({"mp-1": crystal(1, 3).as_dict(), "mp-2": crystal(2, 4).as_dict()})
    assert failures == [] and [s.tags["id"] for s in structures] == ["mp-1", "mp-2"]


def test_lines_are_structures_and_a_broken_one_is_a_failure() -> None:
    header = {"x-optimade": {"meta": {}}}
    info = {"type": "info", "id": "structures", "properties": {}}
    lines = [json.dumps(d) for d in (header, info, optimade(), crystal(1, 3).as_dict())]
    text = "\n".join([*lines, lines[2][:50], "", lines[3], "[1, 2]"]) + "\n"
    for name in ("x.jsonl", "x.ndjson", "download"):
        structures, failures = read(text, name)
        assert [s.index for s in structures] == [2, 3, 5]
        assert [f.index for f in failures] == [4, 6]
        assert "JSON is broken at column" in failures[0].error and "no JSON object" in failures[1].error
    assert one(lines[3], "x.jsonl").n_atoms == 3
    # A broken first line hides none of the others.
    structures, failures = read(f"{lines[3][:40]}\n{lines[3]}\n", "x.jsonl")
    assert [s.index for s in structures] == [1] and [f.index for f in failures] == [0]
    # One structure over many lines is JSON whatever its first line looks like.
    assert one(json.dumps(crystal(1, 3).as_dict(), indent=1)).n_atoms == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 1_000_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"sites": [', "JSON is broken at"),
        ('{"numbers": [' + "9" * 5000 + "]}", "JSON is broken"),
        ("[1, 2, 3", "JSON is broken at column"),
        ("{}", "no structure that is read here"),
        ('{"sites": 5, "lattice": 5}', "no sites"),
        ('{"sites": [5], "lattice": {"matrix": [[4,0,0],[0,4,0],[0,0,4]]}}', "names no species"),
        ('{"sites": [], "lattice": 5}', "no JSON object"),
        ('{"errors": [{"status": "500"}], "meta": {}}', "1 error and no structure"),
        ('{"data": []}', "holds no structure"),
        ("[]", "holds no structure"),
    ],
)
def test_text_that_holds_no_structure_says_so(text: str, words: str) -> None:
    assert words in error(text)


def test_what_a_dictionary_names_is_never_imported(tmp_path: Path) -> None:
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    document = {**crystal(1, 3).as_dict(), "@module": "evil_module", "@class": "Structure", "@callable": "os.system"}
    code = (
        "import sys, json\nfrom fdcore.structures import Limits, Source\nfrom fdcore.structures.read import read_source\n"
        f"structures, failures = read_source(Source('x.json', {json.dumps(document).encode()!r}), Limits())\n"
        "print(len(structures), 'evil_module' in sys.modules, 'monty' in sys.modules, 'pymatgen' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True,
                         env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": ""})  # fmt: skip
    assert out.stdout.split() == ["1", "False", "False", "False"]


SEEDS: list[dict[str, Any]] = [
    {**crystal(3, 2).as_dict(), "charge": 0, "spin_multiplicity": 1},
    optimade(assemblies=None),
    {"id": "x", **optimade()["attributes"]},
    {"numbers": [11, 17], "positions": [[0, 0, 0], [2, 2, 2]], "cell": BOX, "pbc": True, "energy": 1.0, "forces": [[0] * 3] * 2,
     "charge": 0, "spin": 1, "info": {}},
    {"structure": crystal(3, 2).as_dict(), "material_id": "mp-1"},
]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def spots(document: Any) -> list[tuple[Any, Any]]:
    """Every place in a document at which a value stands."""
    pairs = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [spot for key, value in pairs for spot in ((document, key), *spots(value))]


@given(st.sampled_from(SEEDS), st.data())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_anything_in_any_place_is_read_or_told(seed: dict[str, Any], data: st.DataObject) -> None:
    document = json.loads(json.dumps(seed))
    holder, key = data.draw(st.sampled_from(spots(document)))
    holder[key] = data.draw(VALUES)
    structures, failures = read(document)
    assert structures or failures
    assert not [f for f in failures if "could not be read (" in f.error], failures
