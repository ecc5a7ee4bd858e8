"""What a recorded stability measurement says: drifts, errors by band, and one model against another. Pure functions of tables.

The drift is that of `fdcore.motion`: the fitted slope of the conserved energy per atom, meV/atom/ps. Figure 4 of the paper shows what it
comes to after 10 ps; here its mean magnitude over the seeds is told with an interval from their spread (Student's t).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from fdcore.human import count, plus_minus
from fdcore.records import Structure
from fdcore.spec import Spec
from fdcore.statistics import RankCorrelation, Slope, fitted_slope, rank_correlation
from fdcore.store.series import read_notes, read_result, read_table
from fdcore.tasks.stability import StabilityParameters
from fdcore.units import MEV_PER_EV

TASK = "stability"
Array = NDArray[np.float64]
CONFIDENCE = 0.95
# Fewer seeds than this are said to be few.
FEW_SEEDS = 5


@dataclass(frozen=True)
class Mean:
    """A mean over n numbers with the half width of its interval, None from fewer than two."""

    value: float
    half_width: float | None
    n: int

    @property
    def text(self) -> str:
        return plus_minus(self.value, self.half_width)


def mean_of(values: Sequence[float]) -> Mean | None:
    """Of independent numbers (Student's t); None of none."""
    n = len(values)
    if not n:
        return None
    half = None
    if n > 1:
        half = float(student.ppf(0.5 + CONFIDENCE / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Mean(float(np.mean(values)), half, n)


def _over_seeds(values: Mapping[tuple[int, int], float]) -> Mean | None:
    """Of the means over structures of each seed: what one seed gives several structures is alike."""
    seeds = sorted({seed for _, seed in values})
    return mean_of([float(np.mean([v for (_, s), v in values.items() if s == seed])) for seed in seeds])


@dataclass(frozen=True)
class Nve:
    """One NVE run: times (ps), energy per atom from its start (meV), its drift (meV/atom/ps), and why it ended early (empty: it did not)."""

    parent: int
    seed: int
    time_ps: Array
    energy_meV_per_atom: Array
    temperature_K: Array
    drift: Slope | None
    ended: str = ""


@dataclass(frozen=True)
class Band:
    """Displaced copies of one sigma: U_Delta and errors (eV/Å) as root mean squares over them; None: no reference."""

    sigma_A: float
    n: int
    force_delta: float
    error_direct: float | None
    error_conservative: float | None
    error_energy_meV_per_atom: float | None


@dataclass(frozen=True)
class ModelStability:
    """One model: its runs, its bands, whether U_Delta ranks its errors, its relaxations (iterations, converged, farthest atom in Å per
    structure), steps of dynamics per second of the processor (all replicas as one batch)."""

    id: str
    runs: tuple[Nve, ...]
    bands: tuple[Band, ...]
    # U_Delta (eV/Å) of every displaced copy, and of every sample of the NVE runs where it was looked at.
    force_delta_displaced: Array
    force_delta_nve: Array
    ranks_direct: RankCorrelation | None
    ranks_conservative: RankCorrelation | None
    relaxations: tuple[tuple[int, bool, float], ...]
    steps_per_second: float | None

    @property
    def slopes(self) -> dict[tuple[int, int], float]:
        """Drift of every run that reached its end, by structure and seed, meV/atom/ps: what blew up has no drift that could be compared."""
        return {(r.parent, r.seed): r.drift.slope for r in self.runs if r.drift is not None and not r.ended}

    @property
    def drift(self) -> Mean | None:
        """Mean |drift| over the seeds (of several structures: of their mean), meV/atom/ps."""
        return _over_seeds({k: abs(v) for k, v in self.slopes.items()})

    @property
    def signed_drift(self) -> Mean | None:
        """Mean drift over the seeds, meV/atom/ps."""
        return _over_seeds(self.slopes)

    @property
    def ended_early(self) -> int:
        """How many runs did not reach their end."""
        return sum(bool(r.ended) for r in self.runs)


@dataclass(frozen=True)
class Measured:
    """A stability measurement, whole or so far."""

    models: tuple[ModelStability, ...]
    structures: tuple[Structure, ...]
    picoseconds: float
    reference: str | None
    # |drift| of each model less that of the one before it, over the same seeds.
    changes: tuple[Mean | None, ...]


def read(folder: Path | None, spec: Spec, structures: Sequence[Structure]) -> Measured:
    """What an attempt's folder holds so far."""
    parameters: StabilityParameters = StabilityParameters.of(spec)
    assert spec.model is not None
    names = (spec.model.id, *parameters.models)
    if folder is None:
        return measured({}, (), None, names, structures, parameters)
    tables = {name: read_table(folder, name) for name in ("series", "errors", "relaxations", "ladder")}
    return measured(tables, tuple(read_notes(folder)), read_result(folder), names, structures, parameters)


def measured(
    tables: Mapping[str, Mapping[str, NDArray[Any]]],
    notes: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any] | None,
    names: Sequence[str],
    structures: Sequence[Structure],
    parameters: StabilityParameters,
) -> Measured:
    """From the tables of the task (see fdcore/tasks/stability.py), by name."""
    models = tuple(_model(k, name, tables, notes, result, structures) for k, name in enumerate(names))
    changes = tuple(None if k == 0 else change(models[k - 1], models[k]) for k in range(len(models)))
    return Measured(models, tuple(structures), parameters.picoseconds, parameters.reference, changes)


def change(before: ModelStability, after: ModelStability) -> Mean | None:
    """|drift| of the second less that of the first, meV/atom/ps: mean over the seeds, from the same momenta, of runs that both have to
    their end."""
    first, second = before.slopes, after.slopes
    return _over_seeds({k: abs(second[k]) - abs(first[k]) for k in first if k in second})


def _model(
    number: int,
    name: str,
    tables: Mapping[str, Mapping[str, NDArray[Any]]],
    notes: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any] | None,
    structures: Sequence[Structure],
) -> ModelStability:
    ladder = tables.get("ladder") or {}
    errors = _of(tables.get("errors"), number)
    relaxations = _of(tables.get("relaxations"), number)
    speed = None
    if result is not None and result["dynamics_seconds"][number] > 0:
        speed = result["steps_done"][number] / result["dynamics_seconds"][number]
    u, direct, conservative = (
        errors.get(k, np.zeros(0))
        for k in ("force_delta_eV_per_A", "error_direct_eV_per_A", "error_conservative_eV_per_A")
    )
    known = np.isfinite(direct) & np.isfinite(conservative)
    series = _of(tables.get("series"), number)
    seen = series.get("force_delta_eV_per_A", np.zeros(0))
    return ModelStability(
        name,
        _runs(series, number, notes, structures),
        _bands(errors, ladder),
        u,
        seen[np.isfinite(seen)],
        rank_correlation(u[known], direct[known]) if known.any() else None,
        rank_correlation(u[known], conservative[known]) if known.any() else None,
        tuple(
            (int(i), bool(c), float(m))
            for i, c, m in zip(
                *(relaxations.get(k, np.zeros(0)) for k in ("iterations", "converged", "moved_A")), strict=True
            )
        ),
        speed,
    )


def _of(table: Mapping[str, NDArray[Any]] | None, number: int) -> dict[str, NDArray[Any]]:
    if not table:
        return {}
    rows = table["model"] == number
    return {name: column[rows] for name, column in table.items()}


def _runs(
    series: Mapping[str, NDArray[Any]], number: int, notes: Sequence[Mapping[str, Any]], structures: Sequence[Structure]
) -> tuple[Nve, ...]:
    if not series:
        return ()
    ended = {(n["parent"], n["seed"]): str(n["ended"]) for n in notes if n.get("model") == number and "ended" in n}
    out = []
    for parent, seed in sorted(set(zip(series["parent"].tolist(), series["seed"].tolist(), strict=True))):
        rows = (series["parent"] == parent) & (series["seed"] == seed)
        time, energy = series["time_ps"][rows], series["conserved_eV"][rows]
        finite = np.isfinite(energy)
        per_atom = (energy[finite] - energy[0]) * MEV_PER_EV / structures[parent].n_atoms
        drift = fitted_slope(time[finite], per_atom) if finite.any() else None
        out.append(
            Nve(
                parent,
                seed,
                time[finite],
                per_atom,
                series["temperature_K"][rows][finite],
                drift,
                ended.get((parent, seed), ""),
            )
        )
    return tuple(out)


def _bands(errors: Mapping[str, NDArray[Any]], ladder: Mapping[str, NDArray[Any]]) -> tuple[Band, ...]:
    if not errors or not ladder:
        return ()
    sigmas = ladder["sigma_A"][errors["rung"]]
    out = []
    for sigma in np.unique(sigmas):
        rows = sigmas == sigma
        energy = np.abs(errors["error_energy_eV_per_atom"][rows])
        out.append(
            Band(
                float(sigma),
                int(rows.sum()),
                _rms(errors["force_delta_eV_per_A"][rows]) or 0.0,
                _rms(errors["error_direct_eV_per_A"][rows]),
                _rms(errors["error_conservative_eV_per_A"][rows]),
                None if not np.isfinite(energy).any() else MEV_PER_EV * float(np.nanmean(energy)),
            )
        )
    return tuple(out)


def _rms(values: Array) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(known**2))) if len(known) else None


