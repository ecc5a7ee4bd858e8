"""The charts of validations: errors against U_Delta, parity, calibration, ROC. Altair in, no widgets."""

from __future__ import annotations

from collections import Counter
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from fdcore.calibration import VANISHING
from fdcore.plots import ACCENT, INK, QUIET, chart_title
from fdcore.roc import Roc
from fdcore.validation import Validation

# One colour and shape per group: Okabe & Ito 2008 and two more, readable on light and dark; "others" is quiet.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8c6d1f", "#7b3f61", "#999933"]
SHAPES = [
    "circle",
    "square",
    "diamond",
    "triangle-up",
    "triangle-down",
    "cross",
    "triangle-left",
    "triangle-right",
    "circle",
]
OTHERS = "others"
# Structures of a chart, and components of a parity plot; beyond that the worst ones and an even sample of the rest.
MOST_STRUCTURES, MOST_COMPONENTS = 3000, 4000
ERRORS = {"error_conservative": ("eps_c", "F_c, conservative"), "error_direct": ("eps_nc", "F_nc, direct")}
FORCES = {"conservative": ("F_c", INK), "direct": ("F_nc", ACCENT)}
AXIS = alt.Axis(minExtent=46, tickCount=5)
Chart = alt.LayerChart | alt.FacetChart | alt.Chart


def groups_shown(found: Validation) -> list[str]:
    """What each structure is coloured by: its group; where there are too many, a coarser name that the file gives, or the largest ones."""
    names = list(found.names)
    if len(set(names)) > len(COLOURS):
        for key in ("group", "system", "config_type"):
            coarser = [c.structure.tags.get(key, "") for c in found.compared]
            if "" not in coarser and 2 <= len(set(coarser)) <= len(COLOURS):
                return coarser
        most = {name for name, _ in Counter(names).most_common(len(COLOURS))}
        return [name if name in most else OTHERS for name in names]
    return names


