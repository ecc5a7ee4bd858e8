"""Screenings as pages and runs see them: who may see and forget them, what they count for, what is found in them. The task runs in this
process over forces of known arithmetic; tests/jobs has real workers."""

from __future__ import annotations

import io
import json
import os
import shlex
import zipfile
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from ase.build import bulk

from fdcore import services
from fdcore.cli.parser import build_parser
from fdcore.errors import QuotaError, RunStateError, UnknownRunError, UsageError
from fdcore.jobs import queue, screens
from fdcore.jobs.compute import Compute
from fdcore.jobs.supervisor import Supervisor
from fdcore.jobs.work import CRASHES_OF_SCREENINGS_ALLOWED, Work
from fdcore.records import Evaluation
from fdcore.screening import query, scoring
from fdcore.screening.inputs import offered, offered_folder, safe_name
from fdcore.screening.results import TABLE_PARQUET
from fdcore.services import runs, screening
from fdcore.services.screening import Brought, Filter
from fdcore.spec import ModelChoice, Spec
from fdcore.store import database
from fdcore.store.chunks import ChunkBook
from fdcore.store.files import attempt_folder, folder_size
from fdcore.tasks.run import execute
from fdcore.tasks.screen import ScreenParameters
from tests.doubles import Double

ME, YOU = runs.Viewer("tab:me"), runs.Viewer("tab:you")
MODEL = ModelChoice(services.default_model_id())


class Gap(Double):
    """F_nc is F_c plus a gap that grows with the number of atoms and their positions: no two structures have the same."""

    def _evaluate(self, structures):
        found = []
        for s in structures:
            gap = np.full(s.positions.shape, 0.01 * s.n_atoms + 1e-3 * abs(np.sin(s.positions.sum())))
            conservative = s.positions.mean(axis=0) - s.positions
            found.append(Evaluation(-float(s.n_atoms), conservative + gap, conservative))
        return found


@pytest.fixture(autouse=True)
def engine(tmp_path, monkeypatch):
    """The engine on a database of this test; nobody takes what it queues."""
    monkeypatch.setenv("FDCORE_DATA", str(tmp_path / "data"))
    for name in ("migrate", "offer", "forget_run"):
        monkeypatch.setattr(queue, name, lambda *arguments: None)
    runs.current.cache_clear()
    yield runs.current()
    database.dispose(runs.current().config)
    runs.current.cache_clear()


def work(run: runs.Run, should_stop=lambda: False) -> runs.Run:
    """One attempt of a run, as a worker does it."""
    known = runs.current()
    begun = known.store.begin_attempt(run.id, "here")
    assert begun is not None
    _, number = begun
    outcome = execute(
        run.spec,
        (),
        lambda spec: Gap(services.card(spec.model.id), "cpu", spec.model.dtype),
        attempt_folder(known.config, run.id, number),
        should_stop=should_stop,
    )
    assert outcome.state != "failed", outcome.error
    known.store.end(run.id, number, outcome.state, summary=outcome.summary, size=None)
    screens.count_bytes(known.config, known.store, run.spec.parameters["screen"])
    return runs.get(runs.Viewer.operator(), run.id)


def crystals(count: int) -> bytes:
    rng = np.random.default_rng(count)
    several = []
    for k in range(count):
        name, structure, a = (("NaCl", "rocksalt", 5.64), ("MgO", "rocksalt", 4.21), ("Al", "fcc", 4.05))[k % 3]
        atoms = bulk(name, structure, a=a) * (1 + k % 2, 1, 1 + k % 4)
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        several.append(atoms)
    out = io.StringIO()
    ase.io.write(out, several, format="extxyz")
    return out.getvalue().encode()


BROKEN = b"data_x\n_cell_length_a 3\nloop_\n_atom_site_label\n"


def start(viewer=ME, count: int = 24, **keywords) -> runs.Run:
    brought = [Brought("crystals.extxyz", io.BytesIO(crystals(count))), Brought("broken.cif", io.BytesIO(BROKEN))]
    return screening.start(viewer, MODEL, brought=brought, **{"chunk": 5, **keywords})[0]


