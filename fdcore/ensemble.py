"""How far the members of an ensemble of models disagree, beside how far one model disagrees with itself.

Pure functions of arrays, and of what the task `ensemble` keeps; forces and spreads in eV/Å.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fdcore import delta
from fdcore.errors import UsageError
from fdcore.records import Evaluation, Failure, FloatArray, Prediction, Structure
from fdcore.statistics import RankCorrelation, rank_correlation
from fdcore.store.series import read_notes, read_table

TASK = "ensemble"
# A member this many times as far from the mean of the others as the middle one is called an outlier.
FAR = 2.0
# Fewer structures than this rank nothing.
FEWEST = 5


# ---- pure functions of forces --------------------------------------------------------------------------------------


def ensemble_spread_per_atom(forces_driving: ArrayLike) -> FloatArray:
    """sqrt(1/3 1/(M-1) sum_m |F_m,i - mean F_i|^2) of M members, (M, N, 3) in eV/Å: the standard deviation (the unbiased variance's
    root) of a force component on each atom, (N,)."""
    forces = _members(forces_driving)
    return np.sqrt(forces.var(axis=0, ddof=1).mean(axis=1))


def ensemble_spread(forces_driving: ArrayLike) -> float:
    """U_var: the RMS of `ensemble_spread_per_atom` over the atoms, in eV/Å; sqrt(1/(3N) 1/(M-1) sum_i,m |F_m,i - mean F_i|^2).

    The paper ranks by the variance, its square: the ranks are the same, and the unit is that of U_Delta.
    """
    return float(np.sqrt(_members(forces_driving).var(axis=0, ddof=1).mean()))


def pairwise_differences(forces_driving: ArrayLike) -> FloatArray:
    """RMS difference of every pair of members, (M, M) in eV/Å, zero on the diagonal."""
    forces = _members(forces_driving)
    apart = forces[:, None] - forces[None]
    return np.sqrt((apart**2).mean(axis=(2, 3)))


def from_the_others(forces_driving: ArrayLike) -> FloatArray:
    """RMS difference of every member from the mean of the others, (M,) in eV/Å."""
    forces = _members(forces_driving)
    m = len(forces)
    # F - (S - F) / (M - 1) = M (F - mean) / (M - 1)
    return m / (m - 1) * np.sqrt(((forces - forces.mean(axis=0)) ** 2).mean(axis=(1, 2)))


def outlier(distances: ArrayLike) -> int | None:
    """The member that is farthest from the others, where it is more than FAR times as far as the middle one; of two members neither is."""
    found = np.asarray(distances, dtype=np.float64)
    if len(found) < 3:
        return None
    far = int(found.argmax())
    return far if found[far] > FAR * float(np.median(found)) else None


def _members(forces_driving: ArrayLike) -> NDArray[np.float64]:
    forces = np.asarray(forces_driving, dtype=np.float64)
    if forces.ndim != 3 or forces.shape[2] != 3 or forces.shape[0] < 2 or forces.shape[1] < 1:
        raise UsageError(
            f"Forces (M, N, 3) of at least two members are needed, not {forces.shape}.",
            "Add a model to the ensemble.",
        )
    return forces


# ---- what the task keeps -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """One structure under the ensemble: both forces of the model that is judged, and the one force of every member that could.

    seconds_both, seconds: what both forces of that model and the force of each member took, measured in turn in one run.
    left_out: members that failed on it, with the reason.
    """

    position: int
    structure: Structure
    evaluation: Evaluation
    members: Mapping[str, Prediction]
    seconds_both: float
    seconds: Mapping[str, float]
    left_out: Mapping[str, str]

    @property
    def forces_driving(self) -> FloatArray | None:
        """(M, N, 3), None with fewer than two members."""
        return np.stack([p.forces_driving for p in self.members.values()]) if len(self.members) > 1 else None

    @property
    def ensemble_spread(self) -> float | None:
        forces = self.forces_driving
        return None if forces is None else ensemble_spread(forces)

    @property
    def ensemble_spread_per_atom(self) -> FloatArray | None:
        forces = self.forces_driving
        return None if forces is None else ensemble_spread_per_atom(forces)

    @property
    def outlier(self) -> str | None:
        """The member that is far from all others."""
        forces = self.forces_driving
        found = None if forces is None else outlier(from_the_others(forces))
        return None if found is None else tuple(self.members)[found]

    @property
    def confidence(self) -> float | None:
        """Mean of the confidence head (eV/Å), where the model has one."""
        return None if self.evaluation.confidence is None else float(self.evaluation.confidence.mean())

    @property
    def error_direct(self) -> float | None:
        """eps_nc where the file brought labels."""
        return self._error(self.evaluation.forces_direct)

    @property
    def error_conservative(self) -> float | None:
        """eps_c where the file brought labels."""
        return self._error(self.evaluation.forces_conservative)

    @property
    def error_mean(self) -> float | None:
        """The error of the ensemble's mean force where the file brought labels."""
        forces = self.forces_driving
        return None if forces is None else self._error(forces.mean(axis=0))

    def _error(self, forces: FloatArray) -> float | None:
        reference: Any = self.structure.labels.get("forces_eV_per_A")
        return None if reference is None else delta.rms_difference(forces, reference)


