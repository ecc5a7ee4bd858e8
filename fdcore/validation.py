"""How far both forces of a model are from a reference, and whether U_Delta says so: errors, ranks, calibration, alarms, consensus failures.

Pure functions of arrays, and of what the task `validate` keeps; forces and errors in eV/Å.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fdcore import delta
from fdcore.calibration import Calibration, calibration
from fdcore.distribution import reference_distribution
from fdcore.ensemble import ensemble_spread
from fdcore.errors import UsageError
from fdcore.label_units import UnitDoubt, unit_doubt
from fdcore.records import Failure, Structure
from fdcore.roc import Alarm, Roc, alarm, roc
from fdcore.spec import Spec
from fdcore.statistics import FEWEST_GROUPS, RankCorrelation, Within, mean_within, rank_correlation
from fdcore.store.series import read_notes, read_table
from fdcore.structures.origin import GROUPING
from fdcore.tasks.validate import ValidateParameters
from fdcore.verdict import ORDINARY_SHARE

Array = NDArray[np.float64]
TASK = "validate"
# Bands of U_Delta with as many structures each, from the lowest to the highest.
BANDS = ("lowest third", "middle third", "highest third")
POOLED = "all"
# Fewer structures than this in a band say nothing.
FEWEST_IN_BAND = 5
# An error is called large above this (eV/Å), unless somebody says otherwise or too few structures are on one side of it.
LARGE_ERROR = 0.1
# Both errors more than this many times U_Delta: most of either is shared, and their difference cannot show it.
SHARED = 2.0
FEWEST_ON_A_SIDE = 5
# Structures beyond the number of fitted shifts that an energy error needs.
FEWEST_BEYOND_SHIFTS = 3
# Of each group that is no tag of a file.
FORMULA, FILE = "formula", "file"
# What displacements are called in files.
SIGMAS = ("sigma_a", "sigma")


@dataclass(frozen=True)
class Compared:
    """One structure under both: U_Delta, eps_nc and eps_c in eV/Å, energies in eV (that of the reference None where it is not known), and
    the force of the reference (N, 3) in eV/Å. Structures of the same `climb` are alike; None: it stands for itself.

    model_id, forces_direct, forces_conservative: of the model that judged it. ensemble_spread: U_var (eV/Å), None without an ensemble;
    left_out: members that failed on it, with the reason."""

    position: int
    structure: Structure
    force_delta: float
    error_direct: float
    error_conservative: float
    energy: float
    energy_reference: float | None
    forces_reference: Array
    climb: Hashable = None
    model_id: str = ""
    forces_direct: Array | None = None
    forces_conservative: Array | None = None
    ensemble_spread: float | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def group(self) -> Hashable:
        """What is drawn together in a bootstrap; a structure that is there twice says nothing new."""
        return self.structure.content_id if self.climb is None else self.climb


@dataclass(frozen=True)
class Band:
    """Some of the structures, and the smallest and largest U_Delta (eV/Å) among them: does it rank their errors?"""

    name: str
    low: float
    high: float
    direct: RankCorrelation
    conservative: RankCorrelation


def read(folder: Path | None, spec: Spec, structures: Sequence[Structure]) -> tuple[list[Compared], list[Failure]]:
    """What an attempt's folder holds so far, and what could not be compared."""
    if folder is None:
        return [], []
    parameters: ValidateParameters = ValidateParameters.of(spec)
    climbs, models = parameters.climbs, parameters.models(spec)
    rows, atoms = read_table(folder, "structures"), read_table(folder, "atoms")
    notes = list(read_notes(folder))
    left_out: dict[int, dict[str, str]] = {}
    for note in notes:
        if "member" in note:
            left_out.setdefault(int(note["position"]), {})[note["member"]] = note["error"]
    out = []
    for k, position in enumerate(rows.get("position", ())):
        part = slice(int(rows["first_atom"][k]), int(rows["first_atom"][k] + rows["n_atoms"][k]))
        direct, conservative, reference = (
            atoms[f"forces_{name}_eV_per_A"][part] for name in ("direct", "conservative", "reference")
        )
        if len(reference) < rows["n_atoms"][k]:
            break
        energy = float(rows["energy_reference_eV"][k])
        out.append(
            Compared(
                position=int(position),
                structure=structures[int(position)],
                force_delta=delta.force_delta(direct, conservative),
                error_direct=delta.rms_difference(direct, reference),
                error_conservative=delta.rms_difference(conservative, reference),
                energy=float(rows["energy_eV"][k]),
                energy_reference=energy if np.isfinite(energy) else None,
                forces_reference=reference,
                climb=None if climbs is None else climbs[int(position)],
                model_id=models[int(position)],
                forces_direct=direct,
                forces_conservative=conservative,
                ensemble_spread=_spread(atoms, part),
                left_out=left_out.get(int(position), {}),
            )
        )
    failed = [
        Failure(structures[n["position"]].file, n["error"], n["hint"], structures[n["position"]].index)
        for n in notes
        if "member" not in n
    ]
    return out, failed


