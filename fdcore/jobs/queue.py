"""The durable queue: DBOS behind a few words of ours.

DBOS holds one queue per lane in the same database as the product's tables and gives each waiting run to one worker, by turn.
What a run is, who holds it and how it ended is decided in `fdcore.store` alone, under one row: a run that is offered twice is
taken once, so nothing depends on what the queue remembers of earlier deliveries.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from fdcore.config import Config
from fdcore.store import database

if TYPE_CHECKING:
    from dbos import DBOSClient, DBOSConfig

    from fdcore.store.records import Place
    from fdcore.store.runs import Store

APPLICATION = "force-delta"
WORKFLOW = "fdcore.run"
# Of the messages on the queue, not of the program: changing it strands what is waiting (DBOS only delivers its own).
PROTOCOL = "1"
# Of the engine's own tables on PostgreSQL.
SCHEMA = "dbos"
# quick: what a person waits for; long: hours on the CPU; gpu: one run per device.
LANES = ("quick", "long", "gpu")
# DBOS serves the smallest priority first, of at most 2^31 - 1: what was interrupted lies below this, all else above.
INTERRUPTED_BELOW = 2**30


def serializer() -> Any:
    """JSON on the queue; the engine's default is pickle."""
    from dbos import Serializer

    class Json(Serializer):
        def name(self) -> str:
            return "fdcore_json"

        def serialize(self, data: Any) -> str:
            return json.dumps(data if not isinstance(data, BaseException) else {"error": str(data)})

        def deserialize(self, serialized_data: str) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return json.loads(serialized_data)

    return Json()


def settings(config: Config) -> DBOSConfig:
    """How DBOS is run here; see FACTS on its conditions: own engine, fixed version, stable executor."""
    return {
        "name": APPLICATION,
        "system_database_engine": database.engine(config),
        "application_version": PROTOCOL,
        "executor_id": config.name,
        "serializer": serializer(),
        "use_listen_notify": False,
        "notification_listener_polling_interval_sec": 10.0,
        "scheduler_polling_interval_sec": 3600.0,
        "log_level": "WARNING",
        "enable_otlp": False,
    }


def migrate(config: Config) -> None:
    """Bring the engine's tables up to date; safe from several processes at once."""
    from dbos._sys_db import SystemDatabase

    engine = database.engine(config)
    with database.in_words():
        made = SystemDatabase.create(
            system_database_url=_address(engine),
            engine_kwargs={},
            engine=engine,
            schema=SCHEMA,
            serializer=serializer(),
            use_listen_notify=False,
            executor_id=None,
            retry_connection_errors=False,
        )
        made.run_migrations()


def migrations(config: Config) -> tuple[int, int]:
    """(applied, known) steps of the engine's own tables; changes nothing."""
    from dbos import _migration

    engine = database.engine(config)
    if engine.dialect.name == "sqlite":
        return _migration.get_sqlite_migration_versions(engine)
    return _migration.get_migration_versions(engine, SCHEMA, False)


def _address(engine: sa.Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


@cache
def client(config: Config) -> DBOSClient:
    """The queue's other end: for those who submit."""
    from dbos import DBOSClient

    return DBOSClient(
        system_database_engine=database.engine(config),
        serializer=serializer(),
        application_name=APPLICATION,
        lazy=True,
        # The default waits for ever: a page would hang, and a worker could neither be heard of nor be told to end.
        retry_connection_errors=False,
    )


def offer(config: Config, connection: sa.Connection, place: Place) -> None:
    """Put a run into its lane, within the caller's transaction, at its place: in the order of `fdcore.store.runs.ORDER`."""
    turn = min(place.turn, INTERRUPTED_BELOW - 1)
    known = client(config)
    ticket = _ticket(place.run, place.attempt)
    known.enqueue_in_transaction(
        connection,
        {
            "workflow_name": WORKFLOW,
            "queue_name": place.lane,
            "workflow_id": ticket,
            "app_version": PROTOCOL,
            "priority": turn if place.attempt else INTERRUPTED_BELOW + turn,
        },
        place.run,
    )
    # Of equal priority DBOS serves the older first, and would count from now: but the run is as old as it is. The call above
    # has told the connection where the engine's tables are.
    table = known._sys_db.tables.workflow_status
    created = {"created_at": int(place.created_at * 1000)}
    connection.execute(sa.update(table).where(table.c.workflow_uuid == ticket).values(created))


def _ticket(run_id: str, attempt: int) -> str:
    """One delivery: each time a run returns to its lane it has begun once more."""
    return f"{run_id}.{attempt}"


def forget_deliveries(config: Config, worker: str) -> None:
    """Drop what a worker was given before it died: its runs are offered anew, under new tickets."""
    with database.in_words():
        given = client(config).list_workflows(status="PENDING", executor_id=worker)
        if given:
            client(config).delete_workflows([w.workflow_id for w in given])


def offer_again(config: Config, store: Store, place: Place) -> None:
    """For a waiting run whose delivery was lost."""
    with database.in_words():
        client(config).delete_workflows([_ticket(place.run, place.attempt)])
    with store.begin() as connection:
        offer(config, connection, place)


def forget_run(config: Config, run_id: str, attempts: int) -> None:
    """Drop all deliveries of a run that was deleted."""
    with database.in_words():
        client(config).delete_workflows([_ticket(run_id, n) for n in range(attempts + 1)])


def waits(config: Config, run_id: str, attempt: int) -> bool:
    """Whether the delivery of a waiting run is still ahead or under way."""
    with database.in_words():
        found = client(config).list_workflows(workflow_ids=[_ticket(run_id, attempt)])
    return bool(found) and found[0].status in ("ENQUEUED", "PENDING", "DELAYED")


def forget_old(config: Config, before: float) -> int:
    """Drop finished deliveries older than `before` (seconds since 1970); the history of runs is in our own tables."""
    until = datetime.fromtimestamp(before, UTC).isoformat()
    ended = ["SUCCESS", "ERROR", "CANCELLED"]
    with database.in_words():
        old = client(config).list_workflows(status=ended, completed_before=until, limit=1000, load_input=False)
        if old:
            client(config).delete_workflows([w.workflow_id for w in old])
    return len(old)