def whole_table(run: runs.Run) -> pd.DataFrame:
    return pq.read_table(io.BytesIO(screening.table_bytes(run, "parquet"))).to_pandas()


# ---- what it makes -------------------------------------------------------------------------------------------------


def test_a_screening_from_upload_to_table(engine):
    run = work(start())
    assert run.state == "done" and run.summary["structures"] == 25 and run.summary["failed"] == 1
    table = whole_table(run)
    assert len(table) == 25 and table["verdict"].eq("failed").sum() == 1
    assert run.summary["largest_force_delta_eV_per_A"] == table["force_delta_eV_per_A"].max()
    csv = pd.read_csv(io.BytesIO(screening.table_bytes(run, "csv")))
    np.testing.assert_allclose(csv["force_delta_eV_per_A"], table["force_delta_eV_per_A"], rtol=1e-12)
    summary = json.loads(screening.summary_json(run))
    assert summary["complete"] and summary["settings"]["model"] == MODEL.id and sum(summary["verdicts"].values()) == 25
    standing = screening.Watch(run).look()
    assert standing.done == 25 and sum(standing.found.bins.values()) == 24 and not standing.active
    assert standing.found.document() == {k: summary[k] for k in standing.found.document()}


def test_stopped_gone_on_with_and_shared_by_several_it_is_the_same_table(engine):
    whole = screening.table_bytes(work(start()), "parquet")
    looks = iter(range(1000))
    stopped = work(start(), lambda: next(looks) > 12)
    standing = screening.Watch(stopped).look()
    assert stopped.state == "cancelled" and 0 < standing.count.done < standing.count.chunks
    assert standing.count.taken == 0, "what it had goes back at once"
    part = whole_table(stopped)
    assert 0 < len(part) < 25 and not screening.summary(stopped)["complete"]
    again = screening.go_on(ME, stopped)
    assert again.spec == stopped.spec and work(again).state == "done"
    assert screening.table_bytes(again, "parquet") == whole
    first = start(hands=3)
    hands = screening.hands_of(first)
    assert [h.spec.parameters.get("hand", 0) for h in hands] == [0, 1, 2]
    looks = iter(range(1000))
    work(hands[1], lambda: next(looks) > 12)
    work(hands[2])
    assert screening.table_bytes(first, "parquet") == whole


def test_a_structure_that_ends_its_process_is_found_before_the_run_is_given_up(engine):
    """Three ends until chunks are scored one structure at a time, two until it is known which one it is; other tasks are given up earlier."""
    assert scoring.CAREFUL_FROM - 1 + scoring.DEATHS < CRASHES_OF_SCREENINGS_ALLOWED
    run = start()
    drilled = engine.submit("tab:me", Spec("drill", None, "", 0, {}), title="d", lane="quick")
    for run_id, hopeless in ((run.id, False), (drilled, True)):
        begun = engine.store.begin_attempt(run_id, "here")
        for _ in range(5):
            _, number = begun
            engine.store.begun(run_id, number, 0.0)
            engine.store.crash(run_id, number, "it ended")
            begun = engine.store.begin_again(run_id, "here", number)
        work = Work(engine.config, engine.store, Compute(engine.config, "c", {}, Path("log")), lambda: False)
        assert bool(work._hopeless(runs.get(ME, run_id))) == hopeless


def test_nothing_is_said_of_the_pace_before_it_is_known(engine, monkeypatch):
    run = start()
    now, done = [0.0], [0]
    watch, count = screening.Watch(run), screening.Watch(run).look().count
    monkeypatch.setattr("fdcore.screening.screen.time.monotonic", lambda: now[0])
    monkeypatch.setattr(watch._book, "count", lambda: replace(count, listed=True, expected=1000, scored=done[0]))
    engine.store.begin_attempt(run.id, "here")

    def rate(at: float, scored: int):
        now[0], done[0] = at, scored
        return watch.look().rate

    # While the model is loaded, one file has failed.
    assert rate(0.0, 0) is None and rate(30.0, 1) is None
    engine.store.progress(run.id, 1, 0, 1000, "0 of 1,000 structures", None, None)
    assert rate(30.5, 1) is None and rate(31.0, 21) is None
    assert rate(40.5, 101) == pytest.approx(10.0)
    assert watch.look().seconds_left == pytest.approx(899 / 10)
    assert rate(100.0, 301) == pytest.approx(200 / 59.5), "that of the last minute"


