"""One SQLAlchemy engine per process and address, with what SQLite needs to be shared by several processes."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from fdcore.config import Config
from fdcore.errors import StoreError, UsageError

# The job engine uses window functions and RETURNING that older ones lack (Debian 12 has 3.40).
SQLITE_NEEDED = (3, 42)
BUSY_MS = 30_000

_engines: dict[str, sa.Engine] = {}
_lock = threading.Lock()


def sqlite_module() -> Any:
    """The interpreter's own sqlite3, or the bundled one where that is too old."""
    if sqlite3.sqlite_version_info >= SQLITE_NEEDED:
        return sqlite3
    import pysqlite3

    return pysqlite3


def engine(config: Config) -> sa.Engine:
    """The engine of this address; made once. StoreError where the address makes no sense or the folder cannot be made."""
    with _lock:
        if config.url not in _engines:
            _engines[config.url] = _sqlite(config) if config.sqlite else _postgresql(config)
        return _engines[config.url]


@contextmanager
def in_words() -> Iterator[None]:
    """StoreError in the words of a person when the database cannot be reached or written."""
    try:
        yield
    except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
        # A statement that is wrong is a fault of the program and stays what it is.
        if isinstance(error, sa.exc.DBAPIError) and not (
            isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)
            or error.connection_invalidated
            # SQLite: not a database, or a damaged one.
            or type(error) is sa.exc.DatabaseError
        ):
            raise
        raise StoreError(
            "The database of runs cannot be reached or written.",
            "Try again; `fdcore doctor` looks at the database and the disk.",
        ) from error


def dispose(config: Config) -> None:
    """Close all connections to this address and forget it."""
    with _lock:
        known = _engines.pop(config.url, None)
    if known is not None:
        known.dispose()


def _sqlite(config: Config) -> sa.Engine:
    file = make_url(config.url).database
    if not file or file == ":memory:":
        raise UsageError(
            "Runs cannot be kept in a database in memory.", "Give FDCORE_DATABASE_URL a file, or unset it."
        )
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StoreError(
            f"The data folder {Path(file).parent} cannot be made ({error.strerror}).", "Set FDCORE_DATA to another."
        ) from error
    made = sa.create_engine(config.url, module=sqlite_module(), pool_size=5, max_overflow=5, pool_timeout=30)

    @sa.event.listens_for(made, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        # A transaction that will write takes the lock at its start: upgrading later fails instead of waiting.
        connection.isolation_level = "IMMEDIATE"
        connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    return made


def _postgresql(config: Config) -> sa.Engine:
    try:
        url = make_url(config.url)
    except sa.exc.ArgumentError as error:
        raise UsageError(
            "FDCORE_DATABASE_URL is no database address.", "Write postgresql+psycopg://user:password@host/database."
        ) from error
    if url.get_backend_name() != "postgresql":
        raise UsageError(f"FDCORE_DATABASE_URL names {url.get_backend_name()}.", "SQLite and PostgreSQL are supported.")
    return sa.create_engine(
        url.set(drivername="postgresql+psycopg"), pool_size=5, max_overflow=5, pool_timeout=30, pool_pre_ping=True
    )


def now(connection: sa.Connection) -> float:
    """The database's own clock in seconds since 1970: machines that share it need not agree on theirs."""
    if connection.dialect.name == "sqlite":
        text = "SELECT (julianday('now') - 2440587.5) * 86400.0"
    else:
        text = "SELECT extract(epoch FROM clock_timestamp())::float8"
    return float(connection.execute(sa.text(text)).scalar_one())


def insert_or_ignore(connection: sa.Connection, table: sa.Table) -> sa.Insert:
    """An INSERT that leaves a row of the same key as it is."""
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table).on_conflict_do_nothing()
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table).on_conflict_do_nothing()


def hold_structures(connection: sa.Connection, *, alone: bool = False) -> None:
    """Until the end of the transaction: no structure goes while runs that may use it are being made. SQLite has one writer
    at a time anyway."""
    if connection.dialect.name != "sqlite":
        lock = "pg_advisory_xact_lock" if alone else "pg_advisory_xact_lock_shared"
        connection.execute(sa.text(f"SELECT {lock}(7046029254386354)"))
