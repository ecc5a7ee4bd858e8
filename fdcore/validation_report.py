"""A validation as files: the JSON and CSV for programs, one HTML page that needs nothing else, its figures as SVG and PNG."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from fdcore import validation_plots, validation_words
from fdcore.calibration import Bin, Calibration
from fdcore.drift_report import WIDTH
from fdcore.export import failure_row
from fdcore.html_page import page, png, preformatted, svg, table, zipped
from fdcore.human import count, three_digits
from fdcore.records import Failure
from fdcore.statistics import RankCorrelation, Within
from fdcore.validation import ERRORS, ESTIMATES, Band, Detection, Validation

# Rows of a table on paper.
MOST_ROWS = 60
CAVEAT = (
    "U_Delta compares a model with itself: a correlation with errors on these structures says how far it may be trusted on structures like "
    "these, not on others. Part of every error is what the model's training method and this reference differ by."
)


@dataclass(frozen=True)
class Report:
    """What is told: every model's validation, the reference by its title, where labels say they come from, what could not be compared, and
    how it can be repeated."""

    found: tuple[Validation, ...]
    reference: str
    labels: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    provenance: Mapping[str, Any] | None = None


# ---- plain rows ----------------------------------------------------------------------------------------------------


def structure_rows(found: Validation) -> list[dict[str, Any]]:
    """One plain row per structure; what does not exist is None."""
    failures = set(found.consensus)
    rows = []
    for k, c in enumerate(found.compared):
        energy = float(found.energies.per_atom[k])
        rows.append(
            {
                "file": c.structure.file,
                "index": c.structure.index,
                "formula": c.structure.formula,
                "n_atoms": c.structure.n_atoms,
                "model": c.model_id,
                "group": found.names[k] or None,
                "force_delta_eV_per_A": c.force_delta,
                "error_direct_eV_per_A": c.error_direct,
                "error_conservative_eV_per_A": c.error_conservative,
                "energy_eV": c.energy,
                "energy_reference_eV": c.energy_reference,
                "error_energy_meV_per_atom": 1000 * energy if np.isfinite(energy) else None,
                **({} if c.ensemble_spread is None else {"ensemble_spread_eV_per_A": c.ensemble_spread}),
                **({"left_out": dict(c.left_out)} if c.left_out else {}),
                "consensus_failure": k in failures,
            }
        )
    return rows


def band_rows(found: Sequence[Band]) -> list[dict[str, Any]]:
    """One plain row per band or group."""
    return [
        {
            "name": b.name,
            "n": b.conservative.n,
            "drawn": b.conservative.groups,
            "low_eV_per_A": b.low,
            "high_eV_per_A": b.high,
            "r_s_error_conservative": b.conservative.r_s,
            "r_s_error_conservative_ci": _ci(b.conservative),
            "r_s_error_direct": b.direct.r_s,
            "r_s_error_direct_ci": _ci(b.direct),
        }
        for b in found
    ]


def _ci(found: RankCorrelation | Within) -> list[float] | None:
    return None if found.low is None or found.high is None else [found.low, found.high]


def _within(found: Within) -> dict[str, Any]:
    return {"groups": found.groups, "mean_r_s": found.mean, "mean_r_s_ci": _ci(found)}


def _calibration(found: Calibration) -> dict[str, Any]:
    def bins(of: Sequence[Bin]) -> list[dict[str, Any]]:
        return [{"n": b.n, "predicted_eV_per_A": b.predicted, "observed_eV_per_A": b.observed} for b in of]

    return {
        "n": found.n,
        "error_over_force_delta": found.factor,
        "error_over_force_delta_ci": None if found.low is None else [found.low, found.high],
        "scatter": found.scatter,
        "calibrated": found.calibrated,
        "fitted_factor": found.fitted,
        "halves_of": found.halves or None,
        "miscalibration": found.before,
        "miscalibration_rescaled": found.after,
        "bins": bins(found.bins),
        "tested_bins": bins(found.tested),
    }


def _detection(found: Detection) -> dict[str, Any]:
    def area(of: Any) -> dict[str, Any] | None:
        if of is None:
            return None
        return {"n": of.n, "bad": of.bad, "auc": of.area, "auc_ci": None if of.low is None else [of.low, of.high]}

    a = found.alarm
    return {
        "above_eV_per_A": found.large.above,
        "above_is": found.large.why,
        "structures": area(found.structures),
        "atoms": area(found.atoms),
        "curve": {"false_alarms": found.structures.false_alarms.tolist(), "hits": found.structures.hits.tolist()},
        "verdict_threshold": None
        if a is None
        else {
            "threshold_eV_per_A": a.threshold,
            "flagged": a.flagged,
            "caught": a.caught,
            "recall": a.hits,
            "precision": a.precision,
            "false_alarms": a.false_alarms,
        },
    }


def consensus_rows(found: Validation) -> list[dict[str, Any]]:
    """The consensus failures, the worst first."""
    rows = structure_rows(found)
    return [rows[k] for k in found.consensus]


def of_model(found: Validation, reference: str) -> dict[str, Any]:
    """Everything about one model but its structures."""
    return {
        "model": found.model_id,
        "n": len(found.compared),
        "text": validation_words.sentences(found, reference),
        "intervals": validation_words.intervals(found),
        "unit_doubt": None
        if found.unit_doubt is None
        else {
            "median_force_eV_per_A": found.unit_doubt.median,
            "over_forces_conservative": found.unit_doubt.ratio,
            "looks_like": found.unit_doubt.unit or None,
        },
        "group_by": found.group_by or None,
        "drawn": found.drawn,
        "bands": band_rows(found.bands),
        "groups": band_rows(found.groups),
        "displacements": band_rows(found.sigmas),
        "within_groups": {
            "error_conservative": _within(found.within_conservative),
            "error_direct": _within(found.within_direct),
        },
        "energy": {
            "rms_meV_per_atom": None if found.energies.rms is None else 1000 * found.energies.rms,
            "shifts_fitted": found.energies.fitted,
        },
        "calibration": {
            "error_conservative": _calibration(found.calibration_conservative),
            "error_direct": _calibration(found.calibration_direct),
        },
        "roc": {"error_conservative": _detection(found.conservative), "error_direct": _detection(found.direct)},
        "consensus_failures": consensus_rows(found),
        "estimates": [
            {
                "estimate": e.estimate,
                "error": e.error,
                "n": e.pooled.n,
                "r_s": e.pooled.r_s,
                "r_s_ci": _ci(e.pooled),
                "within_groups": _within(e.within),
            }
            for e in found.estimates
        ],
    }


def document(report: Report) -> dict[str, Any]:
    """The document of `fdcore validate --json`."""
    return {
        "reference": report.reference,
        "labels": list(report.labels),
        "models": [of_model(v, report.reference) for v in report.found],
        "results": [row for v in report.found for row in structure_rows(v)],
        "errors": [failure_row(f) for f in report.failures],
        "provenance": None if report.provenance is None else dict(report.provenance),
    }


def as_json(report: Report) -> str:
    return json.dumps(document(report), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def as_csv(report: Report) -> str:
    """One row per structure, failures among them with their reason."""
    rows = [row for v in report.found for row in structure_rows(v)]
    for row in rows:
        if "left_out" in row:
            row["left_out"] = "; ".join(row["left_out"])
    return pd.DataFrame([*rows, *(failure_row(f) for f in report.failures)]).to_csv(index=False)


# ---- on paper ------------------------------------------------------------------------------------------------------


def figures(found: Validation) -> dict[str, alt.TopLevelMixin]:
    """By file name, without what ends it."""
    drawn = {
        "error_conservative": validation_plots.against_error(found, "error_conservative"),
        "error_direct": validation_plots.against_error(found, "error_direct"),
        "parity_conservative": validation_plots.parity(found, "conservative"),
        "parity_direct": validation_plots.parity(found, "direct"),
        "calibration": validation_plots.reliability(found),
        "roc": validation_plots.roc_curves(found),
    }
    return {name: chart.properties(width=WIDTH) for name, chart in drawn.items()}


RANK_COLUMNS = ("structures", "n", "U_Delta (eV/Å)", "r_s with eps_c", "r_s with eps_nc")
RANKED_ALL = {"all": "all together (pooled)"}


def rank_cells(found: Validation) -> list[list[str]]:
    """Pooled, thirds, the mean within groups, groups, displacements: the table that belongs together, as text."""
    cells = [_rank_row(RANKED_ALL.get(b.name, f"{b.name} of U_Delta"), b) for b in found.bands]
    if found.within_conservative.groups:
        name = f"mean within one {validation_words.called(found.group_by)} ({found.within_conservative.groups})"
        within = (found.within_conservative.text, found.within_direct.text)
        cells.append([name, "", "", *within])
    cells += [_rank_row(f"{validation_words.called(found.group_by)}: {b.name}", b) for b in found.groups]
    return cells + [_rank_row(f"displaced by {b.name} Å", b) for b in found.sigmas]


def _rank_row(name: str, band: Band) -> list[str]:
    spread = f"{three_digits(band.low)} to {three_digits(band.high)}"
    return [name, str(band.conservative.n), spread, band.conservative.text, band.direct.text]


def estimate_cells(found: Validation) -> list[list[str]]:
    """U_Delta beside U_var, as text."""
    return [
        [ESTIMATES[e.estimate], ERRORS[e.error], str(e.pooled.n), e.pooled.text, e.within.text] for e in found.estimates
    ]


CONSENSUS_COLUMNS = ("file", "frame", "formula", "group", "U_Delta", "eps_nc", "eps_c")
ESTIMATE_COLUMNS = ("estimate", "error", "n", "r_s, pooled", "r_s, mean within groups")
STRUCTURE_COLUMNS = ("file", "frame", "formula", "group", "U_Delta", "eps_nc", "eps_c", "energy (meV/atom)")


def _structure_cells(rows: Sequence[Mapping[str, Any]], energy: bool) -> list[list[str]]:
    return [
        [
            str(r["file"]),
            str(r["index"]),
            str(r["formula"]),
            str(r["group"] or "–"),
            *(
                three_digits(r[k])
                for k in ("force_delta_eV_per_A", "error_direct_eV_per_A", "error_conservative_eV_per_A")
            ),
            *([_digits(r["error_energy_meV_per_atom"])] if energy else []),
        ]
        for r in rows
    ]


def _digits(value: float | None) -> str:
    return "–" if value is None else three_digits(value)


def html(report: Report) -> str:
    """The report."""
    told = f" ({escape('; '.join(report.labels))})" if report.labels else ""
    lost = "".join(
        f"<li>{escape(f.file)}: {escape(f.error)} {escape(f.hint)}</li>" for f in report.failures[:MOST_ROWS]
    )
    left = f"<h2>What could not be compared</h2><ul>{lost}</ul>" if lost else ""
    body = f"""<h1>Validation against {escape(report.reference)}</h1>
