"""Small looks into the tables of `fdcore.export`: one row, some rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from fdcore.records import Score


def atom_row(score: Score, atom: int) -> dict[str, Any]:
    """The row of one atom, under the column names of `export.per_atom_table`."""
    evaluation = score.evaluation
    row: dict[str, Any] = {
        "atom": atom,
        "element": score.structure.symbols[atom],
        "force_delta_eV_per_A": float(evaluation.force_delta_per_atom[atom]),
        "force_direct_norm_eV_per_A": float(np.linalg.norm(evaluation.forces_direct[atom])),
        "force_conservative_norm_eV_per_A": float(np.linalg.norm(evaluation.forces_conservative[atom])),
    }
    if evaluation.confidence is not None:
        row["confidence_eV_per_A"] = float(evaluation.confidence[atom])
    return row


def filter_results(table: pd.DataFrame, verdicts: Sequence[str] = (), text: str = "") -> pd.DataFrame:
    """Rows of `export.results_table` with one of these verdicts (none: all) and this text in file, formula or reason."""
    keep = pd.Series(True, index=table.index)
    if verdicts:
        keep &= table["verdict"].isin(list(verdicts))
    wanted = text.strip().lower()
    if wanted:
        searched = [c for c in ("file", "formula", "error", "warnings") if c in table]
        words = table[searched].fillna("").astype(str).agg(" ".join, axis=1).str.lower()
        keep &= words.str.contains(wanted, regex=False)
    return table[keep].reset_index(drop=True)


def row_key(table: pd.DataFrame, row: int) -> tuple[str, int | None]:
    """Which structure a row of `export.results_table` stands for: its file and frame."""
    index = table["index"].iloc[row] if "index" in table else None
    return str(table["file"].iloc[row]), None if pd.isna(index) else int(index)


def columns_with_content(table: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Those of `columns` that exist and are not empty in every row."""
    present = [c for c in columns if c in table]
    return [c for c in present if (table[c].notna() & (table[c].astype(str) != "")).any()]
