"""Where symmetry alone makes every force vanish, the two forces cannot disagree, and U_Delta says nothing."""

from __future__ import annotations

import numpy as np
import spglib

from fdcore.records import Structure

# How far (Å) atoms may be from their symmetric places: far below what changes a force that one would look at.
SYMPREC_A = 1e-4
# The search grows steeply with the number of atoms; larger cells are rarely perfect.
MAX_ATOMS = 1000


def forces_vanish_by_symmetry(structure: Structure) -> bool:
    """True when the site symmetry of every atom of a crystal leaves no direction free, as in perfect rock salt.

    The mean of the rotations that keep an atom in place projects onto the directions a force on it may have; where all
    these projections are zero, so is every force of every model with the symmetry of space, right or wrong.
    """
    if not structure.periodic or structure.n_atoms > MAX_ATOMS:
        return False
    fractional = structure.positions @ np.linalg.inv(structure.cell)
    found = spglib.get_symmetry(
        (structure.cell.tolist(), fractional.tolist(), structure.numbers.tolist()), symprec=SYMPREC_A
    )
    if found is None:
        return False
    projections = np.zeros((structure.n_atoms, 3, 3))
    for rotation, translation in zip(found["rotations"], found["translations"], strict=True):
        moved = fractional @ rotation.T + translation - fractional
        distance = np.linalg.norm((moved - np.round(moved)) @ structure.cell, axis=1)
        projections[distance < 10 * SYMPREC_A] += rotation
    return bool((np.abs(projections).max(axis=(1, 2)) < 1e-9).all())
