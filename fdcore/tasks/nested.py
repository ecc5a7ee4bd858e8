"""Tasks within a task: rows of a part travel with the state of the whole until they are wanted, or until the part is complete and becomes a
product: a folder that is read as the record of a run of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdcore.spec import Spec
from fdcore.store.series import Checkpoint, Recorder, Tables
from fdcore.tasks.base import Rows

# What the folder of a finished part holds: its record, and what was asked.
RECORD, SPEC = "record", "spec.json"


class Kept:
    """Rows of a part, by table and column, with the arrays of its own state."""

    def __init__(self) -> None:
        self._parts: dict[str, list[dict[str, NDArray[Any]]]] = {}
        self.others: dict[str, NDArray[Any]] = {}

    @classmethod
    def of(cls, state: Checkpoint | None) -> Kept:
        """What `with_state` has put into a state; nothing where there is none."""
        kept = cls()
        for name, array in ({} if state is None else state.arrays).items():
            if name.startswith("row/"):
                _, table, column = name.split("/")
                kept._parts.setdefault(table, [{}])[0][column] = array
            else:
                kept.others[name] = array
        return kept

    def add(self, rows: Rows) -> None:
        self._parts.setdefault(rows.table, []).append({k: np.array(v) for k, v in rows.columns.items()})

    def table(self, name: str) -> dict[str, NDArray[Any]]:
        """Its columns; empty where there is no row."""
        parts = self._parts.get(name, [])
        return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]} if parts else {}

    def tables(self) -> tuple[str, ...]:
        return tuple(self._parts)

    def with_state(self, own: Checkpoint) -> Checkpoint:
        rows = {f"row/{t}/{k}": v for t in self._parts for k, v in self.table(t).items()}
        return Checkpoint(own.values, {**own.arrays, **rows})


def write_record(
    folder: Path, spec: Spec, tables: Tables, kept: Kept, notes: list[Mapping[str, Any]], result: Mapping[str, Any]
) -> None:
    """Fill `folder` with what a run of its own would have left."""
    recorder = Recorder(folder / RECORD, tables)
    try:
        for name in kept.tables():
            recorder.append(name, kept.table(name))
        for note in notes:
            recorder.note(note)
        recorder.finish(result)
    finally:
        recorder.close()
    (folder / SPEC).write_text(spec.to_json(), encoding="utf-8")
