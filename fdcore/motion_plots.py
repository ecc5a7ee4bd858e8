"""The charts of dynamics, relaxation and the advisor: Altair in, no widgets. Long series are thinned so that no spike is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fdcore.motion import Descent, Motion, Summary
from fdcore.mts_advice import Advice
from fdcore.plots import ACCENT, INK, QUIET, chart_title
from fdcore.statistics import thin
from fdcore.units import MEV_PER_EV

# Points per line that reach the browser.
MOST_POINTS = 1200
# Distinct on both backgrounds, and by kind of line as well; the first two are those of every other chart.
COLOURS = (INK, ACCENT, "#2a9d5c", "#a64ca6", "#c44e52", "#8a7a2e", "#5b5fc7", "#7a7f87")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [4, 4], [1, 3], [10, 4], [3, 1])
# What a row of a legend takes of the height of a chart.
LEGEND_ROW = 22
# Symbols of legends are lines as they are drawn, whatever else (a band, points) has the same colour.
STROKES: dict[str, Any] = {
    "title": None,
    "orient": "top",
    "symbolType": "stroke",
    "symbolStrokeWidth": 2,
    "symbolOpacity": 1,
}
# Heights hold titles, axes and legends as well as the lines. Stacked charts line up when their labels take the same room.
AXIS = alt.Axis(minExtent=46, tickCount=5)
Array = NDArray[np.float64]
Chart = alt.LayerChart | alt.FacetChart


@dataclass(frozen=True)
class Line:
    """One run (or replica) on the charts: time (ps), energy per atom from its start (meV), temperatures (K), and where it was
    computed U_Delta (eV/Å). `drift` is a fitted line (slope and half width, meV/atom/ps)."""

    name: str
    time: Array
    energy: Array
    temperature: Array
    force_delta_time: Array
    force_delta: Array
    by_element: Mapping[str, Array] = field(default_factory=dict)
    drift: tuple[float, float | None] | None = None


def line(motion: Motion, leg: int, system: int, name: str, found: Summary | None = None) -> Line | None:
    """What the charts show of one structure in one leg; None before it has rows."""
    track = motion.tracks.get((leg, system))
    if track is None or not len(track):
        return None
    n = motion.systems[system].n_atoms
    energy = (track.columns["conserved_eV"] - track.columns["conserved_eV"][0]) * MEV_PER_EV / n
    elements = track.columns["temperature_by_element_K"]
    time, kept = thin(
        track.time_ps,
        {
            "energy": energy,
            "temperature": track.columns["temperature_K"],
            **{e: elements[:, k] for k, e in enumerate(motion.elements) if np.isfinite(elements[:, k]).any()},
        },
        MOST_POINTS,
    )
    u_time, u = thin(
        track.time_ps[track.monitored], {"u": track.columns["force_delta_eV_per_A"][track.monitored]}, MOST_POINTS
    )
    drift = None if found is None or found.drift is None else (found.drift.slope, found.drift.half_width)
    by_element = {k: v for k, v in kept.items() if k not in ("energy", "temperature")}
    return Line(name, time, kept["energy"], kept["temperature"], u_time, u["u"], by_element, drift)


def drift_charts(
    lines: Sequence[Line],
    *,
    quantity: str = "Total energy",
    stop_above: float | None = None,
    moment_ps: float | None = None,
) -> tuple[Chart, Chart, Chart]:
    """Three charts over one time axis, to be stacked: energy per atom with the fitted drift, temperatures, U_Delta with the stop
    line. One line: temperatures per element; several: each run's own. `moment_ps` is marked on all three.
    """
    names = [x.name for x in lines]
    longest = max((float(x.time[-1]) for x in lines), default=1.0) or 1.0
    time = alt.X(
        "time:Q", title="time (ps)", scale=alt.Scale(domain=[0, longest], nice=False), axis=alt.Axis(tickCount=6)
    )
    colour = alt.Color(
        "name:N",
        scale=alt.Scale(domain=names, range=list(COLOURS[: len(names)])),
        legend=alt.Legend(**STROKES, labelLimit=360, columns=2) if len(lines) > 1 else None,
    )
    dash = alt.StrokeDash("name:N", scale=alt.Scale(domain=names, range=list(DASHES[: len(names)])), legend=None)
    rows = (len(lines) + 1) // 2 if len(lines) > 1 else 0
    shared = {"time": time, "colour": colour, "dash": dash, "moment": moment_ps, "alone": len(lines) == 1, "rows": rows}
    return _energy(lines, quantity, shared), _temperature(lines, shared), _force_delta(lines, stop_above, shared)


def _energy(lines: Sequence[Line], quantity: str, shared: Mapping[str, Any]) -> Chart:
    data = pd.concat([pd.DataFrame({"time": x.time, "value": x.energy, "name": x.name}) for x in lines])
    y = alt.Y("value:Q", title="meV/atom", axis=AXIS)
    layers: list[Any] = [_line(data, y, "from start (meV/atom)", shared)]
    fits = [_fit(x) for x in lines if x.drift is not None]
    if fits:
        fitted = pd.concat(fits)
        encoded = {"x": shared["time"], "color": alt.value(ACCENT) if shared["alone"] else shared["colour"]}
        if fitted["low"].notna().all():
            band = alt.Chart(fitted).mark_area(opacity=0.18)
            layers.insert(0, band.encode(**encoded, y=alt.Y("low:Q", title="meV/atom"), y2="high:Q"))
        layers.append(
            alt.Chart(fitted).mark_line(strokeWidth=1.5).encode(**encoded, y=alt.Y("fit:Q", title="meV/atom"))
        )
    return _finished(
        layers, f"{quantity} per atom, from its start", "the straight line is the fitted drift", shared, 300
    )


def _fit(x: Line) -> pd.DataFrame:
    """The fitted line through the mean of the data, and its interval."""
    assert x.drift is not None
    slope, half = x.drift
    middle, level = 0.5 * float(x.time[0] + x.time[-1]), float(np.mean(x.energy))
    time = np.linspace(float(x.time[0]), float(x.time[-1]), 21)
    spread = np.full_like(time, np.nan) if half is None else half * np.abs(time - middle)
    fit = level + slope * (time - middle)
    return pd.DataFrame({"time": time, "fit": fit, "low": fit - spread, "high": fit + spread, "name": x.name})


def _temperature(lines: Sequence[Line], shared: Mapping[str, Any]) -> Chart:
    y = alt.Y("value:Q", title="K", axis=AXIS, scale=alt.Scale(zero=False))
    if not shared["alone"]:
        data = pd.concat([pd.DataFrame({"time": x.time, "value": x.temperature, "name": x.name}) for x in lines])
        return _finished([_line(data, y, "temperature (K)", shared)], "Temperature", "", shared, 250)
    [only] = lines
    parts = {"all": only.temperature, **(only.by_element if len(only.by_element) > 1 else {})}
    data = pd.concat([pd.DataFrame({"time": only.time, "value": v, "name": k}) for k, v in parts.items()])
    names = list(parts)
    colour = alt.Color(
        "name:N",
        scale=alt.Scale(domain=names, range=list(COLOURS[: len(names)])),
        legend=alt.Legend(**STROKES) if len(names) > 1 else None,
    )
    dash = alt.StrokeDash("name:N", scale=alt.Scale(domain=names, range=list(DASHES[: len(names)])), legend=None)
    chart = _line(data, y, "temperature (K)", {**shared, "colour": colour, "dash": dash})
    title = "Temperature, of all atoms and per element" if len(names) > 1 else "Temperature"
    return _finished([chart], title, "", shared, 250)


def _force_delta(lines: Sequence[Line], stop_above: float | None, shared: Mapping[str, Any]) -> Chart:
    data = pd.concat(
        [pd.DataFrame({"time": x.force_delta_time, "value": x.force_delta, "name": x.name}) for x in lines]
    )
    y = alt.Y("value:Q", title="eV/Å", axis=AXIS, scale=alt.Scale(zero=True))
    layers: list[Any] = [_line(data, y, "U_Delta (eV/Å)", shared)]
    subtitle = ""
    if stop_above is not None:
        rule = alt.Chart(pd.DataFrame({"value": [stop_above]})).mark_rule(
            strokeDash=[5, 4], strokeWidth=2, color="#c44e52"
        )
        layers.append(rule.encode(y="value:Q"))
        subtitle = "dashed: the run stops above this line"
    return _finished(layers, "U_Delta, the disagreement of the two forces", subtitle, shared, 250)


def _line(data: pd.DataFrame, y: alt.Y, what: str, shared: Mapping[str, Any]) -> alt.Chart:
    tooltip = [
        alt.Tooltip("name:N", title=" "),
        alt.Tooltip("time:Q", title="time (ps)", format=".4~g"),
        alt.Tooltip("value:Q", title=what, format=".4~g"),
    ]
    return (
        alt.Chart(data)
        .mark_line(strokeWidth=1.4, interpolate="linear")
        .encode(x=shared["time"], y=y, color=shared["colour"], strokeDash=shared["dash"], tooltip=tooltip)
    )


def _finished(layers: list[Any], title: str, subtitle: str, shared: Mapping[str, Any], height: int) -> Chart:
    if shared["moment"] is not None:
        here = alt.Chart(pd.DataFrame({"time": [shared["moment"]]}))
        layers.append(here.mark_rule(color=QUIET, strokeWidth=1.5).encode(x=shared["time"]))
    return alt.layer(*layers).properties(
        height=height + LEGEND_ROW * max(0, shared["rows"] - 1), width="container", title=chart_title(title, subtitle)
    )


def relaxation_charts(descents: Sequence[tuple[str, int, Descent]], fmax: float, driver: str) -> tuple[Any, Any, Any]:
    """Three charts to be stacked: energy per atom from the start, the largest force of both kinds, and U_Delta, against the
    iteration.

    `descents`: (name, number of atoms, descent)."""
    rows = []
    force, other = ("F_nc", "F_c") if driver == "direct" else ("F_c", "F_nc")
    for name, n_atoms, descent in descents:
        columns = descent.columns
        base = pd.DataFrame({"iteration": columns["iteration"], "name": name})
        energy = (columns["energy_eV"] - columns["energy_eV"][0]) * MEV_PER_EV / n_atoms
        rows += [
            base.assign(kind="energy", what="energy", value=energy),
            base.assign(kind="force", what=f"{force}, which drives", value=columns["fmax_eV_per_A"]),
            base.assign(kind="force", what=f"{other}, which does not", value=columns["fmax_other_eV_per_A"]),
            base.assign(kind="u", what="U_Delta", value=columns["force_delta_eV_per_A"]),
        ]
    data = pd.concat(rows).dropna()
    names = [name for name, _, _ in descents]
    x = alt.X("iteration:Q", title="iteration", axis=alt.Axis(tickMinStep=1, tickCount=8))
    colour = alt.Color(
        "name:N",
        scale=alt.Scale(domain=names, range=list(COLOURS[: len(names)])),
        legend=alt.Legend(**STROKES, labelLimit=360, columns=2) if len(names) > 1 else None,
    )

    def part(kind: str, title: str, unit: str, height: int, log: bool = False) -> alt.Chart:
        scale = alt.Scale(type="log") if log else alt.Scale(zero=False)
        chosen = data[data["kind"] == kind]
        if log:
            chosen = chosen[chosen["value"] > 0]
        tooltip = [
            alt.Tooltip("name:N", title=" "),
            alt.Tooltip("what:N", title=" "),
            alt.Tooltip("iteration:Q"),
            alt.Tooltip("value:Q", title=unit, format=".4~g"),
        ]
        return (
            alt.Chart(chosen)
            .mark_line(point=alt.OverlayMarkDef(size=14), strokeWidth=1.4)
            .encode(x=x, y=alt.Y("value:Q", title=unit, scale=scale, axis=AXIS), color=colour, tooltip=tooltip)
            .properties(height=height, width="container", title=chart_title(title))
        )

    kinds = [f"{force}, which drives", f"{other}, which does not"]
    legend = alt.Legend(**STROKES, labelLimit=300)
    forces = part("force", "Largest force on an atom", "eV/Å", 280, log=True).encode(
        strokeDash=alt.StrokeDash("what:N", scale=alt.Scale(domain=kinds, range=[[1, 0], [5, 3]]), legend=legend)
    )
    aim = alt.Chart(pd.DataFrame({"value": [fmax]})).mark_rule(color=QUIET, strokeDash=[2, 3]).encode(y="value:Q")
    energy = part("energy", "Energy per atom, from its start", "meV/atom", 240)
    return energy, forces + aim, part("u", "U_Delta along the way", "eV/Å", 220)


def advice_chart(advice: Advice) -> Chart:
    """Drift against speed, one mark per driver with its interval, the tolerance around the conservative run as a band."""
    rows = []
    for arm in advice.arms:
        if arm.drift is None or arm.ns_per_day is None:
            continue
        half = arm.drift.half_width
        kind = "recommended" if arm.stride is not None and arm.stride == advice.recommended else arm.driver
        rows.append(
            {
                "arm": arm.name,
                "kind": kind,
                "drift": arm.drift.slope,
                "low": arm.drift.slope - half if half is not None else None,
                "high": arm.drift.slope + half if half is not None else None,
                "speed": arm.ns_per_day,
                "hot": arm.temperature_error_K,
            }
        )
    data = pd.DataFrame(rows, columns=["arm", "kind", "drift", "low", "high", "speed", "hot"])
    x = alt.X("speed:Q", title="ns/day", scale=alt.Scale(zero=False, padding=20), axis=alt.Axis(tickCount=6))
    kinds = ["conservative", "mts", "recommended", "direct"]
    colour = alt.Color(
        "kind:N",
        scale=alt.Scale(domain=kinds, range=[COLOURS[0], QUIET, COLOURS[2], COLOURS[1]]),
        legend=alt.Legend(title=None, orient="top"),
    )
    tooltip = [
        alt.Tooltip("arm:N", title="driver"),
        alt.Tooltip("drift:Q", title="drift (meV/atom/ps)", format=".3g"),
        alt.Tooltip("speed:Q", title="ns/day", format=".3g"),
        alt.Tooltip("hot:Q", title="T − T of F_c (K)", format=".3g"),
    ]
    drift = alt.Y("drift:Q", title="drift (meV/atom/ps)", axis=alt.Axis(tickCount=6))
    layers: list[Any] = []
    reference = data[data["arm"] == "conservative"]
    if len(reference):
        middle = float(reference["drift"].iloc[0])
        band = pd.DataFrame({"low": [middle - advice.tolerance], "high": [middle + advice.tolerance]})
        layers.append(alt.Chart(band).mark_rect(color=COLOURS[2], opacity=0.15).encode(y="low:Q", y2="high:Q"))
    points = alt.Chart(data)
    layers += [
        points.mark_rule(strokeWidth=1.5).encode(
            x=x, y=alt.Y("low:Q", title="drift (meV/atom/ps)"), y2="high:Q", color=colour
        ),
        points.mark_point(filled=True, size=110, opacity=1).encode(
            x=x,
            y=drift,
            color=colour,
            shape=alt.Shape("kind:N", scale=alt.Scale(domain=kinds), legend=None),
            tooltip=tooltip,
        ),
        points.mark_text(dy=-14, fontSize=12).encode(x=x, y=drift, text="arm:N", color=alt.value(QUIET)),
    ]
    title = chart_title("Drift against speed", f"band: within {advice.tolerance:g} meV/atom/ps of F_c")
    return alt.layer(*layers).properties(height=380, width="container", title=title)
