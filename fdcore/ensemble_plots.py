"""The charts of ensembles: Altair in, no widgets."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from fdcore.ensemble import Compared
from fdcore.plots import ACCENT, INK, QUIET, chart_title

Chart = alt.LayerChart | alt.FacetChart | alt.Chart


def _log(values: Sequence[float]) -> alt.Scale:
    """A logarithmic scale around these positive values, wide enough that small differences look small."""
    if not values:
        return alt.Scale(type="log")
    low, high = min(values), max(values)
    middle, half = np.sqrt(low * high), max(np.sqrt(high / low) * 1.15, 1.5)
    return alt.Scale(type="log", domain=[float(middle / half), float(middle * half)], nice=False)


def both_estimates(table: pd.DataFrame) -> Chart:
    """U_Delta against U_var, one mark per structure, from `ensemble_files.table`."""
    shown = table.dropna(subset=["ensemble_spread_eV_per_A"])
    shown = shown[(shown["ensemble_spread_eV_per_A"] > 0) & (shown["force_delta_eV_per_A"] > 0)]
    shown = shown.assign(
        structure=shown["file"] + shown["index"].map(lambda k: f" #{k:.0f}" if k else ""),
        far=np.where(shown["outlier"].notna(), "one member stands apart", "members alike"),
    )
    return (
        alt.Chart(shown, title=chart_title("Where both point the same way", "one mark per structure, both in eV/Å"))
        .mark_point(filled=True, size=70, opacity=0.8)
        .encode(
            x=alt.X(
                "ensemble_spread_eV_per_A:Q",
                title="U_var of the ensemble (eV/Å)",
                scale=_log(shown["ensemble_spread_eV_per_A"].tolist()),
            ),
            y=alt.Y(
                "force_delta_eV_per_A:Q", title="U_Delta (eV/Å)", scale=_log(shown["force_delta_eV_per_A"].tolist())
            ),
            color=alt.Color(
                "far:N",
                scale=alt.Scale(domain=["members alike", "one member stands apart"], range=[INK, ACCENT]),
                legend=alt.Legend(title=None, orient="top"),
            ),
            shape=alt.Shape("far:N", legend=alt.Legend(title=None, orient="top")),
            tooltip=[
                alt.Tooltip("structure:N", title="structure"),
                alt.Tooltip("formula:N", title="formula"),
                alt.Tooltip("force_delta_eV_per_A:Q", title="U_Delta (eV/Å)", format=".3g"),
                alt.Tooltip("ensemble_spread_eV_per_A:Q", title="U_var (eV/Å)", format=".3g"),
                alt.Tooltip("outlier:N", title="stands apart"),
            ],
        )
        .properties(height=320)
        .interactive()
    )


def difference_matrix(compared: Compared) -> Chart:
    """RMS difference of every pair of members (eV/Å)."""
    pairs = compared.pairwise()
    assert pairs is not None
    rows = [
        {"first": a, "second": b, "apart": float(pairs[i, j])}
        for i, a in enumerate(compared.members)
        for j, b in enumerate(compared.members)
        if i != j and np.isfinite(pairs[i, j])
    ]
    data = pd.DataFrame(rows, columns=["first", "second", "apart"])
    names = list(compared.members)
    axis = alt.Axis(labelLimit=190, labelAngle=0, title=None)
    base = alt.Chart(
        data, title=chart_title("Who differs from whom", "RMS difference of two members' forces, eV/Å")
    ).encode(
        x=alt.X("first:N", sort=names, axis=alt.Axis(labelLimit=190, labelAngle=-30, title=None)),
        y=alt.Y("second:N", sort=names, axis=axis),
    )
    top = float(data["apart"].max()) if len(data) else 1.0
    cells = base.mark_rect().encode(
        color=alt.Color(
            "apart:Q", scale=alt.Scale(scheme="viridis", domain=[0, top]), legend=alt.Legend(title="eV/Å", format=".2g")
        ),
        tooltip=[
            alt.Tooltip("first:N", title="member"),
            alt.Tooltip("second:N", title="and"),
            alt.Tooltip("apart:Q", title="eV/Å", format=".3g"),
        ],
    )
    text = base.mark_text(fontSize=12).encode(
        text=alt.Text("apart:Q", format=".2g"),
        color=alt.condition(alt.datum.apart > 0.6 * top, alt.value("#1b1b1b"), alt.value("#ffffff")),
    )
    return (cells + text).properties(height=90 + 42 * len(names))


def costs(compared: Compared) -> Chart:
    """What each of them took (s), over the structures that all members could do."""
    able = [s for s in compared.spreads if len(s.members) == len(compared.members) - len(compared.unloadable)]
    each = {m: sum(s.seconds[m] for s in able) for m in compared.members if m not in compared.unloadable}
    rows = [
        {"what": f"U_Delta: both forces of {compared.model_id}", "seconds": compared.seconds_both, "kind": "U_Delta"},
        *({"what": f"force of {m}", "seconds": t, "kind": "a member"} for m, t in each.items()),
        {"what": "U_var: all members", "seconds": compared.seconds_ensemble, "kind": "U_var"},
    ]
    kinds = ["U_Delta", "a member", "U_var"]
    return (
        alt.Chart(pd.DataFrame(rows), title=chart_title("What each of them cost", "measured in turn in this run"))
        .mark_bar(cornerRadiusEnd=2)
        .encode(
            x=alt.X("seconds:Q", title="seconds", axis=alt.Axis(tickCount=5)),
            y=alt.Y("what:N", sort=None, title=None, axis=alt.Axis(labelLimit=260)),
            color=alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=[ACCENT, QUIET, INK]), legend=None),
            tooltip=[alt.Tooltip("what:N", title=" "), alt.Tooltip("seconds:Q", title="s", format=".3g")],
        )
        .properties(height=60 + 28 * len(rows))
    )


def against_errors(compared: Compared) -> Chart:
    """Both estimates against eps_nc, for structures with labels."""
    rows = [
        {
            "structure": s.structure.file + (f" #{s.structure.index}" if s.structure.index else ""),
            "error": s.error_direct,
            "value": value,
            "estimate": name,
        }
        for s in compared.spreads
        if s.error_direct
        for name, value in (("U_Delta", s.evaluation.force_delta), ("U_var", s.ensemble_spread))
        if value
    ]
    domain = ["U_Delta", "U_var"]
    return (
        alt.Chart(
            pd.DataFrame(rows),
            title=chart_title(
                "Which of them ranks the error?", "error of the direct force against the labels of the file"
            ),
        )
        .mark_point(filled=True, size=60, opacity=0.75)
        .encode(
            x=alt.X("value:Q", title="estimate (eV/Å)", scale=_log([r["value"] for r in rows])),
            y=alt.Y("error:Q", title="eps_nc (eV/Å)", scale=_log([r["error"] for r in rows])),
            color=alt.Color(
                "estimate:N",
                scale=alt.Scale(domain=domain, range=[ACCENT, INK]),
                legend=alt.Legend(title=None, orient="top"),
            ),
            shape=alt.Shape("estimate:N", scale=alt.Scale(domain=domain), legend=alt.Legend(title=None, orient="top")),
            tooltip=[
                alt.Tooltip("structure:N", title="structure"),
                alt.Tooltip("estimate:N", title=" "),
                alt.Tooltip("value:Q", title="estimate (eV/Å)", format=".3g"),
                alt.Tooltip("error:Q", title="eps_nc (eV/Å)", format=".3g"),
            ],
        )
        .properties(height=320)
        .interactive()
    )
