"""The charts of the pages, from records and the tables of `fdcore.export`: Altair in, no widgets, no streamlit.

Every chart has a title that says what is seen, tooltips with units, and a table behind it in `fdcore.export`.
"""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from fdcore.distribution import ReferenceDistribution

# Two inks and a quiet one; all three are readable on the light and on the dark background (contrast > 3:1).
INK, ACCENT, QUIET = "#2f7ebc", "#d9772b", "#7f8c93"
# A parity plot of more points than this draws the worst ones and a sample of the rest.
MOST_POINTS = 4000
BINS = 48


def chart_title(text: str, subtitle: str = "") -> alt.TitleParams:
    return alt.TitleParams(
        text, subtitle=subtitle, anchor="start", fontSize=13, subtitleFontSize=12, subtitleColor=QUIET, offset=8
    )


def reference_bar(
    force_delta: float, reference: ReferenceDistribution, ordinary_share: float = 0.95
) -> alt.LayerChart | alt.FacetChart:
    """Where one U_Delta (eV/Å) stands in the model's reference distribution: a histogram on a logarithmic axis, a mark at
    the quantile that an `ordinary_share` of known structures stays below, and one at the structure."""
    values = np.asarray(reference.values)
    shown = max(force_delta, float(values[0]) / 2, 1e-6)
    low, high = min(float(values[0]), shown) / 1.15, max(float(values[-1]), shown) * 1.15
    edges = np.geomspace(low, high, BINS + 1)
    counts, _ = np.histogram(values, edges)
    bins = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "count": counts, "zero": 0})
    axis = alt.Axis(title="U_Delta (eV/Å)", format="~g", tickCount=5, grid=False)
    x = alt.X("low:Q", scale=alt.Scale(type="log", domain=[low, high], nice=False), axis=axis)
    histogram = (
        alt.Chart(bins)
        .mark_rect(color=QUIET, opacity=0.55)
        .encode(
            x=x,
            x2="high:Q",
            y=alt.Y("zero:Q", axis=None),
            y2="count:Q",
            tooltip=[
                alt.Tooltip("low:Q", title="from eV/Å", format=".3g"),
                alt.Tooltip("high:Q", title="to eV/Å", format=".3g"),
                alt.Tooltip("count:Q", title="known structures"),
            ],
        )
    )
    marks = pd.DataFrame(
        {
            "low": [reference.quantile(ordinary_share), shown],
            "what": [f"{ordinary_share:.0%} of known structures stay below", "this structure"],
            "value": [reference.quantile(ordinary_share), force_delta],
        }
    )
    rules = (
        alt.Chart(marks)
        .mark_rule(strokeWidth=2.5)
        .encode(
            x=x,
            color=alt.Color(
                "what:N",
                scale=alt.Scale(domain=list(marks["what"]), range=[QUIET, ACCENT]),
                legend=alt.Legend(title=None, orient="top", direction="horizontal", labelLimit=400, offset=2),
            ),
            strokeDash=alt.StrokeDash(
                "what:N", scale=alt.Scale(domain=list(marks["what"]), range=[[4, 3], [1, 0]]), legend=None
            ),
            tooltip=[alt.Tooltip("what:N", title=" "), alt.Tooltip("value:Q", title="U_Delta (eV/Å)", format=".3g")],
        )
    )
    title = chart_title(f"This structure among {len(values):,} known ones")
    return (histogram + rules).properties(height=170, title=title)


