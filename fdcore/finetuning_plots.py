"""The charts of a fine-tuning: losses and held-out errors against the epoch. Altair in, no widgets."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from fdcore import finetuning
from fdcore.finetuning import Trained
from fdcore.plots import ACCENT, INK, QUIET, chart_title

LOSSES = {"loss": "all", "loss_energy": "energy", "loss_direct": "F_nc", "loss_conservative": "F_c"}
ERRORS = {"error_direct_eV_per_A": "eps_nc", "error_conservative_eV_per_A": "eps_c", "force_delta_eV_per_A": "U_Delta"}
# Readable on light and dark, and told apart by the shape of their points too.
COLOURS = [QUIET, "#009E73", ACCENT, INK]


# Mean |drift| with its 95 % interval (meV/atom/ps) of a whole loop, as docs/method.md tells of it.
MEASURED = (
    ("base", 4.6, 2.4),
    ("F_nc only", 0.45, 0.28),
    ("both forces", 0.65, 0.49),
    ("both, second generation", 0.53, 0.20),
)


def measured_loop() -> alt.LayerChart | alt.FacetChart:
    """What a loop came to: a picture of what will come, with the numbers of docs/method.md."""
    rows = [{"model": n, "drift": d, "low": d - h, "high": d + h} for n, d, h in MEASURED]
    base = alt.Chart(pd.DataFrame(rows)).encode(
        y=alt.Y("model:N", sort=None, title=None, axis=alt.Axis(labelLimit=180)),
        tooltip=[alt.Tooltip("model:N"), alt.Tooltip("drift:Q", title="mean |drift|, meV/atom/ps", format=".2f")],
    )
    bars = base.mark_bar(size=16, color=INK, opacity=0.85).encode(x=alt.X("drift:Q", title="|drift| (meV/atom/ps)"))
    whiskers = base.mark_rule(strokeWidth=2, color=QUIET).encode(x="low:Q", x2="high:Q")
    title = chart_title(
        "What a loop came to: energy drift of NVE driven by F_nc",
        "embedded model, Mg17Al12, 100 structures per generation labelled by CHGNet, six runs of 10 ps",
    )
    return alt.layer(bars, whiskers).properties(title=title, height=130, width="container")


def loss_chart(found: Trained) -> alt.Chart:
    """Mean loss and its parts per epoch, on a logarithmic axis."""
    columns = finetuning.loss_per_epoch(found)
    rows = [
        {"epoch": int(epoch), "part": words, "value": float(value)}
        for name, words in LOSSES.items()
        if name in columns
        for epoch, value in zip(columns["epoch"], columns[name], strict=True)
        if value > 0
    ]
    return _lines(
        rows,
        list(LOSSES.values()),
        COLOURS,
        "mean loss",
        "Loss per epoch",
        "of what it is trained on; without unit",
        True,
    )


def error_chart(found: Trained) -> alt.Chart:
    """Errors on what is held out after each epoch; epoch 0 is the base model."""
    part = found.epochs
    rows = []
    before = found.at("before", "held-out")
    for name, words in ERRORS.items():
        if before is not None:
            rows.append({"epoch": 0, "part": words, "value": before[name]})
        if part:
            rows += [
                {"epoch": int(epoch), "part": words, "value": float(value)}
                for epoch, value in zip(part["epoch"], part[name], strict=True)
            ]
    rows = [r for r in rows if np.isfinite(r["value"])]
    title = "Errors on structures that it is not trained on"
    colours = [ACCENT, INK, "#009E73"]
    return _lines(rows, list(ERRORS.values()), colours, "eV/Å", title, "after each epoch; 0 is the base model", False)


def _lines(
    rows: list[dict[str, object]], names: list[str], colours: list[str], y: str, title: str, subtitle: str, log: bool
) -> alt.Chart:
    data = pd.DataFrame(rows, columns=["epoch", "part", "value"])
    scale = alt.Scale(type="log") if log else alt.Scale(zero=True)
    legend = alt.Legend(title=None, orient="top")
    return (
        alt.Chart(data)
        .mark_line(point=True, strokeWidth=1.6)
        .encode(
            x=alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1, format="d")),
            y=alt.Y("value:Q", title=y, scale=scale),
            color=alt.Color("part:N", scale=alt.Scale(domain=names, range=colours), legend=legend),
            shape=alt.Shape("part:N", scale=alt.Scale(domain=names), legend=None),
            tooltip=[
                alt.Tooltip("part:N", title="of"),
                alt.Tooltip("epoch:Q", title="epoch"),
                alt.Tooltip("value:Q", title=y, format=".3g"),
            ],
        )
        .properties(title=chart_title(title, subtitle), height=340, width="container")
    )
