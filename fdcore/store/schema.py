"""The product's tables, which stand beside the job engine's own, and how they came to be.

`MIGRATIONS` is only ever appended to: a database made by any older version is brought up to date by the steps it lacks. The
tables below are what all steps together make; a test holds one against the other.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

metadata = sa.MetaData()

runs = sa.Table(
    "fd_runs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("lane", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("spec_sha256", sa.Text, nullable=False),
    sa.Column("work_sha256", sa.Text, nullable=False),
    # The place in the lane that the owner's earlier runs leave to this one: runs of a lane start in order of (turn, created_at),
    # after those that were interrupted.
    sa.Column("turn", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("ended_at", sa.Double),
    sa.Column("done", sa.Double, nullable=False, server_default="0"),
    sa.Column("total", sa.Double, nullable=False, server_default="0"),
    sa.Column("text", sa.Text, nullable=False, server_default=""),
    sa.Column("seconds_left", sa.Double),
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
    sa.Column("worker", sa.Text),
    sa.Column("cancel_requested", sa.Integer, nullable=False, server_default="0"),
    sa.Column("error", sa.Text),
    sa.Column("hint", sa.Text),
    sa.Column("summary", sa.Text),
    sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("share", sa.Text),
    sa.Column("parent", sa.Text),
    sa.Index("fd_runs_owner", "owner", "created_at"),
    sa.Index("fd_runs_lane", "lane", "state", "turn"),
    sa.Index("fd_runs_work", "owner", "work_sha256"),
)

attempts = sa.Table(
    "fd_attempts",
    metadata,
    sa.Column("run", sa.Text, sa.ForeignKey("fd_runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("worker", sa.Text, nullable=False),
    sa.Column("started_at", sa.Double, nullable=False),
    sa.Column("ended_at", sa.Double),
    # running, done, failed, cancelled, crashed (the compute process died), lost (the worker died)
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False, server_default=""),
    # Whether the task had started to work: what comes before is loading.
    sa.Column("begun", sa.Integer, nullable=False, server_default="0"),
    # How far it was when it began and when it was last heard of, in the task's own unit.
    sa.Column("done_at_start", sa.Double, nullable=False, server_default="0"),
    sa.Column("done_at_end", sa.Double, nullable=False, server_default="0"),
)

structures = sa.Table(
    "fd_structures",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("formula", sa.Text, nullable=False),
    sa.Column("n_atoms", sa.Integer, nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
)

run_structures = sa.Table(
    "fd_run_structures",
    metadata,
    sa.Column("run", sa.Text, sa.ForeignKey("fd_runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("structure", sa.Text, sa.ForeignKey("fd_structures.id"), nullable=False),
    sa.Column("file", sa.Text, nullable=False),
    sa.Column("frame", sa.Integer, nullable=False),
    sa.Column("warnings", sa.Text, nullable=False),
    sa.Index("fd_run_structures_structure", "structure"),
)

# What was brought but could not be read: it belongs to the run's record as much as what could.
run_refusals = sa.Table(
    "fd_run_refusals",
    metadata,
    sa.Column("run", sa.Text, sa.ForeignKey("fd_runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("file", sa.Text, nullable=False),
    sa.Column("frame", sa.Integer),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("hint", sa.Text, nullable=False),
)

workers = sa.Table(
    "fd_workers",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    # JSON: {"quick": 1, "long": 1, "gpu": 0}
    sa.Column("lanes", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("started_at", sa.Double, nullable=False),
    sa.Column("seen_at", sa.Double, nullable=False),
)

screens = sa.Table(
    "fd_screens",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    # JSON: with what it is made; who joins must ask for the same.
    sa.Column("settings", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("listed", sa.Integer, nullable=False, server_default="0"),
    sa.Column("lister", sa.Text),
    # When anybody who works on it was last heard of.
    sa.Column("seen_at", sa.Double),
)

chunks = sa.Table(
    "fd_chunks",
    metadata,
    sa.Column("screen", sa.Text, sa.ForeignKey("fd_screens.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    # JSON: where its structures are.
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("expected", sa.BigInteger, nullable=False),
    # waiting, taken, done
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("holder", sa.Text),
    sa.Column("seen_at", sa.Double),
    sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
    # The name of its part of the table.
    sa.Column("key", sa.Text),
    sa.Column("scored", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("failed", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("seconds", sa.Double, nullable=False, server_default="0"),
    # JSON: what is shown of it without reading its part.
    sa.Column("digest", sa.Text),
    sa.Index("fd_chunks_state", "screen", "state", "number"),
)

migrations = sa.Table(
    "fd_migrations",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("applied_at", sa.Double, nullable=False),
)


_001_FIRST = (
    "CREATE TABLE fd_runs ( id TEXT NOT NULL, owner TEXT NOT NULL, task TEXT NOT NULL, title TEXT NOT NULL, lane TEXT NOT NULL, state TEXT NOT NULL, spec TEXT NOT NULL, spec_sha256 TEXT NOT NULL, work_sha256 TEXT NOT NULL, turn BIGINT NOT NULL, created_at DOUBLE PRECISION NOT NULL, started_at DOUBLE PRECISION, ended_at DOUBLE PRECISION, done DOUBLE PRECISION DEFAULT '0' NOT NULL, total DOUBLE PRECISION DEFAULT '0' NOT NULL, text TEXT DEFAULT '' NOT NULL, seconds_left DOUBLE PRECISION, attempt INTEGER DEFAULT '0' NOT NULL, worker TEXT, cancel_requested INTEGER DEFAULT '0' NOT NULL, error TEXT, hint TEXT, summary TEXT, bytes BIGINT DEFAULT '0' NOT NULL, share TEXT, parent TEXT, PRIMARY KEY (id) )",
    "CREATE INDEX fd_runs_lane ON fd_runs (lane, state, turn)",
    "CREATE INDEX fd_runs_owner ON fd_runs (owner, created_at)",
    "CREATE INDEX fd_runs_work ON fd_runs (owner, work_sha256)",
    "CREATE TABLE fd_structures ( id TEXT NOT NULL, formula TEXT NOT NULL, n_atoms INTEGER NOT NULL, content {blob} NOT NULL, PRIMARY KEY (id) )",
    "CREATE TABLE fd_workers ( name TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL, version TEXT NOT NULL, lanes TEXT NOT NULL, state TEXT NOT NULL, started_at DOUBLE PRECISION NOT NULL, seen_at DOUBLE PRECISION NOT NULL, PRIMARY KEY (name) )",
    "CREATE TABLE fd_attempts ( run TEXT NOT NULL, number INTEGER NOT NULL, worker TEXT NOT NULL, started_at DOUBLE PRECISION NOT NULL, ended_at DOUBLE PRECISION, outcome TEXT NOT NULL, note TEXT DEFAULT '' NOT NULL, begun INTEGER DEFAULT '0' NOT NULL, done_at_start DOUBLE PRECISION DEFAULT '0' NOT NULL, done_at_end DOUBLE PRECISION DEFAULT '0' NOT NULL, PRIMARY KEY (run, number), FOREIGN KEY(run) REFERENCES fd_runs (id) ON DELETE CASCADE )",
    "CREATE TABLE fd_run_refusals ( run TEXT NOT NULL, position INTEGER NOT NULL, file TEXT NOT NULL, frame INTEGER, error TEXT NOT NULL, hint TEXT NOT NULL, PRIMARY KEY (run, position), FOREIGN KEY(run) REFERENCES fd_runs (id) ON DELETE CASCADE )",
    "CREATE TABLE fd_run_structures ( run TEXT NOT NULL, position INTEGER NOT NULL, structure TEXT NOT NULL, file TEXT NOT NULL, frame INTEGER NOT NULL, warnings TEXT NOT NULL, PRIMARY KEY (run, position), FOREIGN KEY(run) REFERENCES fd_runs (id) ON DELETE CASCADE, FOREIGN KEY(structure) REFERENCES fd_structures (id) )",
    "CREATE INDEX fd_run_structures_structure ON fd_run_structures (structure)",
)


def _001_first(connection: sa.Connection) -> None:
    blob = "BLOB" if connection.dialect.name == "sqlite" else "BYTEA"
    for statement in _001_FIRST:
        connection.execute(sa.text(statement.format(blob=blob)))


_002_SCREENS = (
    "CREATE TABLE fd_screens ( id TEXT NOT NULL, settings TEXT NOT NULL, created_at DOUBLE PRECISION NOT NULL, listed INTEGER DEFAULT '0' NOT NULL, lister TEXT, seen_at DOUBLE PRECISION, PRIMARY KEY (id) )",
    "CREATE TABLE fd_chunks ( screen TEXT NOT NULL, number INTEGER NOT NULL, body TEXT NOT NULL, expected BIGINT NOT NULL, state TEXT NOT NULL, holder TEXT, seen_at DOUBLE PRECISION, tries INTEGER DEFAULT '0' NOT NULL, key TEXT, scored BIGINT DEFAULT '0' NOT NULL, failed BIGINT DEFAULT '0' NOT NULL, seconds DOUBLE PRECISION DEFAULT '0' NOT NULL, digest TEXT, PRIMARY KEY (screen, number), FOREIGN KEY(screen) REFERENCES fd_screens (id) ON DELETE CASCADE )",
    "CREATE INDEX fd_chunks_state ON fd_chunks (screen, state, number)",
)


def _002_screens(connection: sa.Connection) -> None:
    for statement in _002_SCREENS:
        connection.execute(sa.text(statement))


Migration = Callable[[sa.Connection], None]
MIGRATIONS: tuple[Migration, ...] = (_001_first, _002_screens)
