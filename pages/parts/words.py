"""The words, icons and help texts that every page shares: the same name for the same thing."""

from __future__ import annotations

import time
from typing import NamedTuple

import streamlit as st

from fdcore.human import count, duration
from fdcore.services import runs


class Sign(NamedTuple):
    """Icon and word always stand together: colour alone carries no meaning."""

    icon: str
    word: str
    color: str


LEVELS = {
    "consistent": Sign(":material/check_circle:", "Consistent", "green"),
    "caution": Sign(":material/warning:", "Caution", "orange"),
    "unreliable": Sign(":material/dangerous:", "Unreliable", "red"),
    "unknown": Sign(":material/help:", "Unknown", "gray"),
    "failed": Sign(":material/error:", "Failed", "red"),
}
STATUSES = {
    "pass": Sign(":material/check_circle:", "pass", "green"),
    "look": Sign(":material/visibility:", "look", "orange"),
    "fail": Sign(":material/dangerous:", "fail", "red"),
    "unknown": Sign(":material/help:", "unknown", "gray"),
}

STATES = {
    "queued": Sign(":material/hourglass_empty:", "Waiting", "gray"),
    "running": Sign(":material/play_circle:", "Running", "blue"),
    "done": Sign(":material/check_circle:", "Done", "green"),
    "failed": Sign(":material/error:", "Failed", "red"),
    "cancelled": Sign(":material/stop_circle:", "Stopped", "orange"),
}
TASKS = {
    "score": "Score",
    "md": "Dynamics",
    "relax": "Relaxation",
    "mts-advisor": "MTS advisor",
    "attack": "Attack",
    "validate": "Validation",
    "ensemble": "Ensemble",
    "report": "Report",
    "check": "Self-check",
    "label": "Labels",
    "finetune": "Fine-tuning",
    "stability": "Stability",
    "generations": "Loop",
    "reproduce": "Reproduction",
    "screen": "Screening",
    "drill": "Drill",
}
LANES = {"quick": "short runs", "long": "long runs", "gpu": "runs on a GPU"}

FORCE_DELTA_HELP = (
    r"$U_\Delta=\sqrt{\frac{1}{3N}\sum_i |\mathbf{F}_{nc,i}-\mathbf{F}_{c,i}|^2}$, in eV/Å: the root mean square of the "
    "difference between the force the model predicts directly (F_nc) and the one that its energy implies (F_c = −dE/dR). "
    "Equation 2 of *When forces disagree*."
)
PER_ATOM_HELP = (
    r"$u_i=\sqrt{|\mathbf{F}_{nc,i}-\mathbf{F}_{c,i}|^2/3}$, in eV/Å. Its root mean square over the atoms is U_Delta, so the "
    "atoms with the largest u_i are the ones that cause it."
)
DIRECT_HELP = "Length of F_nc, the force that the model's force head predicts, in eV/Å."
CONSERVATIVE_HELP = "Length of F_c = −dE/dR, the exact derivative of the model's energy, in eV/Å."
CONFIDENCE_HELP = "The error of the direct force that the model's own confidence head expects on this atom, in eV/Å."
PERCENTILE_HELP = "The share of the model's reference structures on which U_Delta is smaller."

TELLS = (
    "How far the model contradicts itself on this structure, which atoms cause it, and how that compares with structures the "
    "model was tested on. A large U_Delta means that molecular dynamics with the direct force will gain or lose energy here, and "
    "it ranks structures: the higher, the sooner a reference calculation is worth its cost."
)
DOES_NOT_TELL = (
    "It is not an error bar. A mistake that both forces share stays invisible; the size of U_Delta is not the size of the error; "
    "and far from anything the model knows it stops growing while the error goes on. That is why the evidence also looks at "
    "distances, forces, elements and, where the model has one, its confidence head."
)


def plain(text: str) -> str:
    """Text of a user or a file name for a place that reads Markdown: shown as it is, never as markup."""
    text = text.replace("`", "")
    for mark in "\\*_{}[]()<>#+-.!|~:$":
        text = text.replace(mark, "\\" + mark)
    return text.replace("\n", " ")


def when(seconds: float | None) -> str:
    """The time today, the day and time before."""
    if seconds is None:
        return "–"
    then = time.localtime(seconds)
    today = time.localtime()
    return time.strftime("%H:%M" if then[:3] == today[:3] else "%d %b %Y %H:%M", then)


def run_progress(run: runs.Run) -> None:
    """One bar with words: what the run does, how far it is, how long still; or what it waits for."""
    if run.state == "queued":
        st.progress(0.0, text=waits_for(run))
        return
    share = min(max(run.done / run.total, 0.0), 1.0) if run.total else 0.0
    text = run.text[:1].upper() + run.text[1:]
    if run.text == "starting":
        model = run.spec.model.id if run.spec.model else "the task"
        text = f"Loading {model}"
    if run.cancel_requested:
        text = "Stopping"
    elif run.seconds_left is not None and run.seconds_left >= 2:
        text += f", about {duration(run.seconds_left)} left"
    if run.attempt > 1:
        text += f" (attempt {run.attempt})"
    st.progress(share, text=plain(text))


def waits_for(run: runs.Run) -> str:
    """Who waits for what, in words."""
    waiting = runs.waiting(run)
    lane = LANES.get(run.lane, run.lane)
    if not waiting.slots:
        return f"Waiting for a worker that takes {lane}: none is running yet."
    if waiting.ahead:
        return f"Waiting for its turn among {lane}: {count(waiting.ahead, 'run')} before it, {waiting.holding} running."
    if waiting.holding >= waiting.slots:
        return (
            f"Next among {lane}, when {'the one' if waiting.holding == 1 else 'one of those'} that runs now has ended."
        )
    return "Starting."