def _spread(atoms: Mapping[str, Array], part: slice) -> float | None:
    """U_var of the members that have answered; None with fewer than two."""
    if "forces_driving_eV_per_A" not in atoms:
        return None
    members = np.moveaxis(atoms["forces_driving_eV_per_A"][part], 1, 0)
    members = members[np.isfinite(members).all(axis=(1, 2))]
    return ensemble_spread(members) if len(members) > 1 else None


# ---- ranks ---------------------------------------------------------------------------------------------------------


def bands(compared: Sequence[Compared], seed: int = 0, groups: Sequence[Hashable] | None = None) -> list[Band]:
    """All structures first, then thirds by U_Delta where each has enough of them. Intervals are of whole `groups` drawn at random (None:
    climbs)."""
    if not compared:
        return []
    order = np.argsort([c.force_delta for c in compared], kind="stable")
    parts: list[tuple[str, NDArray[np.int64]]] = [(POOLED, order)]
    thirds = np.array_split(order, len(BANDS))
    if min(map(len, thirds)) >= FEWEST_IN_BAND:
        parts += list(zip(BANDS, thirds, strict=True))
    drawn = [c.group for c in compared] if groups is None else groups
    return [_band(name, [compared[k] for k in rows], [drawn[k] for k in rows], seed) for name, rows in parts]


def by_group(compared: Sequence[Compared], names: Sequence[str], seed: int = 0) -> list[Band]:
    """Every group by itself, the largest first; one of fewer than FEWEST_IN_BAND structures ranks nothing."""
    found: dict[str, list[Compared]] = {}
    for c, name in zip(compared, names, strict=True):
        found.setdefault(name, []).append(c)
    return [
        _band(name, part, [c.group for c in part], seed)
        for name, part in sorted(found.items(), key=lambda item: -len(item[1]))
    ]


def _band(name: str, part: Sequence[Compared], groups: Sequence[Hashable], seed: int) -> Band:
    u = np.array([c.force_delta for c in part])
    found = [
        rank_correlation(u, [getattr(c, error) for c in part], groups=groups, seed=seed)
        if len(part) >= FEWEST_IN_BAND or name == POOLED
        else RankCorrelation(len(part), None, None, None)
        for error in ("error_direct", "error_conservative")
    ]
    return Band(name, float(u.min()), float(u.max()), *found)


# ---- groups --------------------------------------------------------------------------------------------------------


def group_keys(structures: Sequence[Structure]) -> tuple[str, ...]:
    """By what these structures can be grouped, what people group by first: names that their files give them, formula, file. A name has at
    least two values, each of two structures on average."""
    n = len(structures)
    tags = dict.fromkeys([*GROUPING, *(key for s in structures for key in s.tags)])
    good = [
        key for key in tags if 2 <= len(names := {s.tags.get(key, "") for s in structures}) <= n / 2 and "" not in names
    ]
    first = [key for key in good if key in GROUPING and key not in SIGMAS]
    plain = [key for key in (FORMULA, FILE) if 2 <= len(set(names_of(structures, key))) < n]
    return tuple(dict.fromkeys([*first, *plain, *good]))


def names_of(structures: Sequence[Structure], key: str) -> list[str]:
    """The group of each structure. UsageError where none of them says so."""
    wanted = key.lower()
    if wanted == FORMULA:
        return [s.formula for s in structures]
    if wanted == FILE:
        return [s.file for s in structures]
    names = [s.tags.get(wanted, "") for s in structures]
    if structures and not any(names):
        known = [FORMULA, FILE, *dict.fromkeys(k for s in structures for k in s.tags)]
        raise UsageError(f"No structure says its {key!r}.", f"Group by one of {', '.join(known)}.")
    return [name or "not said" for name in names]


def displacements(structures: Sequence[Structure]) -> list[str] | None:
    """By how much each was displaced (Å), where the files say so and there are several."""
    for key in SIGMAS:
        values = [s.tags.get(key) for s in structures]
        if None not in values and 2 <= len(set(values)) <= len(values) / 2:
            return [str(v) for v in values]
    return None