@dataclass(frozen=True)
class Compared:
    """The whole run: structures in order, failures, members in order with the reason of those that could not be loaded."""

    model_id: str
    members: tuple[str, ...]
    spreads: tuple[Spread, ...]
    failures: tuple[Failure, ...]
    unloadable: Mapping[str, str]

    @property
    def seconds_both(self) -> float:
        """Of both forces of the judged model, over the structures that all members could do."""
        return float(sum(s.seconds_both for s in self._complete))

    @property
    def seconds_ensemble(self) -> float:
        """Of the forces of all members, over the same structures."""
        return float(sum(sum(s.seconds.values()) for s in self._complete))

    @property
    def relative_cost(self) -> float | None:
        """Time of U_Delta over that of U_var; None before a structure was done by all members."""
        return self.seconds_both / self.seconds_ensemble if self.seconds_ensemble > 0 else None

    @property
    def _complete(self) -> list[Spread]:
        able = set(self.members) - set(self.unloadable)
        return [s for s in self.spreads if set(s.members) == able and len(able) > 1]

    def pairwise(self) -> FloatArray | None:
        """RMS difference of every pair of members over all structures that both could do (every component counts the same), (M, M)
        in eV/Å; NaN where there is none."""
        m = len(self.members)
        if m < 2:
            return None
        squares, counts = np.zeros((m, m)), np.zeros((m, m))
        place = {name: k for k, name in enumerate(self.members)}
        for spread in self.spreads:
            names = list(spread.members)
            for a, first in enumerate(names):
                for second in names[a + 1 :]:
                    apart = spread.members[first].forces_driving - spread.members[second].forces_driving
                    i, j = place[first], place[second]
                    squares[i, j] += float((apart**2).sum())
                    counts[i, j] += apart.size
        squares, counts = squares + squares.T, counts + counts.T
        with np.errstate(invalid="ignore", divide="ignore"):
            out = np.sqrt(squares / counts)
        np.fill_diagonal(out, 0.0)
        return out


@dataclass(frozen=True)
class Ranking:
    """How well one estimate ranks one error: `estimate` and `error` by name."""

    estimate: str
    error: str
    found: RankCorrelation


ESTIMATES = {"force_delta": "U_Delta", "ensemble_spread": "U_var", "confidence": "confidence head"}
ERRORS = {"error_direct": "eps_nc", "error_conservative": "eps_c", "error_mean": "error of the mean force"}


def rankings(compared: Compared, seed: int = 0) -> list[Ranking]:
    """Spearman's r_s of every estimate with every error, over the structures that have labels and all of the estimates, so that the
    figures compare."""
    able = [s for s in _distinct(compared) if s.error_direct is not None]
    if len(able) < FEWEST:
        return []
    values = {e: [_value(s, e) for s in able] for e in ESTIMATES}
    known = {e: np.array(v, dtype=np.float64) for e, v in values.items() if None not in v}
    errors = {e: np.array([getattr(s, e) for s in able], dtype=np.float64) for e in ERRORS}
    return [
        Ranking(estimate, error, rank_correlation(known[estimate], errors[error], seed=seed))
        for estimate in known
        for error in errors
    ]


def agreement(compared: Compared, seed: int = 0) -> RankCorrelation:
    """Spearman's r_s of U_Delta with U_var: do they point at the same structures?"""
    able = _distinct(compared)
    if len(able) < FEWEST:
        return RankCorrelation(len(able), None, None, None)
    spreads = np.array([s.ensemble_spread for s in able], dtype=np.float64)
    return rank_correlation([s.evaluation.force_delta for s in able], spreads, seed=seed)


