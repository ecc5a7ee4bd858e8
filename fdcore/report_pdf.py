"""The report as a PDF of a page or two per structure: the words and numbers of its HTML, its figures as PNG.

In a core font of PDF, which needs no font on the machine and knows Latin-1 alone: what lies beyond is written out (`latin`).
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fdcore import report_plots
from fdcore.html_page import png
from fdcore.records import Failure
from fdcore.report import Examined, Report
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

if TYPE_CHECKING:
    from fpdf import FPDF

FONT = "Helvetica"
MARGIN_MM, GAP_MM = 14.0, 4.0
SIZE_PT, SMALL_PT = 8.5, 7.5
LINE_MM = 4.0
INSTEAD = "?"
# Signs that stand before a word say nothing without it.
_WRITTEN = {
    "✓ ": "", "◐ ": "", "✗ ": "", "–": "-", "—": "-", "−": "-", "’": "'", "‘": "'", "“": '"', "”": '"', "•": "-", "≤": "<=", "≥": ">=",
    "≈": "about", "∞": "inf", "→": "->", "∇": "grad ", "∂": "d", "√": "sqrt", "∑": "sum", "Σ": "Sum", "ᵀ": "^T", "⁻": "-", "⁺": "+",
    "₋": "-", "₊": "+", "Δ": "Delta", "λ": "lambda", "α": "alpha", "β": "beta", "γ": "gamma", "ε": "eps", "θ": "theta", "μ": "µ", "π": "pi",
    "ρ": "rho", "σ": "sigma", "τ": "tau", "ω": "omega",
}  # fmt: skip


def latin(text: str) -> str:
    """The text in Latin-1: signs written out, sub- and superscripts on the line, letters without the accents that it lacks; a `?` for each
    character that nothing can stand for."""
    text = unicodedata.normalize("NFC", text)
    for sign, written in _WRITTEN.items():
        text = text.replace(sign, written)
    return "".join(c if ord(c) < 0x100 else _plainer(c) for c in text)


def _plainer(character: str) -> str:
    plain = "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))
    if plain and all(ord(c) < 0x100 for c in plain):
        return plain
    # What only changes how others look needs nothing in its place.
    return "" if unicodedata.category(character) in ("Mn", "Cf") else INSTEAD


def pdf(report: Report, failures: Sequence[Failure] = (), provenance: Mapping[str, Any] | None = None) -> bytes:
    """The report; a structure or a part that is missing is named with its reason, as in the HTML."""
    # Half a second, and only who asks for a PDF needs it.
    from fpdf import FPDF

    out = FPDF(format="A4")
    out.set_margin(MARGIN_MM)
    out.set_auto_page_break(auto=True, margin=MARGIN_MM)
    title = title_of(report)
    out.set_title(latin(title))
    out.add_page()
    _write(out, title, size=15, bold=True)
    for k, found in enumerate(report.examined):
        if k:
            out.add_page()
        _structure(out, found, report)
    for failure in (*failures, *report.failures):
        _heading(out, failure.file)
        _write(out, f"Not examined: {failure.error} {failure.hint}")
    if not report.complete:
        _write(out, STOPPED)
    _heading(out, "How it was made")
    _write(out, METHOD, size=SMALL_PT)
    if provenance is not None:
        plain = [f"{k}: {v}" for k, v in provenance.items() if isinstance(v, str | int | float)]
        _write(out, "; ".join(plain) + " (all of it is in the JSON).", size=SMALL_PT)
    return bytes(out.output())


def _structure(out: FPDF, found: Examined, report: Report) -> None:
    said, good_for = said_of(found, report)
    _heading(out, f"{name_of(found)}, {found.structure.n_atoms} atoms")
    _write(out, sentence(good_for), bold=True)
    out.ln(1)
    _table(out, USE_COLUMNS, [[u.name, ANSWER_WORDS[u.answer], u.why] for u in good_for], (42, 18, 122))
    _heading(out, "What was looked at")
    rows = [[w.name, STATUS_WORDS[w.status], w.figure, f"{w.text} {w.published}".strip()] for w in said]
    _table(out, LINE_COLUMNS, rows, (38, 14, 32, 98))
    out.ln(GAP_MM)
    _figures(out, [png(chart.properties(width=WIDTH)) for chart in report_plots.charts(found).values()])


def _heading(out: FPDF, text: str) -> None:
    out.ln(1.5)
    _write(out, text, size=11, bold=True)


def _write(out: FPDF, text: str, *, size: float = SIZE_PT, bold: bool = False) -> None:
    out.set_font(FONT, "B" if bold else "", size)
    out.multi_cell(0, LINE_MM * size / SIZE_PT, latin(text), align="L", new_x="LMARGIN", new_y="NEXT")


def _table(out: FPDF, columns: Sequence[str], rows: Sequence[Sequence[str]], widths_mm: tuple[int, ...]) -> None:
    """Cells are sentences; `widths_mm` fill the page."""
    out.set_font(FONT, "", SMALL_PT)
    with out.table(
        col_widths=widths_mm, text_align="LEFT", line_height=3.3, borders_layout="HORIZONTAL_LINES", padding=0.6
    ) as table:
        for cells in (columns, *rows):
            row = table.row()
            for cell in cells:
                row.cell(latin(cell))


def _figures(out: FPDF, drawn: Sequence[bytes]) -> None:
    """Two beside each other; a pair that does not fit goes to the next page."""
    from PIL import Image

    width = (out.epw - GAP_MM) / 2
    sizes = [Image.open(io.BytesIO(content)).size for content in drawn]
    for k in range(0, len(drawn), 2):
        height = max(width * h / w for w, h in sizes[k : k + 2])
        if out.will_page_break(height):
            out.add_page()
        top = out.get_y()
        for column, content in enumerate(drawn[k : k + 2]):
            out.image(io.BytesIO(content), x=out.l_margin + column * (width + GAP_MM), y=top, w=width)
        out.set_xy(out.l_margin, top + height + GAP_MM)