# ---- energies ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EnergyErrors:
    """Errors of the energy per atom (n,) in eV/atom after a shift that another zero of energy explains; NaN where there is no reference.
    `fitted`: how many shifts, by least squares, one per element (`elements`) as far as the compositions tell them apart; 0: too few
    structures, and every error is NaN."""

    per_atom: Array
    fitted: int
    elements: tuple[int, ...] = ()

    @property
    def rms(self) -> float | None:
        """eV/atom; with the degrees of freedom that the shifts took."""
        known = self.per_atom[np.isfinite(self.per_atom)]
        if not self.fitted or len(known) <= self.fitted:
            return None
        return float(np.sqrt((known**2).sum() / (len(known) - self.fitted)))


def energy_errors(
    energy: Sequence[float], reference: Sequence[float | None], numbers: Sequence[ArrayLike]
) -> EnergyErrors:
    """Compare energies (n, eV) with those of a reference, whose codes put the zero elsewhere: what a shift per element explains is taken
    out. numbers: the atomic numbers of each structure."""
    known = [k for k, e in enumerate(reference) if e is not None]
    out = np.full(len(energy), np.nan)
    elements = np.unique(np.concatenate([np.asarray(numbers[k]) for k in known])) if known else np.zeros(0, int)
    counts = np.array([[np.count_nonzero(np.asarray(numbers[k]) == z) for z in elements] for k in known], float)
    rank = int(np.linalg.matrix_rank(counts)) if known else 0
    if len(known) < rank + FEWEST_BEYOND_SHIFTS:
        return EnergyErrors(out, 0)
    apart = np.array([energy[k] - float(reference[k] or 0.0) for k in known])
    # Per atom: a large cell must not outweigh many small ones.
    sizes = counts.sum(axis=1)
    shifts, *_ = np.linalg.lstsq(counts / sizes[:, None], apart / sizes, rcond=None)
    out[known] = (apart - counts @ shifts) / sizes
    return EnergyErrors(out, rank, tuple(int(z) for z in elements))


# ---- large errors --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Large:
    """From which error on (eV/Å) a structure counts as bad, and why there: "given", "usual", or "median" where too few were on one side."""

    above: float
    why: str


