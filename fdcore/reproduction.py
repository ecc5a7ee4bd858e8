"""What a reproduction of the paper has found so far: of every figure and table its numbers, what they say, and what the paper says. Pure functions
of the parts that the task `reproduce` keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fdcore import drifts, ensemble, generations, motion, validation
from fdcore.drifts import Measured
from fdcore.errors import ComputeError
from fdcore.human import plus_minus, three_digits
from fdcore.records import Structure
from fdcore.reproduce import published
from fdcore.reproduce.protocols import Asked, Part, effort_of, parts
from fdcore.reproduce.settings import TARGETS, Target
from fdcore.spec import Spec
from fdcore.statistics import RankCorrelation, mean_with_error, rank_correlation
from fdcore.store.series import read_notes, read_result, read_table
from fdcore.tasks.nested import RECORD
from fdcore.tasks.reproduce import ReproduceParameters, inputs_of, spec_of

TASK = "reproduce"
# What the paper calls the systems that travel with the project.
PAPER_NAMES = {"ice_XI": "ice", "MOF-5": "MoF5", "CaPd_NH2": "CaPd-NH2", "water_box": "Water"}
WAYS = {"attack": "adversarial attack", "drift": "NVE driven by F_nc"}
FORCES = {"direct": "F_nc", "conservative": "F_c"}
# r_s of less than this is no rank correlation to speak of; the paper's own weakest claims are at 0.6.
STRONG = 0.6


@dataclass(frozen=True)
class Finding:
    """One figure or table: `rows` of plain numbers, `published` ones of the same kind, what ours `said`, what the `paper` says, and what is
    `missing` and why. For drawing: `lines` (dicts of system, run, time_ps, value), `points` (dicts of system, model, x, y, what), and
    `measured`, the stability of each loop with its title."""

    target: Target
    rows: tuple[Mapping[str, Any], ...] = ()
    published: tuple[Mapping[str, Any], ...] = ()
    said: tuple[str, ...] = ()
    paper: str = ""
    missing: tuple[str, ...] = ()
    lines: tuple[Mapping[str, Any], ...] = ()
    points: tuple[Mapping[str, Any], ...] = ()
    measured: tuple[tuple[str, Measured], ...] = ()


@dataclass(frozen=True)
class Reproduced:
    """A recorded reproduction, whole or so far."""

    spec: Spec
    structures: tuple[Structure, ...]
    folder: Path | None

    @cached_property
    def parameters(self) -> ReproduceParameters:
        return ReproduceParameters.of(self.spec)

    @cached_property
    def asked(self) -> Asked:
        return parts(self.parameters, self.structures)

    @cached_property
    def failed(self) -> dict[str, str]:
        """Why a part could not be done, by its name."""
        if self.folder is None:
            return {}
        return {n["part"]: f"{n['error']} {n['hint'] or ''}".strip() for n in read_notes(self.folder) if "part" in n}

    @cached_property
    def seconds(self) -> dict[str, float]:
        """What each complete part took."""
        rows = {} if self.folder is None else read_table(self.folder, "parts")
        if not rows:
            return {}
        return {self.asked.parts[int(k)].name: float(s) for k, s in zip(rows["part"], rows["seconds"], strict=True)}

    def record(self, name: str) -> Path | None:
        """The record of a complete part."""
        if self.folder is None:
            return None
        folder = self.folder / name / RECORD
        return folder if folder.is_dir() else None

    def inputs(self, part: Part) -> tuple[tuple[Structure, ...], tuple[int, ...]]:
        folder = self.folder
        assert folder is not None
        return inputs_of(self.asked.parts, part, self.spec, self.structures, lambda name: folder / name)

    def of(self, target: str, task: str) -> list[tuple[Part, Path]]:
        """The complete parts of a target that are runs of this task."""
        names = self.asked.of[target]
        out = []
        for part in self.asked.parts:
            record = self.record(part.name)
            if part.name in names and part.task == task and record is not None:
                out.append((part, record))
        return out

    def system(self, part: Part) -> str:
        """What the system of a part is called here."""
        return self.parameters.names[part.source.places[0]]


def read(folder: Path | None, spec: Spec, structures: Sequence[Structure]) -> Reproduced:
    """What an attempt's folder holds so far."""
    return Reproduced(spec, tuple(structures), folder)


