"""A report to take away: one HTML page that prints as well as it reads, a PDF, its figures, its numbers as JSON and CSV."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import PurePath
from typing import Any

import pandas as pd

from fdcore import report_plots
from fdcore.export import failure_row
from fdcore.html_page import page, png, preformatted, svg, table, zipped
from fdcore.records import Failure
from fdcore.report import Examined, Report
from fdcore.report_pdf import pdf
from fdcore.report_verdict import sentence
from fdcore.report_words import (
    ANSWER_WORDS,
    LINE_COLUMNS,
    METHOD,
    STATUS_WORDS,
    STOPPED,
    USE_COLUMNS,
    WIDTH,
    name_of,
    said_of,
    title_of,
)
from fdcore.statistics import Slope

# ---- numbers -------------------------------------------------------------------------------------------------------


def document(
    report: Report, failures: Sequence[Failure] = (), provenance: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The document of `fdcore report --json`. What is missing is null, and named under "missing" with its reason."""
    return {
        "model": report.model_id,
        "dtype": report.dtype,
        "complete": report.complete,
        "results": [_result(found, report) for found in report.examined],
        "errors": [failure_row(f) for f in (*failures, *report.failures)],
        "provenance": None if provenance is None else dict(provenance),
    }


def _result(found: Examined, report: Report) -> dict[str, Any]:
    said, good_for = said_of(found, report)
    evaluation = found.evaluation
    assert evaluation is not None
    known = found.by_atom
    return {
        "file": found.structure.file,
        "index": found.structure.index,
        "formula": found.structure.formula,
        "n_atoms": found.structure.n_atoms,
        "sentence": sentence(good_for),
        "uses": [{"for": u.name, "enough": u.answer, "because": u.why} for u in good_for],
        "lines": [
            {
                "part": w.part,
                "name": w.name,
                "status": w.status,
                "figure": w.figure,
                "text": w.text,
                "published": w.published,
            }
            for w in said
        ],
        "missing": dict(found.missing),
        "energy_eV": evaluation.energy,
        "force_delta_eV_per_A": evaluation.force_delta,
        "force_delta_per_atom_eV_per_A": evaluation.force_delta_per_atom.tolist(),
        "confidence_eV_per_A": None if evaluation.confidence is None else evaluation.confidence.tolist(),
        "graph_tie_A": evaluation.graph_tie_A,
        "net_force_eV_per_A_per_atom": {f: found.net_force(f) for f in ("direct", "conservative")},
        "net_torque_eV_per_atom": {f: found.net_torque(f) for f in ("direct", "conservative")},
        "force_check": None if found.check is None else dict(found.check),
        "jacobian_asymmetry": {
            force: {
                "lambda": a.value,
                "standard_error": a.standard_error,
                "exact": a.exact,
                "probes": a.probes,
                "norm_eV_per_A2": a.norm,
                "antisymmetric_norm_eV_per_A2": a.antisymmetric_norm,
            }
            for force, a in found.asymmetry.items()
        }
        or None,
        "jacobian_by": found.asymmetry_by or None,
        "jacobian_asymmetry_per_atom": None
        if known is None
        else {"lambda": known[0].tolist(), "share": known[1].tolist()},
        "loops": report_plots.loop_table(found).to_dict("records"),
        "work_per_length_eV_per_A": {f: found.work_per_length(f) for f in ("direct", "conservative")},
        "largest_jump_meV": found.largest_jump_meV,
        "neighbour_changes": found.neighbour_changes if found.lines else None,
        "copies": report_plots.copy_table(found).to_dict("records"),
        "drift": {
            force: {
                "drift_meV_per_atom_per_ps": _value(d.slope),
                "drift_ci": _half(d.slope),
                "drift_K_per_ps": _value(d.slope_K),
                "drift_K_ci": _half(d.slope_K),
                "time_ps": float(d.time_ps[-1]),
                "ended": d.ended or None,
            }
            for force, d in found.drifts.items()
        }
        or None,
        "seconds": dict(found.seconds),
    }


