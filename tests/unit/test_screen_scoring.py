"""A chunk's rows are those that each structure would have alone; what fails costs only itself; the table is the same however it was made."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from ase.build import bulk, molecule
from doubles import Double
from hypothesis import given, settings
from hypothesis import strategies as st

import fdcore
from fdcore import export, services
from fdcore.errors import StoreError
from fdcore.models.base import Model, OutOfMemory
from fdcore.records import Evaluation, Failure, Structure
from fdcore.screening import rows
from fdcore.screening.results import TABLE_CSV, TABLE_PARQUET, Results, put_together
from fdcore.screening.rows import SCHEMA
from fdcore.screening.scoring import CAREFUL_FROM, DEATHS, How, Watch, sampled, score
from fdcore.screening.summary import Found

COMPARED = (
    "formula n_atoms force_delta_eV_per_A worst_atom_eV_per_A verdict reference_percentile energy_eV energy_eV_per_atom"
)


@pytest.fixture(scope="module")
def model() -> Model:
    return fdcore.load_model(device="cpu", dtype="float64")


def structure(formula: str, a: float, seed: int, repeat: int = 1) -> Structure:
    atoms = bulk(formula, "rocksalt" if len(formula) > 2 else "fcc", a=a) * (repeat, 1, 1)
    atoms.rattle(0.05, seed=seed)
    return fdcore.structures.validate(Structure.from_atoms(atoms, file=f"{formula}-{seed}.cif", index=seed))


def mixed() -> list[Structure | Failure]:
    """Of several sizes in no order, with one that the model has not seen and one that could not be read."""
    good = [structure(f, a, k, 1 + k % 4) for k, (f, a) in enumerate([("NaCl", 5.6), ("MgO", 4.2), ("Al", 4.05)] * 3)]
    gold = structure("Au", 4.08, 99)
    return [*good[:4], gold, Failure("torn.cif", "It is torn.", "Copy it again.", None), *good[4:]]


def done(work: Iterator[int]) -> tuple[list[int], list[rows.Row]]:
    told: list[int] = []
    while True:
        try:
            told.append(next(work))
        except StopIteration as end:
            return told, end.value


def test_rows_are_those_of_scoring_one_after_the_other(model):
    items = mixed()
    told, made = done(score(model, items, How(check_share=1.0)))
    assert told[-1] == len(items) and told == sorted(told)
    assert [(r["file"], r["index"]) for r in made] == [(i.file, i.index) for i in items], "in the order given"
    found = pd.DataFrame(rows.table(made).to_pylist()).set_index("file")
    answers = list(services.score(model, [i for i in items if isinstance(i, Structure)]))
    wanted = export.results_table([a for a in answers if not isinstance(a, Failure)]).set_index("file")
    assert len(wanted) == 9
    for column in COMPARED.split():
        if not pd.api.types.is_numeric_dtype(wanted[column]):
            assert (found.loc[wanted.index, column] == wanted[column]).all()
        else:
            np.testing.assert_allclose(found.loc[wanted.index, column].astype(float), wanted[column], rtol=1e-9)
    checked = found.loc[wanted.index, "alone_difference_eV_per_A"]
    assert checked.notna().all() and checked.max() < 1e-9, "every one was scored a second time"
    gold, torn = found.loc["Au-99.cif"], found.loc["torn.cif"]
    assert gold["verdict"] == "failed" and "was not trained on Au" in gold["error"] and gold["formula"] == "Au"
    assert torn["error"] == "It is torn." and pd.isna(torn["formula"]) and np.isnan(torn["force_delta_eV_per_A"])


def test_another_order_gives_the_same_numbers(model):
    items = mixed()
    _, first = done(score(model, items, How()))
    _, second = done(score(model, items[::-1], How()))
    for a, b in zip(first, second[::-1], strict=True):
        assert a["file"] == b["file"] and a["verdict"] == b["verdict"]
        if a["verdict"] != "failed":
            assert abs(a["force_delta_eV_per_A"] - b["force_delta_eV_per_A"]) < 1e-9


def test_the_same_chunk_gives_the_same_bits_also_in_single_precision():
    single = fdcore.load_model(device="cpu")
    first, second = (done(score(single, mixed(), How()))[1] for _ in range(2))
    assert rows.table(first).equals(rows.table(second))


class Moody(Double):
    """Cannot bear aluminium, in a way that nobody foresaw."""

    batches: list[int]

    def _evaluate(self, structures):
        if any(13 in s.numbers for s in structures):
            raise ValueError("aluminium\nagain")
        return [Evaluation(-1.0, np.full((s.n_atoms, 3), 0.1), np.zeros((s.n_atoms, 3))) for s in structures]


def test_an_error_that_nobody_foresaw_costs_only_the_structure_that_has_it(model):
    moody = Moody(model.card, "cpu", "float64")
    items = [structure("NaCl", 5.6, 1), structure("Al", 4.05, 2), structure("MgO", 4.2, 3)]
    _, made = done(score(moody, items, How(check_share=0.0)))
    assert [r["verdict"] == "failed" for r in made] == [False, True, False]
    assert "ValueError: aluminium" in made[1]["error"] and made[1]["hint"]
    assert made[0]["force_delta_eV_per_A"] == pytest.approx(0.1)
    assert made[0]["alone_difference_eV_per_A"] is None


def test_the_sample_is_chosen_by_content_alone():
    several = [structure("NaCl", 5.6, k) for k in range(400)]
    chosen = {s.content_id for s in several if sampled(s, 0.25)}
    assert 60 < len(chosen) < 140
    assert not any(sampled(s, 0.0) for s in several) and all(sampled(s, 1.0) for s in several)
    assert chosen == {s.content_id for s in several[::-1] if sampled(s, 0.25)}


class Deadly(Double):
    """Evaluating aluminium ends the process, here as an exception that no code of ours catches."""

    def _evaluate(self, structures):
        if any(13 in s.numbers for s in structures):
            raise SystemExit
        return [Evaluation(-1.0, np.full((s.n_atoms, 3), 0.1), np.zeros((s.n_atoms, 3))) for s in structures]


def test_a_structure_that_ends_the_process_is_found_and_labelled(model, tmp_path):
    deadly = Deadly(model.card, "cpu", "float64")
    items = [structure("NaCl", 5.6, 1), structure("Al", 4.05, 2), structure("MgO", 4.2, 3)]
    file = tmp_path / "watched"
    for _ in range(DEATHS):
        with pytest.raises(SystemExit):
            done(score(deadly, items, How(), Watch(file)))
    _, made = done(score(deadly, items, How(), Watch(file)))
    assert [r["verdict"] == "failed" for r in made] == [False, True, False]
    assert "ended, twice" in made[1]["error"]
    assert CAREFUL_FROM > 3, "a machine that is switched off three times is no structure's fault"


def test_a_stop_blames_no_structure(model, tmp_path):
    items = [structure("NaCl", 5.6, k) for k in range(4)]
    file = tmp_path / "watched"
    for _ in range(DEATHS + 1):
        work = score(model, items, How(), Watch(file))
        for _ in range(3):
            next(work)
        work.close()
    _, made = done(score(model, items, How(), Watch(file)))
    assert all(r["verdict"] != "failed" for r in made)


# ---- the table -----------------------------------------------------------------------------------------------------


def row(k: int, **changes) -> rows.Row:
    made = {"file": f"{k}.cif", "index": k, "verdict": "caution", "force_delta_eV_per_A": 0.01 * (k + 1), "tie": False,
            "formula": "NaCl", "n_atoms": 2, "elements": "Cl-Na", "worst_element": "Na", "worst_atom": 0}  # fmt: skip
    return made | changes


def test_a_part_reads_back_and_a_damaged_one_says_what_to_do(tmp_path):
    results = Results(tmp_path, "settings")
    key = results.key("chunk")
    assert not results.there(key)
    results.write(key, [row(1), row(2, verdict="failed", force_delta_eV_per_A=None, error="torn", hint="h")])
    assert results.there(key) and Results(tmp_path, "others").key("chunk") != key
    back = results.read(key)
    assert back.schema.equals(SCHEMA) and back["index"].to_pylist() == [1, 2]
    assert back["force_delta_eV_per_A"].to_pylist() == [pytest.approx(0.02), None], "missing, not zero"
    assert results.summary(key)[:2] == (1, 1)
    results.path(key).write_bytes(b"PAR1 torn")
    with pytest.raises(StoreError, match="cannot be read") as error:
        results.read(key)
    assert "scored again" in error.value.hint


def test_a_full_disk_leaves_nothing_half(tmp_path, monkeypatch):
    results = Results(tmp_path, "settings")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(StoreError, match="No space left"):
        results.write(results.key("chunk"), [row(1)])
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_the_table_does_not_depend_on_how_it_was_cut(tmp_path_factory, sizes):
    folder = tmp_path_factory.mktemp("table")
    everything = rows.table([row(k) for k in range(sum(sizes))])
    starts = np.cumsum([0, *sizes])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fdcore.screening.results.GROUP", 7)
        count = put_together((everything.slice(a, n) for a, n in zip(starts, sizes, strict=False)), folder)
        cut = (folder / TABLE_PARQUET).read_bytes(), (folder / TABLE_CSV).read_bytes()
        put_together([everything], folder)
    assert count == sum(sizes)
    assert cut == ((folder / TABLE_PARQUET).read_bytes(), (folder / TABLE_CSV).read_bytes())
    assert pq.read_table(folder / TABLE_PARQUET).equals(everything)
    back = pd.read_csv(folder / TABLE_CSV)
    assert list(back.columns) == SCHEMA.names and len(back) == sum(sizes)


@settings(max_examples=50)
@given(
    values=st.lists(st.one_of(st.none(), st.floats(1e-7, 1e5, allow_nan=False), st.just(0.0)), min_size=0, max_size=60),
    cut=st.integers(1, 20),
)
def test_digests_add_up_to_the_whole(values: list[float | None], cut: int):
    made = [
        row(k, verdict="failed", force_delta_eV_per_A=None, error="torn", hint="") if v is None
        else row(k, force_delta_eV_per_A=v, tie=k % 3 == 0)
        for k, v in enumerate(values)
    ]  # fmt: skip
    found = Found()
    for start in range(0, len(made), cut):
        # As they come back from the database.
        found.add(json.loads(json.dumps(rows.digest(made[start : start + cut]))))
    good = [v for v in values if v is not None]
    assert sum(found.bins.values()) == len(good) and found.verdicts["failed"] == len(values) - len(good)
    assert found.ties == sum(1 for k, v in enumerate(values) if v is not None and k % 3 == 0)
    assert [w["force_delta_eV_per_A"] for w in found.worst] == sorted(good, reverse=True)[:20]
    for value in good:
        if 1e-5 <= value < 1e3:
            low, high = rows.bin_edges(rows.bin_of(value))
            assert low * (1 - 1e-9) <= value < high * (1 + 1e-9)
    assert found.document()["largest_alone_difference_eV_per_A"] is None


def test_ids_of_databases_are_kept(model):
    one = structure("NaCl", 5.6, 1)
    tagged = Structure(one.numbers, one.positions, one.cell, one.pbc, tags={"material_id": "mp-22862", "name": "salt"})
    _, made = done(score(model, [tagged], How()))
    assert made[0]["id"] == "mp-22862" and made[0]["elements"] == "Cl-Na"


def test_charge_and_spin_reach_the_structures_that_do_not_say(model):
    seen: list[tuple[int | None, int | None]] = []

    class Asking(Double):
        def _evaluate(self, structures):
            seen.extend((s.charge, s.spin) for s in structures)
            return [Evaluation(0.0, np.zeros((s.n_atoms, 3)), np.zeros((s.n_atoms, 3))) for s in structures]

    water = fdcore.structures.validate(Structure.from_atoms(molecule("H2O")))
    done(score(Asking(model.card, "cpu", "float64"), [water], How(check_share=0.0, charge=1, spin=2)))
    assert seen == [(1, 2)]


def test_judges_beside_the_model_make_the_same_rows(model):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as judges:
        _, beside = done(score(model, mixed(), How(check_share=1.0), None, judges))
    _, here = done(score(model, mixed(), How(check_share=1.0)))
    assert rows.table(beside).equals(rows.table(here))


def test_graphs_that_are_made_ahead_make_the_same_rows(model, monkeypatch):
    """As on a GPU: several batches, a structure that is refused, and one that fails in the evaluation."""
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(type(model), "batch_edges", 400)
    _, here = done(score(model, mixed(), How(check_share=1.0)))
    with ThreadPoolExecutor(1) as ahead:
        _, beside = done(score(model, mixed(), How(check_share=1.0), ahead=ahead))
    assert rows.table(beside).equals(rows.table(here))


class Waiting(Double):
    """An evaluation that waits until the graphs of the next batch are made, which only another thread can do meanwhile."""

    def __init__(self, *given) -> None:
        super().__init__(*given)
        self.made: list[int] = []
        self.graph = threading.Event()

    batch_edges = 2

    def _graph(self, structures):
        self.made.append(structures[0].index)
        if len(self.made) == 2:
            self.graph.set()
        return len(structures)

    def _evaluate_graph(self, structures, graph):
        assert self.graph.wait(20), "nobody makes graphs while a batch is evaluated"
        assert graph == len(structures)
        return [Evaluation(-1.0, np.full((s.n_atoms, 3), 0.1), np.zeros((s.n_atoms, 3))) for s in structures]


def test_graphs_are_made_while_a_batch_is_evaluated(model):
    from concurrent.futures import ThreadPoolExecutor

    waiting = Waiting(model.card, "cpu", "float64")
    items = [structure("NaCl", 5.6, k) for k in range(6)]
    with ThreadPoolExecutor(1) as ahead:
        _, made = done(score(waiting, items, How(check_share=0.0), ahead=ahead))
    assert len(waiting.made) == 3 and all(r["verdict"] != "failed" for r in made)


class Short(Double):
    """Has no room for two structures at once; the graph of both must not be taken for that of one."""

    def _graph(self, structures):
        return len(structures)

    def _evaluate_graph(self, structures, graph):
        if len(structures) > 1:
            raise OutOfMemory
        assert graph in (None, 1)
        return [Evaluation(-1.0, np.full((s.n_atoms, 3), 0.1), np.zeros((s.n_atoms, 3))) for s in structures]


def test_halves_of_a_batch_get_graphs_of_their_own(model):
    _, made = done(score(Short(model.card, "cpu", "float64"), [structure("NaCl", 5.6, k) for k in range(3)], How()))
    assert all(r["verdict"] != "failed" for r in made)


def test_a_charge_that_the_model_does_not_read_is_a_warning_of_the_row(model):
    charged = replace(structure("NaCl", 5.6, 1), charge=1)
    _, made = done(score(model, [charged], How()))
    assert "Charge +1 was given" in made[0]["warnings"] and made[0]["verdict"] == "caution"


def test_labels_of_a_file_give_errors(model):
    one = structure("NaCl", 5.6, 1)
    labelled = Structure(one.numbers, one.positions, one.cell, one.pbc, labels={"forces_eV_per_A": np.zeros((2, 3))})
    _, made = done(score(model, [labelled], How()))
    evaluation = model.evaluate(one)[0]
    assert made[0]["error_direct_eV_per_A"] == pytest.approx(np.sqrt((evaluation.forces_direct**2).mean()))