def findings(found: Reproduced) -> list[Finding]:
    """Of every target that was asked for, in the order of the paper."""
    return [finding(found, target) for target in found.parameters.targets]


def finding(found: Reproduced, target: str) -> Finding:
    """Of one target; what is not there (yet) is said to be missing."""
    kinds: dict[str, Callable[[Reproduced, str], dict[str, Any]]] = {
        "fig1": _energies,
        "fig5": _energies,
        "nvt": _fluctuations,
        "fig2": _attacks,
        "table2": _attacks,
        "fig3": _drifts,
        "fig6": _drifts,
        "fig7": _drifts,
        "fig4": _loops,
        "fig8": _loops,
        "table1": _ensembles,
    }
    known = kinds[target](found, target)
    missing = [*found.asked.missing[target]]
    for name in found.asked.of[target]:
        if name in found.failed:
            missing.append(f"{name}: {found.failed[name]}")
        elif found.record(name) is None:
            missing.append(f"{name}: not done.")
    return Finding(TARGETS[target], paper=published.SAID.get(target, ""), missing=tuple(missing), **known)


# ---- figures 1 and 5, and the fluctuation of the temperature -------------------------------------------------------------


def _moved(found: Reproduced, target: str) -> Iterable[tuple[Part, motion.Motion]]:
    for part, record in found.of(target, "md"):
        given, _ = found.inputs(part)
        spec = spec_of(found.spec, part, len(given), None)
        yield part, motion.read(record, spec, given, read_result(record))


def _energies(found: Reproduced, target: str) -> dict[str, Any]:
    rows, lines = [], []
    for part, moved in _moved(found, target):
        leg = moved.production
        s = motion.summary(moved, leg, 0)
        driver = FORCES[str(part.parameters["driver"])]
        rows.append(
            {
                "system": found.system(part),
                "model": part.model,
                "driver": driver,
                "picoseconds": s.time_ps,
                "drift_meV_per_atom_per_ps": None if s.drift is None else s.drift.slope,
                "drift_ci": None if s.drift is None else s.drift.half_width,
                "temperature_K": s.temperature_K,
                "force_delta_mean_eV_per_A": s.force_delta_mean,
                "stopped_because": s.stopped_because,
            }
        )
        track = moved.tracks.get((leg, 0))
        if track is not None:
            energy = 1000 * (track.energy_total_eV - track.energy_total_eV[0]) / s.n_atoms
            lines += _line(found.system(part), f"{part.model}, {driver}", track.time_ps, energy)
    return {"rows": tuple(rows), "lines": tuple(lines), "said": tuple(_energy_sentences(rows))}


def _line(system: str, run: str, time_ps: Any, values: Any, most: int = 300) -> list[dict[str, Any]]:
    keep = np.unique(np.linspace(0, len(time_ps) - 1, most).round().astype(int)) if len(time_ps) else []
    return [{"system": system, "run": run, "time_ps": float(time_ps[k]), "value": float(values[k])} for k in keep]


def _energy_sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    out = []
    for system, model in dict.fromkeys((r["system"], r["model"]) for r in rows):
        both = {r["driver"]: r for r in rows if (r["system"], r["model"]) == (system, model)}
        if set(both) != set(FORCES.values()):
            continue
        direct, conservative = both["F_nc"], both["F_c"]
        a, b = direct["drift_meV_per_atom_per_ps"], conservative["drift_meV_per_atom_per_ps"]
        blown = [d for d in both if both[d]["stopped_because"] not in ("completed", "cancelled", "not-started")]
        if blown:
            out.append(f"{system}, {model}: the run driven by {' and by '.join(blown)} blew up before its end.")
        if a is None or b is None:
            continue
        more = abs(a) > abs(b)
        verdict = "as the paper finds" if more else "NOT as the paper finds"
        intervals = [r["drift_ci"] for r in (direct, conservative)]
        if None in intervals:
            verdict += ", in a run too short for an interval"
        elif abs(abs(a) - abs(b)) < float(np.hypot(*intervals)):
            verdict += ", but the intervals overlap"
        out.append(
            f"{system}, {model}: the energy drifts by {plus_minus(a, direct['drift_ci'], sign=True)} meV/atom/ps driven by F_nc and by "
            f"{plus_minus(b, conservative['drift_ci'], sign=True)} driven by F_c: {verdict}."
        )
    return out


