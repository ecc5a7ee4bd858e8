"""CIF: gemmi reads the syntax and the operations; the expansion is done here, counted before it is made.

Positions on symmetry elements are written with few digits (0.333 for 1/3). Each site is first moved onto the mean of its own
images that fall together, which is the exact special position, and then expanded: no atom is lost, doubled or left off axis.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import gemmi
import numpy as np

from fdcore.errors import FormatError, GeometryError, LimitError, StructureError
from fdcore.records import Failure, FloatArray, Structure
from fdcore.structures.limits import Limits
from fdcore.structures.text import HEAVY_HYDROGEN, element, quote

# Two images of one atom cannot both be atoms when they are this close: the site stands on a symmetry element.
SPECIAL_POSITION_A = 0.5
# What rounding to three digits explains in a common cell; beyond it the user should know.
SNAP_WARNING_A = 0.05
MAX_OPERATIONS = 1_000
FULL_OCCUPANCY = 0.995
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
class _Sites:
    labels: list[str]
    numbers: list[int]
    fractional: FloatArray


def read_cif(text: str, limits: Limits) -> Iterator[Structure | Failure]:
    """Each data block with atoms as a Structure, or a Failure with the block's place; blocks without atoms are skipped.

    Raises FormatError where the file is no CIF or has no atoms at all.
    """
    try:
        document = gemmi.cif.read_string(text)
    except (ValueError, RuntimeError) as error:
        where = re.match(r"string:(\d+)", str(error))
        line = f" near line {where[1]}" if where else ""
        raise FormatError(
            f"The CIF is broken{line}.", "Open it in the program that wrote it (or VESTA, Mercury) and save it again."
        ) from error
    index = 0
    for block in document:
        if not _has_atoms(block):
            continue
        if index >= limits.max_frames:
            raise LimitError(f"The CIF has more than {limits.max_frames:,} structures.", "Split the file.")
        try:
            yield _structure(block, index, limits)
        except StructureError as error:
            yield Failure("", error.message, error.hint, index)
        index += 1
    if index == 0:
        raise FormatError(
            "The CIF holds no atom sites.",
            "Check that the download was complete; the atoms stand in an _atom_site loop.",
        )


def _column(block: gemmi.cif.Block, name: str) -> list[str] | None:
    """A column of the atom_site loop in either spelling, unquoted."""
    for tag in (f"_atom_site_{name}", f"_atom_site.{name}"):
        values = [gemmi.cif.as_string(v) for v in block.find_values(tag)]
        if values:
            return values
    return None


def _has_atoms(block: gemmi.cif.Block) -> bool:
    return any(_column(block, name) for name in ("fract_x", "Cartn_x", "label", "type_symbol"))


def _value(block: gemmi.cif.Block, tags: tuple[str, ...]) -> str | None:
    """The first of the tags that says something."""
    for tag in tags:
        raw = block.find_value(tag)
        value = gemmi.cif.as_string(raw).strip() if raw else ""
        if value and value not in ("?", "."):
            return value
    return None


def _structure(block: gemmi.cif.Block, index: int, limits: Limits) -> Structure:
    warnings: list[str] = []
    _refuse_other_kinds(block)
    cell = _cell(block)
    sites = _sites(block, limits, warnings)
    rotations, translations = _operations(block, warnings)
    numbers, fractional = _expand(sites, rotations, translations, cell, limits, warnings)
    numbers, fractional = _merge_duplicates(numbers, fractional, cell, limits, warnings)
    _warn_of_missing_elements(block, numbers, warnings)
    return Structure(numbers, fractional @ cell, cell, (True, True, True), index=index, warnings=tuple(warnings))


def _refuse_other_kinds(block: gemmi.cif.Block) -> None:
    if block.find_value("_cell_modulation_dimension"):
        raise FormatError(
            "The CIF describes a modulated structure.", "Bring a commensurate approximant, saved as an ordinary CIF."
        )
    if block.find_values("_space_group_symop_magn_operation.xyz") or block.find_values(
        "_space_group_symop.magn_operation_xyz"
    ):
        raise FormatError(
            "The CIF is magnetic (mcif).", "Save the magnetic cell as an ordinary CIF, without the moments."
        )
    if _column(block, "fract_x") is None:
        kind = "a macromolecular CIF (mmCIF)" if _column(block, "Cartn_x") else "a CIF without fractional coordinates"
        raise FormatError(
            f"This is {kind}.", "Save the structure as an ordinary CIF with _atom_site_fract_x, y and z, or as extxyz."
        )


def _cell(block: gemmi.cif.Block) -> FloatArray:
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    values: list[float] = []
    for name in names:
        text = _value(block, (f"_cell_{name}", f"_cell.{name}"))
        if text is None and name.startswith("angle"):
            # The dictionary's default for an angle that is not given.
            text = "90"
        value = gemmi.cif.as_number(text) if text else np.nan
        if not np.isfinite(value):
            raise GeometryError(
                f"The CIF gives no usable _cell_{name}{f' ({quote(text)})' if text else ''}.",
                "Add the cell lengths (Å) and angles (°).",
            )
        values.append(value)
    if min(values[:3]) <= 0 or not all(0 < angle < 180 for angle in values[3:]):
        raise GeometryError(
            f"The cell ({', '.join(f'{v:g}' for v in values)}) is impossible.",
            "Lengths must be above 0 Å, angles between 0° and 180°.",
        )
    alpha, beta, gamma = np.radians(values[3:])
    cx, cy = np.cos(beta), (np.cos(alpha) - np.cos(beta) * np.cos(gamma)) / np.sin(gamma)
    cz2 = 1 - cx**2 - cy**2
    if cz2 <= 1e-9:
        raise GeometryError(
            "The three cell angles do not close to a cell with a volume.",
            "Check the cell angles: no one may reach the sum of the others.",
        )
    cell = np.array([[1, 0, 0], [np.cos(gamma), np.sin(gamma), 0], [cx, cy, np.sqrt(cz2)]])
    cell[np.abs(cell) < 1e-15] = 0.0
    return cell * np.array(values[:3])[:, None]


def _sites(block: gemmi.cif.Block, limits: Limits, warnings: list[str]) -> _Sites:
    columns = {name: _column(block, f"fract_{name}") for name in "xyz"}
    x = columns["x"] or []
    n = len(x)
    if n > limits.max_atoms:
        raise LimitError(
            f"The CIF lists {n:,} sites; at most {limits.max_atoms:,} atoms are read here.", "Use a smaller cell."
        )
    types, names = _column(block, "type_symbol"), _column(block, "label")
    species = types or names
    if species is None or any(len(c or []) != n for c in (*columns.values(), species)):
        raise FormatError(
            "The atom_site loop lacks a column: it needs a type_symbol or label and fract_x, y, z.",
            "Save the CIF again.",
        )
    labels = names if names and len(names) == n else species
    fractional = np.array([[gemmi.cif.as_number(v) for v in columns[c] or []] for c in "xyz"]).T
    keep = _really_there(block, labels, warnings)
    formula = _formula_elements(block)
    numbers: list[int] = []
    for i in np.flatnonzero(keep):
        z = _element_of(species[i], labels[i], types is not None, formula)
        if z is None:
            raise FormatError(
                f"Site {quote(labels[i])} has the type {quote(species[i])}, which is no element.",
                "Replace dummy sites and molecule names by atoms, or delete them.",
            )
        numbers.append(z)
    chosen = [labels[i] for i in np.flatnonzero(keep)]
    if any(re.match(r"(D|T)(?![a-z])", species[i]) for i in np.flatnonzero(keep)):
        warnings.append("deuterium read as hydrogen")
    if not chosen:
        raise GeometryError("No site of the CIF has atoms on it.", "Check the occupancies.")
    bad = ~np.isfinite(fractional[keep]).all(axis=1)
    if bad.any():
        raise GeometryError(
            f"Site {quote(chosen[int(np.argmax(bad))])} has no usable coordinates.",
            "Give fract_x, y and z for every site, or delete sites whose place is not known.",
        )
    return _Sites(chosen, numbers, fractional[keep])


def _really_there(block: gemmi.cif.Block, labels: list[str], warnings: list[str]) -> np.ndarray:
    """Which sites hold an atom; partial occupancy and alternative positions are refused."""
    n = len(labels)
    occupancy = np.ones(n)
    values = _column(block, "occupancy")
    if values and len(values) == n:
        occupancy = np.array([gemmi.cif.as_number(v) for v in values])
        occupancy[np.isnan(occupancy)] = 1.0
    keep = occupancy > 0
    flags = _column(block, "calc_flag")
    if flags and len(flags) == n:
        keep &= np.array([f.lower() != "dum" for f in flags])
    partial = [labels[i] for i in np.flatnonzero(keep & ((occupancy < FULL_OCCUPANCY) | (occupancy > 1.05)))]
    advice = (
        "Choose one ordering (e.g. pymatgen's OrderDisorderedStructureTransformation, or supercell) and bring that."
    )
    if partial:
        shown = ", ".join(partial[:5]) + (" …" if len(partial) > 5 else "")
        raise FormatError(f"{len(partial)} sites are partly occupied: {quote(shown, 60)}.", advice)
    groups = _column(block, "disorder_group")
    if groups and len(groups) == n:
        named = {g for g, k in zip(groups, keep, strict=True) if k and g not in (".", "?", "0", "")}
        if len(named) > 1:
            shown = [lab for lab, g in zip(labels, groups, strict=True) if g in named][:5]
            raise FormatError(
                f"The CIF is disordered: {quote(', '.join(shown), 60)} have alternative positions.", advice
            )
    if not keep.all():
        warnings.append(f"{int((~keep).sum())} empty or dummy sites left out")
    return keep


def _formula_elements(block: gemmi.cif.Block) -> set[int]:
    text = _value(block, ("_chemical_formula_sum", "_chemical_formula.sum")) or ""
    return {z for z in (element(m) for m in re.findall(r"[A-Z][a-z]?", text[:2000])) if z}


def _element_of(species: str, label: str, typed: bool, formula: set[int]) -> int | None:
    """Na out of Na1+, NA, Na+; a bare label such as CA1 is read with the help of the formula."""
    letters = re.match(r"[A-Za-z]+", species)
    if letters is None:
        return None
    word = letters[0]
    if typed:
        # More letters than a symbol has, or a word such as Wat, is not guessed at.
        return element(word) if len(word) <= 2 else None
    options = [z for z in (element(word[:2]) if len(word) > 1 else None, element(word[0])) if z]
    if len(word) > 1 and word[1].islower() and len(word) == 2:
        return element(word)
    in_formula = [z for z in options if z in formula]
    if in_formula:
        return in_formula[0]
    return options[0] if options and len(word) <= 2 else (element(word[0]) if len(word) == 1 else None)


def _operations(block: gemmi.cif.Block, warnings: list[str]) -> tuple[FloatArray, FloatArray]:
    """Rotations (m, 3, 3) and translations (m, 3) on fractional columns, the identity first."""
    for tag in _OPERATION_TAGS:
        texts = [gemmi.cif.as_string(v) for v in block.find_values(tag)] if block.find_values(tag) else []
        if texts:
            ops = _listed(texts)
            break
    else:
        ops = list(_named_group(block, warnings))
    unique = list(dict.fromkeys(op.wrap().triplet() for op in ops))
    ops = [gemmi.Op(t) for t in sorted(unique, key=lambda t: t != "x,y,z")]
    if len(ops) == 1:
        name = _value(block, _NAME_TAGS[3:]) or ""
        group = gemmi.find_spacegroup_by_name(name[:40]) if name else None
        if group is not None and group.number != 1:
            warnings.append(f"the file names the group {group.short_name()} but lists only x,y,z: read as P1")
    rotations = np.array([op.rot for op in ops], dtype=np.float64) / gemmi.Op.DEN
    return rotations, np.array([op.tran for op in ops], dtype=np.float64) / gemmi.Op.DEN


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
        name = _value(block, (tag,))
        if not name or len(name) > 60:
            continue
        if "Hall" in tag:
            try:
                return gemmi.symops_from_hall(name)
            except (ValueError, RuntimeError):
                continue
        group = gemmi.find_spacegroup_by_name(name)
        if group is not None:
            if not group.is_reference_setting() or ":" in group.ext or group.ext:
                warnings.append(f"symmetry operations taken from the group name {group.xhm()}")
            return group.operations()
        raise FormatError(f"The space group {quote(name)} is not known.", "Save the structure again, expanded to P1.")
    number = _value(block, _NUMBER_TAGS)
    if number is not None:
        group = gemmi.find_spacegroup_by_number(int(number)) if re.fullmatch(r"\d{1,3}", number) else None
        if group is None:
            raise FormatError(
                f"There is no space group number {quote(number)}.", "Save the structure again, expanded to P1."
            )
        if group.number != 1:
            warnings.append(f"symmetry operations taken from the group number, setting {group.xhm()}")
        return group.operations()
    warnings.append("the file names no symmetry: read as P1")
    return gemmi.symops_from_hall("P 1")


def _expand(
    sites: _Sites,
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
    total = 0
    for label, z, x in zip(sites.labels, sites.numbers, sites.fractional, strict=True):
        images = rotations @ x + translations
        near = images - x
        near -= np.rint(near)
        stays = np.linalg.norm(near @ cell, axis=1) < SPECIAL_POSITION_A
        shift = near[stays].mean(axis=0)
        if np.linalg.norm(shift @ cell) > SNAP_WARNING_A:
            moved.append(label)
        images = rotations @ (x + shift) + translations
        total += len(rotations) // max(1, int(stays.sum()))
        if total > limits.max_atoms:
            raise LimitError(
                f"Symmetry makes more than {limits.max_atoms:,} atoms of the {len(sites.labels):,} sites of the CIF.",
                "Bring the primitive cell, or check the symmetry operations.",
            )
        pieces.append(_distinct(images, cell))
        numbers += [z] * len(pieces[-1])
    if moved:
        shown = ", ".join(moved[:5]) + (" …" if len(moved) > 5 else "")
        warnings.append(f"{len(moved)} sites moved onto their symmetry element: {quote(shown, 60)}")
    return numbers, np.concatenate(pieces)


def _distinct(images: FloatArray, cell: FloatArray) -> FloatArray:
    """Those images that are not another one shifted by the lattice."""
    images = images - np.floor(images)
    difference = images[:, None] - images[None]
    difference -= np.rint(difference)
    same = np.linalg.norm(difference @ cell, axis=2) < SPECIAL_POSITION_A / 2
    return images[np.argmax(same, axis=1) == np.arange(len(images))]


def _merge_duplicates(
    numbers: list[int], fractional: FloatArray, cell: FloatArray, limits: Limits, warnings: list[str]
) -> tuple[list[int], FloatArray]:
    """Atoms of one element that are listed twice become one; overlaps of different elements are left to the validation."""
    from scipy.spatial import KDTree

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
        dropped.update(int(owner[j]) for j in close[:1000] if owner[j] > i and numbers[owner[j]] == numbers[i])
    if not dropped:
        return numbers, fractional
    warnings.append(f"merged {len(dropped)} duplicate sites")
    keep = [i for i in range(len(numbers)) if i not in dropped]
    return [numbers[i] for i in keep], fractional[keep]


def _warn_of_missing_elements(block: gemmi.cif.Block, numbers: list[int], warnings: list[str]) -> None:
    """A published CIF often leaves out the hydrogen atoms: its formula knows."""
    from ase.data import chemical_symbols

    missing = _formula_elements(block) - set(numbers) - set(HEAVY_HYDROGEN.values() if 1 in numbers else ())
    if missing:
        names = ", ".join(chemical_symbols[z] for z in sorted(missing))
        warnings.append(f"the formula names {names}, but no such site is given")