def test_a_watch_reads_chunks_once_and_in_any_order(engine, monkeypatch):
    run = work(start())
    watch, book = screening.Watch(run), screening._book(run)
    everything = {n: (n, key, body, digest) for n, key, body, digest in book.done()}
    order = [3, 0, 4, 1, 2, *sorted(set(everything) - {0, 1, 2, 3, 4})]
    done: list[int] = []
    read = []

    def some(self, after=-1):
        for n in sorted(done):
            if n > after:
                read.append(n)
                yield everything[n]

    count = book.count()
    monkeypatch.setattr(ChunkBook, "done", some)
    monkeypatch.setattr(ChunkBook, "count", lambda self: replace(count, done=len(done)))
    for number in order:
        done.append(number)
        watch.look()
        before = len(read)
        watch.look()
        assert len(read) == before, "nothing is new"
    assert sum(watch.look().found.verdicts.values()) == 25


def test_nothing_readable_is_a_table_of_reasons(engine):
    brought = [Brought("a.cif", io.BytesIO(BROKEN)), Brought("b.gz", io.BytesIO(b"x"))]
    run = work(screening.start(ME, MODEL, brought=brought)[0])
    assert run.summary["scored"] == 0 and run.summary["failed"] == 2
    table = whole_table(run)
    assert set(table["verdict"]) == {"failed"} and "packed" in " ".join(table["error"])
    found = screening.rows(run, Filter())
    assert found.matching == 2 and {r["file"] for r in found.rows.to_pylist()} == {"a.cif", "b.gz"}
    assert screening.which(found.rows.to_pylist()[0]) is None


# ---- whose it is, and how long it stays ----------------------------------------------------------------------------


def test_two_owners_cannot_see_each_other(engine):
    mine = start()
    with pytest.raises(UnknownRunError):
        runs.get(YOU, mine.id)
    with pytest.raises(UnknownRunError):
        screening.stop(YOU, mine)
    with pytest.raises(UnknownRunError):
        screening.go_on(YOU, work(mine, lambda: True))
    yours = start(YOU)
    assert yours.spec.parameters["screen"] != mine.spec.parameters["screen"], "the same files, and no common folder"
    assert [r.id for r in runs.list_runs(YOU)] == [yours.id]


