"""Distances over periodic images, exact and bounded in work.

The closest pair of N atoms in a volume V cannot be further apart than the densest packing of spheres allows,
d^3 <= sqrt(2) V / N, nor further than the shortest lattice vector. So a margin of that width around one reduced cell
holds every image that can matter, whatever the shape of the cell the user gave.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from fdcore.records import FloatArray, Structure

# Sums of reduced vectors; a cell whose shortest vector is not among them is not reduced yet.
_NEIGHBOUR_CELLS = np.array([c for c in product((-1, 0, 1), repeat=3) if any(c)], dtype=np.float64)


@lru_cache(maxsize=64)
def _reduced(cell_bytes: bytes) -> FloatArray:
    cell = np.frombuffer(cell_bytes).reshape(3, 3).copy()
    # Each pass replaces a vector by a shorter one; physical cells need two or three, the bound is for the others.
    for _ in range(200):
        cell = cell[np.argsort(np.linalg.norm(cell, axis=1), kind="stable")]
        b_new = cell[1] - np.rint(cell[1] @ cell[0] / (cell[0] @ cell[0])) * cell[0]
        if b_new @ b_new < (cell[1] @ cell[1]) * (1 - 1e-10):
            cell[1] = b_new
            continue
        plane = cell[:2]
        n = np.rint(np.linalg.lstsq(plane.T, cell[2], rcond=None)[0])
        trials = [cell[2] - (n + d) @ plane for d in np.array(list(product((-1, 0, 1), repeat=2)))]
        c_new = min(trials, key=lambda v: float(v @ v))
        if c_new @ c_new < (cell[2] @ cell[2]) * (1 - 1e-10):
            cell[2] = c_new
            continue
        break
    cell.setflags(write=False)
    return cell


def reduced_cell(cell: FloatArray) -> FloatArray:
    """The same lattice in its shortest vectors, (3, 3) Å rows, sorted by length."""
    return _reduced(np.ascontiguousarray(cell, dtype=np.float64).tobytes())


def shortest_lattice_vector(cell: FloatArray) -> float:
    """Length in Å of the shortest non-zero lattice vector: an atom's distance to its own nearest image."""
    return float(np.linalg.norm(_NEIGHBOUR_CELLS @ reduced_cell(cell), axis=1).min())


def _with_images(structure: Structure, margin_A: float) -> tuple[FloatArray, NDArray[np.int64]]:
    """Positions of one cell followed by those images within `margin_A` of it, and whose image each is."""
    n = structure.n_atoms
    owner = np.arange(n)
    if not structure.periodic:
        return structure.positions - structure.positions.mean(axis=0), owner
    cell = reduced_cell(structure.cell)
    inverse = np.linalg.inv(cell)
    heights = 1.0 / np.linalg.norm(inverse, axis=0)
    fractional = structure.positions @ inverse
    fractional = fractional - np.floor(fractional)
    for axis in range(3):
        margin = margin_A / heights[axis] + 1e-9
        pieces, owners = [fractional], [owner]
        for k in range(1, int(np.ceil(margin)) + 1):
            for shift in (-k, k):
                x = fractional[:, axis] + shift
                near = (x >= -margin) & (x <= 1 + margin)
                if near.any():
                    piece = fractional[near].copy()
                    piece[:, axis] = x[near]
                    pieces.append(piece)
                    owners.append(owner[near])
        fractional, owner = np.concatenate(pieces), np.concatenate(owners)
    return fractional @ cell, owner


def _nearest_other(
    points: FloatArray, own: NDArray[np.int64], among: FloatArray, among_ids: NDArray[np.int64], bound_A: float
) -> tuple[float, int, int] | None:
    """The closest (distance, row of `own`, row of `among_ids`) where the two ids differ."""
    # Imported here: half a second that neither `--help` nor a page without structures should wait for.
    from scipy.spatial import KDTree

    distance, nearest = KDTree(among).query(points, k=2, distance_upper_bound=bound_A)
    found = nearest < len(among)
    ids = np.where(found, among_ids[np.where(found, nearest, 0)], -1)
    distance = np.where(found & (ids != own[:, None]), distance, np.inf)
    row, column = np.unravel_index(int(np.argmin(distance)), distance.shape)
    best = float(distance[row, column])
    return (best, int(own[row]), int(ids[row, column])) if np.isfinite(best) else None


def closest_distance(structure: Structure) -> tuple[float, int, int] | None:
    """The smallest distance in Å between two atoms, periodic images and an atom's own images included.

    Returns (distance, i, j), i == j for an atom and its own image, or None for a lone atom without a cell.
    """
    n = structure.n_atoms
    if n == 0 or (n == 1 and not structure.periodic):
        return None
    if structure.periodic:
        if n == 1:
            return shortest_lattice_vector(structure.cell), 0, 0
        volume = abs(float(np.linalg.det(structure.cell)))
        bound = min(shortest_lattice_vector(structure.cell), (np.sqrt(2) * volume / n) ** (1 / 3)) * (1 + 1e-6)
    else:
        bound = np.inf
    positions, owner = _with_images(structure, bound if np.isfinite(bound) else 0.0)
    rows = np.arange(len(positions))
    best = _nearest_other(positions[:n], rows[:n], positions, rows, bound * (1 + 1e-6))
    assert best is not None
    distance, i, j = best
    first, second = sorted((int(owner[i]), int(owner[j])))
    return distance, first, second


def closest_per_pair(structure: Structure, cutoff_A: float = 6.0) -> dict[str, tuple[float, int, int]]:
    """For each pair of elements within `cutoff_A`, the smallest distance in Å and the two atoms: {"Cl-Na": (2.82, 0, 1)}.

    The symbols in a key stand in alphabetical order and the indices in the order of the symbols.
    """
    n = structure.n_atoms
    if n == 0:
        return {}
    positions, owner = _with_images(structure, cutoff_A)
    symbols = np.array(structure.symbols)
    names = sorted(set(structure.symbols))
    rows = np.arange(len(positions))
    image_symbols = symbols[owner]
    out: dict[str, tuple[float, int, int]] = {}
    for at, a in enumerate(names):
        own = rows[:n][symbols == a]
        for b in names[at:]:
            other = rows[image_symbols == b]
            best = _nearest_other(positions[own], own, positions[other], other, cutoff_A * (1 + 1e-12))
            if best is not None:
                out[f"{a}-{b}"] = (best[0], int(owner[best[1]]), int(owner[best[2]]))
    return out


def without_neighbours(structure: Structure, cutoff_A: float) -> tuple[int, ...]:
    """Atoms that have no other atom, and no periodic image, within `cutoff_A`. Cheap where there are none, as nearly always."""
    n = structure.n_atoms
    if structure.periodic and n and shortest_lattice_vector(structure.cell) <= cutoff_A:
        return ()
    if n < 2:
        return tuple(range(n))
    from scipy.spatial import KDTree

    # Most find a neighbour among the atoms as they were given; images only matter to the others.
    bound = cutoff_A * (1 + 1e-12)
    distance, _ = KDTree(structure.positions).query(structure.positions, k=2, distance_upper_bound=bound)
    alone = np.flatnonzero(~np.isfinite(distance[:, 1]))
    if len(alone) and structure.periodic:
        positions, _ = _with_images(structure, cutoff_A)
        distance, _ = KDTree(positions).query(positions[alone], k=2, distance_upper_bound=bound)
        alone = alone[~np.isfinite(distance[:, 1])]
    return tuple(int(i) for i in alone)