def _value(slope: Slope | None) -> float | None:
    return None if slope is None else slope.slope


def _half(slope: Slope | None) -> float | None:
    return None if slope is None else slope.half_width


def as_json(report: Report, failures: Sequence[Failure] = (), provenance: Mapping[str, Any] | None = None) -> str:
    made = document(report, failures, provenance)
    return json.dumps(made, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def lines_csv(report: Report) -> str:
    """One row per structure and line."""
    rows = [
        {
            "file": found.structure.file,
            "index": found.structure.index,
            "part": w.part,
            "name": w.name,
            "status": w.status,
            "figure": w.figure,
            "text": w.text,
        }
        for found in report.examined
        for w in said_of(found, report)[0]
    ]
    return pd.DataFrame(rows).to_csv(index=False)


# ---- the page ------------------------------------------------------------------------------------------------------


def html(report: Report, failures: Sequence[Failure] = (), provenance: Mapping[str, Any] | None = None) -> str:
    """The report. The first of every structure is its page of plain words."""
    title = title_of(report)
    parts = [f"<h1>{escape(title)}</h1>"]
    for found in report.examined:
        said, good_for = said_of(found, report)
        parts.append(f"<h2>{escape(name_of(found))}, {found.structure.n_atoms} atoms</h2>")
        parts.append(f"<p><strong>{escape(sentence(good_for))}</strong></p>")
        parts.append(table(USE_COLUMNS, [[u.name, ANSWER_WORDS[u.answer], u.why] for u in good_for], words=True))
        cells = [[w.name, STATUS_WORDS[w.status], w.figure, f"{w.text} {w.published}".strip()] for w in said]
        parts.append(f"<h2>What was looked at</h2>{table(LINE_COLUMNS, cells, words=True)}")
        drawn = report_plots.charts(found)
        parts += [svg(chart.properties(width=WIDTH)) for chart in drawn.values()]
    for failure in (*failures, *report.failures):
        parts.append(
            f"<h2>{escape(failure.file)}</h2><p>Not examined: {escape(failure.error)} {escape(failure.hint)}</p>"
        )
    if not report.complete:
        parts.append(f'<p class="quiet">{escape(STOPPED)}</p>')
    parts.append(f"<h2>How it was made</h2><p class='quiet'>{escape(METHOD)}</p>")
    if provenance is not None:
        parts.append(preformatted(provenance))
    return page(title, "\n".join(parts))


def files(
    report: Report, failures: Sequence[Failure] = (), provenance: Mapping[str, Any] | None = None
) -> dict[str, str | bytes]:
    """By name: the HTML, the same as PDF, every figure as SVG and PNG, the numbers as JSON and CSV."""
    out: dict[str, str | bytes] = {
        "report.html": html(report, failures, provenance),
        "report.pdf": pdf(report, failures, provenance),
        "report.json": as_json(report, failures, provenance),
        "lines.csv": lines_csv(report),
    }
    for k, found in enumerate(report.examined):
        folder = f"{k + 1}-{PurePath(found.structure.file).stem or 'structure'}"
        for name, chart in report_plots.charts(found).items():
            sized = chart.properties(width=WIDTH)
            out |= {f"{folder}/{name}.svg": svg(sized), f"{folder}/{name}.png": png(sized)}
        for name, of, there in (
            ("loops", report_plots.loop_table, found.loops),
            ("jumps", report_plots.line_table, found.lines),
            ("copies", report_plots.copy_table, found.noises),
            ("pairs", report_plots.pair_table, found.jacobians),
            ("atoms", report_plots.atom_table, found.jacobians),
        ):
            if there:
                out[f"{folder}/{name}.csv"] = of(found).to_csv(index=False)
    return out


def archive(report: Report, failures: Sequence[Failure] = (), provenance: Mapping[str, Any] | None = None) -> bytes:
    """`files` as a zip."""
    return zipped(files(report, failures, provenance))
