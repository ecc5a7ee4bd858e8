"""What a recorded fine-tuning says so far: losses, errors, where its model is. Pure functions of what the task `finetune` keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdcore.store.series import read_notes, read_result, read_table
from fdcore.tasks.finetune import MODEL, PARTS_SEEN, WHEN

TASK = "finetune"
QUANTITIES = {
    "error_direct_eV_per_A": "eps_nc (eV/Å)",
    "error_conservative_eV_per_A": "eps_c (eV/Å)",
    "force_delta_eV_per_A": "U_Delta (eV/Å)",
    "error_energy_meV_per_atom": "energy MAE (meV/atom)",
}
# On the base model's own domain an error may grow by so much before it is called forgetting.
FORGOTTEN = 1.2


@dataclass(frozen=True)
class Trained:
    """A fine-tuning as far as it is: columns of its tables (see fdcore/tasks/finetune.py), its notes, and its result (None: not yet)."""

    steps: Mapping[str, NDArray[Any]]
    checks: Mapping[str, NDArray[Any]]
    notes: tuple[Mapping[str, Any], ...]
    result: Mapping[str, Any] | None
    folder: Path | None

    @property
    def model_folder(self) -> Path | None:
        """Where the model is, None before it is finished."""
        return None if self.folder is None or self.result is None else self.folder / MODEL

    def at(self, when: str, part: str) -> dict[str, float] | None:
        """The errors on a part "before" or "after", with "n_structures"; None where they are not known (yet)."""
        if not self.checks:
            return None
        rows = (self.checks["when"] == WHEN.index(when)) & (self.checks["part"] == PARTS_SEEN.index(part))
        if not rows.any():
            return None
        names = ("n_structures", *QUANTITIES)
        return {name: float(self.checks[name][rows][-1]) for name in names}

    @property
    def epochs(self) -> dict[str, NDArray[Any]]:
        """The held-out errors after each epoch; "epoch" counts from 1."""
        if not self.checks:
            return {}
        rows = (self.checks["when"] == WHEN.index("epoch")) & (self.checks["part"] == PARTS_SEEN.index("held-out"))
        return {name: column[rows] for name, column in self.checks.items()}

    @property
    def left_out(self) -> tuple[Mapping[str, Any], ...]:
        """Structures without an energy or a force, with the reason."""
        return tuple(n for n in self.notes if "left_out" in n)


def read(folder: Path | None) -> Trained:
    """What an attempt's folder holds so far."""
    if folder is None:
        return Trained({}, {}, (), None, None)
    return Trained(
        read_table(folder, "steps"),
        read_table(folder, "checks"),
        tuple(read_notes(folder)),
        read_result(folder),
        folder,
    )


def loss_per_epoch(found: Trained) -> dict[str, NDArray[np.float64]]:
    """Means over the steps of each epoch (counted from 1) of the loss and its parts; parts that are not minimised are left out."""
    if not found.steps or not len(found.steps["epoch"]):
        return {}
    epochs, where = np.unique(found.steps["epoch"], return_inverse=True)
    out: dict[str, NDArray[np.float64]] = {"epoch": epochs + 1.0}
    for name in ("loss", "loss_energy", "loss_direct", "loss_conservative"):
        sums = np.bincount(where, weights=found.steps[name]) / np.bincount(where)
        if np.isfinite(sums).all():
            out[name] = sums
    return out


def error_rows(found: Trained) -> list[dict[str, Any]]:
    """One plain row per part and quantity: before, after, and after / before; None: not known."""
    rows = []
    for part in PARTS_SEEN:
        before, after = found.at("before", part), found.at("after", part)
        if before is None:
            continue
        for name, words in QUANTITIES.items():
            later = None if after is None else after[name]
            ratio = later / before[name] if later is not None and before[name] > 0 else None
            rows.append(
                {
                    "part": part,
                    "n": int(before["n_structures"]),
                    "quantity": words,
                    "before": before[name],
                    "after": later,
                    "ratio": ratio,
                }
            )
    return rows


def forgetting(found: Trained, first: Trained | None = None) -> str:
    """In words whether the model became worse at what it was made for; empty where there is no replay set, or not yet. `first`: the
    earliest of several trainings one after the other, before which it is held."""
    before, after = (first or found).at("before", "replay"), found.at("after", "replay")
    if before is None or after is None:
        done = found.at("after", "train") is not None
        return (
            "Whether it has forgotten what the base model knew was not looked at: there was no replay set."
            if done
            else ""
        )
    names = ("error_direct_eV_per_A", "error_conservative_eV_per_A", "error_energy_meV_per_atom")
    grown = {QUANTITIES[n]: after[n] / before[n] for n in names if before[n] > 0 and after[n] > FORGOTTEN * before[n]}
    n = int(before["n_structures"])
    if not grown:
        return f"It has not forgotten: on {n} structures of the base model's own domain none of the errors grew by more than {FORGOTTEN - 1:.0%}."
    what = " and ".join(f"{name.split(' ')[0]} is {ratio:.2g} times what it was" for name, ratio in grown.items())
    return (
        f"It has forgotten some of what it knew: on {n} structures of the base model's own domain {what}. Use it only near what it was "
        "fine-tuned on, or fine-tune again with a lower learning rate, fewer epochs, or low-rank."
    )


def warning(found: Trained) -> str:
    """Why the model should not be used; empty where nothing speaks against it, or before there is one."""
    part = "held-out" if found.at("after", "held-out") else "train"
    before, after = found.at("before", part), found.at("after", part)
    if before is None or after is None:
        return ""
    # Not a number moved: training kept what it began with.
    if all(after[n] == before[n] for n in QUANTITIES):
        return "No epoch was better on the held-out structures than what it began with: these are still those weights. Lower the learning rate, or label more."
    worse = [n for n in ("error_direct_eV_per_A", "error_conservative_eV_per_A") if not after[n] <= before[n]]
    if not worse:
        return ""
    names = " and ".join(QUANTITIES[n].split(" ")[0] for n in worse)
    where = (
        "labelled structures that it was not trained on"
        if part == "held-out"
        else "the very structures that it was trained on"
    )
    return f"It is worse than the base model on {where}: {names} grew. Lower the learning rate, or label more."


def sentence(found: Trained) -> str:
    """The outcome in one sentence; empty before there is one."""
    part = "held-out" if found.at("after", "held-out") else "train"
    before, after = found.at("before", part), found.at("after", part)
    if before is None or after is None:
        return ""
    where = (
        "labelled structures that it was not trained on" if part == "held-out" else "structures that it was trained on"
    )
    changes = [
        f"{QUANTITIES[name].split(' ')[0]} from {_short(before[name])} to {_short(after[name])}"
        for name in ("error_direct_eV_per_A", "error_conservative_eV_per_A", "force_delta_eV_per_A")
    ]
    n = int(before["n_structures"])
    where = where if n != 1 else where.replace("structures that it was", "structure that it was")
    return f"On {n} {where}, in eV/Å: {', '.join(changes)}."


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "-"
