"""The one validation: what every structure passes before a model sees it, from a file or from the API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from ase.data import chemical_symbols

from fdcore.errors import FormatError, GeometryError, LimitError
from fdcore.records import FloatArray, Structure
from fdcore.structures.limits import Limits
from fdcore.structures.periodic import closest_distance, shortest_lattice_vector
from fdcore.structures.text import capital, plural, quote

# No matter has less room per atom (solid hydrogen at 500 GPa: about 1.2 Å^3), and no period is shorter (H2: 0.74 Å).
MIN_VOLUME_PER_ATOM_A3 = 0.5
MIN_PERIOD_A = 0.5
# Beyond these, coordinates lose digits and neighbour lists lose their bounds.
MAX_CELL_LENGTH_A = 5_000.0
MAX_COORDINATE_A = 100_000.0
# Volume over the product of the three lengths: 1 for a box, 0.5 for fcc's primitive cell, 0 for a flat one.
MIN_CELL_FULLNESS = 1e-3
ORDER_IT = "Choose one ordering (e.g. pymatgen's OrderDisorderedStructureTransformation, or supercell) and bring that."
# Sites below hold an atom only in part of the cells.
FULL_OCCUPANCY = 0.995
MAX_CHARGE = 500
MAX_SPIN = 500


def validate(structure: Structure, limits: Limits = Limits()) -> Structure:  # noqa: B008 - Limits is frozen
    """Refuse what no model can read; return the structure, without its cell where it is not periodic.

    Raises
    ------
    LimitError : more atoms than `limits.max_atoms`.
    GeometryError : no atoms, unknown elements, values that are not finite, mixed periodicity, a cell without volume, too
        small, flat or huge, atoms closer than `limits.min_distance_A`, a charge or spin out of range.
    """
    _check_shapes(structure, limits)
    if any(structure.pbc) and not all(structure.pbc):
        axes = " ".join("T" if p else "F" for p in structure.pbc)
        raise GeometryError(
            f"The structure is periodic in some directions only (pbc {axes}).",
            "Make it periodic in all three, with at least 15 Å of vacuum along the open direction, and set pbc to T T T.",
        )
    if structure.periodic:
        check_cell(structure.cell, structure.n_atoms)
    elif structure.cell.any():
        structure = replace(structure, cell=np.zeros((3, 3)))
    _check_positions(structure)
    _check_overlaps(structure, limits)
    _check_charge_spin(structure)
    return structure


def _check_shapes(structure: Structure, limits: Limits) -> None:
    n = structure.n_atoms
    if structure.numbers.ndim != 1 or structure.positions.shape != (n, 3) or structure.cell.shape != (3, 3):
        raise GeometryError(
            f"{structure.numbers.shape} atomic numbers, {structure.positions.shape} positions and a "
            f"{structure.cell.shape} cell do not belong together.",
            "Give N numbers, N positions of three coordinates, and three cell vectors.",
        )
    if n == 0:
        raise GeometryError("The structure has no atoms.", "Check that the file was saved with its atoms.")
    if n > limits.max_atoms:
        raise LimitError(
            f"The structure has {n:,} atoms; at most {limits.max_atoms:,} are read here.",
            "Use a smaller cell or cut out the part of interest.",
        )
    wrong = np.flatnonzero((structure.numbers < 1) | (structure.numbers > 118))
    if len(wrong):
        raise GeometryError(
            f"Atom {wrong[0] + 1} has the atomic number {structure.numbers[wrong[0]]}, which is no element.",
            "Replace dummy atoms (X) by elements or delete them; atomic numbers run from 1 to 118.",
        )


def _check_positions(structure: Structure) -> None:
    finite = np.isfinite(structure.positions).all(axis=1)
    if not finite.all():
        raise GeometryError(
            f"The position of {_atom(structure, int(np.argmin(finite)))} is not a finite number.",
            "An earlier calculation may have failed; take the last good step or save the structure again.",
        )
    far = np.abs(structure.positions).max(axis=1) > MAX_COORDINATE_A
    if far.any():
        raise GeometryError(
            f"{capital(_atom(structure, int(np.argmax(far))))} lies more than {MAX_COORDINATE_A:,.0f} Å from the origin.",
            "Check the units, and for an exploded simulation take an earlier step.",
        )


def check_cell(cell: FloatArray, n_atoms: int) -> None:
    """Raise GeometryError for a cell (3, 3) that is not finite, too large, flat, or too small for its atoms."""
    if not np.isfinite(cell).all():
        raise GeometryError(
            "The cell contains values that are not finite numbers.", "Save the structure with its cell again."
        )
    lengths = np.linalg.norm(cell, axis=1) if np.abs(cell).max() < 1e100 else np.array([np.inf] * 3)
    if lengths.max() > MAX_CELL_LENGTH_A:
        raise GeometryError(
            f"A cell vector is longer than {MAX_CELL_LENGTH_A:,.0f} Å.", "Check that the cell is given in Å."
        )
    if lengths.min() < MIN_PERIOD_A:
        raise GeometryError(
            f"Cell vector {'abc'[int(np.argmin(lengths))]} is {lengths.min():.3g} Å long.",
            "Give three vectors that span the cell, in Å; a molecule needs no cell (pbc F F F).",
        )
    volume = abs(float(np.linalg.det(cell)))
    if volume / float(np.prod(lengths)) < MIN_CELL_FULLNESS:
        raise GeometryError(
            "The three cell vectors lie in one plane: the cell is flat and has no volume.",
            "Check the cell angles, or write the cell again in its reduced (Niggli) form.",
        )
    if volume < MIN_VOLUME_PER_ATOM_A3 * n_atoms or shortest_lattice_vector(cell) < MIN_PERIOD_A:
        raise GeometryError(
            f"The cell is too small: {volume:.3g} Å³ for {plural(n_atoms, 'atom')}.",
            "Check that the cell is in Å (not nm or bohr) and that the scaling factor is right.",
        )


def _check_overlaps(structure: Structure, limits: Limits) -> None:
    closest = closest_distance(structure)
    if closest is None or closest[0] >= limits.min_distance_A:
        return
    distance, i, j = closest
    pair = f"{_atom(structure, i)} and {'its own image' if i == j else _atom(structure, j)}"
    raise GeometryError(
        f"{capital(pair)} overlap: they are {distance:.3f} Å apart.",
        "Delete one of the two if the atom is listed twice (also across the cell border); otherwise check the cell and units.",
    )


def _check_charge_spin(structure: Structure) -> None:
    if structure.charge is not None and abs(structure.charge) > MAX_CHARGE:
        raise GeometryError(
            f"A total charge of {structure.charge} e is out of range.", "Give the charge in units of e."
        )
    if structure.spin is not None and not 1 <= structure.spin <= MAX_SPIN:
        raise GeometryError(
            f"A spin multiplicity of {structure.spin} is not possible.",
            "Give 2S + 1: 1 for closed shells, 2 for a radical, 3 for a triplet.",
        )


def refuse_partly_occupied(labels: Sequence[str]) -> None:
    """Raise FormatError where there are such sites; `labels` are their names."""
    if labels:
        shown = ", ".join(labels[:5]) + (" …" if len(labels) > 5 else "")
        raise FormatError(f"{plural(len(labels), 'partly occupied site')}: {quote(shown, 60)}.", ORDER_IT)


def _atom(structure: Structure, i: int) -> str:
    """An atom as users count them: 1-based, with its symbol."""
    return f"atom {i + 1} ({chemical_symbols[structure.numbers[i]]})"


def with_charge_spin(structure: Structure, charge: int | None, spin: int | None) -> Structure:
    """Fill in total charge (e) and spin multiplicity where the file is silent; None changes nothing.

    Raises GeometryError for a charge or spin out of range.
    """
    filled = replace(
        structure,
        charge=structure.charge if structure.charge is not None else charge,
        spin=structure.spin if structure.spin is not None else spin,
    )
    _check_charge_spin(filled)
    return filled
