"""The figures of the paper, drawn of what was found here. Altair in, no widgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from fdcore import drift_plots
from fdcore.plots import chart_title
from fdcore.reproduction import Finding

Chart = alt.LayerChart | alt.FacetChart | alt.Chart | alt.VConcatChart | alt.HConcatChart
# The paper's own colours of the drivers, from the palette that the colour blind can read: F_c calm, F_nc not.
F_NC, F_C = "#D55E00", "#009E73"
PANEL = 300


def charts(found: Finding) -> dict[str, Chart]:
    """By name; empty where there is nothing to draw (tables, and what has not been done)."""
    target = found.target.id
    if found.lines:
        quantity = "temperature (K)" if target == "nvt" else "E - E(0) (meV/atom)"
        return {target: _lines(found.lines, quantity)}
    if found.points and target in ("fig2", "table2"):
        return {target: _errors(found.points)}
    if found.points:
        return {target: _predictors(found.points)}
    drawn: dict[str, Chart] = {}
    for number, (_, measured) in enumerate(found.measured, 1):
        name = target if len(found.measured) == 1 else f"{target}-{number}"
        drawn[name] = drift_plots.drift_bars(measured) if target == "fig4" else drift_plots.energy_lines(measured)
    return drawn


def _lines(rows: Sequence[Mapping[str, Any]], quantity: str) -> Chart:
    """A panel per system; the run driven by F_nc and that by F_c."""
    data = pd.DataFrame(rows)
    runs = list(dict.fromkeys(data["run"]))
    spare = [c for c in drift_plots.COLOURS if c not in (F_NC, F_C)]
    first: set[str] = set()
    colours = []
    for run in runs:
        driver = F_NC if run.endswith("F_nc") else F_C
        colours.append(driver if driver not in first else spare[len(colours) % len(spare)])
        first.add(driver)
    panels = [
        alt.Chart(data[data["system"] == system])
        .mark_line(strokeWidth=1.6)
        .encode(
            x=alt.X("time_ps:Q", title="time (ps)"),
            y=alt.Y("value:Q", title=quantity, scale=alt.Scale(zero=False)),
            color=alt.Color(
                "run:N",
                scale=alt.Scale(domain=runs, range=colours),
                legend=alt.Legend(title=None, orient="top", direction="vertical", labelLimit=PANEL),
            ),
            tooltip=[
                alt.Tooltip("run:N", title="run"),
                alt.Tooltip("time_ps:Q", title="ps", format=".3g"),
                alt.Tooltip("value:Q", title=quantity, format=".4g"),
            ],
        )
        .properties(title=chart_title(str(system)), height=220, width=PANEL)
        for system in dict.fromkeys(data["system"])
    ]
    return alt.hconcat(*panels).resolve_scale(color="shared")


def _errors(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """(a) eps_c and (b) eps_nc against U_Delta, both on logarithmic axes, a colour per system."""
    data = pd.DataFrame(rows)
    data = data[(data["x"] > 0) & (data["y"] > 0)]
    panels = [
        _scatter(data[data["what"] == what], "U_Delta (eV/Å)", f"{what} (eV/Å)", f"({letter}) {what}", log=True)
        for letter, what in (("a", "eps_c"), ("b", "eps_nc"))
    ]
    return alt.hconcat(*panels).resolve_scale(color="shared", shape="shared")


def _predictors(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """|drift| against the mean of each along the run."""
    data = pd.DataFrame(rows)
    panels = [
        _scatter(
            data[data["what"] == what], f"mean {what} (eV/Å)", "|drift| (meV/atom/ps)", f"({letter}) {what}", log=True
        )
        for letter, what in (("a", "eps_nc"), ("b", "U_Delta"), ("c", "eps_c"))
        if (data["what"] == what).any()
    ]
    return alt.hconcat(*panels).resolve_scale(color="shared", shape="shared")


def _scatter(data: pd.DataFrame, x: str, y: str, title: str, *, log: bool) -> alt.Chart:
    scale = alt.Scale(type="log", nice=True) if log else alt.Scale(zero=False)
    systems = list(dict.fromkeys(data["system"]))
    return (
        alt.Chart(data)
        .mark_point(size=36, filled=True, opacity=0.75)
        .encode(
            x=alt.X("x:Q", title=x, scale=scale, axis=alt.Axis(format="~g", tickCount=4)),
            y=alt.Y("y:Q", title=y, scale=scale, axis=alt.Axis(format="~g", tickCount=4)),
            color=alt.Color(
                "system:N",
                scale=alt.Scale(domain=systems, range=drift_plots.COLOURS[1 : len(systems) + 1]),
                legend=alt.Legend(title=None, orient="top", columns=3, labelLimit=PANEL),
            ),
            shape=alt.Shape("model:N", legend=None),
            tooltip=[
                alt.Tooltip("system:N"),
                alt.Tooltip("model:N"),
                alt.Tooltip("x:Q", title=x, format=".3g"),
                alt.Tooltip("y:Q", title=y, format=".3g"),
            ],
        )
        .properties(title=chart_title(title), height=230, width=230)
    )
