"""The one entry: sources or paths in, `Parsed` out."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from dataclasses import replace

from fdcore.records import Failure, Structure
from fdcore.structures.limits import Limits, Parsed, Source
from fdcore.structures.pool import shared_pool
from fdcore.structures.text import clean_name


def read_sources(sources: Iterable[Source], limits: Limits = Limits()) -> Parsed:  # noqa: B008 - Limits is frozen
    """Read, validate and return everything that can be used, in input order; the rest as failures.

    Never raises for what is in a source. Safe to call from several threads.
    """
    return _read_all(sources, limits)


def read_paths(paths: Iterable[str | os.PathLike[str]], limits: Limits = Limits()) -> Parsed:  # noqa: B008
    """Like `read_sources`, for files on disk; missing, unreadable and too large ones become failures."""
    return _read_all((_from_disk(path, limits) for path in paths), limits)


def _read_all(sources: Iterable[Source | Failure], limits: Limits) -> Parsed:
    structures: list[Structure] = []
    failures: list[Failure] = []
    total_bytes = total_atoms = 0
    started = time.monotonic()
    for number, source in enumerate(sources):
        if isinstance(source, Failure):
            failures.append(source)
            continue
        name, size = clean_name(source.name), len(source.data)
        left = limits.max_total_seconds - (time.monotonic() - started)
        if number >= limits.max_files:
            failures.append(
                Failure(name, f"More than {limits.max_files} files at once.", "Bring the rest in a second step.")
            )
        elif size > limits.max_bytes:
            failures.append(too_large(name, size, limits))
        elif total_bytes + size > limits.max_total_bytes:
            failures.append(
                Failure(
                    name, f"More than {limits.max_total_bytes / 1e6:g} MB at once.", "Bring the rest in a second step."
                )
            )
        elif total_atoms >= limits.max_total_atoms:
            failures.append(
                Failure(
                    name, f"More than {limits.max_total_atoms:,} atoms at once.", "Bring the rest in a second step."
                )
            )
        elif left <= 0:
            failures.append(
                Failure(
                    name,
                    f"Reading took more than {limits.max_total_seconds:g} seconds.",
                    "Bring the rest in a second step.",
                )
            )
        else:
            total_bytes += size
            bounded = replace(
                limits,
                max_total_atoms=limits.max_total_atoms - total_atoms,
                max_seconds=min(limits.max_seconds, left),
            )
            read, failed = shared_pool().read(source, bounded)
            total_atoms += sum(s.n_atoms for s in read)
            structures += read
            failures += failed
    return Parsed(tuple(structures), tuple(failures))


def too_large(name: str, size: int, limits: Limits) -> Failure:
    return Failure(
        name,
        f"The file has {size / 1e6:.1f} MB; at most {limits.max_bytes / 1e6:g} MB are read.",
        "Split it, or bring fewer frames.",
    )


def _from_disk(path: str | os.PathLike[str], limits: Limits) -> Source | Failure:
    name = clean_name(os.fspath(path))
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            return Failure(name, "This is a folder.", "Name the files in it, e.g. FOLDER/*.cif.")
        if not stat.S_ISREG(status.st_mode):
            return Failure(name, "This is not an ordinary file.", "Save its content to a file first.")
        if status.st_size > limits.max_bytes:
            return too_large(name, status.st_size, limits)
        with open(path, "rb") as stream:
            # A file may have grown since it was looked at.
            return Source(os.fspath(path), stream.read(limits.max_bytes + 1))
    except FileNotFoundError:
        return Failure(name, "There is no such file.", "Check the path.")
    except PermissionError:
        return Failure(name, "The file may not be read.", "Check its permissions.")
    except (OSError, ValueError) as error:
        return Failure(name, f"The file could not be opened ({type(error).__name__}).", "Check the path.")