def large(errors: ArrayLike, above: float | None = None) -> Large:
    """What is called a large error among these (n,), unless somebody says."""
    e = np.asarray(errors, dtype=np.float64)
    if above is not None:
        return Large(float(above), "given")
    beyond = int((e > LARGE_ERROR).sum())
    if min(beyond, len(e) - beyond) >= min(FEWEST_ON_A_SIDE, max(1, len(e) // 4)) or not len(e):
        return Large(LARGE_ERROR, "usual")
    return Large(float(np.median(e)), "median")


@dataclass(frozen=True)
class Detection:
    """How well U_Delta tells which structures, and which atoms, have a large error of one force; what the verdict's own threshold does
    (None for a model without a reference distribution)."""

    large: Large
    structures: Roc
    atoms: Roc | None
    alarm: Alarm | None


def detection(
    compared: Sequence[Compared],
    error: str,
    above: float | None,
    groups: Sequence[Hashable],
    bound: float | None,
    seed: int = 0,
) -> Detection:
    """`error`: error_direct or error_conservative."""
    u = np.array([c.force_delta for c in compared])
    errors = np.array([getattr(c, error) for c in compared])
    limit = large(errors, above)
    bad = errors > limit.above
    atoms = None
    force = "forces_direct" if error == "error_direct" else "forces_conservative"
    known = [c for c in compared if c.forces_direct is not None and c.forces_conservative is not None]
    if len(known) == len(compared):
        per_atom = [delta.force_delta_per_atom(c.forces_direct, c.forces_conservative) for c in known]  # pyright: ignore
        wrong = [delta.force_delta_per_atom(getattr(c, force), c.forces_reference) for c in known]
        of = [g for g, part in zip(groups, per_atom, strict=True) for _ in part]
        atoms = roc(np.concatenate(per_atom), np.concatenate(wrong) > limit.above, groups=of, seed=seed)
    return Detection(
        limit,
        roc(u, bad, groups=groups, seed=seed),
        atoms,
        None if bound is None else alarm(u, bad, bound),
    )


def consensus_failures(
    force_delta: ArrayLike,
    error_direct: ArrayLike,
    error_conservative: ArrayLike,
    above: tuple[float, float],
    bound: float | None = None,
) -> list[int]:
    """Where U_Delta is small and both forces are wrong, the worst first: both errors among the highest third and `above` what is called
    large (of F_nc, of F_c; eV/Å) and SHARED times U_Delta, which is among the lowest third or within `bound`, the ordinary range of this
    model. (n,) each; none among fewer structures than make thirds."""
    u, e, f = (np.asarray(x, dtype=np.float64) for x in (force_delta, error_direct, error_conservative))
    if len(u) < len(BANDS) * FEWEST_IN_BAND:
        return []
    low = u <= np.quantile(u, 1 / 3)
    if bound is not None:
        low |= u <= bound
    wrong = (e >= np.quantile(e, 2 / 3)) & (f >= np.quantile(f, 2 / 3)) & (e > above[0]) & (f > above[1])
    wrong &= np.minimum(e, f) > SHARED * u
    chosen = np.flatnonzero(low & wrong)
    with np.errstate(divide="ignore"):
        ratio = np.minimum(e, f)[chosen] / u[chosen]
    return [int(k) for k in chosen[np.argsort(-ratio, kind="stable")]]


# ---- an ensemble beside it -----------------------------------------------------------------------------------------


ESTIMATES = {"force_delta": "U_Delta", "ensemble_spread": "U_var"}
ERRORS = {"error_direct": "eps_nc", "error_conservative": "eps_c"}


@dataclass(frozen=True)
class Estimate:
    """How well one estimate ranks one error, over the structures that have both estimates: of all of them, and the mean within groups."""

    estimate: str
    error: str
    pooled: RankCorrelation
    within: Within


def estimates(
    compared: Sequence[Compared], names: Sequence[str], groups: Sequence[Hashable], seed: int = 0
) -> tuple[Estimate, ...]:
    """U_Delta and U_var side by side; empty without an ensemble."""
    able = [k for k, c in enumerate(compared) if c.ensemble_spread is not None]
    if len(able) < FEWEST_IN_BAND:
        return ()
    out = []
    for estimate in ESTIMATES:
        value = np.array([getattr(compared[k], estimate) for k in able], dtype=np.float64)
        for error in ERRORS:
            wrong = np.array([getattr(compared[k], error) for k in able])
            mine = np.array([names[k] for k in able])
            parts = [np.flatnonzero(mine == name) for name in dict.fromkeys(mine.tolist())]
            within = [rank_correlation(value[p], wrong[p], samples=1) for p in parts if len(p) >= FEWEST_IN_BAND]
            pooled = rank_correlation(value, wrong, groups=[groups[k] for k in able], seed=seed)
            out.append(Estimate(estimate, error, pooled, mean_within(within)))
    return tuple(out)


# ---- everything about one model ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Validation:
    """One model against a reference.

    group_by : what `names` are, one per structure (empty: there is one group). drawn : what an interval draws as a whole.
    bands : all structures, and thirds of U_Delta; groups, sigmas : every group, and every displacement, by itself; within_direct,
    within_conservative : the means of r_s within the groups. bound : up to what U_Delta is ordinary for this model (eV/Å), where that is known.
    consensus : places in `compared` where U_Delta is small and both forces are wrong. unit_doubt : why the reference may be in another unit.
    """

    model_id: str
    compared: tuple[Compared, ...]
    group_by: str
    names: tuple[str, ...]
    drawn: str
    seed: int
    bands: tuple[Band, ...]
    groups: tuple[Band, ...]
    sigmas: tuple[Band, ...]
    within_direct: Within
    within_conservative: Within
    energies: EnergyErrors
    bound: float | None
    direct: Detection
    conservative: Detection
    calibration_direct: Calibration
    calibration_conservative: Calibration
    consensus: tuple[int, ...]
    estimates: tuple[Estimate, ...]
    unit_doubt: UnitDoubt | None = None

    @property
    def pooled(self) -> Band:
        """Of all structures."""
        return self.bands[0]


def by_model(compared: Sequence[Compared]) -> dict[str, list[Compared]]:
    """The structures of each model: two of them are not on one scale."""
    out: dict[str, list[Compared]] = {}
    for c in compared:
        out.setdefault(c.model_id, []).append(c)
    return out


def validate(
    compared: Sequence[Compared], *, group_by: str | None = None, above: float | None = None, seed: int = 0
) -> list[Validation]:
    """Everything that can be said, of every model by itself. group_by: None for what fits (`group_keys`). Raises UsageError."""
    if above is not None and not (np.isfinite(above) and above > 0):
        raise UsageError(f"An error above {above!r} eV/Å cannot be looked for.", "Give a number above zero.")
    structures = [c.structure for c in compared]
    key = (group_keys(structures) or ("",))[0] if group_by is None else group_by.lower()
    if key:
        names_of(structures, key)
    return [_validated(model_id, part, key, above, seed) for model_id, part in by_model(compared).items()]


def _validated(model_id: str, part: Sequence[Compared], key: str, above: float | None, seed: int) -> Validation:
    structures = [c.structure for c in part]
    names = names_of(structures, key) if key else [""] * len(part)
    drawn, groups = _drawn(part, names, key)
    reference = reference_distribution(model_id) if model_id else None
    bound = None if reference is None else reference.quantile(ORDINARY_SHARE)
    u = np.array([c.force_delta for c in part])
    direct, conservative = (np.array([getattr(c, error) for c in part]) for error in ERRORS)
    of_groups = by_group(part, names, seed) if key else []
    sigmas = displacements(structures)
    found = [detection(part, error, above, groups, bound, seed) for error in ERRORS]
    limits = (found[0].large.above, found[1].large.above)
    # Halves of a calibration must not share what is alike.
    alike = {"groups": groups, "halves": names if key else groups, "seed": seed}
    return Validation(
        model_id=model_id,
        compared=tuple(part),
        group_by=key,
        names=tuple(names),
        drawn=drawn,
        seed=seed,
        bands=tuple(bands(part, seed, groups)),
        groups=tuple(of_groups),
        sigmas=tuple(_by_size(by_group(part, sigmas, seed))) if sigmas and key not in SIGMAS else (),
        within_direct=mean_within([b.direct for b in of_groups]),
        within_conservative=mean_within([b.conservative for b in of_groups]),
        energies=energy_errors(
            [c.energy for c in part], [c.energy_reference for c in part], [s.numbers for s in structures]
        ),
        bound=bound,
        direct=found[0],
        conservative=found[1],
        calibration_direct=calibration(u, direct, **alike),
        calibration_conservative=calibration(u, conservative, **alike),
        consensus=tuple(consensus_failures(u, direct, conservative, limits, bound)),
        estimates=estimates(part, names, groups, seed),
        unit_doubt=_unit_doubt(part),
    )


def _unit_doubt(part: Sequence[Compared]) -> UnitDoubt | None:
    own = [c.forces_conservative for c in part if c.forces_conservative is not None]
    reference = np.concatenate([c.forces_reference for c in part])
    return unit_doubt(reference, np.concatenate(own) if len(own) == len(part) else None)


def _drawn(part: Sequence[Compared], names: Sequence[str], key: str) -> tuple[str, list[Hashable]]:
    """What is drawn as a whole for an interval, in words and of each structure: climbs where they are known, else the groups where there
    are enough of them, else structures."""
    if any(c.climb is not None for c in part):
        return "climbs", [c.group for c in part]
    if key and len(set(names)) >= FEWEST_GROUPS:
        return "groups", list(names)
    return "structures", [c.group for c in part]


def _by_size(found: Sequence[Band]) -> list[Band]:
    def size(band: Band) -> float:
        try:
            return float(band.name)
        except ValueError:
            return float("inf")

    return sorted(found, key=size)


# ---- plain rows ----------------------------------------------------------------------------------------------------


def as_rows(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """One plain row per structure."""
    return [
        {
            "file": c.structure.file,
            "index": c.structure.index,
            "formula": c.structure.formula,
            "n_atoms": c.structure.n_atoms,
            **({"model": c.model_id} if c.model_id else {}),
            "force_delta_eV_per_A": c.force_delta,
            **({} if c.ensemble_spread is None else {"ensemble_spread_eV_per_A": c.ensemble_spread}),
            "error_direct_eV_per_A": c.error_direct,
            "error_conservative_eV_per_A": c.error_conservative,
            "energy_eV": c.energy,
            "energy_reference_eV": c.energy_reference,
        }
        for c in compared
    ]


def band_rows(found: Sequence[Band]) -> list[dict[str, Any]]:
    """One plain row per band."""
    rows = []
    for band in found:
        row: dict[str, Any] = {
            "band": band.name,
            "n": band.conservative.n,
            "climbs": band.conservative.groups,
            "low_eV_per_A": band.low,
            "high_eV_per_A": band.high,
        }
        for name, r in (("error_conservative", band.conservative), ("error_direct", band.direct)):
            row[f"r_s_{name}"] = r.r_s
            row[f"r_s_{name}_ci"] = None if r.low is None else [r.low, r.high]
        rows.append(row)
    return rows


def by_content(compared: Sequence[Compared]) -> Mapping[str, Compared]:
    """By the content of the structure."""
    return {c.structure.content_id: c for c in compared}
