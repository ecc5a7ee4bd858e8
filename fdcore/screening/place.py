"""Where a screening is kept: a folder with its parts and its description, and the database with its book."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from fdcore import config as configuration
from fdcore.errors import UsageError
from fdcore.spec import canonical
from fdcore.store.chunks import ChunkBook
from fdcore.store.runs import Store, new_token

DESCRIPTION, BOOK, LOCK = "screen.json", "book.sqlite", ".lock"


def book_of(folder: Path, database_url: str, screen: str) -> ChunkBook:
    """The book of a screening: in SQLite beside its parts, or in the database that several machines share."""
    url = database_url or f"sqlite:///{folder / BOOK}"
    store = Store(replace(configuration.from_environment(), data=folder, database_url=url))
    store.migrate()
    return ChunkBook(store, screen)


def settings_of(
    *, model: str, weights_sha256: str | None, dtype: str, how: Mapping[str, Any], chunk: int
) -> dict[str, Any]:
    """What decides about the numbers of a screening; parts made with others are not used for it."""
    versions = {name: version(name) for name in ("force-delta", "torch")}
    return {
        "model": model,
        "weights_sha256": weights_sha256,
        "dtype": dtype,
        **how,
        "chunk": chunk,
        "versions": versions,
        "format": FORMAT,
    }


# Of the rows; raised when they are made in another way.
FORMAT = 1


def sha256_of(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(dict(settings)).encode()).hexdigest()


def described(folder: Path, settings: Mapping[str, Any], inputs: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """(id, inputs so far) of the screening in this folder, made now where there is none. UsageError where it holds one with other settings, or
    one of whose inputs not all are named again: its table would lose them."""
    file = folder / DESCRIPTION
    text = canonical({"id": new_token(), "settings": dict(settings), "inputs": list(inputs)})
    try:
        text = _first(folder, file, text)
    except OSError as error:
        raise UsageError(
            f"Nothing can be written to {folder} ({error.strerror}).", "Name another folder with --out."
        ) from error
    try:
        known = json.loads(text)
        screen, before, named = str(known["id"]), known["settings"], tuple(map(str, known["inputs"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} is not the description of a screening.", "Name another folder with --out.") from error
    differing = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
    if differing:
        raise UsageError(
            f"{folder} holds results with another {' and '.join(differing)} ({_said(before, differing)}).",
            "Repeat that command to go on with them, or name another folder with --out.",
        )
    given = set(inputs)
    missing = [path for path in named if path not in given]
    if missing:
        raise UsageError(
            f"{folder} holds results of {missing[0]}{' and others' if len(missing) > 1 else ''}, not named now.",
            "Name all of its inputs, and more if you like; or name another folder with --out.",
        )
    return screen, named


def is_described(folder: Path) -> bool:
    """Whether this folder belongs to a screening."""
    return (folder / DESCRIPTION).exists()


def forget(folder: Path) -> None:
    """Let the folder belong to no screening, with its results, if there are any, where they are."""
    (folder / DESCRIPTION).unlink(missing_ok=True)


def describe_inputs(folder: Path, inputs: Sequence[str]) -> None:
    """Let more inputs belong to the screening in this folder."""
    file = folder / DESCRIPTION
    known = json.loads(file.read_text(encoding="utf-8"))
    if known["inputs"] == list(inputs):
        return
    new = file.with_suffix(f".{new_token()}")
    new.write_text(canonical({**known, "inputs": list(inputs)}), encoding="utf-8")
    new.replace(file)


def _first(folder: Path, file: Path, text: str) -> str:
    """What describes the screening: this text where there was none."""
    folder.mkdir(parents=True, exist_ok=True)
    # Whoever is first describes it, whole: machines that share the folder may begin at once.
    new = file.with_suffix(f".{new_token()}")
    new.write_text(text, encoding="utf-8")
    try:
        os.link(new, file)
    except FileExistsError:
        text = file.read_text(encoding="utf-8")
    finally:
        new.unlink()
    return text


def alone_in(folder: Path) -> IO[str] | None:
    """A lock that ends with this process, however it ends; None where another one on this machine has it."""
    file = (folder / LOCK).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _said(settings: Mapping[str, Any], names: list[str]) -> str:
    return ", ".join(f"{name} {settings.get(name)}" for name in names)