# ---- what it says ------------------------------------------------------------------------------------------------------


def model_rows(found: Measured) -> list[dict[str, Any]]:
    """One plain row per model; None: not known (yet)."""
    rows = []
    for model, step in zip(found.models, found.changes, strict=True):
        drift, signed = model.drift, model.signed_drift
        rows.append(
            {
                "model": model.id,
                "nve_runs": len(model.runs),
                "ended_early": model.ended_early,
                "drift_abs_meV_per_atom_per_ps": None if drift is None else drift.value,
                "drift_abs_ci": None if drift is None else drift.half_width,
                "drift_meV_per_atom_per_ps": None if signed is None else signed.value,
                "drift_ci": None if signed is None else signed.half_width,
                "total_meV_per_atom": None if drift is None else drift.value * found.picoseconds,
                "change_meV_per_atom_per_ps": None if step is None else step.value,
                "change_ci": None if step is None else step.half_width,
                "force_delta_nve_median_eV_per_A": float(np.median(model.force_delta_nve))
                if len(model.force_delta_nve)
                else None,
                "relaxation_iterations": [i for i, _, _ in model.relaxations] or None,
                "relaxed": all(c for _, c, _ in model.relaxations) if model.relaxations else None,
                "r_s_error_direct": None if model.ranks_direct is None else model.ranks_direct.r_s,
                "r_s_error_conservative": None if model.ranks_conservative is None else model.ranks_conservative.r_s,
                "steps_per_second": model.steps_per_second,
            }
        )
    return rows


