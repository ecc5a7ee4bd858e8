"""What a 3D viewer needs to draw a scored structure: plain lists of numbers, ready to travel as JSON.

Nothing here is a string built from user text: a viewer gets arrays, element symbols and colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors
from numpy.typing import NDArray

from fdcore.distribution import ReferenceDistribution
from fdcore.records import Score, Structure

# Viridis: perceptually uniform, readable in grey and for every kind of colour vision. Used for every per-atom value.
SCALE = ("#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725")
# Balls this share of the covalent radius leave the bonds visible.
BALL = 0.55
# What a colour scale reaches at least (eV/Å), so that rounding noise is never painted as alarm.
LOWEST_TOP = 1e-3


def scene(
    score: Score, reference: ReferenceDistribution | None = None, spread: NDArray[np.float64] | None = None
) -> dict[str, Any]:
    """The drawable form of a score, with the `spread` (N,) in eV/Å of an ensemble where there is one.

    Keys: `elements` (symbol, colour, ball and bond radius in Å) with `element` (N,) pointing into it; `positions` (3N) Å,
    wrapped into the cell of a crystal; `cell` (3, 3) Å or None; `forces_direct` and `forces_conservative` (3N) eV/Å;
    `values`, one entry per colouring with its numbers (N,) and the `top` of its scale in eV/Å. Every scale starts at zero.
    The scale of u_i reaches at least the ordinary range of the model, so a structure on which the forces agree looks calm.
    """
    structure, evaluation = score.structure, score.evaluation
    direct, conservative = (
        np.linalg.norm(f, axis=1) for f in (evaluation.forces_direct, evaluation.forces_conservative)
    )
    ordinary = reference.quantile(0.95) if reference is not None else 0.0
    force_top = max(float(direct.max()), float(conservative.max()))
    values = {
        "force_delta": _values(evaluation.force_delta_per_atom, ordinary),
        # One scale for both forces: they are there to be compared.
        "force_direct": _values(direct, force_top),
        "force_conservative": _values(conservative, force_top),
    }
    if evaluation.confidence is not None:
        values["confidence"] = _values(evaluation.confidence)
    if spread is not None:
        values["ensemble_spread"] = _values(spread)
    return {
        **_drawn(structure, f"{structure.content_id[:16]}-{score.model_id}"),
        "positions": _flat(wrapped(structure), 4),
        "forces_direct": _flat(evaluation.forces_direct, 5),
        "forces_conservative": _flat(evaluation.forces_conservative, 5),
        "values": values,
    }


def trajectory_scene(
    structure: Structure,
    name: str,
    positions: Sequence[NDArray[np.float64]],
    force_delta_per_atom: Sequence[NDArray[np.float64]],
    times: Sequence[str],
    reference: ReferenceDistribution | None = None,
    cells: Sequence[NDArray[np.float64]] | None = None,
) -> dict[str, Any]:
    """The drawable form of a trajectory called `name`: as `scene`, without forces, and with `frames`: `positions` (3N) Å and
    `force_delta` (N) eV/Å of every frame on one scale, its `time` in words, and where a crystal's `cells` (3, 3) Å change, its `cell`. An
    atom stays in the image of the cell that it began in, so that it never jumps."""
    ordinary = reference.quantile(0.95) if reference is not None else 0.0
    top = _values(np.concatenate(force_delta_per_atom), ordinary)["top"]
    boxes = [structure.cell] * len(positions) if cells is None else list(cells)
    first = replace(structure, positions=positions[0], cell=boxes[0])
    images = wrapped(first) - positions[0]
    if structure.periodic:
        # Whole cells, so that a cell that changes takes its images along.
        whole = np.round(np.linalg.solve(first.cell.T, images.T).T)
        moved = [_flat(p + whole @ box, 3) for p, box in zip(positions, boxes, strict=True)]
    else:
        moved = [_flat(p + images, 3) for p in positions]
    numbers = [np.round(u, 5).tolist() for u in force_delta_per_atom]
    frames = {"positions": moved, "force_delta": numbers, "time": list(times)}
    if structure.periodic and any(not np.array_equal(box, boxes[0]) for box in boxes):
        frames["cell"] = [np.round(box, 4).tolist() for box in boxes]
    return {
        **_drawn(first, name),
        "positions": moved[0],
        "values": {"force_delta": {"numbers": numbers[0], "top": top}},
        "frames": frames,
    }


def colour(share: float) -> str:
    """Of SCALE at a share of its length, 0 to 1."""
    place = share * (len(SCALE) - 1)
    k = min(int(place), len(SCALE) - 2)
    ends = [[int(SCALE[j][c : c + 2], 16) for c in (1, 3, 5)] for j in (k, k + 1)]
    return "#" + "".join(f"{round(a + (place - k) * (b - a)):02x}" for a, b in zip(*ends, strict=True))


def wrapped(structure: Structure) -> NDArray[np.float64]:
    """Positions (N, 3) in Å, those of a crystal inside its cell."""
    if not structure.periodic:
        return structure.positions
    return structure.to_atoms().get_positions(wrap=True, eps=1e-4)


def _drawn(structure: Structure, name: str) -> dict[str, Any]:
    """What does not depend on forces."""
    species, element = np.unique(structure.numbers, return_inverse=True)
    return {
        "id": name,
        "formula": structure.formula,
        "elements": [
            {
                "symbol": chemical_symbols[z],
                "color": "#" + "".join(f"{round(255 * c):02x}" for c in jmol_colors[z]),
                "ball": round(BALL * float(covalent_radii[z]), 3),
                "bond": round(float(covalent_radii[z]), 3),
            }
            for z in species
        ],
        "element": element.tolist(),
        "cell": structure.cell.tolist() if structure.periodic else None,
        "scale": list(SCALE),
    }


def _values(numbers: NDArray[np.float64], at_least: float = 0.0) -> dict[str, Any]:
    top = max(float(np.max(numbers)), at_least, LOWEST_TOP)
    return {"numbers": np.round(numbers, 6).tolist(), "top": top}


def _flat(array: NDArray[np.float64], digits: int) -> list[float]:
    return np.round(array, digits).ravel().tolist()
