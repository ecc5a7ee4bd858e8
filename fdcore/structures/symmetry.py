"""Symmetry of a CIF: its operations, and the atoms they make of its sites, counted before they are made.

Positions on symmetry elements are written with few digits (0.333 for 1/3). Each site is first moved onto the mean of its own
images that fall together, which is the exact special position, and then expanded: no atom is lost, doubled or left off axis.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import gemmi
import numpy as np
from scipy.spatial import KDTree

from fdcore.errors import FormatError, GeometryError, LimitError
from fdcore.records import FloatArray
from fdcore.structures.limits import Limits
from fdcore.structures.text import plural, quote

# Two images of one atom cannot both be atoms when they are this close: the site stands on a symmetry element.
SPECIAL_POSITION_A = 0.4
# What rounding to three digits explains in a common cell; beyond it the user should know.
SNAP_WARNING_A = 0.05
# What is moved further is refused.
SNAP_LIMIT_A = 0.12
MAX_OPERATIONS = 1_000
_OPERATION_TAGS = (
    "_space_group_symop_operation_xyz",
    "_space_group_symop.operation_xyz",
    "_symmetry_equiv_pos_as_xyz",
    "_symmetry_equiv.pos_as_xyz",
)
_NAME_TAGS = (
    "_space_group_name_Hall",
    "_symmetry_space_group_name_Hall",
    "_space_group.name_Hall",
    "_space_group_name_H-M_alt",
    "_symmetry_space_group_name_H-M",
    "_space_group.name_H-M_alt",
)
_NUMBER_TAGS = ("_space_group_IT_number", "_symmetry_Int_Tables_number", "_space_group.IT_number")


@dataclass
class Sites:
    """The asymmetric unit: fractional (n, 3)."""

    labels: list[str]
    numbers: list[int]
    fractional: FloatArray


def value_of(block: gemmi.cif.Block, tags: tuple[str, ...]) -> str | None:
    """The first of the tags that says something."""
    for tag in tags:
        raw = block.find_value(tag)
        value = gemmi.cif.as_string(raw).strip() if raw else ""
        if value and value not in ("?", "."):
            return value
    return None


def operations(block: gemmi.cif.Block, warnings: list[str]) -> tuple[FloatArray, FloatArray]:
    """Rotations (m, 3, 3) and translations (m, 3) on fractional columns, the identity first."""
    for tag in _OPERATION_TAGS:
        texts = [gemmi.cif.as_string(v) for v in block.find_values(tag) if v not in ("?", ".")]
        if texts:
            ops = _listed(texts)
            break
    else:
        ops = list(_named_group(block, warnings))
    unique = list(dict.fromkeys(op.wrap().triplet() for op in ops))
    ops = [gemmi.Op(t) for t in sorted(unique, key=lambda t: t != "x,y,z")]
    if len(ops) == 1:
        name = value_of(block, _NAME_TAGS[3:]) or ""
        group = _group(name[:60], block) if name else None
        if group is not None and group.number != 1:
            warnings.append(f"the file names the group {group.short_name()} but lists only x,y,z: read as P1")
    elif not _closed(ops):
        warnings.append("the listed symmetry operations are not a complete group")
    rotations = np.array([op.rot for op in ops], dtype=np.float64) / gemmi.Op.DEN
    return rotations, np.array([op.tran for op in ops], dtype=np.float64) / gemmi.Op.DEN


def _closed(ops: list[gemmi.Op]) -> bool:
    """Whether the operations form a group: a torn or mistyped list does not."""
    try:
        group = gemmi.GroupOps(ops)
        group.add_missing_elements()
    except (ValueError, RuntimeError):
        return False
    return len(list(group)) == len(ops)


def _listed(texts: list[str]) -> list[gemmi.Op]:
    if len(texts) > MAX_OPERATIONS:
        raise LimitError(
            f"The CIF lists {len(texts):,} symmetry operations; no group needs so many.",
            "Save it again, expanded to P1.",
        )
    ops: list[gemmi.Op] = []
    for text in texts:
        try:
            op = gemmi.Op(text.strip())
        except (ValueError, RuntimeError):
            op = None
        if op is None or abs(op.det_rot()) != gemmi.Op.DEN**3:
            raise FormatError(
                f"The symmetry operation {quote(text)} cannot be read.", "Save the structure again, expanded to P1."
            )
        ops.append(op)
    return ops


def _named_group(block: gemmi.cif.Block, warnings: list[str]) -> gemmi.GroupOps:
    """The operations of the group that the file only names."""
    for tag in _NAME_TAGS:
        name = value_of(block, (tag,))
        if not name or len(name) > 60:
            continue
        if "Hall" in tag:
            try:
                return gemmi.symops_from_hall(name)
            except (ValueError, RuntimeError):
                continue
        group = _group(name, block)
        if group is None:
            raise FormatError(
                f"The space group {quote(name)} is not known.", "Save the structure again, expanded to P1."
            )
        # Two origins, or hexagonal and rhombohedral axes: the name alone does not tell which the positions are for.
        if ":" in group.xhm():
            warnings.append(f"symmetry operations taken from the group name {group.xhm()}")
        return group.operations()
    number = value_of(block, _NUMBER_TAGS)
    if number is not None:
        known = re.fullmatch(r"\d{1,3}", number) and 1 <= int(number) <= 230
        if not known:
            raise FormatError(
                f"There is no space group number {quote(number)}.", "Save the structure again, expanded to P1."
            )
        group = gemmi.get_spacegroup_reference_setting(int(number))
        if sum(other.number == group.number for other in gemmi.spacegroup_table()) > 1:
            warnings.append(f"symmetry operations taken from the group number, setting {group.xhm()}")
        return group.operations()
    warnings.append("the file names no symmetry: read as P1")
    return gemmi.symops_from_hall("P 1")


def _group(name: str, block: gemmi.cif.Block) -> gemmi.SpaceGroup | None:
    """A Hermann-Mauguin name, with ICSD's S and Z for the first and second origin; the cell tells H from R."""
    prefer = "1" if name.endswith(" S") else "2"
    alpha, gamma = (
        gemmi.cif.as_number(value_of(block, (f"_cell_angle_{a}", f"_cell.angle_{a}")) or "90")
        for a in ("alpha", "gamma")
    )
    return gemmi.find_spacegroup_by_name(re.sub(r" [SZ]$", "", name), alpha, gamma, prefer)