<p class="quiet">{count(sum(len(v.compared) for v in report.found), "structure")}{told}. {escape(CAVEAT)}</p>
{"".join(_section(v, report.reference) for v in report.found)}
{left}
<h2>How it was made</h2>
{preformatted(report.provenance or {})}"""
    return page("Validation report", body)


def _section(found: Validation, reference: str) -> str:
    drawn = {name: svg(chart) for name, chart in figures(found).items()}
    said = "".join(f"<p>{escape(s)}</p>" for s in validation_words.sentences(found, reference))
    rows = sorted(structure_rows(found), key=lambda r: -r["error_conservative_eV_per_A"])
    failures = _structure_cells(consensus_rows(found)[:MOST_ROWS], energy=False)
    beside = f"<h2>Beside an ensemble</h2>{table(ESTIMATE_COLUMNS, estimate_cells(found))}" if found.estimates else ""
    return f"""<h2>{escape(found.model_id)}: {count(len(found.compared), "structure")}</h2>
{said}
<h2>Ranks</h2>{table(RANK_COLUMNS, rank_cells(found))}
<p class="quiet">{escape(validation_words.intervals(found))}</p>
{drawn["error_conservative"]}{drawn["error_direct"]}
{beside}
<h2>Calibration</h2>{drawn["calibration"]}
<h2>Structures with a large error</h2>{drawn["roc"]}
<h2>Consensus failures</h2><p>{escape(validation_words.consensus(found))}</p>
{table(CONSENSUS_COLUMNS, failures) if failures else ""}
<h2>Forces against the reference</h2>{drawn["parity_conservative"]}{drawn["parity_direct"]}
<h2>Structures, largest eps_c first</h2>
{table(STRUCTURE_COLUMNS, _structure_cells(rows[:MOST_ROWS], energy=True))}
<p class="quiet">{f"The first {MOST_ROWS} of {len(rows)}; the CSV has all." if len(rows) > MOST_ROWS else "eV/Å where no unit is named."}</p>"""


def files(report: Report) -> dict[str, str | bytes]:
    """By name: the HTML, every figure as SVG and PNG, the numbers as JSON and CSV."""
    out: dict[str, str | bytes] = {
        "report.html": html(report),
        "validation.json": as_json(report),
        "structures.csv": as_csv(report),
    }
    for v in report.found:
        part = f"{v.model_id}/" if len(report.found) > 1 else ""
        ranks = pd.DataFrame([*band_rows(v.bands), *band_rows(v.groups), *band_rows(v.sigmas)])
        out[f"{part}ranks.csv"] = ranks.to_csv(index=False)
        for name, chart in figures(v).items():
            out |= {f"{part}{name}.svg": svg(chart), f"{part}{name}.png": png(chart)}
    return out


def archive(report: Report) -> bytes:
    """`files` as a zip."""
    return zipped(files(report))
