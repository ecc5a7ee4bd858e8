"""Who is served when: owners take turns, short runs never wait behind long ones."""

from __future__ import annotations

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
        first = min(waiting, key=lambda w: w[3])[0]
        assert first in ids
        _, attempt = engine.store.begin_attempt(first, "w")
        engine.store.end(first, attempt, "done")
    engine.store.begin_attempt(ids[3], "w")
    late = submit(engine, drill(), owner="b")
    waiting = sorted(engine.store.queued(), key=lambda w: w[3])
    assert waiting[0][0] == late
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