def band_rows(found: Measured) -> list[dict[str, Any]]:
    """One plain row per model and band."""
    return [
        {
            "model": model.id,
            "sigma_A": band.sigma_A,
            "n": band.n,
            "force_delta_eV_per_A": band.force_delta,
            "error_direct_eV_per_A": band.error_direct,
            "error_conservative_eV_per_A": band.error_conservative,
            "error_energy_meV_per_atom": band.error_energy_meV_per_atom,
        }
        for model in found.models
        for band in model.bands
    ]


def sentences(found: Measured) -> list[str]:
    """What it says, in plain words; nothing of models that have not been measured."""
    known = [m for m in found.models if m.runs]
    if not known:
        return []
    parts = [f"{m.id} {'unknown' if m.drift is None else m.drift.text}" for m in known]
    n = max(m.drift.n if m.drift is not None else 0 for m in known)
    out = [
        f"Mean |drift| of NVE driven by F_nc, {count(n, 'seed')}, runs of {found.picoseconds:g} ps, in meV/atom/ps: {', '.join(parts)}."
    ]
    if n < FEW_SEEDS:
        out.append(f"Fewer than {FEW_SEEDS} seeds say little: the interval of a mean of so few is wide.")
    out += [
        f"{m.ended_early} of {len(m.runs)} runs of {m.id} blew up before their end; they are left out of its drift, and count against it."
        for m in known
        if m.ended_early
    ]
    for before, model in pairwise(found.models):
        step = change(before, model)
        if model.ended_early != before.ended_early:
            more = model.ended_early > before.ended_early
            out.append(
                f"{model.id} is {'LESS' if more else 'more'} stable than {before.id}: {'more' if more else 'fewer'} of its runs blew up."
            )
        elif step is not None and step.half_width is not None:
            out.append(_compared(model.id, before.id, step))
    first, last = found.models[0], found.models[-1]
    step = change(first, last)
    sure = step is not None and step.half_width is not None and abs(step.value) > step.half_width
    if len(found.models) > 1 and sure and first.drift is not None and last.drift is not None and first.drift.value > 0:
        out.append(f"The drift of {last.id} is {last.drift.value / first.drift.value:.2g} times that of {first.id}.")
    return out


def _compared(name: str, other: str, step: Mean) -> str:
    assert step.half_width is not None
    if step.value + step.half_width < 0:
        return f"{name} drifts less than {other}, by {Mean(-step.value, step.half_width, step.n).text} meV/atom/ps."
    if step.value - step.half_width > 0:
        return f"{name} drifts MORE than {other}, by {step.text} meV/atom/ps."
    return f"{name} cannot be told from {other}: {step.text} meV/atom/ps."