def against_error(found: Validation, error: str) -> Chart:
    """One error against U_Delta on logarithmic axes, a mark per structure; `error`: error_conservative or error_direct."""
    name, force = ERRORS[error]
    shown = groups_shown(found)
    failures = set(found.consensus)
    detection = found.conservative if error == "error_conservative" else found.direct
    data = pd.DataFrame(
        [
            {
                "u": c.force_delta,
                "error": getattr(c, error),
                "group": group,
                "structure": f"{c.structure.file} #{c.structure.index}",
                "formula": c.structure.formula,
                "consensus": k in failures,
            }
            for k, (c, group) in enumerate(zip(found.compared, shown, strict=True))
            if c.force_delta > VANISHING and getattr(c, error) > VANISHING
        ],
        columns=["u", "error", "group", "structure", "formula", "consensus"],
    )
    thinned = len(data) > MOST_STRUCTURES
    if thinned:
        data = _thinned(data, (np.log(data["error"] / data["u"])).to_numpy(), MOST_STRUCTURES)
    if not len(data):
        return alt.Chart(data).mark_point().properties(title=chart_title(f"{name} against U_Delta"))
    low, high = float(data[["u", "error"]].min().min()) / 1.2, float(data[["u", "error"]].max().max()) * 1.2
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    x = alt.X("u:Q", title="U_Delta (eV/Å)", scale=scale, axis=alt.Axis(tickCount=5))
    y = alt.Y("error:Q", title=f"{name} (eV/Å)", scale=scale, axis=AXIS)
    names = [n for n, _ in Counter(shown).most_common() if n != OTHERS]
    domain = [*names, *([OTHERS] if OTHERS in shown else [])]
    colours = [*COLOURS[: len(names)], *([QUIET] if OTHERS in shown else [])]
    legend = alt.Legend(title=None, orient="bottom", columns=4, labelLimit=140) if len(domain) > 1 else None
    tooltip = [
        alt.Tooltip("structure:N", title="structure"),
        alt.Tooltip("formula:N"),
        alt.Tooltip("group:N", title=found.group_by or "group"),
        alt.Tooltip("u:Q", title="U_Delta (eV/Å)", format=".3~g"),
        alt.Tooltip("error:Q", title=f"{name} (eV/Å)", format=".3~g"),
    ]
    points = (
        alt.Chart(data)
        .mark_point(filled=True, size=45, opacity=0.75)
        .encode(
            x=x,
            y=y,
            color=alt.Color("group:N", scale=alt.Scale(domain=domain, range=colours), legend=legend),
            shape=alt.Shape(
                "group:N", scale=alt.Scale(domain=domain, range=[*SHAPES, "circle"][: len(domain)]), legend=legend
            ),
            tooltip=tooltip,
        )
    )
    ends = pd.DataFrame({"u": [low, high], "error": [low, high]})
    layers: list[Any] = [
        alt.Chart(ends).mark_line(strokeDash=[5, 4], color=QUIET, strokeWidth=1.5).encode(x=x, y=y),
        points,
    ]
    if low < detection.large.above < high:
        rule = alt.Chart(pd.DataFrame({"error": [detection.large.above]}))
        layers.append(rule.mark_rule(strokeDash=[2, 3], color=QUIET).encode(y=y))
    if found.bound is not None and low < found.bound < high:
        rule = alt.Chart(pd.DataFrame({"u": [found.bound]}))
        layers.append(rule.mark_rule(strokeDash=[2, 3], color=QUIET).encode(x=x))
    subtitle = ["dashed: error = U_Delta"]
    if data["consensus"].any():
        rings = alt.Chart(data[data["consensus"]]).mark_point(filled=False, size=170, strokeWidth=2, color="#c0392b")
        layers.append(rings.encode(x=x, y=y, tooltip=tooltip))
        subtitle.append("rings: consensus failures")
    if not thinned and len(data) < len(found.compared):
        subtitle.append(f"not drawn: {len(found.compared) - len(data)} below {VANISHING:g}")
    if thinned:
        subtitle.append(f"{MOST_STRUCTURES:,} of {len(found.compared):,} structures")
    title = chart_title(f"Error of {force.split(',')[0]} against U_Delta")
    # One line each: a narrow window would cut a long one off.
    title.subtitle = subtitle
    return alt.layer(*layers).properties(height=340, width="container", title=title)


def parity(found: Validation, which: str) -> Chart:
    """The components of one force against the reference; `which`: conservative or direct."""
    symbol, colour = FORCES[which]
    parts = [
        (getattr(c, f"forces_{which}"), c.forces_reference, c) for c in found.compared if c.forces_direct is not None
    ]
    data = pd.DataFrame(
        {
            "model": np.concatenate([np.asarray(f).ravel() for f, _, _ in parts]) if parts else [],
            "reference": np.concatenate([np.asarray(r).ravel() for _, r, _ in parts]) if parts else [],
            "structure": [f"{c.structure.file} #{c.structure.index}" for f, _, c in parts for _ in range(np.size(f))],
            "atom": [
                f"{symbol}{k}" for f, _, c in parts for k, symbol in enumerate(c.structure.symbols) for _ in range(3)
            ],
        }
    )
    subtitle = "every component of every atom; on the diagonal they agree"
    if len(data) > MOST_COMPONENTS:
        of = len(data)
        data = _thinned(data, np.abs(data["model"] - data["reference"]).to_numpy(), MOST_COMPONENTS)
        subtitle = f"the {MOST_COMPONENTS // 2:,} components that differ most and as many others of {of:,}"
    bound = 1.05 * max(float(np.abs(data[["model", "reference"]].to_numpy()).max()) if len(data) else 1.0, 1e-3)
    scale = alt.Scale(domain=[-bound, bound], nice=False)
    x = alt.X("reference:Q", title="reference (eV/Å)", scale=scale, axis=alt.Axis(tickCount=6))
    y = alt.Y("model:Q", title=f"{symbol} (eV/Å)", scale=scale, axis=alt.Axis(tickCount=6, minExtent=46))
    line = alt.Chart(pd.DataFrame({"reference": [-bound, bound], "model": [-bound, bound]}))
    points = (
        alt.Chart(data)
        .mark_point(filled=True, size=22, opacity=0.5, color=colour)
        .encode(
            x=x,
            y=y,
            tooltip=[
                alt.Tooltip("structure:N", title="structure"),
                alt.Tooltip("atom:N"),
                alt.Tooltip("reference:Q", title="reference (eV/Å)", format=".3g"),
                alt.Tooltip("model:Q", title=f"{symbol} (eV/Å)", format=".3g"),
            ],
        )
    )
    diagonal = line.mark_line(strokeDash=[5, 4], color=QUIET, strokeWidth=1.5).encode(x=x, y=y)
    title = chart_title(f"{symbol} against the reference", subtitle)
    return alt.layer(points, diagonal).properties(height=340, width="container", title=title)


