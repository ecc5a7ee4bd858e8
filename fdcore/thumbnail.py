"""A small picture of a structure with its atoms coloured by u_i, as SVG: for tables, where a 3D view has no place.

Made of numbers and colours only; nothing of a user's text gets into it. View and colours are those of the 3D viewer.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
from ase.data import covalent_radii
from numpy.typing import ArrayLike, NDArray

from fdcore.records import Structure
from fdcore.scene import BALL, LOWEST_TOP, colour, wrapped

Array = NDArray[np.float64]
# The picture is so wide and high, in its own unit.
SIZE = 100.0
# Of more atoms only those in front are drawn: the others are hidden, or too small to be seen.
MOST_ATOMS = 300
EDGE, OUTLINE = "#7f8c93", "#1c2b33"


def svg(structure: Structure, values: ArrayLike, top: float) -> str:
    """The picture: values (N,) on a scale from zero to `top`, the cell of a crystal as its edges."""
    numbers = np.asarray(values, dtype=np.float64)
    radii = BALL * covalent_radii[structure.numbers]
    atoms = wrapped(structure) @ _view()
    ends = _edges(structure.cell) @ _view() if structure.periodic else np.zeros((0, 2, 3))
    low, high = _extent(atoms, radii, ends)
    scale = SIZE / float(np.max(high - low))
    # In the middle, y downwards.
    shift = 0.5 * (SIZE - scale * (high + low) * [1, -1])

    def place(points: Array) -> Array:
        return scale * points[..., :2] * [1, -1] + shift

    lines = "".join(
        f'<line x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}"/>' for a, b in place(ends).tolist()
    )
    # Those behind first.
    front = np.argsort(atoms[:, 2], kind="stable")[-MOST_ATOMS:]
    at, share = place(atoms), np.clip(numbers / max(top, LOWEST_TOP), 0.0, 1.0)
    circles = "".join(
        f'<circle cx="{at[k, 0]:.1f}" cy="{at[k, 1]:.1f}" r="{scale * radii[k]:.1f}" fill="{colour(float(share[k]))}"/>'
        for k in front
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="128" height="128" viewBox="0 0 {SIZE:g} {SIZE:g}">'
        f'<g stroke="{EDGE}" stroke-width="0.8">{lines}</g><g stroke="{OUTLINE}" stroke-width="0.4">{circles}</g></svg>'
    )


def data_url(picture: str) -> str:
    """The picture as an address that needs no server."""
    return "data:image/svg+xml;base64," + base64.b64encode(picture.encode()).decode()


def thumbnails(pictured: Sequence[tuple[Structure, Array]], at_least: float = 0.0) -> list[str]:
    """One address per structure with its u_i (N,) in eV/Å, all on one scale, which reaches at least so far: they are there to be
    compared."""
    top = max((float(np.max(u, initial=0.0)) for _, u in pictured), default=0.0)
    return [data_url(svg(s, u, max(top, at_least))) for s, u in pictured]


def _view() -> Array:
    """From where the 3D viewer looks at first: turned by -72 degrees about x, then 18 about y; points are rows."""
    x, y = np.radians(-72.0), np.radians(18.0)
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    return (about_y @ about_x).T


def _edges(cell: Array) -> Array:
    """The twelve edges of a cell, (12, 2, 3)."""
    corners = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)], dtype=np.float64)
    pairs = [(p, q) for k, p in enumerate(corners) for q in corners[k + 1 :] if np.abs(p - q).sum() == 1]
    return np.array(pairs) @ cell


def _extent(atoms: Array, radii: Array, ends: Array) -> tuple[Array, Array]:
    """The corners of what is drawn."""
    flat, points = atoms[:, :2], ends.reshape(-1, 3)[:, :2]
    low = np.min([*(flat - radii[:, None]), *points], axis=0)
    high = np.max([*(flat + radii[:, None]), *points], axis=0)
    return low, high
