"""Tables that pages show: looks into those of `fdcore.export`, and the history of runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fdcore.human import duration, plus_minus, size, three_digits
from fdcore.records import Score
from fdcore.store.records import Attempt, Run


def atom_row(score: Score, atom: int) -> dict[str, Any]:
    """The row of one atom, under the column names of `export.per_atom_table`."""
    evaluation = score.evaluation
    row: dict[str, Any] = {
        "atom": atom,
        "element": score.structure.symbols[atom],
        "force_delta_eV_per_A": float(evaluation.force_delta_per_atom[atom]),
        "force_direct_norm_eV_per_A": float(np.linalg.norm(evaluation.forces_direct[atom])),
        "force_conservative_norm_eV_per_A": float(np.linalg.norm(evaluation.forces_conservative[atom])),
    }
    if evaluation.confidence is not None:
        row["confidence_eV_per_A"] = float(evaluation.confidence[atom])
    return row


def filter_results(table: pd.DataFrame, verdicts: Sequence[str] = (), text: str = "") -> pd.DataFrame:
    """Rows of `export.results_table` with one of these verdicts (none: all) and this text in file, formula or reason."""
    keep = pd.Series(True, index=table.index)
    if verdicts:
        keep &= table["verdict"].isin(list(verdicts))
    wanted = text.strip().lower()
    if wanted:
        searched = [c for c in ("file", "formula", "error", "warnings") if c in table]
        words = table[searched].fillna("").astype(str).agg(" ".join, axis=1).str.lower()
        keep &= words.str.contains(wanted, regex=False)
    return table[keep].reset_index(drop=True)


def row_key(table: pd.DataFrame, row: int) -> tuple[str, int | None]:
    """Which structure a row of `export.results_table` stands for: its file and frame."""
    index = table["index"].iloc[row] if "index" in table else None
    return str(table["file"].iloc[row]), None if pd.isna(index) else int(index)


def columns_with_content(table: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Those of `columns` that exist and are not empty in every row."""
    present = [c for c in columns if c in table]
    return [c for c in present if (table[c].notna() & (table[c].astype(str) != "")).any()]


def runs_table(listed: Sequence[Run], timezone: str = "UTC") -> pd.DataFrame:
    """One row per ended run: state, title, task, model, when it ended in `timezone`, how long it took, what it found."""
    ended = pd.Series([r.ended_at for r in listed], dtype="float64")
    return pd.DataFrame(
        {
            "state": [r.state for r in listed],
            "title": [r.title for r in listed],
            "task": [r.task for r in listed],
            "model": [r.spec.model.id if r.spec.model else "" for r in listed],
            "ended": pd.to_datetime(ended, unit="s", utc=True).dt.tz_convert(timezone),
            "took": [duration(r.seconds) for r in listed],
            "found": [_found(r) for r in listed],
            "attempts": [r.attempt for r in listed],
            "size": [size(r.bytes) for r in listed],
            "shared": [r.share is not None for r in listed],
        }
    )


def _found(run: Run) -> str:
    """The result in a few words."""
    if run.error:
        return run.error
    if run.task in FOUND and run.summary:
        # A summary of an older version may lack what is said here.
        with contextlib.suppress(KeyError):
            return FOUND[run.task](run.summary)
    if run.state == "cancelled" and run.total:
        return f"{run.text}, {run.done / run.total:.0%} done"
    return run.text


def _scored(summary: Mapping[str, Any]) -> str:
    failed = summary["failed"]
    return f"{summary['scored']} scored" + (f", {failed} failed" if failed else "")


def _screened(summary: Mapping[str, Any]) -> str:
    worst = summary["largest_force_delta_eV_per_A"]
    largest = "" if worst is None else f", U_Delta up to {three_digits(worst)} eV/Å"
    return f"{summary['structures']:,} screened, {summary['failed']:,} failed{largest}"


def _attacked(summary: Mapping[str, Any]) -> str:
    return f"{summary['steps_done']:,} steps of {summary['starts']} starts"


def _compared(summary: Mapping[str, Any]) -> str:
    failed = summary["failed"]
    return f"{summary['compared']} compared with a reference" + (f", {failed} failed" if failed else "")


def _labelled(summary: Mapping[str, Any]) -> str:
    failed = summary["failed"]
    return f"{summary['labelled']} labelled by {summary['reference']}" + (f", {failed} failed" if failed else "")


