"""Who is served when: owners take turns, short runs never wait behind long ones."""

from __future__ import annotations

import signal

import pytest
import sqlalchemy as sa

from fdcore.jobs import queue
from tests.jobs.conftest import OPERATOR, drill, submit, until

OWNERS, GREEDY = 20, 30


def test_twenty_owners_take_turns_however_many_runs_one_of_them_has(engine, workers, config):
    greedy = [submit(engine, drill(steps=1, step_seconds=0.0), owner="greedy") for _ in range(GREEDY)]
    others = {
        f"owner-{k}": submit(engine, drill(steps=1, step_seconds=0.0), owner=f"owner-{k}") for k in range(1, OWNERS)
    }
    workers(config)
    runs = [engine.wait(OPERATOR, r, 120) for r in [*greedy, *others.values()]]
    order = [r.owner for r in sorted(runs, key=lambda r: r.started_at)]
    assert order[0] == "greedy", "who came first is first"
    third = [k for k, owner in enumerate(order) if owner == "greedy"][2]
    assert {*order[:third]} == {"greedy", *others}, "everybody once before anybody a third time"


def test_two_owners_alternate(engine):
    for _ in range(4):
        submit(engine, drill(), owner="a")
    for _ in range(4):
        submit(engine, drill(), owner="b")
    waiting = engine.store.list_runs(OPERATOR)
    order = [r.owner for r in sorted(waiting, key=lambda r: (r.turn, r.created_at))]
    assert order == ["a", "b"] * 4


def test_late_owner_does_not_wait_for_the_whole_backlog(engine):
    ids = [submit(engine, drill(), owner="a") for _ in range(6)]
    for _ in range(3):
        waiting = engine.store.queued()
        first = waiting[0].run
        assert first in ids
        _, attempt = engine.store.begin_attempt(first, "w")
        engine.store.end(first, attempt, "done")
    engine.store.begin_attempt(ids[3], "w")
    late = submit(engine, drill(), owner="b")
    assert engine.store.queued()[0].run == late
    waits = engine.store.waiting(engine.store.run(OPERATOR, late))
    assert (waits.ahead, waits.holding) == (0, 1)


def test_short_run_does_not_wait_for_a_long_one(engine, worker):
    long = submit(engine, drill(steps=1000, step_seconds=0.05), lane="long")
    behind = submit(engine, drill(steps=1), lane="long")
    until(lambda: engine.store.run(OPERATOR, long).state == "running")
    quick = engine.wait(OPERATOR, submit(engine, drill(steps=1), lane="quick"), 30)
    assert quick.state == "done"
    assert engine.store.run(OPERATOR, long).state == "running"
    held = engine.store.run(OPERATOR, behind)
    assert held.state == "queued"
    waits = engine.store.waiting(held)
    assert (waits.ahead, waits.holding, waits.slots) == (0, 1, 1)


def ahead(engine, run_id: str) -> int:
    """How many runs the page says are before this one."""
    return engine.store.waiting(engine.store.run(OPERATOR, run_id)).ahead


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_interrupted_run_is_the_next_to_be_served_and_the_page_says_so(engine, worker, how):
    long = submit(engine, drill(steps=100, step_seconds=0.02), owner="a")
    until(lambda: engine.store.run(OPERATOR, long).done > 20)
    # The turn of the first is that of the interrupted one; those of the others come later.
    waiting = [submit(engine, drill(steps=1), owner=owner) for owner in ("b", "c", "c")]
    worker.kill(how)
    if how == signal.SIGTERM:
        assert [ahead(engine, r) for r in (long, *waiting)] == [0, 1, 2, 3]
        assert [p.run for p in engine.store.queued()] == [long, *waiting]
        assert [r.id for r in engine.store.active_runs(OPERATOR)] == [long, *waiting]
    worker.start()
    done = [engine.wait(OPERATOR, r) for r in (long, *waiting)]
    first, second = engine.store.attempts(long)
    assert (first.outcome, second.outcome) == ("lost", "done")
    begun = [second.started_at, *(r.started_at for r in done[1:])]
    assert begun == sorted(begun)


def test_interrupted_run_is_the_next_also_where_its_delivery_was_lost(engine, worker, config):
    """A worker that is ending may still be given what it has just put back, and drops it."""
    long = submit(engine, drill(steps=100, step_seconds=0.02), owner="a")
    until(lambda: engine.store.run(OPERATOR, long).done > 20)
    waiting = submit(engine, drill(steps=1), owner="b")
    worker.kill(signal.SIGTERM)
    queue.forget_run(config, long, 1)
    worker.start()
    behind = engine.wait(OPERATOR, waiting)
    engine.wait(OPERATOR, long)
    assert engine.store.attempts(long)[1].started_at < behind.started_at


def test_queue_and_page_order_interrupted_fresh_and_lost_deliveries_alike(engine, config):
    """Whatever was offered when: DBOS serves by (priority, created_at), the page asks the store."""
    ids = [submit(engine, drill(), owner=f"o{k}") for k in range(4)]
    late = submit(engine, drill(), owner="o0")
    for run_id in (late, ids[3], ids[1]):
        engine.store.begin_attempt(run_id, run_id)
        # As when it was taken.
        queue.forget_run(config, run_id, 0)
    for run_id in (late, ids[3], ids[1]):
        engine.store.requeue(run_id, lambda c, place: queue.offer(config, c, place))
    queue.offer_again(config, engine.store, next(p for p in engine.store.queued() if p.run == ids[0]))
    expected = [ids[1], ids[3], late, ids[0], ids[2]]
    assert [p.run for p in engine.store.queued()] == expected
    assert [ahead(engine, r) for r in expected] == [0, 1, 2, 3, 4]
    with engine.store.begin() as connection:
        served = connection.execute(sa.text("SELECT workflow_uuid FROM workflow_status ORDER BY priority, created_at"))
        assert [ticket.partition(".")[0] for ticket in served.scalars()] == expected