def _fluctuations(found: Reproduced, target: str) -> dict[str, Any]:
    rows, lines = [], []
    for part, moved in _moved(found, target):
        leg = moved.production
        s = motion.summary(moved, leg, 0)
        asked = float(part.parameters["temperature_K"])
        driver = FORCES[str(part.parameters["driver"])]
        track = moved.tracks.get((leg, 0))
        rows.append(
            {
                "system": found.system(part),
                "model": part.model,
                "driver": driver,
                "picoseconds": s.time_ps,
                "temperature_K": s.temperature_K,
                "temperature_fluctuation_K": s.temperature_fluctuation_K,
                "temperature_fluctuation_error_K": _error_of_deviation(track),
                "canonical_fluctuation_K": motion.expected_fluctuation_K(asked, s.n_atoms),
                "stopped_because": s.stopped_because,
            }
        )
        track = moved.tracks.get((leg, 0))
        if track is not None:
            lines += _line(found.system(part), f"{part.model}, {driver}", track.time_ps, track.columns["temperature_K"])
    said = tuple(_fluctuation_sentences(rows))
    known = tuple(
        {"system": "Water", "model": "orb-v3-direct-inf-mpa", "driver": FORCES[k], "temperature_fluctuation_K": v}
        for k, v in published.NVT.items()
    )
    return {"rows": tuple(rows), "lines": tuple(lines), "said": said, "published": known}


def _error_of_deviation(track: motion.Track | None) -> float | None:
    """Standard error of the standard deviation of the temperature (K), from that of the mean square, whose samples are correlated."""
    if track is None:
        return None
    temperature = track.columns["temperature_K"]
    deviation = float(temperature.std())
    _, error = mean_with_error((temperature - temperature.mean()) ** 2)
    return None if error is None or deviation == 0 else error / (2 * deviation)


