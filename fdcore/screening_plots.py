"""The charts of screenings: Altair in, no widgets."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import pandas as pd

from fdcore.distribution import ReferenceDistribution
from fdcore.plots import ACCENT, INK, chart_title
from fdcore.screening.rows import bin_edges

Chart = alt.LayerChart | alt.FacetChart


def bins_table(bins: Mapping[int, int]) -> pd.DataFrame:
    """One row per bin of U_Delta that holds a structure: from and to (eV/Å), and how many it holds."""
    edges = [bin_edges(place) for place in sorted(bins)]
    return pd.DataFrame(
        {
            "from_eV_per_A": [low for low, _ in edges],
            "to_eV_per_A": [high for _, high in edges],
            "structures": [bins[place] for place in sorted(bins)],
        }
    )


def histogram(
    bins: Mapping[int, int], reference: ReferenceDistribution | None = None, ordinary_share: float = 0.95
) -> Chart:
    """How many structures have which U_Delta, on a logarithmic axis, from the bins of digests (`fdcore.screening.rows`); with a mark where an
    `ordinary_share` of the model's reference structures stay below, where it has a reference."""
    # The axis does not jump with every structure that arrives: two bins of room, and a decade at least.
    low, high = min(bins, default=-20), max(bins, default=-1)
    ordinary = None if reference is None else reference.quantile(ordinary_share)
    table = bins_table(bins)
    # A gap between bars that is as wide everywhere.
    table = table.assign(zero=0, drawn_to=table["to_eV_per_A"] * 0.985)
    ends = [bin_edges(low - 2)[0], bin_edges(max(high + 2, low + 8))[1]]
    if ordinary is not None:
        ends = [min(ends[0], ordinary / 1.3), max(ends[1], ordinary * 1.3)]
    scale = alt.Scale(type="log", domain=ends, nice=False)
    axis = alt.Axis(title="U_Delta (eV/Å)", format="~g", tickCount=6, grid=False)
    x = alt.X("from_eV_per_A:Q", scale=scale, axis=axis)
    bars = (
        alt.Chart(table)
        .mark_rect(color=INK)
        .encode(
            x=x,
            x2="drawn_to:Q",
            y=alt.Y("zero:Q", title="structures", axis=alt.Axis(tickCount=4, format="~s", tickMinStep=1)),
            y2="structures:Q",
            tooltip=[
                alt.Tooltip("from_eV_per_A:Q", title="from eV/Å", format=".3g"),
                alt.Tooltip("to_eV_per_A:Q", title="to eV/Å", format=".3g"),
                alt.Tooltip("structures:Q", title="structures", format=","),
            ],
        )
    )
    layers: Chart = alt.layer(bars)
    if ordinary is not None:
        words = f"{ordinary_share:.0%} of known structures stay below"
        mark = pd.DataFrame({"from_eV_per_A": [ordinary], "what": [words]})
        rule = (
            alt.Chart(mark)
            .mark_rule(strokeWidth=2.5, color=ACCENT)
            .encode(
                x=x,
                strokeDash=alt.StrokeDash(
                    "what:N",
                    scale=alt.Scale(domain=[words], range=[[4, 3]]),
                    legend=alt.Legend(title=None, orient="top", labelLimit=400, offset=2, symbolStrokeColor=ACCENT),
                ),
                tooltip=[
                    alt.Tooltip("what:N", title=" "),
                    alt.Tooltip("from_eV_per_A:Q", title="U_Delta (eV/Å)", format=".3g"),
                ],
            )
        )
        layers = bars + rule
    count = sum(bins.values())
    title = chart_title("How much the forces disagree", f"{count:,} structure{'' if count == 1 else 's'}; logarithmic")
    return layers.properties(height=270, title=title)
