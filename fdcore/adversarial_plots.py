"""The charts of attacks: Altair in, no widgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from fdcore.adversarial import Adversarial
from fdcore.plots import ACCENT, INK, QUIET, chart_title
from fdcore.validation import Compared

# Beyond so many starts the lines of the charts are those of evenly chosen ones.
MOST_LINES = 40
MOST_POINTS = 3000
AXIS = alt.Axis(minExtent=46, tickCount=5)
Chart = alt.LayerChart | alt.FacetChart | alt.Chart
KINDS = ("on the way", "in the dataset")


def climb_charts(attack: Adversarial, shown: int | None = None) -> tuple[Chart, Chart]:
    """U_Delta and the energy against the step, one thin line per start, stacked over one axis; the start `shown` stands out."""
    climbs = attack.climbs
    if len(climbs) > MOST_LINES:
        keep = set(np.linspace(0, len(climbs) - 1, MOST_LINES).astype(int).tolist())
        climbs = tuple(c for k, c in enumerate(climbs) if k in keep or c.start == shown)
    parts = [
        pd.DataFrame(
            {
                "step": c.columns["step"],
                "u": c.columns["force_delta_eV_per_A"],
                "above": c.columns["above_eV_per_atom"],
                "start": c.start,
                "name": f"start {c.start}",
                "shown": c.start == shown,
            }
        )
        for c in climbs
    ]
    data = pd.concat(parts) if parts else pd.DataFrame(columns=["step", "u", "above", "start", "name", "shown"])
    data["name"] = data["name"].astype(str)
    longest = max(5, int(data["step"].max())) if len(data) else 5
    step = alt.X(
        "step:Q",
        title="step",
        scale=alt.Scale(domain=[0, longest], nice=False),
        axis=alt.Axis(tickCount=6, format="d"),
    )
    lowest = float(min((o.force_delta for o in attack.origins.values() if o.force_delta > 0), default=1e-3))
    u = _lines(
        data,
        step,
        alt.Y("u:Q", title="eV/Å", axis=AXIS, scale=alt.Scale(type="log", nice=True)),
        "U_Delta, one line per start",
        [lowest] if len(attack.origins) == 1 and len(data) else [],
        "dashed: where it began" if len(attack.origins) == 1 else "",
    )
    energy = _lines(
        data,
        step,
        alt.Y("above:Q", title="eV/atom", axis=AXIS),
        "What it costs: energy above the start, per atom",
        [attack.parameters.window_eV_per_atom] if _near_window(attack) else [],
        "dashed: the energy window" if _near_window(attack) else "",
    )
    return u, energy


def _near_window(attack: Adversarial) -> bool:
    """Whether the bound belongs on the chart: drawn far above the lines it would only flatten them."""
    if not attack.n_steps:
        return False
    return float(attack.steps["above_eV_per_atom"].max()) > 0.4 * attack.parameters.window_eV_per_atom


def _lines(data: pd.DataFrame, x: alt.X, y: alt.Y, title: str, rules: Sequence[float], subtitle: str) -> Chart:
    tooltip = [
        alt.Tooltip("name:N", title=" "),
        alt.Tooltip("step:Q", title="step"),
        alt.Tooltip("u:Q", title="U_Delta (eV/Å)", format=".3~g"),
        alt.Tooltip("above:Q", title="above (eV/atom)", format=".3~g"),
    ]
    base = alt.Chart(data).encode(x=x, y=y, detail="start:N", tooltip=tooltip)
    quiet = base.transform_filter("!datum.shown").mark_line(
        strokeWidth=1.2, color=INK, opacity=0.55, point=alt.OverlayMarkDef(size=8, color=INK)
    )
    loud = base.transform_filter("datum.shown").mark_line(
        strokeWidth=2.4, color=ACCENT, point=alt.OverlayMarkDef(size=22, color=ACCENT)
    )
    layers: list[Any] = [quiet, loud]
    for value in rules:
        rule = alt.Chart(pd.DataFrame({"value": [value]})).mark_rule(strokeDash=[5, 4], color=QUIET, strokeWidth=1.5)
        layers.append(rule.encode(y=alt.Y("value:Q")))
    return alt.layer(*layers).properties(height=230, width="container", title=chart_title(title, subtitle))


def map_chart(attack: Adversarial) -> Chart:
    """U_Delta against the energy above the start: every structure that was visited, those of the dataset standing out."""
    chosen = list(attack.selected.rows)
    steps = attack.steps
    if not attack.n_steps:
        return alt.Chart(pd.DataFrame({"u": [], "above": []})).mark_point()
    rows = np.flatnonzero(steps["allowed"] > 0)
    if len(rows) > MOST_POINTS:
        rows = np.union1d(rows[np.linspace(0, len(rows) - 1, MOST_POINTS).astype(int)], chosen).astype(int)
    inside = np.isin(rows, chosen)
    data = pd.DataFrame(
        {
            "u": steps["force_delta_eV_per_A"][rows],
            "above": steps["above_eV_per_atom"][rows],
            "closest": np.minimum(steps["closest_share"][rows], 9.0),
            "what": np.where(inside, KINDS[1], KINDS[0]),
            "name": [f"start{steps['start'][r]:03d}-step{steps['step'][r]:03d}" for r in rows],
            "order": inside,
        }
    ).sort_values("order")
    # Where the forces agree exactly there is no place on a logarithmic axis.
    data = data[data["u"] > 0]
    scale = alt.Scale(domain=list(KINDS), range=[QUIET, ACCENT])
    points = (
        alt.Chart(data)
        .mark_point(filled=True, opacity=0.75)
        .encode(
            x=alt.X("above:Q", title="energy above the start (eV/atom)", axis=alt.Axis(tickCount=6)),
            y=alt.Y("u:Q", title="U_Delta (eV/Å)", axis=AXIS, scale=alt.Scale(type="log", nice=True)),
            color=alt.Color("what:N", scale=scale, legend=alt.Legend(title=None, orient="top")),
            shape=alt.Shape("what:N", scale=alt.Scale(domain=list(KINDS), range=["circle", "diamond"]), legend=None),
            size=alt.Size("what:N", scale=alt.Scale(domain=list(KINDS), range=[18, 90]), legend=None),
            tooltip=[
                alt.Tooltip("name:N", title="structure"),
                alt.Tooltip("u:Q", title="U_Delta (eV/Å)", format=".3~g"),
                alt.Tooltip("above:Q", title="above (eV/atom)", format=".3~g"),
                alt.Tooltip("closest:Q", title="closest pair, of covalent radii", format=".2f"),
            ],
        )
    )
    title = chart_title("Disagreement against what it costs", "every structure that was visited")
    return points.properties(height=330, width="container", title=title)


def errors_chart(compared: Sequence[Compared], reference: str) -> Chart:
    """eps_c and eps_nc against U_Delta, one pair of points per structure, logarithmic; on the diagonal U_Delta is the error."""
    names = ("F_c, conservative", "F_nc, direct")
    data = pd.DataFrame(
        [
            {"u": c.force_delta, "error": error, "force": name, "structure": c.structure.file}
            for c in compared
            for name, error in zip(names, (c.error_conservative, c.error_direct), strict=True)
            if c.force_delta > 0 and error > 0
        ],
        columns=["u", "error", "force", "structure"],
    )
    u = alt.X("u:Q", title="U_Delta (eV/Å)", scale=alt.Scale(type="log", nice=True), axis=alt.Axis(tickCount=5))
    error = alt.Y("error:Q", title="error (eV/Å)", scale=alt.Scale(type="log", nice=True), axis=AXIS)
    scale = alt.Scale(domain=list(names), range=[INK, ACCENT])
    points = (
        alt.Chart(data)
        .mark_point(filled=True, size=55, opacity=0.8)
        .encode(
            x=u,
            y=error,
            color=alt.Color("force:N", scale=scale, legend=alt.Legend(title=None, orient="top")),
            shape=alt.Shape(
                "force:N", scale=alt.Scale(domain=list(names), range=["circle", "triangle-up"]), legend=None
            ),
            tooltip=[
                alt.Tooltip("structure:N"),
                alt.Tooltip("force:N", title="error of"),
                alt.Tooltip("u:Q", title="U_Delta (eV/Å)", format=".3~g"),
                alt.Tooltip("error:Q", title="error (eV/Å)", format=".3~g"),
            ],
        )
    )
    layers: list[Any] = [points]
    if len(data):
        ends = [float(data["u"].min()), float(data["u"].max())]
        line = alt.Chart(pd.DataFrame({"u": ends, "error": ends})).mark_line(strokeDash=[5, 4], color=QUIET)
        layers.insert(0, line.encode(x=u, y=error))
    title = chart_title(f"Errors against {reference}", "dashed: error = U_Delta")
    return alt.layer(*layers).properties(height=330, width="container", title=title)