def reliability(found: Validation) -> Chart:
    """Calibration: the RMS error of bins of structures against the RMS of their U_Delta; as it is, and on the half that was not fitted on after
    the factor."""
    rows = []
    for error, c in (
        ("error_conservative", found.calibration_conservative),
        ("error_direct", found.calibration_direct),
    ):
        name, factor = ERRORS[error][0], c.fitted or 1.0
        for how, bins, times in (("U_Delta", c.bins, 1.0), ("rescaled", c.tested, factor)):
            rows += [
                {"predicted": times * b.predicted, "observed": b.observed, "n": b.n, "what": f"{name}, {how}"}
                for b in bins
            ]
    data = pd.DataFrame(rows, columns=["predicted", "observed", "n", "what"])
    if not len(data):
        return alt.Chart(data).mark_point().properties(title=chart_title("Calibration: too few structures"))
    low, high = (
        float(data[["predicted", "observed"]].min().min()) / 1.2,
        float(data[["predicted", "observed"]].max().max()) * 1.2,
    )
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    x = alt.X("predicted:Q", title="predicted error (eV/Å)", scale=scale, axis=alt.Axis(tickCount=5))
    y = alt.Y("observed:Q", title="observed RMS error (eV/Å)", scale=scale, axis=AXIS)
    kinds = [f"{name}, {how}" for how in ("U_Delta", "rescaled") for name in ("eps_c", "eps_nc")]
    legend = alt.Legend(title=None, orient="bottom", columns=2)
    lines = (
        alt.Chart(data)
        .mark_line(point=alt.OverlayMarkDef(size=45, filled=True))
        .encode(
            x=x,
            y=y,
            color=alt.Color("what:N", scale=alt.Scale(domain=kinds, range=[INK, ACCENT, INK, ACCENT]), legend=legend),
            strokeDash=alt.StrokeDash(
                "what:N", scale=alt.Scale(domain=kinds, range=[[1, 0], [1, 0], [4, 3], [4, 3]]), legend=legend
            ),
            tooltip=[
                alt.Tooltip("what:N", title=" "),
                alt.Tooltip("predicted:Q", title="predicted (eV/Å)", format=".3g"),
                alt.Tooltip("observed:Q", title="observed (eV/Å)", format=".3g"),
                alt.Tooltip("n:Q", title="structures"),
            ],
        )
    )
    ends = pd.DataFrame({"predicted": [low, high], "observed": [low, high]})
    diagonal = alt.Chart(ends).mark_line(strokeDash=[5, 4], color=QUIET, strokeWidth=1.5).encode(x=x, y=y)
    title = chart_title(
        "Is U_Delta as large as the error?", "bins of structures; rescaled: by a factor from the other half of them"
    )
    return alt.layer(diagonal, lines).properties(height=340, width="container", title=title)


