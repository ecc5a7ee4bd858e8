"""Structures by content: the same structure in a hundred runs is stored once.

A stored structure is one message of `fdcore.structures.wire` (JSON header, raw arrays; nothing executable), named by the
SHA-256 of its bytes. File names, frames and the reader's notes belong to the run that brought it, not to the structure.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace

import sqlalchemy as sa

from fdcore.errors import StoreError
from fdcore.records import Failure, Structure
from fdcore.spec import canonical
from fdcore.store import database, schema
from fdcore.store.runs import Store
from fdcore.structures.wire import WireError, receive, result_of, send_result

# Rows of one INSERT or SELECT: SQLite allows 32,766 parameters.
CHUNK = 2000


def encode(structure: Structure) -> tuple[str, bytes]:
    """(id, bytes) of what is stored of a structure."""
    buffer = io.BytesIO()
    send_result(buffer, [replace(structure, file="", index=0, warnings=())], [])
    content = buffer.getvalue()
    return hashlib.sha256(content).hexdigest(), content


def decode(content: bytes) -> Structure:
    """Raises StoreError for bytes that `encode` did not write."""
    try:
        message = receive(io.BytesIO(content), len(content))
        structures, _ = result_of(*message) if message is not None else ([], [])
    except WireError as error:
        raise StoreError("A stored structure is damaged.", "Delete the run and bring the file again.") from error
    return structures[0]


def inputs_sha256(structures: Sequence[Structure]) -> str:
    """One name for an ordered list of structures with their file names: what `Spec.inputs_sha256` holds."""
    listed = [[encode(s)[0], s.file, s.index] for s in structures]
    return hashlib.sha256(canonical(listed).encode()).hexdigest()


def add(
    connection: sa.Connection, run_id: str, structures: Sequence[Structure], refusals: Sequence[Failure] = ()
) -> None:
    """Attach structures, and what could not be read, to a run, within the transaction that makes it."""
    table, links = schema.structures, schema.run_structures
    if structures:
        database.hold_structures(connection)
    for start in range(0, len(structures), CHUNK):
        part = structures[start : start + CHUNK]
        encoded = [encode(s) for s in part]
        new = {
            key: {"id": key, "formula": s.formula, "n_atoms": s.n_atoms, "content": content}
            for (key, content), s in zip(encoded, part, strict=True)
        }
        connection.execute(database.insert_or_ignore(connection, table), list(new.values()))
        connection.execute(
            sa.insert(links),
            [
                {
                    "run": run_id,
                    "position": start + k,
                    "structure": key,
                    "file": s.file,
                    "frame": s.index,
                    "warnings": json.dumps(s.warnings),
                }
                for k, ((key, _), s) in enumerate(zip(encoded, part, strict=True))
            ],
        )
    if refusals:
        connection.execute(
            sa.insert(schema.run_refusals),
            [
                {"run": run_id, "position": k, "file": f.file, "frame": f.index, "error": f.error, "hint": f.hint}
                for k, f in enumerate(refusals)
            ],
        )


def of_run(store: Store, run_id: str) -> tuple[Structure, ...]:
    """The structures of a run in their order, named as they were when they were brought."""
    table, links = schema.structures, schema.run_structures
    query = (
        sa.select(table.c.content, links.c.file, links.c.frame, links.c.warnings)
        .join(table, table.c.id == links.c.structure)
        .where(links.c.run == run_id)
        .order_by(links.c.position)
    )
    with store.begin() as connection:
        rows = connection.execute(query).all()
    return tuple(
        replace(decode(r.content), file=r.file, index=r.frame, warnings=tuple(json.loads(r.warnings))) for r in rows
    )


def refusals_of_run(store: Store, run_id: str) -> tuple[Failure, ...]:
    """What was brought with this run and could not be read."""
    table = schema.run_refusals
    query = sa.select(table).where(table.c.run == run_id).order_by(table.c.position)
    with store.begin() as connection:
        return tuple(Failure(file=r.file, error=r.error, hint=r.hint, index=r.frame) for r in connection.execute(query))
