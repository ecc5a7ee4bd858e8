"""The book of chunks, on SQLite and on PostgreSQL: a chunk has one holder, what a dead one held goes on, and nobody else can end it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fdcore.errors import StoreError, UsageError
from fdcore.screening import listing
from fdcore.screening.chunks import Chunk
from fdcore.store.chunks import ChunkBook, patiently
from fdcore.store.runs import Store
from tests.jobs.conftest import ROOT
from tests.jobs.test_postgres import postgres, shared  # noqa: F401 - fixtures

DIGEST = {"verdicts": {}}


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, config) -> Store:
    made = Store(config if request.param == "sqlite" else request.getfixturevalue("shared"))
    made.migrate()
    return made


def book(store: Store, count: int = 5, screen: str = "s") -> ChunkBook:
    made = ChunkBook(store, screen)
    made.open("settings")
    assert made.take_listing("lister", 30.0)
    chunks = [Chunk(number=k, pieces=(), count=10) for k in range(count)]
    assert list(listing.fill(made, "lister", chunks))[-1] == 10 * count
    return made


def finish(made: ChunkBook, holder: str, number: int) -> bool:
    return made.finish(holder, number, key=f"k{number}", scored=9, failed=1, seconds=0.5, digest=DIGEST)


def test_a_chunk_has_one_holder_and_only_that_one_ends_it(store):
    made = book(store, 2)
    first, second = made.take("a"), made.take("b")
    assert (first.number, second.number, made.take("c")) == (0, 1, None)
    assert Chunk.from_json(first.body).count == 10 and first.tries == 1
    assert not finish(made, "b", 0) and finish(made, "a", 0) and not finish(made, "a", 0)
    count = made.count()
    assert (count.listed, count.chunks, count.waiting, count.taken, count.done) == (True, 2, 0, 1, 1)
    assert (count.expected, count.scored, count.failed, count.seconds) == (20, 9, 1, 0.5) and not count.complete
    assert finish(made, "b", 1) and made.count().complete
    assert [(n, k) for n, k, _, _ in made.done()] == [(0, "k0"), (1, "k1")]


def test_what_a_silent_one_held_goes_on_and_the_living_keep_theirs(store):
    made = book(store, 3)
    made.take("dead")
    made.take("alive")
    time.sleep(0.3)
    made.seen("alive")
    assert made.reclaim(0.25) == 1
    again = made.take("other")
    assert (again.number, again.tries) == (0, 2)
    # It was only thought dead, and comes back.
    assert not finish(made, "dead", 0) and finish(made, "other", 0) and finish(made, "alive", 1)


def test_a_stop_gives_back_without_counting_a_try(store):
    made = book(store, 1)
    made.take("a")
    made.release("a", unused=True)
    assert made.take("a").tries == 1
    made.release("a")
    assert made.take("a").tries == 2


def test_lists_are_made_once_and_anew_when_nobody_works(store):
    made = ChunkBook(store, "s")
    made.open("settings")
    assert made.take_listing("a", 30.0) and made.take_listing("a", 30.0) and not made.take_listing("b", 30.0)
    made.begin_listing("a")
    made.add("a", [{"number": 0, "body": "{}", "expected": 1}])
    assert made.take("x") is None, "nothing is taken from a list that is not complete"
    # The lister dies: another one begins the list again, and the first cannot go on.
    time.sleep(0.2)
    assert made.take_listing("b", 0.1)
    with pytest.raises(UsageError, match="Somebody else lists"):
        made.add("a", [{"number": 1, "body": "{}", "expected": 1}])
    list(listing.fill(made, "b", [Chunk(number=0, pieces=(), count=3)]))
    assert made.count().chunks == 1 and made.count().expected == 3
    assert not made.take_listing("c", 0.0)
    made.take("x")
    made.seen("x")
    assert not made.reopen(30.0), "somebody works on this list"
    made.leave()
    assert made.reopen(30.0) and made.take_listing("c", 30.0)


def test_other_settings_are_refused_and_screens_do_not_see_each_other(store):
    one, two = book(store, 2, "one"), book(store, 3, "two")
    with pytest.raises(UsageError, match="another model"):
        ChunkBook(store, "one").open("others")
    one.take("a")
    assert (one.count().taken, two.count().taken) == (1, 0)
    one.delete()
    assert one.count().chunks == 0 and one.settings is None and two.count().chunks == 3


def test_many_hands_take_every_chunk_once(store):
    made = book(store, 60)
    taken: list[int] = []

    def work(name: str) -> None:
        while (chunk := made.take(name)) is not None:
            taken.append(chunk.number)
            assert finish(made, name, chunk.number)

    threads = [threading.Thread(target=work, args=(f"h{k}",)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(taken) == Counter(range(60)) and made.count().complete


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["take", "finish", "release", "lost"])), max_size=40))
def test_whatever_happens_no_chunk_is_lost_or_done_twice(config, steps):
    """Against a plain account of who holds what."""
    store = Store(config)
    store.migrate()
    made = book(store, 4, screen=os.urandom(8).hex())
    waiting, held, done = {0, 1, 2, 3}, {}, set()
    for holder, step in steps:
        if step == "take":
            chunk = made.take(holder)
            assert (chunk is None) == (not waiting)
            if chunk is not None:
                assert chunk.number == min(waiting)
                waiting.remove(chunk.number)
                held[chunk.number] = holder
        elif step == "finish":
            for number in range(4):
                mine = held.get(number) == holder
                assert finish(made, holder, number) == mine
                if mine:
                    del held[number]
                    done.add(number)
        elif step == "release":
            made.release(holder)
            back = {n for n, h in held.items() if h == holder}
            waiting |= back
            held = {n: h for n, h in held.items() if n not in back}
        else:
            made.reclaim(-1.0)
            waiting |= set(held)
            held = {}
        count = made.count()
        assert (count.waiting, count.taken, count.done) == (len(waiting), len(held), len(done))


# ---- several machines ----------------------------------------------------------------------------------------------


def crystals(folder: Path, count: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(count):
        atoms = bulk("NaCl", "rocksalt", a=5.64)
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        frames.append(atoms)
    ase.io.write(folder / "frames.extxyz", frames)
    return folder


def test_machines_share_a_screening_one_dies_and_one_joins(shared, tmp_path):  # noqa: F811
    """Two commands stand for two machines that share a folder and PostgreSQL."""
    inputs = crystals(tmp_path / "in", 120)
    environment = {**os.environ, "FDCORE_DATABASE_URL": shared.database_url, "FDCORE_DEAD_AFTER_SECONDS": "4", "PYTHONPATH": str(ROOT)}  # fmt: skip

    def command(out: str, *more: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "fdcore.cli", "screen", str(inputs), "--out", str(tmp_path / out)]
        words += ["--workers", "1", "--chunk", "4", "--json", "-", *more]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    first = command("shared", "--shared")
    until = time.monotonic() + 120
    while not list((tmp_path / "shared").glob("parts/*/*.parquet")):
        assert time.monotonic() < until and first.poll() is None
        time.sleep(0.05)
    second = command("shared", "--shared")
    done = len(list((tmp_path / "shared").glob("parts/*/*.parquet")))
    while len(list((tmp_path / "shared").glob("parts/*/*.parquet"))) < done + 3:
        assert time.monotonic() < until
        time.sleep(0.05)
    for child in subprocess.run(["pgrep", "-P", str(first.pid)], capture_output=True, text=True).stdout.split():
        os.kill(int(child), signal.SIGKILL)
    first.kill()
    first.communicate()
    said, errors = second.communicate(timeout=240)
    assert second.returncode == 0, errors
    summary = json.loads(said)
    assert (summary["complete"], summary["scored"]) == (True, 120)
    alone = command("alone")
    _, errors = alone.communicate(timeout=240)
    assert alone.returncode == 0, errors
    for name in ("results.csv", "results.parquet"):
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_a_database_that_is_away_is_asked_again_and_not_for_ever(monkeypatch):
    monkeypatch.setattr("fdcore.store.chunks.AGAIN_SECONDS", 0.01)
    answers = iter([StoreError("away"), StoreError("away"), 7])

    def call() -> int:
        answer = next(answers)
        if isinstance(answer, StoreError):
            raise answer
        return answer

    assert patiently(call, 5.0) == 7
    with pytest.raises(StoreError, match="gone"):
        patiently(lambda: (_ for _ in ()).throw(StoreError("gone")), 0.05)