def element_bars(table: pd.DataFrame) -> alt.LayerChart | alt.FacetChart:
    """RMS of u_i per element (bar) and its largest atom (tick), from `export.per_element_table`; eV/Å."""
    y = alt.Y("element:N", sort=None, title=None, axis=alt.Axis(labelFontSize=13, ticks=False, domain=False))
    tooltip = [
        alt.Tooltip("element:N", title="element"),
        alt.Tooltip("n_atoms:Q", title="atoms"),
        alt.Tooltip("force_delta_eV_per_A:Q", title="RMS u_i (eV/Å)", format=".3g"),
        alt.Tooltip("worst_atom_eV_per_A:Q", title="largest u_i (eV/Å)", format=".3g"),
        alt.Tooltip("share_of_force_delta_squared:Q", title="share of U_Delta²", format=".0%"),
    ]
    x = alt.X(
        "force_delta_eV_per_A:Q", title="eV/Å", axis=alt.Axis(format="~g", tickCount=5), scale=alt.Scale(zero=True)
    )
    bars = (
        alt.Chart(table).mark_bar(color=INK, cornerRadiusEnd=2, height={"band": 0.55}).encode(x=x, y=y, tooltip=tooltip)
    )
    ticks = (
        alt.Chart(table)
        .mark_tick(color=ACCENT, thickness=3, height={"band": 0.75})
        .encode(x=alt.X("worst_atom_eV_per_A:Q", title="eV/Å"), y=y, tooltip=tooltip)
    )
    # The height holds title and axis as well as the bars.
    height = min(110 + 34 * len(table), 460)
    title = chart_title("Which elements disagree", "bar: RMS of u_i over the element; tick: its largest atom")
    return (bars + ticks).properties(height=height, title=title)


def force_parity(components: pd.DataFrame) -> alt.LayerChart | alt.FacetChart:
    """F_nc against F_c, component by component, with the diagonal, from `export.force_components_table`; eV/Å."""
    shown, sampled = _worst_and_sample(components)
    columns = ["force_direct_eV_per_A", "force_conservative_eV_per_A"]
    bound = 1.05 * max(float(np.abs(components[columns].to_numpy()).max()), 1e-3)
    scale = alt.Scale(domain=[-bound, bound], nice=False)
    diagonal = (
        alt.Chart(pd.DataFrame({"x": [-bound, bound], "y": [-bound, bound]}))
        .mark_line(color=QUIET, strokeDash=[5, 4], strokeWidth=1.5)
        .encode(x=alt.X("x:Q", scale=scale), y=alt.Y("y:Q", scale=scale))
    )
    few = components["element"].nunique() <= 6
    points = (
        alt.Chart(shown)
        .mark_point(filled=True, opacity=0.7, size=34)
        .encode(
            x=alt.X(
                columns[1], type="quantitative", title="F_c component (eV/Å)", scale=scale, axis=alt.Axis(tickCount=6)
            ),
            y=alt.Y(
                columns[0], type="quantitative", title="F_nc component (eV/Å)", scale=scale, axis=alt.Axis(tickCount=6)
            ),
            tooltip=[
                alt.Tooltip("element:N", title="element"),
                alt.Tooltip("atom:Q", title="atom"),
                alt.Tooltip("axis:N", title="component"),
                alt.Tooltip(f"{columns[1]}:Q", title="F_c (eV/Å)", format=".3g"),
                alt.Tooltip(f"{columns[0]}:Q", title="F_nc (eV/Å)", format=".3g"),
            ],
        )
    )
    if few:
        legend = alt.Legend(title=None, orient="top", direction="horizontal")
        points = points.encode(color=alt.Color("element:N", legend=legend), shape=alt.Shape("element:N", legend=legend))
    else:
        points = points.encode(color=alt.value(INK))
    subtitle = "on the diagonal the two forces agree; drag and scroll to zoom"
    if sampled:
        subtitle = f"the {MOST_POINTS // 2:,} components that differ most and as many others of {len(components):,}"
    title = chart_title("Direct against conservative force", subtitle)
    return (diagonal + points).properties(height=400, title=title).interactive()