def roc_curves(found: Validation) -> Chart:
    """Structures with a large error: hits against false alarms as the threshold of U_Delta falls, for both errors; a mark where the verdict's
    own threshold stands."""
    rows, marks = [], []
    for error, d in (("error_conservative", found.conservative), ("error_direct", found.direct)):
        name = f"{ERRORS[error][0]} above {d.large.above:.3g} eV/Å"
        rows += _points(d.structures, name)
        if d.alarm is not None and d.alarm.hits is not None and d.alarm.false_alarms is not None:
            marks.append(
                {"false": d.alarm.false_alarms, "hits": d.alarm.hits, "what": name, "threshold": d.alarm.threshold}
            )
    data = pd.DataFrame(rows, columns=["false", "hits", "what", "order"])
    domain = list(dict.fromkeys(data["what"])) if len(data) else ["eps_c", "eps_nc"]
    scale = alt.Scale(domain=[0, 1], nice=False)
    x = alt.X("false:Q", title="false alarms (share of the others)", scale=scale, axis=alt.Axis(format="%"))
    y = alt.Y("hits:Q", title="hits (share of the bad ones)", scale=scale, axis=alt.Axis(format="%", minExtent=46))
    colours = [INK if name.startswith("eps_c") else ACCENT for name in domain]
    dashes = [[1, 0] if name.startswith("eps_c") else [6, 3] for name in domain]
    legend = alt.Legend(title=None, orient="bottom", labelLimit=260, columns=2)
    colour = alt.Color("what:N", scale=alt.Scale(domain=domain, range=colours), legend=legend)
    curves = (
        alt.Chart(data)
        .mark_line(strokeWidth=2)
        .encode(
            x=x,
            y=y,
            order="order:Q",
            color=colour,
            strokeDash=alt.StrokeDash("what:N", scale=alt.Scale(domain=domain, range=dashes), legend=legend),
            tooltip=[
                alt.Tooltip("what:N", title=" "),
                alt.Tooltip("false:Q", title="false alarms", format=".0%"),
                alt.Tooltip("hits:Q", title="hits", format=".0%"),
            ],
        )
    )
    ends = pd.DataFrame({"false": [0, 1], "hits": [0, 1]})
    layers: list[Any] = [
        alt.Chart(ends).mark_line(strokeDash=[5, 4], color=QUIET, strokeWidth=1.5).encode(x=x, y=y),
        curves,
    ]
    if marks:
        points = alt.Chart(pd.DataFrame(marks)).mark_point(filled=True, size=110, shape="diamond")
        layers.append(
            points.encode(
                x=x,
                y=y,
                color=colour,
                tooltip=[
                    alt.Tooltip("threshold:Q", title="the verdict's threshold (eV/Å)", format=".3g"),
                    alt.Tooltip("false:Q", title="false alarms", format=".0%"),
                    alt.Tooltip("hits:Q", title="hits", format=".0%"),
                ],
            )
        )
    title = chart_title(
        "Which structures have a large error?", "diamonds: the verdict's own threshold" if marks else ""
    )
    return alt.layer(*layers).properties(height=340, width="container", title=title)


def _points(found: Roc, name: str) -> list[dict[str, Any]]:
    return [
        {"false": float(f), "hits": float(h), "what": name, "order": k}
        for k, (f, h) in enumerate(zip(found.false_alarms, found.hits, strict=True))
    ]


def _thinned(data: pd.DataFrame, worst: Any, most: int) -> pd.DataFrame:
    """The worst half, and an even sample of the rest in the order of how bad they are: the same data give the same picture."""
    order = np.argsort(-np.asarray(worst), kind="stable")
    rest = order[most // 2 :]
    keep = np.concatenate([order[: most // 2], rest[np.linspace(0, len(rest) - 1, most - most // 2).astype(int)]])
    return data.iloc[np.unique(keep)]