def _distinct(compared: Compared) -> list[Spread]:
    """Those that have a spread; a structure that was brought twice counts once."""
    return list({s.structure.content_id: s for s in compared.spreads if s.ensemble_spread is not None}.values())


def _value(spread: Spread, estimate: str) -> float | None:
    return spread.evaluation.force_delta if estimate == "force_delta" else getattr(spread, estimate)


def read(folder: Path | None, model_id: str, members: Sequence[str], structures: Sequence[Structure]) -> Compared:
    """What an attempt's folder holds so far."""
    if folder is None:
        return Compared(model_id, tuple(members), (), (), {})
    rows, atoms = read_table(folder, "structures"), read_table(folder, "atoms")
    by, forces = read_table(folder, "members"), read_table(folder, "member_atoms")
    failures, unloadable, left_out = [], {}, {}
    for note in read_notes(folder):
        if "position" not in note:
            unloadable[note["member"]] = note["error"]
        elif "member" in note:
            left_out.setdefault(int(note["position"]), {})[note["member"]] = note["error"]
        else:
            s = structures[note["position"]]
            failures.append(Failure(s.file, note["error"], note["hint"], s.index))
    of_members: dict[int, list[int]] = {}
    for k, position in enumerate(by.get("position", ())):
        if by["first_atom"][k] + by["n_atoms"][k] <= len(forces["forces_driving_eV_per_A"]):
            of_members.setdefault(int(position), []).append(k)
    spreads = []
    for k, position in enumerate(map(int, rows.get("position", ()))):
        part = slice(int(rows["first_atom"][k]), int(rows["first_atom"][k] + rows["n_atoms"][k]))
        if part.stop > len(atoms["forces_direct_eV_per_A"]):
            break
        confidence = atoms["confidence_eV_per_A"][part]
        mine = of_members.get(position, [])
        spreads.append(
            Spread(
                position=position,
                structure=structures[position],
                evaluation=Evaluation(
                    float(rows["energy_eV"][k]),
                    atoms["forces_direct_eV_per_A"][part],
                    atoms["forces_conservative_eV_per_A"][part],
                    None if np.isnan(confidence).any() else confidence,
                ),
                members={
                    members[int(by["member"][j])]: Prediction(
                        float(by["energy_eV"][j]),
                        forces["forces_driving_eV_per_A"][int(by["first_atom"][j]) :][: int(by["n_atoms"][j])],
                    )
                    for j in mine
                },
                seconds_both=float(rows["seconds"][k]),
                seconds={members[int(by["member"][j])]: float(by["seconds"][j]) for j in mine},
                left_out=left_out.get(position, {}),
            )
        )
    return Compared(model_id, tuple(members), tuple(spreads), tuple(failures), unloadable)


# ---- plain rows ----------------------------------------------------------------------------------------------------


def as_rows(compared: Compared) -> list[dict[str, Any]]:
    """One plain row per structure; what does not exist is None."""
    return [
        {
            "file": s.structure.file,
            "index": s.structure.index,
            "formula": s.structure.formula,
            "n_atoms": s.structure.n_atoms,
            "force_delta_eV_per_A": s.evaluation.force_delta,
            "ensemble_spread_eV_per_A": s.ensemble_spread,
            "confidence_eV_per_A": s.confidence,
            "members": list(s.members),
            "left_out": dict(s.left_out),
            "outlier": s.outlier,
            "error_direct_eV_per_A": s.error_direct,
            "error_conservative_eV_per_A": s.error_conservative,
            "error_mean_eV_per_A": s.error_mean,
            "seconds_force_delta": s.seconds_both,
            "seconds_ensemble": sum(s.seconds.values()) if len(s.seconds) > 1 else None,
        }
        for s in compared.spreads
    ]


def ranking_rows(found: Iterable[Ranking]) -> list[dict[str, Any]]:
    """One plain row per estimate and error."""
    return [
        {
            "estimate": r.estimate,
            "error": r.error,
            "n": r.found.n,
            "r_s": r.found.r_s,
            "r_s_ci": None if r.found.low is None else [r.found.low, r.found.high],
        }
        for r in found
    ]