def two_forces_picture() -> alt.LayerChart | alt.FacetChart:
    """The method in one picture: the two forces of one model along one coordinate, together where the model knows the
    structures and apart where it does not. A drawing from formulas, not data."""
    x = np.linspace(0.0, 1.0, 161)
    known = 0.6
    conservative = 0.9 * np.sin(4.6 * x + 0.5) - 0.9 * x
    # Beyond the known region the direct force falls back towards its mean, as regression does.
    apart = 1.0 / (1.0 + np.exp(-(x - known - 0.12) / 0.045))
    direct = conservative * (1 - 0.62 * apart) + 0.02 * np.sin(30 * x)
    domain = ["F_nc, direct", "F_c, conservative"]
    table = pd.DataFrame({"x": x, domain[0]: direct, domain[1]: conservative})
    region = pd.DataFrame({"from": [0.0, known], "to": [known, 1.0], "what": ["like its training data", "beyond"]})
    quiet = alt.Axis(labels=False, ticks=False, grid=False)
    at = alt.X("x:Q", scale=alt.Scale(domain=[0, 1]), title="how far the atoms are moved", axis=quiet)
    shade = (
        alt.Chart(region)
        .mark_rect(color=QUIET)
        .encode(
            x=alt.X("from:Q", scale=alt.Scale(domain=[0, 1])),
            x2="to:Q",
            opacity=alt.Opacity("what:N", scale=alt.Scale(domain=list(region["what"]), range=[0.06, 0.2]), legend=None),
        )
    )
    where = (
        alt.Chart(region.assign(x=[known / 2, (1 + known) / 2], y=1.25))
        .mark_text(fontSize=13, color=QUIET)
        .encode(x=at, y=alt.Y("y:Q", title="force", axis=quiet), text="what:N")
    )
    gap = (
        alt.Chart(table.rename(columns={domain[0]: "a", domain[1]: "b"}))
        .mark_area(color=ACCENT, opacity=0.25)
        .encode(x=at, y="a:Q", y2="b:Q")
    )
    colour = alt.Color(
        "force:N", scale=alt.Scale(domain=domain, range=[ACCENT, INK]), legend=alt.Legend(title=None, orient="top")
    )
    dash = alt.StrokeDash("force:N", scale=alt.Scale(domain=domain, range=[[1, 0], [6, 3]]), legend=None)
    lines = (
        alt.Chart(table.melt("x", domain, "force", "y"))
        .mark_line(strokeWidth=3)
        .encode(x=at, y="y:Q", color=colour, strokeDash=dash)
    )
    place = pd.DataFrame({"x": [0.88], "y": [float(np.interp(0.88, x, direct)) + 0.14], "what": ["↕ Force Delta"]})
    name = alt.Chart(place).mark_text(fontSize=14, fontWeight="bold", color=ACCENT).encode(x=at, y="y:Q", text="what:N")
    title = chart_title("Where the forces part, the model is guessing", "a drawing, not data")
    return (shade + gap + lines + where + name).properties(height=380, title=title)


def _worst_and_sample(components: pd.DataFrame) -> tuple[pd.DataFrame, bool]:
    """All components, or where they are too many the worst half and an even sample of the rest (no random numbers: the
    same structure always gives the same picture)."""
    if len(components) <= MOST_POINTS:
        return components, False
    gap = (components["force_direct_eV_per_A"] - components["force_conservative_eV_per_A"]).abs()
    order = gap.sort_values(ascending=False, kind="stable").index
    half = MOST_POINTS // 2
    rest = order[half:]
    keep = np.concatenate([order[:half], rest[np.linspace(0, len(rest) - 1, half).astype(int)]])
    return components.loc[np.unique(keep)], True


def compared_runs(table: pd.DataFrame, most: int = 60) -> alt.Chart:
    """U_Delta (eV/Å) of the structures of `export.comparison_table`, one mark per run, the `most` largest ones."""
    columns = [c for c in table.columns if c.endswith(": force_delta_eV_per_A")]
    shown = table.head(most)
    name = shown["file"] + shown["index"].map(lambda k: f" #{k:.0f}" if k else "")
    long = pd.concat(
        [
            pd.DataFrame({"structure": name, "run": c.removesuffix(": force_delta_eV_per_A"), "force_delta": shown[c]})
            for c in columns
        ]
    ).dropna()
    more = f"the {most} largest of {len(table)}" if len(table) > most else ""
    return (
        alt.Chart(long, title=chart_title("U_Delta per run", more))
        .mark_point(filled=True, size=70, opacity=0.85)
        .encode(
            x=alt.X("force_delta:Q", title="U_Delta (eV/Å)", scale=alt.Scale(type="symlog", constant=0.01)),
            y=alt.Y("structure:N", title=None, sort=list(dict.fromkeys(name)), axis=alt.Axis(labelLimit=220)),
            color=alt.Color("run:N", title="Run", legend=alt.Legend(orient="top", labelLimit=400)),
            shape=alt.Shape("run:N", title="Run"),
            tooltip=[
                alt.Tooltip("structure:N", title="structure"),
                alt.Tooltip("run:N", title="run"),
                alt.Tooltip("force_delta:Q", title="U_Delta (eV/Å)", format=".3g"),
            ],
        )
        .interactive()
    )