def _fluctuation_sentences(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    for system, model in dict.fromkeys((r["system"], r["model"]) for r in rows):
        both = {r["driver"]: r for r in rows if (r["system"], r["model"]) == (system, model)}
        if len(both) < len(FORCES) or any(r["temperature_fluctuation_K"] is None for r in both.values()):
            continue
        a, b = (both[d]["temperature_fluctuation_K"] for d in FORCES.values())
        errors = [both[d]["temperature_fluctuation_error_K"] for d in FORCES.values()]
        far = None not in errors and abs(a - b) > 2 * float(np.hypot(*errors))
        verdict = ("as the paper finds" if a > b else "NOT as the paper finds") if far else "too alike to be told apart"
        yield (
            f"{system}, {model}: the temperature fluctuates by {plus_minus(a, errors[0])} K driven by F_nc and by "
            f"{plus_minus(b, errors[1])} K driven by F_c ({'too short a run for standard errors' if None in errors else 'standard errors'}): {verdict}."
        )


# ---- figure 2 and table 2 ----------------------------------------------------------------------------------------------


def _compared(found: Reproduced, part: Part, record: Path) -> list[validation.Compared]:
    given, groups = found.inputs(part)
    compared, _ = validation.read(record, spec_of(found.spec, part, len(given), groups), given)
    return compared


def _correlation(compared: Sequence[validation.Compared], error: str, seed: int) -> RankCorrelation:
    u = [c.force_delta for c in compared]
    return rank_correlation(u, [getattr(c, error) for c in compared], groups=[c.group for c in compared], seed=seed)


def _attacks(found: Reproduced, target: str) -> dict[str, Any]:
    rows, points = [], []
    everything: dict[tuple[str, str], list[tuple[str, validation.Compared]]] = {}
    for part, record in found.of(target, "validate"):
        way = part.name.split("-", 1)[0]
        compared = _compared(found, part, record)
        system = found.system(part)
        rows.append(_correlations(found, part.model, way, system, compared))
        everything.setdefault((part.model, way), []).extend((system, c) for c in compared)
        for c in compared if way == "attack" else ():
            for what, error in (("eps_c", c.error_conservative), ("eps_nc", c.error_direct)):
                points.append({"system": system, "model": part.model, "x": c.force_delta, "y": error, "what": what})
    for (model, way), listed in everything.items():
        if len({s for s, _ in listed}) > 1:
            rows.append(
                _correlations(found, model, way, "all together", [c for _, c in listed], pooled=[s for s, _ in listed])
            )
    table = published.FIGURE2 if target == "fig2" else published.TABLE2
    known = tuple(
        {
            "system": p.system,
            "model": p.model,
            "way": WAYS["attack" if p.way == "attack" else "drift"],
            "r_s_error_direct": p.direct,
            "r_s_error_conservative": p.conservative,
        }
        for p in table
    )
    return {"rows": tuple(rows), "points": tuple(points), "said": tuple(_rank_sentences(rows)), "published": known}


def _correlations(
    found: Reproduced,
    model: str,
    way: str,
    system: str,
    compared: Sequence[validation.Compared],
    pooled: Sequence[str] = (),
) -> dict[str, Any]:
    """One row; `pooled`: of which system each is, so that climbs of different systems are different ones."""
    u = np.array([c.force_delta for c in compared])
    groups = [(s, c.group) for s, c in zip(pooled or [system] * len(compared), compared, strict=True)]
    row: dict[str, Any] = {
        "system": system,
        "paper_name": PAPER_NAMES.get(system, system),
        "model": model,
        "way": WAYS[way],
        "n": len(compared),
        "force_delta_low_eV_per_A": float(u.min()) if len(u) else None,
        "force_delta_high_eV_per_A": float(u.max()) if len(u) else None,
    }
    for error in ("error_direct", "error_conservative"):
        values = [getattr(c, error) for c in compared]
        r = (
            rank_correlation(u, values, groups=groups, seed=found.spec.seed)
            if len(u)
            else RankCorrelation(0, None, None, None)
        )
        row[f"r_s_{error}"], row[f"r_s_{error}_ci"] = r.r_s, None if r.low is None else [r.low, r.high]
    for error in ("error_direct", "error_conservative"):
        values = [getattr(c, error) for c in compared]
        row[f"median_{error}_eV_per_A"] = float(np.median(values)) if values else None
    return row


def _rank_sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    out = []
    for way in WAYS.values():
        able = [
            r for r in rows if r["way"] == way and r["system"] != "all together" and r["r_s_error_direct"] is not None
        ]
        if not able:
            continue
        c = [r["r_s_error_conservative"] for r in able]
        d = [r["r_s_error_direct"] for r in able]
        out.append(
            f"{way[0].upper()}{way[1:]}: U_Delta ranks eps_c with r_s = {min(c):.2f} and eps_nc with {min(d):.2f} on one system."
            if len(able) == 1
            else f"{way[0].upper()}{way[1:]}: U_Delta ranks eps_c with r_s from {min(c):.2f} to {max(c):.2f} and eps_nc from {min(d):.2f} to "
            f"{max(d):.2f} over {len(able)} systems."
        )
        weak = [r["system"] for r in able if r["r_s_error_direct"] < STRONG]
        if weak:
            out.append(f"Below {STRONG} with eps_nc: {', '.join(weak)}.")
        out += [
            f"All systems together, {r['model']}: {r['r_s_error_conservative']:.2f} with eps_c, {r['r_s_error_direct']:.2f} with eps_nc "
            "(inflated by the differences between systems)."
            for r in rows
            if r["way"] == way and r["system"] == "all together" and r["r_s_error_direct"] is not None
        ]
    return out


# ---- figures 3, 6 and 7 ------------------------------------------------------------------------------------------------

PREDICTORS = {"force_delta": "U_Delta", "error_direct": "eps_nc", "error_conservative": "eps_c"}


def _drifts(found: Reproduced, target: str) -> dict[str, Any]:
    errors = {p.source.part: _compared(found, p, record) for p, record in found.of(target, "validate")}
    rows, blown = [], 0
    for part, moved in _moved(found, target):
        for system in range(len(moved.systems)):
            s = motion.summary(moved, moved.production, system)
            mine = [c for c in errors.get(part.name, ()) if c.climb == system]
            ended = s.stopped_because not in ("completed", "cancelled", "not-started")
            blown += ended
            rows.append(
                {
                    "system": found.system(part),
                    "model": part.model,
                    "seed": system,
                    "picoseconds": s.time_ps,
                    "drift_meV_per_atom_per_ps": None if s.drift is None else s.drift.slope,
                    "force_delta_eV_per_A": s.force_delta_mean,
                    "error_direct_eV_per_A": float(np.mean([c.error_direct for c in mine])) if mine else None,
                    "error_conservative_eV_per_A": float(np.mean([c.error_conservative for c in mine]))
                    if mine
                    else None,
                    "stopped_because": s.stopped_because,
                }
            )
    said, points = [], []
    correlations = {}
    for key, words in PREDICTORS.items():
        able = [r for r in rows if r["drift_meV_per_atom_per_ps"] is not None and r[f"{key}_eV_per_A"] is not None]
        points += [
            {
                "system": r["system"],
                "model": r["model"],
                "x": r[f"{key}_eV_per_A"],
                "y": abs(r["drift_meV_per_atom_per_ps"]),
                "what": words,
            }
            for r in able
        ]
        if able:
            r_s = rank_correlation(
                [r[f"{key}_eV_per_A"] for r in able],
                [abs(r["drift_meV_per_atom_per_ps"]) for r in able],
                seed=found.spec.seed,
            )
            correlations[key] = r_s
            said.append(f"r_s of |drift| with the mean {words} of a run: {r_s.text}, over {r_s.n} runs.")
    u, d = (correlations.get(k) for k in ("force_delta", "error_direct"))
    if u is not None and d is not None and u.r_s is not None and d.r_s is not None:
        overlap = None in (u.low, d.low) or ((u.low or 0) <= (d.high or 0) and (d.low or 0) <= (u.high or 0))
        better = "better than" if u.r_s > d.r_s else "no better than"
        said.append(
            f"U_Delta predicts the drift {better} eps_nc does{', but the intervals overlap' if overlap and u.r_s > d.r_s else ''}."
        )
    if blown:
        said.append(
            f"{blown} of {len(rows)} runs blew up before their end; those that lasted long enough for a slope are counted with it."
        )
    known = tuple({"r_s": v, "with": PREDICTORS[k]} for k, v in published.FIGURE3.items()) if target == "fig3" else ()
    return {"rows": tuple(rows), "points": tuple(points), "said": tuple(said), "published": known}


# ---- figures 4 and 8 ---------------------------------------------------------------------------------------------------


def _loops(found: Reproduced, target: str) -> dict[str, Any]:
    rows, said, measured = [], [], []
    for part, record in found.of(target, "generations"):
        given, _ = found.inputs(part)
        loop = generations.read(record, spec_of(found.spec, part, len(given), None), given)
        system = found.system(part)
        measured.append((f"{system}, {part.model}", loop.measured))
        rows += [{"system": system, **row} for row in drifts.model_rows(loop.measured)]
        if target == "fig4":
            # Figure 8 shows the same runs against time.
            said += [f"{system}: {s}" for s in drifts.sentences(loop.measured)]
        known = [m.drift.value for m in loop.measured.models if m.drift is not None]
        if len(known) == len(loop.measured.models) > 1:
            falls = all(b < a for a, b in pairwise(known))
            said.append(
                f"{system}: the drift falls {'step by step, as the paper finds' if falls else 'NOT step by step as the paper finds'}; "
                f"the last is {known[-1] / known[0]:.2f} of the first."
            )
    return {"rows": tuple(rows), "said": tuple(said), "measured": tuple(measured)}


# ---- table 1 -----------------------------------------------------------------------------------------------------------


def _ensembles(found: Reproduced, target: str) -> dict[str, Any]:
    rows, said = [], []
    by_set: dict[str, list[validation.Compared]] = {}
    for part, record in found.of(target, "validate"):
        by_set.setdefault(f"{part.source.part}\0{part.model}", []).extend(_compared(found, part, record))
    families: dict[tuple[str, ...], list[tuple[Part, ensemble.Compared]]] = {}
    for part, record in found.of(target, "ensemble"):
        members = tuple(part.parameters["members"])
        try:
            given, _ = found.inputs(part)
        except ComputeError:
            continue
        families.setdefault(members, []).append((part, ensemble.read(record, part.model, members, given)))
    for members, runs in families.items():
        spread = {
            s.structure.content_id: s.ensemble_spread
            for _, run in runs
            for s in run.spreads
            if s.ensemble_spread is not None
        }
        singles, varied = [], []
        for member in members:
            mine = [
                c
                for part, _ in runs
                for c in by_set.get(f"{part.source.part}\0{member}", ())
                if c.structure.content_id in spread
            ]
            if len(mine) < 3:
                continue
            eps = [c.error_direct for c in mine]
            single = rank_correlation([c.force_delta for c in mine], eps, groups=[c.climb for c in mine])
            var = rank_correlation(
                [spread[c.structure.content_id] or 0.0 for c in mine], eps, groups=[c.climb for c in mine]
            )
            if single.r_s is not None and var.r_s is not None:
                singles.append(single.r_s)
                varied.append(var.r_s)
                rows.append(
                    {
                        "members": len(members),
                        "model": member,
                        "n": len(mine),
                        "r_s_force_delta": single.r_s,
                        "r_s_ensemble_spread": var.r_s,
                        "relative_cost": None,
                    }
                )
        costs = [r.relative_cost for _, r in runs if r.relative_cost is not None]
        if singles:
            cost = 1 / float(np.mean(costs)) if costs else None
            error = float(np.std(singles, ddof=1) / np.sqrt(len(singles))) if len(singles) > 1 else None
            rows.append(
                {
                    "members": len(members),
                    "model": "mean over models",
                    "n": len(spread),
                    "r_s_force_delta": float(np.mean(singles)),
                    "r_s_force_delta_error": error,
                    "r_s_ensemble_spread": float(np.mean(varied)),
                    "relative_cost": cost,
                }
            )
            better = np.mean(singles) >= np.mean(varied)
            said.append(
                f"{len(members)} models: U_Delta of one ranks its eps_nc with r_s = {np.mean(singles):.2f}"
                f"{'' if error is None else f' ± {error:.2f}'} on average, U_var of all with {np.mean(varied):.2f}: "
                f"{'at least as well' if better else 'less well'}"
                + (
                    "."
                    if cost is None
                    else f", and U_var costs {three_digits(cost)} times as much (measured in turn, both forces of one model = 1)."
                )
            )
    known = tuple(
        {
            "model": family,
            "members": members,
            "r_s_force_delta": mean,
            "r_s_force_delta_error": error,
            "r_s_ensemble_spread": var,
            "relative_cost": cost,
        }
        for family, members, mean, error, var, cost in published.TABLE1
    )
    return {"rows": tuple(rows), "said": tuple(said), "published": known}


# ---- the whole ---------------------------------------------------------------------------------------------------------


def sentences(found: Reproduced) -> list[str]:
    """What everything says, target by target."""
    return [f"{f.target.where}: {s}" for f in findings(found) for s in f.said]


def what_differs(found: Reproduced) -> list[str]:
    """Where this run is not the paper's, in words."""
    p, e = found.parameters, effort_of(found.parameters)
    who = ", ".join(dict.fromkeys(r or "nobody" for r in p.references))
    models = ", ".join(dict.fromkeys(part.model for part in found.asked.parts if part.model))
    loop = e.loop or {}
    learnt = []
    if any(part.task == "generations" for part in found.asked.parts) and "epochs" in loop:
        learnt = [
            f"Each training here sees {loop['count']} structures for {loop['epochs']} epochs, too little for a model to become stable; the whole loop, "
            "with 100 of both, is `fdcore generations` (its figures are in docs/method.md)."
        ]
    kinds = []
    if p.preset == "quick" and not p.models and {"fig6", "fig7"} & set(p.targets):
        kinds = [
            "Figures 6 and 7 ask other seeds of the same small network here, not a less regularised model and one of another kind."
        ]
    return [
        published.PROVISO,
        f"Models here: {models}. Labels here: {who}; the paper's: VASP.",
        f"Preset {p.preset}: NVE of {e.nve_ps:g} ps ({e.water_ps:g} ps above 200 atoms), many runs of {e.drift_ps:g} ps; the paper's take 10 ps "
        "in steps of 0.5 fs.",
        *kinds,
        *learnt,
    ]
