"""The stability report: one HTML page that needs nothing else, and its figures as SVG and PNG."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import altair as alt
import pandas as pd

from fdcore import drift_plots
from fdcore.drifts import Measured, band_rows, model_rows, sentences
from fdcore.html_page import page, png, preformatted, svg, table, zipped
from fdcore.human import plus_minus, three_digits

WIDTH = 640


def figures(found: Measured) -> dict[str, alt.TopLevelMixin]:
    """By file name, without what ends it."""
    return {
        "drift": drift_plots.drift_bars(found).properties(width=WIDTH),
        "energy": drift_plots.energy_lines(found).properties(width=WIDTH),
        "force_delta": drift_plots.force_delta_boxes(found),
        "errors": drift_plots.band_lines(found),
    }


def html(found: Measured, provenance: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """The report; `notes` are further sentences, e.g. of what was fine-tuned how."""
    drawn = figures(found)
    said = "".join(f"<p>{escape(s)}</p>" for s in [*sentences(found), *notes])
    structures = ", ".join(f"{s.formula} ({s.n_atoms} atoms)" for s in found.structures)
    body = f"""<h1>Stability of {len(found.models)} models on {escape(structures)}</h1>
{said}
<h2>Energy drift</h2>{svg(drawn["drift"])}
{table(DRIFT_COLUMNS, _drift_cells(found))}
<h2>Total energy against time</h2>{svg(drawn["energy"])}
<h2>Distribution of U_Delta</h2>{svg(drawn["force_delta"])}
<h2>Errors and U_Delta by displacement</h2>{svg(drawn["errors"])}
<p class="quiet">{escape(_reference_text(found))}</p>
{table(BAND_COLUMNS, _band_cells(found))}
<h2>Relaxation and speed</h2>{table(OTHER_COLUMNS, _other_cells(found))}
<h2>How it was made</h2>
<p class="quiet">Every model began at the same positions with the same momenta. The drift is the fitted slope of the total energy per atom; its
interval here is that of the mean magnitude over the seeds (Student's t, 95 %). A change is paired: the same seed under both models.</p>
{preformatted(provenance)}"""
    return page("Stability report", body)


def _reference_text(found: Measured) -> str:
    if found.reference is None:
        return "There was no reference, so only U_Delta is known."
    return f"Errors are those against {found.reference}; root mean squares over all components of all copies."


DRIFT_COLUMNS = ("model", "runs", "|drift| (meV/atom/ps)", "drift (meV/atom/ps)", "change of |drift|", "ended early")
BAND_COLUMNS = ("model", "σ (Å)", "n", "U_Delta (eV/Å)", "eps_nc (eV/Å)", "eps_c (eV/Å)", "energy MAE (meV/atom)")
OTHER_COLUMNS = ("model", "relaxation along F_nc", "r_s(U, eps_nc)", "r_s(U, eps_c)", "steps per second")


def _drift_cells(found: Measured) -> list[list[str]]:
    return [
        [
            str(r["model"]),
            str(r["nve_runs"]),
            _pm(r["drift_abs_meV_per_atom_per_ps"], r["drift_abs_ci"]),
            _pm(r["drift_meV_per_atom_per_ps"], r["drift_ci"]),
            _pm(r["change_meV_per_atom_per_ps"], r["change_ci"]),
            str(r["ended_early"]),
        ]
        for r in model_rows(found)
    ]


def _band_cells(found: Measured) -> list[list[str]]:
    keys = ("force_delta_eV_per_A", "error_direct_eV_per_A", "error_conservative_eV_per_A", "error_energy_meV_per_atom")
    return [[str(r["model"]), f"{r['sigma_A']:g}", str(r["n"]), *(_pm(r[k]) for k in keys)] for r in band_rows(found)]


def _other_cells(found: Measured) -> list[list[str]]:
    rows = []
    for model in found.models:
        ends = [f"{i} iterations{'' if c else ', not converged'}" for i, c, _ in model.relaxations]
        ranks = [r.text if r is not None else "–" for r in (model.ranks_direct, model.ranks_conservative)]
        rows.append([model.id, "; ".join(ends) or "–", *ranks, _pm(model.steps_per_second)])
    return rows


def _pm(value: float | None, half: float | None = None) -> str:
    return "–" if value is None else plus_minus(value, half) if half is not None else three_digits(value)


def document(found: Measured, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The document of `fdcore stability --json`."""
    return {
        "models": model_rows(found),
        "bands": band_rows(found),
        "runs": [
            {
                "model": m.id,
                "structure": r.parent,
                "seed": r.seed,
                "drift_meV_per_atom_per_ps": None if r.drift is None else r.drift.slope,
                "drift_ci": None if r.drift is None else r.drift.half_width,
                "ended": r.ended or None,
                "time_ps": r.time_ps.tolist(),
                "energy_meV_per_atom": r.energy_meV_per_atom.tolist(),
            }
            for m in found.models
            for r in m.runs
        ],
        "sentences": sentences(found),
        "provenance": dict(provenance),
    }


def files(found: Measured, provenance: Mapping[str, Any], notes: Sequence[str] = ()) -> dict[str, str | bytes]:
    """By name: the HTML, every figure as SVG and PNG, the numbers as JSON and CSV."""
    out: dict[str, str | bytes] = {"report.html": html(found, provenance, notes)}
    for name, chart in figures(found).items():
        out |= {f"{name}.svg": svg(chart), f"{name}.png": png(chart)}
    out["stability.json"] = json.dumps(document(found, provenance), indent=1, allow_nan=False, ensure_ascii=False)
    out["models.csv"] = pd.DataFrame(model_rows(found)).to_csv(index=False)
    out["bands.csv"] = pd.DataFrame(band_rows(found)).to_csv(index=False)
    return out


def archive(found: Measured, provenance: Mapping[str, Any], notes: Sequence[str] = ()) -> bytes:
    """`files` as a zip."""
    return zipped(files(found, provenance, notes))
