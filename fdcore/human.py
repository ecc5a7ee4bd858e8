"""Durations, sizes and measured numbers as people say them: the same on pages, in command lines and in estimates."""

from __future__ import annotations

import math


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


def three_digits(value: float, sign: bool = False) -> str:
    """Three significant digits, plain while that is readable: 0.0412, 1.20, 113, 1060, 1.2e-06. `sign`: also a plus."""
    plus = "+" if sign else ""
    if value != 0 and not 1e-4 <= abs(value) < 1e5:
        return f"{value:{plus}.2e}"
    if abs(value) >= 999.5:
        return f"{float(f'{value:.3g}'):{plus}.0f}"
    return f"{value:{plus}#.3g}".rstrip(".")


def plus_minus(value: float, half_width: float | None, sign: bool = False) -> str:
    """A measured number with as many digits as its error allows: "96 ± 100", "0.041 ± 0.012"; three digits without one. `sign`: also a plus."""
    if half_width is None or not half_width or not math.isfinite(half_width):
        return three_digits(value, sign)
    plus = "+" if sign else ""
    if not 1e-4 <= half_width < 1e6:
        return f"{value:{plus}.2e} ± {half_width:.1e}"
    decimals = 1 - math.floor(math.log10(half_width))
    shown = max(0, decimals)
    return f"{round(value, decimals) + 0.0:{plus}.{shown}f} ± {round(half_width, decimals):.{shown}f}"


def count(number: int, noun: str) -> str:
    """ "1 atom", "8 atoms"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
