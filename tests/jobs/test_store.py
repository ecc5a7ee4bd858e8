"""The store without processes: who sees what, what is refused, what is kept and what goes."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fdcore.config import MB
from fdcore.errors import QuotaError, RunStateError, StoreError, UnknownRunError, UsageError
from fdcore.jobs.engine import Engine
from fdcore.jobs.supervisor import Supervisor
from fdcore.records import Failure, Structure
from fdcore.spec import ModelChoice, Spec
from fdcore.store import database, schema, structures
from fdcore.store.records import Viewer
from fdcore.store.runs import Store
from tests.jobs.conftest import OPERATOR, drill, submit

ME, OTHER = Viewer("me"), Viewer("other")


def finish(engine: Engine, run_id: str, state="done", size=0) -> None:
    taken = engine.store.begin_attempt(run_id, "w")
    assert taken is not None
    assert engine.store.end(run_id, taken[1], state, size=size)


# ---- owners --------------------------------------------------------------------------------------------------------


def test_somebody_else_cannot_tell_a_run_from_none(engine):
    run_id = submit(engine, drill(), owner="me")
    ways = [
        lambda: engine.store.run(OTHER, run_id),
        lambda: engine.store.run(OTHER, run_id, "wrong key"),
        lambda: engine.cancel(OTHER, run_id),
        lambda: engine.delete(OTHER, run_id),
        lambda: engine.store.share(OTHER, run_id, True),
        lambda: engine.store.rename(OTHER, run_id, "mine"),
    ]
    with pytest.raises(UnknownRunError) as none:
        engine.store.run(ME, "0" * 32)
    for way in ways:
        with pytest.raises(UnknownRunError) as refused:
            way()
        assert str(refused.value) == str(none.value)
    assert engine.store.list_runs(OTHER) == () and engine.store.count_runs(OTHER) == 0
    assert engine.store.find_same_work(OTHER, drill()) is None
    assert engine.store.run(ME, run_id).title == "drill" and engine.store.run(ME, run_id).share is None


def test_shared_link_shows_and_only_shows(engine):
    run_id = submit(engine, drill(), owner="me")
    key = engine.store.share(ME, run_id, True)
    assert key == engine.store.share(ME, run_id, True), "sharing twice keeps the link"
    assert engine.store.run(OTHER, run_id, key).id == run_id
    assert engine.store.list_runs(OTHER) == ()
    with pytest.raises(UnknownRunError):
        engine.cancel(OTHER, run_id)
    engine.store.share(ME, run_id, False)
    with pytest.raises(UnknownRunError):
        engine.store.run(OTHER, run_id, key)
    with pytest.raises(UnknownRunError):
        engine.store.run(OTHER, run_id, "")


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["submit", "cancel", "delete"])), max_size=12))
def test_owners_never_meet(engine, acts):
    model = {"a": [], "b": []}
    for run in engine.store.list_runs(OPERATOR):
        if run.active:
            engine.cancel(OPERATOR, run.id)
        engine.delete(OPERATOR, run.id)
    for owner, act in acts:
        foreign = model["b" if owner == "a" else "a"]
        if act == "submit":
            model[owner].append(submit(engine, drill(), owner=owner))
            continue
        action = engine.cancel if act == "cancel" else engine.delete
        for run_id in foreign:
            with pytest.raises(UnknownRunError):
                action(Viewer(owner), run_id)
        if model[owner]:
            engine.cancel(Viewer(owner), model[owner][-1])
            engine.delete(Viewer(owner), model[owner].pop())
    for owner, ids in model.items():
        assert {r.id for r in engine.store.list_runs(Viewer(owner))} == set(ids)


def test_account_takes_over_what_its_browser_did(engine):
    run_id = submit(engine, drill(), owner="browser:x")
    submit(engine, drill(), owner="browser:y")
    assert engine.store.take_over("browser:x", "oidc:z") == 1
    assert [r.id for r in engine.store.list_runs(Viewer("oidc:z"))] == [run_id]
    assert engine.store.list_runs(Viewer("browser:x")) == ()


# ---- quotas --------------------------------------------------------------------------------------------------------


def test_more_active_runs_than_allowed_are_refused(config):
    engine = Engine(replace(config, max_active_runs=2))
    ids = [submit(engine, drill()) for _ in range(2)]
    with pytest.raises(QuotaError, match="2 of your runs"):
        submit(engine, drill())
    assert submit(engine, drill(), owner="other")
    engine.cancel(ME, ids[0])
    assert submit(engine, drill())
    assert engine.store.count_runs(ME) == 3, "what was refused left nothing behind"


def test_more_storage_than_allowed_is_refused(config):
    engine = Engine(replace(config, max_owner_MB=1, max_total_MB=3))
    finish(engine, submit(engine, drill()), size=MB)
    with pytest.raises(QuotaError, match="1 MB of the 1 MB"):
        submit(engine, drill())
    for owner in ("b", "c"):
        finish(engine, submit(engine, drill(), owner=owner), size=MB)
    with pytest.raises(QuotaError, match="all of its 3 MB"):
        submit(engine, drill(), owner="d")


def test_spec_that_its_task_refuses_is_never_stored(engine):
    with pytest.raises(UsageError, match="no parameter 'stops'"):
        submit(engine, drill(stops=3))
    with pytest.raises(UsageError, match="no task"):
        submit(engine, Spec("dance", None, "", 0))
    assert engine.store.count_runs(OPERATOR) == 0


# ---- one holder ----------------------------------------------------------------------------------------------------


def test_a_run_offered_to_many_is_taken_once(engine):
    ids = [submit(engine, drill()) for _ in range(5)]
    barrier = threading.Barrier(8)

    def take(k: int):
        barrier.wait()
        return [engine.store.begin_attempt(r, f"w{k}") for r in ids]

    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(take, range(8)))
    for n in range(5):
        assert sum(t[n] is not None for t in taken) == 1


def test_an_attempt_that_was_overtaken_cannot_write(engine):
    run_id = submit(engine, drill())
    _, first = engine.store.begin_attempt(run_id, "w")
    assert engine.store.progress(run_id, first, 1, 2, "", None, 0)
    offered = []
    assert engine.store.requeue("w", lambda c, place: offered.append(place)) == (run_id,)
    assert offered == [(run_id, "quick", 1, 1, engine.store.run(ME, run_id).created_at)]
    assert engine.store.wishes(run_id, first) == (False, False)
    _, second = engine.store.begin_attempt(run_id, "v")
    assert not engine.store.progress(run_id, first, 2, 2, "", None, 0)
    assert not engine.store.end(run_id, first, "done", summary={"stale": True})
    assert engine.store.end(run_id, second, "done", summary={"right": True})
    run = engine.store.run(ME, run_id)
    assert dict(run.summary) == {"right": True}
    assert [a.outcome for a in engine.store.attempts(run_id)] == ["lost", "done"]


def test_a_silent_worker_is_buried_by_exactly_one(engine):
    for name in ("a", "b"):
        engine.store.hello(name, "host", 1, "0", {"quick": 1})
    time.sleep(0.3)
    assert engine.store.heartbeat("a", 1)
    with ThreadPoolExecutor(4) as pool:
        buried = [n for names in pool.map(lambda _: engine.store.bury(0.2), range(4)) for n in names]
    assert buried == ["b"]
    assert not engine.store.heartbeat("b", 1), "it learns of it"
    assert engine.store.not_alive() == ("b",)


# ---- structures ----------------------------------------------------------------------------------------------------

# What a reader lets through: no control characters, no half characters.
words = st.text(st.characters(exclude_categories=["C"]), max_size=12)
coordinates = st.floats(-50, 50, allow_nan=False, width=64)


@st.composite
def some_structure(draw) -> Structure:
    n = draw(st.integers(1, 5))
    periodic = draw(st.booleans())
    labels = {}
    if draw(st.booleans()):
        labels = {
            "energy_eV": draw(coordinates),
            "forces_eV_per_A": draw(hnp.arrays(np.float64, (n, 3), elements=coordinates)),
        }
    return Structure(
        numbers=draw(hnp.arrays(np.int64, n, elements=st.integers(1, 94))),
        positions=draw(hnp.arrays(np.float64, (n, 3), elements=coordinates)),
        cell=draw(hnp.arrays(np.float64, (3, 3), elements=coordinates)) if periodic else np.zeros((3, 3)),
        pbc=(periodic,) * 3,
        charge=draw(st.none() | st.integers(-3, 3)),
        spin=draw(st.none() | st.integers(1, 5)),
        file=draw(words.filter(bool)),
        index=draw(st.integers(0, 10_000)),
        labels=labels,
        warnings=tuple(draw(st.lists(words, max_size=2))),
    )


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(some_structure(), max_size=4))
def test_structures_come_back_as_they_were(engine, brought):
    refused = [Failure("x.cif", "torn", "save it again", 3), Failure("y.cif", "no", "", None)]
    run_id = submit(engine, drill(), also=lambda c, r: structures.add(c, r, brought, refused))
    found = structures.of_run(engine.store, run_id)
    assert len(found) == len(brought)
    for a, b in zip(found, brought, strict=True):
        assert (a.content_id, a.file, a.index, a.warnings) == (b.content_id, b.file, b.index, b.warnings)
        assert set(a.labels) == set(b.labels)
        for key in b.labels:
            assert np.array_equal(a.labels[key], b.labels[key])
    assert list(structures.refusals_of_run(engine.store, run_id)) == refused
    engine.cancel(ME, run_id)


def test_the_same_structure_is_stored_once_and_goes_with_its_last_run(engine):
    structure = Structure(np.array([11]), np.zeros((1, 3)), 3 * np.eye(3), (True,) * 3, file="a")
    renamed = replace(structure, file="b", index=4)
    ids = [submit(engine, drill(), also=lambda c, r: structures.add(c, r, [structure, renamed])) for _ in range(2)]

    def stored() -> int:
        with engine.store.begin() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(schema.structures)).scalar_one()

    assert stored() == 1
    assert [s.file for s in structures.of_run(engine.store, ids[1])] == ["a", "b"]
    for left, run_id in ((1, ids[0]), (0, ids[1])):
        engine.cancel(ME, run_id)
        engine.delete(ME, run_id)
        assert stored() == left


def test_damaged_structure_is_an_error_with_a_next_step():
    with pytest.raises(StoreError, match="damaged"):
        structures.decode(b"FDS1 nonsense that is long enough to be a head")


# ---- keeping and forgetting ----------------------------------------------------------------------------------------


def test_retention_takes_old_ended_runs_and_orphans_only(config):
    keeps = replace(config, retention_days=1e-9)
    engine = Engine(keeps)
    old, active = submit(engine, drill()), submit(engine, drill())
    finish(engine, old)
    for name in (old, active, "f" * 32):
        (config.runs / name).mkdir(parents=True)
    time.sleep(0.01)
    supervisor = Supervisor(keeps)
    supervisor.prune()
    assert {p.name for p in config.runs.iterdir()} == {active}
    assert [r.id for r in engine.store.list_runs(ME)] == [active]
    supervisor.prune()
    assert [r.id for r in engine.store.list_runs(ME)] == [active]


def test_without_retention_nothing_is_forgotten(engine, config):
    run_id = submit(engine, drill())
    finish(engine, run_id)
    Supervisor(config).prune()
    assert engine.store.run(ME, run_id).state == "done"


def test_a_run_in_work_is_not_deleted(engine):
    run_id = submit(engine, drill())
    engine.store.begin_attempt(run_id, "w")
    with pytest.raises(RunStateError, match="not ended"):
        engine.delete(ME, run_id)
    assert engine.store.run(ME, run_id).state == "running"


def test_same_work_is_found_whatever_the_versions(engine):
    asked = Spec("score", ModelChoice("m"), "abc", 1, versions={"torch": "1"})
    run_id = engine.store.submit("me", asked, title="t", lane="quick")
    again = replace(asked, versions={"torch": "2"})
    assert again.sha256 != asked.sha256
    assert engine.store.find_same_work(ME, again).id == run_id
    assert engine.store.find_same_work(ME, replace(asked, inputs_sha256="abd")) is None
    assert engine.store.find_same_work(ME, replace(asked, model=ModelChoice("m", dtype="float64"))) is None
    engine.store.request_cancel(ME, run_id)
    assert engine.store.find_same_work(ME, asked) is None, "a stopped run answers nothing"


# ---- migrations ----------------------------------------------------------------------------------------------------


def test_migrations_make_exactly_the_tables_of_the_schema(tmp_path, config):
    Store(config).migrate()
    made = sa.inspect(database.engine(config))
    for table in schema.metadata.sorted_tables:
        columns = {c["name"]: c for c in made.get_columns(table.name)}
        assert list(columns) == [c.name for c in table.columns]
        for column in table.columns:
            found = columns[column.name]
            assert found["nullable"] == (column.nullable and not column.primary_key), f"{table.name}.{column.name}"
            kinds = {sa.Text: "TEXT", sa.Integer: "INTEGER", sa.BigInteger: "BIGINT", sa.LargeBinary: "BLOB"}
            wanted = kinds.get(type(column.type), ("DOUBLE", "REAL"))
            assert str(found["type"]).startswith(wanted), f"{table.name}.{column.name}"
        keys = [c.name for c in table.primary_key.columns]
        assert made.get_pk_constraint(table.name)["constrained_columns"] == keys
        indexes = {(i["name"], tuple(i["column_names"])) for i in made.get_indexes(table.name)}
        assert indexes == {(i.name, tuple(c.name for c in i.columns)) for i in table.indexes}
        foreign = {(f["referred_table"], *f["constrained_columns"]) for f in made.get_foreign_keys(table.name)}
        assert foreign == {(f.column.table.name, f.parent.name) for f in table.foreign_keys}


def test_migrations_run_once_however_many_try(config):
    stores = [Store(config) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda s: s.migrate(), stores))
    with stores[0].begin() as connection:
        numbers = list(connection.execute(sa.select(schema.migrations.c.number)).scalars())
    assert numbers == list(range(1, len(schema.MIGRATIONS) + 1))


def test_database_of_a_newer_program_is_refused(config):
    store = Store(config)
    store.migrate()
    with store.begin() as connection:
        connection.execute(sa.insert(schema.migrations).values(number=99, name="future", applied_at=0.0))
    with pytest.raises(StoreError, match="newer version"):
        store.migrate()


def test_unwritable_place_is_said_in_words(tmp_path, config):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        Store(replace(config, data=tmp_path / "file" / "data")).migrate()


def test_address_that_is_none_is_said_in_words(config):
    for url, word in (("mysql://x/y", "mysql"), ("nonsense", "no database address"), ("sqlite://", "memory")):
        with pytest.raises(UsageError, match=word):
            Store(replace(config, database_url=url))
