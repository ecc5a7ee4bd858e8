"""Durations and sizes as people say them: the same on pages, in command lines and in estimates."""

from __future__ import annotations


def duration(seconds: float | None) -> str:
    """ "0.4 s", "12 s", "3 min", "2.1 h", "3 d"; a dash for what is not known."""
    if seconds is None:
        return "–"
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.0f} d"


def size(count_of_bytes: float) -> str:
    """ "340 kB", "1.2 MB", "3.4 GB"."""
    for limit, unit in ((1e6, "kB"), (1e9, "MB")):
        if count_of_bytes < limit:
            value = count_of_bytes / limit * 1e3
            return f"{value:.0f} {unit}" if value >= 10 or not value else f"{value:.1f} {unit}"
    return f"{count_of_bytes / 1e9:.1f} GB"
