"""Structures from files and pastes: CIF, POSCAR/CONTCAR, xyz, extxyz, JSON; one parse, one validation, all of it bounded.

Files are parsed in a child process with limits on time, memory and size, so that a hostile file costs its own reader and
nothing else. Each file or frame that cannot be read becomes a `Failure` with the reason and the next step.
"""

from __future__ import annotations

from fdcore.structures.checks import validate, with_charge_spin
from fdcore.structures.entry import read_paths, read_sources
from fdcore.structures.limits import Limits, Parsed, Source
from fdcore.structures.periodic import closest_distance, closest_per_pair, without_neighbours

__all__ = [
    "Limits",
    "Parsed",
    "Source",
    "closest_distance",
    "closest_per_pair",
    "read_paths",
    "read_sources",
    "validate",
    "with_charge_spin",
    "without_neighbours",
]
