"""A reproduction as files: numbers as JSON and CSV, figures as SVG and PNG, and one HTML page with the paper's numbers beside ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from fdcore import reproduction_plots
from fdcore.html_page import page, png, preformatted, svg, zipped
from fdcore.html_page import table as html_table
from fdcore.human import three_digits
from fdcore.reproduction import Finding, Reproduced, findings, what_differs
from fdcore.statistics import IN_ORDER, NO_WIDTH

# The paper's numbers stand apart; wide tables scroll.
STYLE = """
.paper { background: #f4f6f7; padding: 2px 10px 8px; border-left: 3px solid #7f8c93; overflow-x: auto; }
.wide { overflow-x: auto; } td:first-child, th:first-child { overflow-wrap: normal; white-space: nowrap; }
"""
# How columns are called on the page; what is not here is shown by its own name.
HEADINGS = {
    "drift_meV_per_atom_per_ps": "drift (meV/atom/ps)",
    "drift_ci": "±",
    "drift_abs_meV_per_atom_per_ps": "|drift| (meV/atom/ps)",
    "drift_abs_ci": "± ",
    "picoseconds": "ps",
    "temperature_K": "T (K)",
    "temperature_fluctuation_K": "std of T (K)",
    "temperature_fluctuation_error_K": "± (K)",
    "canonical_fluctuation_K": "canonical (K)",
    "force_delta_mean_eV_per_A": "mean U_Delta (eV/Å)",
    "force_delta_eV_per_A": "mean U_Delta (eV/Å)",
    "error_direct_eV_per_A": "mean eps_nc (eV/Å)",
    "error_conservative_eV_per_A": "mean eps_c (eV/Å)",
    "force_delta_low_eV_per_A": "U_Delta from (eV/Å)",
    "force_delta_high_eV_per_A": "to (eV/Å)",
    "r_s_error_direct": "r_s(U, eps_nc)",
    "r_s_error_direct_ci": "95 %",
    "r_s_error_conservative": "r_s(U, eps_c)",
    "r_s_error_conservative_ci": "95 % ",
    "median_error_direct_eV_per_A": "median eps_nc (eV/Å)",
    "median_error_conservative_eV_per_A": "median eps_c (eV/Å)",
    "r_s_force_delta": "r_s(U_Delta, eps_nc)",
    "r_s_force_delta_error": "± (models)",
    "r_s_ensemble_spread": "r_s(U_var, eps_nc)",
    "relative_cost": "cost of U_var / one model",
    "nve_runs": "runs",
    "ended_early": "blew up",
    "stopped_because": "ended",
    "r_s": "r_s",
}
# What only machines want.
HIDDEN = (
    "paper_name",
    "relaxation_iterations",
    "relaxed",
    "steps_per_second",
    "total_meV_per_atom",
    "drift_ci_abs",
    "change_ci",
    "change_meV_per_atom_per_ps",
    "force_delta_nve_median_eV_per_A",
)


def document(found: Reproduced, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The document of `fdcore reproduce --json`."""
    return {
        "targets": {
            f.target.id: {
                "where": f.target.where,
                "title": f.target.title,
                "rows": [dict(r) for r in f.rows],
                "published": [dict(r) for r in f.published],
                "sentences": list(f.said),
                "paper_says": f.paper or None,
                "missing": list(f.missing),
            }
            for f in findings(found)
        },
        "what_differs": what_differs(found),
        "seconds": found.seconds,
        "provenance": dict(provenance),
    }


def html(found: Reproduced, provenance: Mapping[str, Any]) -> str:
    """One page that needs nothing else."""
    listed = findings(found)
    body = "".join(_section(f) for f in listed)
    differs = "".join(f"<li>{escape(s)}</li>" for s in what_differs(found))
    return page(
        "The paper, reproduced",
        f"""<style>{STYLE}</style>
<h1>When forces disagree: {escape(", ".join(f.target.where for f in listed))}</h1>
<h2>What differs from the paper</h2><ul>{differs}</ul>
{body}
<h2>How it was made</h2>{preformatted(provenance)}""",
    )


def _section(found: Finding) -> str:
    said = "".join(f"<p>{escape(s)}</p>" for s in found.said) or "<p>Nothing yet.</p>"
    drawn = "".join(f'<div class="wide">{svg(c)}</div>' for c in reproduction_plots.charts(found).values())
    paper = f"<p>{escape(found.paper)}</p>" if found.paper else ""
    known = table(found.published)
    beside = f'<div class="paper"><h3>The paper</h3>{paper}{known}</div>' if paper or known else ""
    missing = "".join(f"<li>{escape(s)}</li>" for s in found.missing)
    missing = f'<p class="quiet">Missing:</p><ul class="quiet">{missing}</ul>' if missing else ""
    return (
        f"<h2>{escape(found.target.where)}: {escape(found.target.title)}</h2>{said}{drawn}"
        f'<div class="wide">{table(found.rows)}</div>{beside}{missing}'
    )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """As HTML; empty for no rows."""
    if not rows:
        return ""
    columns = [c for c in dict.fromkeys(c for r in rows for c in r) if c not in HIDDEN]
    return html_table([HEADINGS.get(c, c) for c in columns], [[shown(r, c) for c in columns] for r in rows])


def shown(row: Mapping[str, Any], column: str) -> str:
    """A cell of a row; the interval that a perfect order does not have is missing with this reason."""
    of = row.get(column.removesuffix("_ci"))
    if column.startswith("r_s") and column.endswith("_ci") and row.get(column) is None and isinstance(of, float):
        return IN_ORDER if abs(of) > 1 - NO_WIDTH else cell(None)
    return cell(row.get(column))


def cell(value: Any) -> str:
    """A number in three digits, an interval as two, a dash for what is missing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return three_digits(value)
    if isinstance(value, (list, tuple)):
        return " to ".join(cell(v) for v in value)
    return str(value)


def files(found: Reproduced, provenance: Mapping[str, Any]) -> dict[str, str | bytes]:
    """By name: the page, every figure as SVG and PNG, the numbers of every target as CSV, all of it as JSON."""
    out: dict[str, str | bytes] = {
        "report.html": html(found, provenance),
        "reproduction.json": json.dumps(document(found, provenance), indent=1, allow_nan=False, ensure_ascii=False)
        + "\n",
    }
    for one in findings(found):
        if one.rows:
            out[f"{one.target.id}.csv"] = pd.DataFrame([dict(r) for r in one.rows]).to_csv(index=False)
        if one.published:
            out[f"{one.target.id}-paper.csv"] = pd.DataFrame([dict(r) for r in one.published]).to_csv(index=False)
        for name, chart in reproduction_plots.charts(one).items():
            out |= {f"{name}.svg": svg(chart), f"{name}.png": png(chart)}
    return out


def archive(found: Reproduced, provenance: Mapping[str, Any]) -> bytes:
    """`files` as a zip."""
    return zipped(files(found, provenance))