def test_it_goes_with_the_last_run_that_refers_to_it(engine):
    first = start(hands=2)
    one, two = screening.hands_of(first)
    work(one)
    with pytest.raises(RunStateError):
        screening.delete(ME, first)
    work(two)
    folder, screen = screening.folder_of(first), first.spec.parameters["screen"]
    held = folder_size(folder)
    assert runs.get(ME, two.id).bytes == -(-held // 2)
    runs.delete(ME, one.id)
    assert folder.is_dir() and ChunkBook(engine.store, screen).settings is not None
    assert runs.get(ME, two.id).bytes == held, "all of it counts for the one that is left"
    assert len(whole_table(two)) == 25
    runs.delete(ME, two.id)
    assert not folder.exists() and ChunkBook(engine.store, screen).settings is None


def test_retention_and_orphans(engine, monkeypatch):
    old, going_on = work(start()), start()
    left = engine.config.screens / ("0" * 32)
    fresh = engine.config.screens / ("1" * 32)
    other = engine.config.screens / "notes"
    for place in (left, fresh, other):
        place.mkdir()
    for place in (left, other):
        os.utime(place, (1, 1))
    monkeypatch.setattr(queue, "forget_old", lambda *arguments: None)
    supervisor = Supervisor(replace(engine.config, retention_days=1e-9))
    assert supervisor.prune()
    there = {p.name for p in engine.config.screens.iterdir()}
    assert there == {going_on.spec.parameters["screen"], fresh.name, other.name}
    assert ChunkBook(engine.store, old.spec.parameters["screen"]).settings is None


def test_what_is_stored_counts_for_its_owner(engine):
    run = start()
    inputs = folder_size(screening.folder_of(run))
    assert runs.get(ME, run.id).bytes == inputs > 1000, "what was brought counts at once"
    run = work(run)
    assert run.bytes == folder_size(screening.folder_of(run)) > inputs
    store = engine.store
    store.config = replace(engine.config, max_owner_MB=1)
    with store.begin() as connection:
        connection.exec_driver_sql("UPDATE fd_runs SET bytes = 2000000")
    with pytest.raises(QuotaError):
        start()
    assert len(list(engine.config.screens.iterdir())) == 1, "nothing stays of what could not begin"


def test_an_upload_that_is_too_large_leaves_nothing(engine, monkeypatch):
    monkeypatch.setattr(engine, "config", replace(engine.config, max_run_MB=1))
    with pytest.raises(QuotaError, match="1 MB"):
        screening.start(ME, MODEL, brought=[Brought("a.xyz", io.BytesIO(b"x" * 1_500_000))])
    assert not list(engine.config.screens.iterdir()) and not runs.list_runs(ME)


def test_the_run_as_a_zip(engine):
    run = work(start())
    with zipfile.ZipFile(io.BytesIO(runs.archive_bytes(ME, run.id))) as archive:
        assert archive.read("screening/results.parquet") == screening.table_bytes(run, "parquet")
        assert json.loads(archive.read("screening/summary.json"))["structures"] == 25
        assert run.spec.parameters["screen"] in archive.read("run.json").decode()
    looks = iter(range(1000))
    part = work(start(), lambda: next(looks) > 12)
    with zipfile.ZipFile(io.BytesIO(runs.archive_bytes(ME, part.id))) as archive:
        assert any(n.startswith("screening/parts/") for n in archive.namelist())


# ---- rows ----------------------------------------------------------------------------------------------------------

FILTERS = {
    "all": (Filter(), lambda t: t["file"].notna()),
    "element": (Filter(elements=("Mg",)), lambda t: t["elements"] == "Mg-O"),
    "no part of a symbol": (Filter(elements=("N",)), lambda t: t["elements"] == "N"),
    "both": (Filter(elements=("Na", "Cl")), lambda t: t["elements"] == "Cl-Na"),
    "size": (Filter(least_atoms=4, most_atoms=8), lambda t: t["n_atoms"].between(4, 8)),
    "U": (Filter(least=0.02, most=0.06), lambda t: t["force_delta_eV_per_A"].between(0.02, 0.06)),
    "failed": (Filter(verdicts=("failed",)), lambda t: t["verdict"] == "failed"),
    "verdicts": (
        Filter(verdicts=("unreliable", "caution")),
        lambda t: t["verdict"].isin(["unreliable", "caution"]),
    ),
    "ties": (Filter(ties=True), lambda t: t["tie"].fillna(False).astype(bool)),
    "text": (Filter(text="BROKEN"), lambda t: t["file"] == "broken.cif"),
    "formula": (Filter(text="al4"), lambda t: t["formula"].fillna("").str.lower().str.contains("al4", regex=False)),
    "several": (
        Filter(elements=("Al",), least_atoms=2, verdicts=("consistent", "caution", "unreliable")),
        lambda t: (t["elements"] == "Al") & (t["n_atoms"] >= 2),
    ),
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The parts of one table, with rows of every kind."""
    from fdcore.screening import rows
    from fdcore.screening.results import Results

    folder = tmp_path_factory.mktemp("table")
    results, made = Results(folder, "s"), []
    rng = np.random.default_rng(0)
    kinds = [("Al", "Al", "Al4"), ("Cl-Na", "Na", "NaCl"), ("Mg-O", "O", "MgO")]
    for k in range(60):
        elements, worst, formula = kinds[k % 3]
        row = {
            "file": f"f{k % 7}.cif",
            "index": k,
            "elements": elements,
            "formula": formula,
            "n_atoms": 1 + k % 11,
            "id": f"mp-{k}",
        }
        u = float(rng.lognormal(-3, 1.5))
        verdict = ["consistent", "caution", "unreliable"][k % 3 - (u > 0.1)]
        row |= {
            "force_delta_eV_per_A": u,
            "worst_element": worst,
            "worst_atom": 0,
            "verdict": verdict,
            "tie": k % 5 == 0,
        }
        made.append(row)
    made.append({"file": "broken.cif", "index": None, "verdict": "failed", "error": "It is torn.", "hint": "Mend it."})
    paths = {}
    for number in range(0, 61, 10):
        results.write(f"{number:02x}", made[number : number + 10])
        paths[number] = results.path(f"{number:02x}")
    return paths, rows.table(made).to_pandas()


@pytest.mark.parametrize("name", FILTERS)
def test_filters_are_those_of_pandas_on_the_whole_table(parts, name):
    paths, whole = parts
    wanted, mask = FILTERS[name]
    expected = whole[mask(whole).fillna(False)].sort_values(
        ["force_delta_eV_per_A", "file", "index"], ascending=[False, True, True], na_position="last"
    )
    found = query.select(paths, {}, wanted, 1000)
    assert found.matching == len(expected)
    rows = found.rows.to_pandas()
    assert list(zip(rows["file"], rows["index"].fillna(-1), strict=True)) == list(
        zip(expected["file"], expected["index"].fillna(-1), strict=True)
    )
    few = query.select(paths, {}, wanted, 3).rows.to_pandas()
    assert few["file"].tolist() == expected["file"].tolist()[:3]
    assert (rows["chunk"] == rows["index"].fillna(60) // 10 * 10).all(), "each knows where it was made"


def test_filters_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match="symbol"):
        Filter(elements=("Na.*",))


def test_no_rows_yet(engine):
    found = screening.rows(start(), Filter())
    assert found.matching == 0 and set(query.COLUMNS) < set(found.rows.column_names)


def test_memory_of_a_search_does_not_grow_with_the_table(parts, monkeypatch):
    paths, whole = parts
    kept = query._Kept(5)
    monkeypatch.setattr(query, "BATCH_ROWS", 10)
    table = pq.read_table(paths[0]).select(list(query.COLUMNS)).append_column("chunk", query._numbers([0] * 10))
    for _ in range(50):
        kept.add(table)
        assert sum(map(len, kept._held)) <= 4 * 5 + 10 + 10
    assert len(kept.first()) == 5
    assert kept.first()["force_delta_eV_per_A"][0].as_py() == whole["force_delta_eV_per_A"][:10].max()


# ---- single structures ---------------------------------------------------------------------------------------------


def test_structures_come_back_as_they_were_screened(engine):
    run = work(start(charge=1, spin=2))
    found = screening.rows(run, Filter(elements=("Na",)), 4).rows.to_pylist()
    chosen = [w for row in found if (w := screening.which(row)) is not None]
    read = screening.structures(run, chosen)
    assert [s.content_id for s in read] == [row["content_sha256"] for row in found]
    assert {(s.charge, s.spin) for s in read} == {(1, 2)}
    sent = screening.send(ME, run, chosen)
    assert sent.task == "score" and sent.spec.model.id == MODEL.id
    assert [s.content_id for s in runs.inputs(sent)] == [s.content_id for s in read]
    assert screening.send(ME, run, chosen).id == sent.id, "the same again is not computed again"
    with pytest.raises(UsageError, match="No structure"):
        screening.send(ME, run, [])


def test_a_file_that_changed_is_said(engine):
    run = work(start())
    row = screening.rows(run, Filter(), 1).rows.to_pylist()[0]
    chosen = screening.which(row)
    file = screening.folder_of(run) / "inputs" / "crystals.extxyz"
    file.write_bytes(file.read_bytes().replace(b"0.0", b"0.1"))
    with pytest.raises(UsageError, match="not what it was"):
        screening.structures(run, [chosen])


# ---- the operator's folder -----------------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path, monkeypatch):
    """What the operator offers, and what lies beside it."""
    folder, secret = tmp_path / "library", tmp_path / "secret"
    for place in (folder / "salts", folder / ".hidden", secret):
        place.mkdir(parents=True)
    (folder / "salts" / "a.extxyz").write_bytes(crystals(6))
    (secret / "b.extxyz").write_bytes(crystals(3))
    (folder / "link").symlink_to(secret)
    (folder / "file.cif").write_bytes(BROKEN)
    monkeypatch.setenv("FDCORE_SCREEN_FOLDER", str(folder))
    database.dispose(runs.current().config)
    runs.current.cache_clear()
    return folder


def test_only_folders_inside_of_it_can_be_chosen(library):
    assert screening.offered_folders() == ("salts",)
    absolute = str(library / "salts")
    for name in (
        "..",
        ".",
        "",
        "../secret",
        "salts/..",
        absolute,
        "/",
        "link",
        ".hidden",
        "file.cif",
        "salts/",
        "nul\0",
    ):
        with pytest.raises(UsageError):
            screening.start(ME, MODEL, folder=name)
        with pytest.raises(UsageError):
            offered_folder(str(library), name)
    assert not runs.list_runs(ME)
    assert offered("") == ()


def test_a_folder_is_screened_and_what_leads_out_of_it_is_a_row(library):
    (library / "salts" / "out.extxyz").symlink_to(library.parent / "secret" / "b.extxyz")
    run = work(screening.start(ME, MODEL, folder="salts")[0])
    table = whole_table(run)
    assert run.title == "salts" and (table["file"] == "a.extxyz").sum() == 6
    [failed] = table[table["verdict"] == "failed"].to_dict("records")
    assert failed["file"] == "out.extxyz" and "out of the folder" in failed["error"]
    chosen = screening.which(screening.rows(run, Filter(), 1).rows.to_pylist()[0])
    assert screening.structures(run, [chosen])[0].file == "a.extxyz"
    (library / "salts").rename(library / "moved")
    with pytest.raises(UsageError, match="no folder"):
        screening.structures(run, [chosen])


def test_a_source_in_a_spec_leads_nowhere_else(engine, tmp_path):
    """Specs are made here; even one that was not reads nothing outside."""
    (tmp_path / "secret.extxyz").write_bytes(crystals(2))
    run = start()
    parameters = {**run.spec.parameters, "source": ["../../../../secret.extxyz", str(tmp_path / "secret.extxyz")]}
    forged = replace(run, spec=replace(run.spec, parameters=parameters))
    run = work(forged)
    assert run.summary["scored"] == 0
    assert "outside" in " ".join(whole_table(run)["error"])


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("a.cif", "a.cif"),
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\b.cif", "b.cif"),
        ("..", "unnamed"),
        (".hidden.cif", "hidden.cif"),
        ("", "unnamed"),
        ("a\nb.cif", "a b.cif"),
    ],
)
def test_names_of_uploads_stay_in_their_folder(name, made):
    assert safe_name(name, set()) == made


def test_names_of_uploads_are_told_apart():
    taken: set[str] = set()
    assert [safe_name(n, taken) for n in ("POSCAR", "POSCAR", "x/POSCAR", "a.cif", "A.cif")] == [
        "POSCAR", "POSCAR (2)", "POSCAR (3)", "a.cif", "A (2).cif",
    ]  # fmt: skip
    assert len(safe_name("ä" * 300 + ".cif", taken).encode()) <= 200


# ---- words ---------------------------------------------------------------------------------------------------------


def test_the_command_line_repeats_it(engine):
    run = start(charge=-1, spin=2, check_share=0.25)
    words = shlex.split(screening.command_line(run))
    arguments = build_parser().parse_args(words[1:])
    p: ScreenParameters = ScreenParameters.of(run.spec)
    assert arguments.paths == list(p.source) and arguments.model == MODEL.id
    assert (arguments.charge, arguments.spin, arguments.check, arguments.chunk) == (-1, 2, 0.25, 5)


def test_what_cannot_be_asked(engine):
    with pytest.raises(UsageError):
        screening.start(ME, MODEL)
    with pytest.raises(UsageError):
        start(hands=0)
    with pytest.raises(UsageError):
        start(check_share=2.0)
    with pytest.raises(UsageError, match="files"):
        screening.start(ME, MODEL, brought=[Brought("a", io.BytesIO(b""))] * 1001)
    assert not engine.config.screens.exists() or not list(engine.config.screens.iterdir())
    assert not runs.list_runs(ME)


def test_parts_are_named_in_the_order_of_the_listing(engine):
    run = work(start())
    assert list(screening.listed(run).parts) == sorted(screening.listed(run).parts)
    assert (Path(screening.folder_of(run)) / TABLE_PARQUET).is_file()