def _checked(summary: Mapping[str, Any]) -> str:
    how = "agrees" if summary["passed"] else "DOES NOT AGREE"
    share = summary["forces_conservative_error"] / max(summary["forces_conservative_scale"], 1e-300)
    return f"F_c {how} with differences, to {share:.0e} of its largest component"


def _spread(summary: Mapping[str, Any]) -> str:
    failed = summary["failed"]
    return f"{summary['compared']} under {summary['members']} models" + (f", {failed} failed" if failed else "")


def _examined(summary: Mapping[str, Any]) -> str:
    missing = summary["missing"]
    return f"{summary['examined']} examined" + (f", {missing} parts missing" if missing else "")


def _finetuned(summary: Mapping[str, Any]) -> str:
    return f"{summary['model']}, {summary['epochs_done']} epochs on {summary['n_trained']} structures"


def _steadied(summary: Mapping[str, Any]) -> str:
    return f"{summary['models']} models, {summary['nve_runs']} NVE runs each"


def _looped(summary: Mapping[str, Any]) -> str:
    return f"{summary['generations']} generations, {summary['labelled']} labelled structures, {len(summary['trained'])} models"


def _relaxed(summary: Mapping[str, Any]) -> str:
    ends, most = summary["relaxed"], max((n for _, n in summary["relaxed"]), default=0)
    converged = sum(converged for converged, _ in ends)
    if len(ends) == 1:
        return f"{'converged' if converged else 'not converged'} after {_iterations(most)}"
    return f"{converged} of {len(ends)} converged within {_iterations(most)}"


def _iterations(number: int) -> str:
    return f"{number:,} iteration{'' if number == 1 else 's'}"


def _moved(summary: Mapping[str, Any]) -> str:
    done, asked = summary["steps_done"][-1], summary["steps_asked"][-1]
    parts = [f"{done:,} steps" if done >= asked else f"ended after {done:,} of {asked:,} steps"]
    mean, ended, systems = summary["force_delta_mean_eV_per_A"], summary["ended"], summary["systems"]
    if ended and systems > 1:
        parts.append(f"{len(ended)} of {systems} ended early")
    parts[-1] += _why(ended)
    if mean is not None:
        parts.append(f"U_Delta {plus_minus(mean, None)} eV/Å on average")
    return ", ".join(parts)


def _advised(summary: Mapping[str, Any]) -> str:
    # The first leg is the equilibration, which is no arm.
    done, asked = summary["steps_done"][1:], summary["steps_asked"][1:]
    whole = sum(d >= a for d, a in zip(done, asked, strict=True))
    return f"{whole} of {len(asked)} arms complete, {asked[0]:,} steps each{_why(summary['ended'])}"


def _why(ended: Sequence[str]) -> str:
    return f" ({', '.join(sorted({REASONS.get(reason, reason) for reason in ended}))})" if ended else ""


# Why a structure ended before its time (fdcore/dynamics/simulation.py), where there is little room.
REASONS = {
    "not-a-number": "blown up",
    "temperature": "too hot",
    "distance": "atoms too close",
    "force-delta": "U_Delta above the bound",
    "force-delta-atom": "u_i above the bound",
    "wall-time": "time is up",
}


def _reproduced(summary: Mapping[str, Any]) -> str:
    failed = summary["failed"]
    done = summary["parts"] - failed
    return f"{done} of {summary['parts']} parts done" + (f", {failed} could not be" if failed else "")


# The result in a few words, by task, from its summary alone.
FOUND: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "screen": _screened,
    "score": _scored,
    "relax": _relaxed,
    "md": _moved,
    "mts-advisor": _advised,
    "attack": _attacked,
    "validate": _compared,
    "label": _labelled,
    "ensemble": _spread,
    "report": _examined,
    "check": _checked,
    "finetune": _finetuned,
    "generations": _looped,
    "stability": _steadied,
    "reproduce": _reproduced,
}


def attempts_table(attempts: Sequence[Attempt]) -> pd.DataFrame:
    """One row per attempt of a run, in the words that are shown."""
    return pd.DataFrame(
        {
            "Attempt": [a.number for a in attempts],
            "Worker": [a.worker for a in attempts],
            "From": [a.done_at_start for a in attempts],
            "To": [a.done_at_end for a in attempts],
            "Outcome": [a.outcome for a in attempts],
            "Why": [a.note for a in attempts],
        }
    )