def expand(
    sites: Sites,
    rotations: FloatArray,
    translations: FloatArray,
    cell: FloatArray,
    limits: Limits,
    warnings: list[str],
) -> tuple[list[int], FloatArray]:
    if len(rotations) == 1:
        return sites.numbers, sites.fractional
    numbers: list[int] = []
    pieces: list[FloatArray] = []
    moved: list[str] = []
    far: list[tuple[str, float]] = []
    total = 0
    for label, z, x in zip(sites.labels, sites.numbers, sites.fractional, strict=True):
        shift, stays = _onto_symmetry_element(x, rotations, translations, cell)
        distance = float(np.linalg.norm(shift @ cell))
        if distance > SNAP_LIMIT_A:
            far.append((label, distance))
        if distance > SNAP_WARNING_A:
            moved.append(label)
        total += len(rotations) // stays
        if total > limits.max_atoms:
            raise LimitError(
                f"Symmetry makes more than {limits.max_atoms:,} atoms of the {len(sites.labels):,} sites of the CIF.",
                "Bring the primitive cell, or check the symmetry operations.",
            )
        pieces.append(_distinct(rotations @ (x + shift) + translations, cell))
        numbers += [z] * len(pieces[-1])
    if far:
        # No rounding does that; merging the copies would silently change the composition.
        label, distance = far[0]
        raise GeometryError(
            f"Site {quote(label)} is {distance:.2f} Å off a symmetry element, so its symmetry copies nearly coincide.",
            "Check its coordinates and the origin of the space group, or save the structure expanded to P1.",
        )
    if moved:
        shown = ", ".join(moved[:5]) + (" …" if len(moved) > 5 else "")
        warnings.append(f"moved {plural(len(moved), 'site')} onto a symmetry element: {quote(shown, 60)}")
    return numbers, np.concatenate(pieces)


def _onto_symmetry_element(
    x: FloatArray, rotations: FloatArray, translations: FloatArray, cell: FloatArray
) -> tuple[FloatArray, int]:
    """The shift (3,) that puts a site on the mean of those images that fall onto it, and how many these are."""
    shift, before = np.zeros(3), 0
    # One round for rounded special positions; the second one sees operations that only the moved site obeys.
    for _ in range(4):
        near = rotations @ (x + shift) + translations - x - shift
        near -= np.rint(near)
        stays = np.linalg.norm(near @ cell, axis=1) < SPECIAL_POSITION_A
        count = int(stays.sum())
        if count == before:
            break
        shift, before = shift + near[stays].mean(axis=0), count
    return shift, max(1, before)


def _distinct(images: FloatArray, cell: FloatArray) -> FloatArray:
    """Those images that are not another one shifted by the lattice."""
    images = images - np.floor(images)
    difference = images[:, None] - images[None]
    difference -= np.rint(difference)
    same = np.linalg.norm(difference @ cell, axis=2) < SPECIAL_POSITION_A / 2
    return images[np.argmax(same, axis=1) == np.arange(len(images))]


def merge_duplicates(
    numbers: list[int], fractional: FloatArray, cell: FloatArray, limits: Limits, warnings: list[str]
) -> tuple[list[int], FloatArray]:
    """Atoms of one element that are listed twice become one; overlaps of different elements are left to the validation."""
    # Slabs of images thinner than any real distance: enough to see pairs across the border.
    wrapped = fractional - np.floor(fractional)
    heights = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    margin = limits.min_distance_A / heights
    if (margin > 0.5).any():
        return numbers, fractional
    points, owner = wrapped, np.arange(len(wrapped))
    for axis in range(3):
        low, high = points[:, axis] < margin[axis], points[:, axis] > 1 - margin[axis]
        up, down = points[low].copy(), points[high].copy()
        up[:, axis] += 1
        down[:, axis] -= 1
        points, owner = np.concatenate([points, up, down]), np.concatenate([owner, owner[low], owner[high]])
    tree = KDTree(points @ cell)
    dropped: set[int] = set()
    distances, _ = tree.query(points[: len(wrapped)] @ cell, k=2, distance_upper_bound=limits.min_distance_A)
    for i in np.flatnonzero(np.isfinite(distances[:, 1])):
        if i in dropped:
            continue
        close = tree.query_ball_point(points[i] @ cell, limits.min_distance_A)
        dropped.update(int(owner[j]) for j in close if owner[j] > i and numbers[owner[j]] == numbers[i])
    if not dropped:
        return numbers, fractional
    warnings.append(f"merged {plural(len(dropped), 'duplicate site')}")
    keep = [i for i in range(len(numbers)) if i not in dropped]
    return [numbers[i] for i in keep], fractional[keep]
