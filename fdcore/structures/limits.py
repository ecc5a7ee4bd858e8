"""What goes in and what comes out of reading: Source, Limits, Parsed."""

from __future__ import annotations

from dataclasses import dataclass

from fdcore.records import Failure, Structure


@dataclass(frozen=True)
class Source:
    """One thing the user brought: a file's name and bytes, or a paste.

    format: "cif", "poscar", "xyz", "extxyz", "json" or "jsonl"; None lets the content, then the name, decide.
    first: for a part that was cut out of a file, the place of its first structure in that file; None for a whole file.
    """

    name: str
    data: bytes
    format: str | None = None
    first: int | None = None


@dataclass(frozen=True)
class Limits:
    """Bounds on reading. Per file unless named total; the totals hold for one call of `read_sources`.

    max_failures: beyond so many broken frames of one file, one line stands for the rest.
    """

    max_bytes: int = 20_000_000
    max_total_bytes: int = 100_000_000
    max_files: int = 200
    max_atoms: int = 20_000
    max_frames: int = 10_000
    max_total_atoms: int = 1_000_000
    max_seconds: float = 10.0
    max_total_seconds: float = 60.0
    max_memory_MB: int = 2_000
    min_distance_A: float = 0.1
    max_failures: int = 100


@dataclass(frozen=True)
class Parsed:
    """What was read and what was not, each in input order."""

    structures: tuple[Structure, ...]
    failures: tuple[Failure, ...]
