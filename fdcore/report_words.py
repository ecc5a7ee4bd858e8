"""What every form of a report says alike: how structures are called, the words of answers and columns, how it was made."""

from __future__ import annotations

from pathlib import PurePath

from fdcore import models
from fdcore.report import Examined, Report
from fdcore.report_verdict import LineOfReport, Use, lines, uses

WIDTH = 640
STATUS_WORDS = {"pass": "✓ pass", "look": "◐ look", "fail": "✗ fail", "unknown": "– missing"}
ANSWER_WORDS = {"yes": "✓ yes", "with care": "◐ with care", "no": "✗ no", "not known": "– not known"}
USE_COLUMNS = ("for", "enough?", "because")
LINE_COLUMNS = ("what", "", "figure", "in words, and what others published")
STOPPED = "The examination was stopped before its end: what was done is here."
METHOD = (
    "λ = |(J - Jᵀ)/2| / |J| in the Frobenius norm, J = dF/dR (Bigi, Langer, Ceriotti 2025, eq. 7; ml-peg). A random loop is a circle in a random plane of "
    "configuration space around the structure; the work is its integral of F . dr by the trapezoidal rule. A jump is what the energy does along "
    "a straight walk beyond the integral of F_c. Copies are turned, permuted and shifted at random. The drift is the fitted slope of the "
    "total energy per atom with an interval that respects correlation (95 %). Thresholds are conventions: fdcore/report_verdict.py names them."
)


def title_of(report: Report) -> str:
    """The question that a report answers."""
    return f"Is {report.model_id} conservative here?"


def said_of(found: Examined, report: Report) -> tuple[list[LineOfReport], list[Use]]:
    """Lines and uses of one structure."""
    said = lines(found, models.card(report.model_id), report.dtype, report.settings.parts)
    return said, uses(found, said)


def name_of(found: Examined) -> str:
    """How a structure is called."""
    # Where it lies on somebody's disk is nobody else's business.
    return f"{PurePath(found.structure.file).name or 'structure'}, frame {found.structure.index}: {found.structure.formula}"
