"""The charts of stability: figures 4 and 8 of the paper, errors by band, and U_Delta against them. Altair in, no widgets."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from fdcore.drifts import Measured
from fdcore.plots import QUIET, chart_title

# One colour per model in its order: Okabe & Ito 2008, readable on light and dark and by the colour blind; the first is the base.
COLOURS = [
    "#7f8c93",
    "#E69F00",
    "#0072B2",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#8c6d1f",
    "#4b6b50",
    "#7b3f61",
    "#35618e",
    "#999933",
]
# Beyond so many points of a run it is drawn by every so many.
MOST_POINTS = 200
Chart = alt.LayerChart | alt.FacetChart | alt.Chart | alt.VConcatChart | alt.HConcatChart


def names_of(found: Measured) -> dict[str, str]:
    """What each model is called in the charts, by its id: short, and no two alike."""
    return {m.id: (m.id if len(m.id) <= 28 else f"{m.id[:16]}…{m.id[-9:]}") for m in found.models}


def _colour(found: Measured, legend: bool = True) -> alt.Color:
    names = list(names_of(found).values())
    return alt.Color(
        "model:N",
        scale=alt.Scale(domain=names, range=COLOURS[: len(names)]),
        legend=alt.Legend(title=None, orient="top", direction="horizontal", labelLimit=320, columns=2)
        if legend
        else None,
    )


def drift_bars(found: Measured) -> Chart:
    """Figure 4: the mean |drift| of every model, a dot per run, with the interval of the mean."""
    names = names_of(found)
    bars, dots = [], []
    for model in found.models:
        drift = model.drift
        if drift is None:
            continue
        half = drift.half_width or 0.0
        bars.append(
            {
                "model": names[model.id],
                "drift": drift.value,
                "low": max(0.0, drift.value - half),
                "high": drift.value + half,
                "n": drift.n,
                "total": drift.value * found.picoseconds,
            }
        )
        dots += [
            {"model": names[model.id], "drift": abs(r.drift.slope), "seed": r.seed}
            for r in model.runs
            if r.drift is not None
        ]
    data = pd.DataFrame(bars, columns=["model", "drift", "low", "high", "n", "total"])
    x = alt.X("model:N", sort=None, title=None, axis=alt.Axis(labelAngle=-20, labelLimit=240))
    y = alt.Y("drift:Q", title="|drift| (meV/atom/ps)")
    base = alt.Chart(data)
    bar = base.mark_bar(size=46, opacity=0.85).encode(
        x=x,
        y=y,
        color=_colour(found, legend=False),
        tooltip=[
            alt.Tooltip("model:N", title="model"),
            alt.Tooltip("drift:Q", title="mean |drift|, meV/atom/ps", format=".3g"),
            alt.Tooltip("low:Q", title="95 % from", format=".3g"),
            alt.Tooltip("high:Q", title="to", format=".3g"),
            alt.Tooltip("total:Q", title=f"after {found.picoseconds:g} ps, meV/atom", format=".3g"),
            alt.Tooltip("n:Q", title="runs"),
        ],
    )
    whisker = base.mark_rule(strokeWidth=2, color="#3b4348").encode(x=x, y="low:Q", y2="high:Q")
    points = (
        alt.Chart(pd.DataFrame(dots, columns=["model", "drift", "seed"]))
        .mark_point(size=22, filled=True, color="#3b4348", opacity=0.7)
        .encode(
            x=x,
            y=y,
            tooltip=[alt.Tooltip("seed:Q", title="seed"), alt.Tooltip("drift:Q", title="|drift|", format=".3g")],
        )
    )
    title = chart_title(
        "Energy drift of NVE driven by F_nc",
        f"bars: mean over the seeds with its 95 % interval; dots: single runs of {found.picoseconds:g} ps",
    )
    return alt.layer(bar, whisker, points).properties(title=title, height=280, width="container")


def energy_lines(found: Measured) -> Chart:
    """Figure 8: the energy per atom from its start against time, a line per run."""
    names = names_of(found)
    parts = []
    for model in found.models:
        for run in model.runs:
            keep = (
                np.unique(np.linspace(0, len(run.time_ps) - 1, MOST_POINTS).round().astype(int))
                if len(run.time_ps)
                else []
            )
            parts.append(
                pd.DataFrame(
                    {
                        "time": run.time_ps[keep],
                        "energy": run.energy_meV_per_atom[keep],
                        "model": names[model.id],
                        "run": f"{model.id}/{run.parent}/{run.seed}",
                    }
                )
            )
    data = pd.concat(parts) if parts else pd.DataFrame({"time": [], "energy": [], "model": [], "run": []})
    return (
        alt.Chart(data)
        .mark_line(strokeWidth=1.2, opacity=0.75)
        .encode(
            x=alt.X("time:Q", title="time (ps)"),
            y=alt.Y("energy:Q", title="E - E(0) (meV/atom)"),
            color=_colour(found),
            detail="run:N",
            tooltip=[
                alt.Tooltip("model:N", title="model"),
                alt.Tooltip("time:Q", title="ps", format=".3g"),
                alt.Tooltip("energy:Q", title="meV/atom", format=".3g"),
            ],
        )
        .properties(
            title=chart_title("Total energy of NVE driven by F_nc, a line per run"), height=280, width="container"
        )
    )


QUANTITIES = {"error_direct": "eps_nc", "error_conservative": "eps_c", "force_delta": "U_Delta"}


def band_lines(found: Measured) -> Chart:
    """Errors of both forces and U_Delta by displacement, side by side over the same axis; only U_Delta without a reference."""
    names = names_of(found)
    rows = [
        {"model": names[m.id], "sigma": b.sigma_A, "quantity": words, "value": getattr(b, key), "n": b.n}
        for m in found.models
        for b in m.bands
        for key, words in QUANTITIES.items()
        if getattr(b, key) is not None
    ]
    data = pd.DataFrame(rows, columns=["model", "sigma", "quantity", "value", "n"])
    shown = [words for words in QUANTITIES.values() if (data["quantity"] == words).any()] or ["U_Delta"]
    top = float(data["value"].max()) if len(data) else 1.0
    panels = [
        alt.Chart(data[data["quantity"] == words])
        .mark_line(point=True)
        .encode(
            x=alt.X("sigma:Q", title="displacement σ (Å)"),
            y=alt.Y("value:Q", title="eV/Å", scale=alt.Scale(domain=[0, top])),
            color=_colour(found, legend=words == shown[0]),
            tooltip=[
                alt.Tooltip("model:N", title="model"),
                alt.Tooltip("sigma:Q", title="σ, Å"),
                alt.Tooltip("value:Q", title=f"{words}, eV/Å", format=".3g"),
                alt.Tooltip("n:Q", title="copies"),
            ],
        )
        .properties(title=chart_title(words), height=200, width=190)
        for words in shown
    ]
    return alt.hconcat(*panels).resolve_scale(color="shared").configure_axis(titleColor=QUIET)


WHERE = ("NVE", "displaced copies")


def force_delta_boxes(found: Measured) -> Chart:
    """The distribution of U_Delta of every model: along the NVE runs, and on the displaced copies."""
    names = names_of(found)
    rows = [
        {"model": names[m.id], "where": where, "u": float(u)}
        for m in found.models
        for where, values in zip(WHERE, (m.force_delta_nve, m.force_delta_displaced), strict=True)
        for u in values
        if u > 0
    ]
    data = pd.DataFrame(rows, columns=["model", "where", "u"])
    shown = [w for w in WHERE if (data["where"] == w).any()] or list(WHERE[:1])
    panels = [
        alt.Chart(data[data["where"] == where])
        .mark_boxplot(size=24, extent="min-max")
        .encode(
            x=alt.X("model:N", sort=None, title=None, axis=alt.Axis(labelAngle=-20, labelLimit=180)),
            y=alt.Y("u:Q", title="U_Delta (eV/Å)", scale=alt.Scale(type="log", nice=True)),
            color=_colour(found, legend=False),
        )
        .properties(title=chart_title(f"U_Delta, {where}"), height=220, width=270)
        for where in shown
    ]
    return alt.hconcat(*panels).resolve_scale(y="independent")
