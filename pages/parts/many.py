"""Many scored structures: a table sorted by U_Delta, filters, failures with their reason; a click opens one."""

from __future__ import annotations

import streamlit as st

from fdcore import export, tables
from fdcore.human import count, three_digits
from pages.parts import downloads, session, single, words
from pages.parts.refusals import failed
from pages.parts.words import plain

# A longer table scrolls inside itself.
ROWS_UNSCROLLED = 14


def show(known: session.Results) -> None:
    """The table of all results and, below it, the one that was opened."""
    table = export.results_table(known.scores, known.failures)
    _headline(known)
    shown = _filtered(table)
    _table(shown, float(table["force_delta_eV_per_A"].max()) if known.scores else 1.0)
    _opened(known)
    st.markdown("#### Take all of it away")
    downloads.many(known.scores, known.failures)


def _headline(known: session.Results) -> None:
    worst = max(known.scores, key=lambda s: s.evaluation.force_delta, default=None)
    levels = [s.verdict.level for s in known.scores]
    with st.container(border=True, key="summary"):
        parts = [
            f":{words.LEVELS[level].color}[{words.LEVELS[level].icon} **{n}** {words.LEVELS[level].word.lower()}]"
            for level in ("unreliable", "caution", "unknown", "consistent")
            if (n := levels.count(level))
        ]
        if known.failures:
            sign = words.LEVELS["failed"]
            parts.append(f":{sign.color}[{sign.icon} **{len(known.failures)}** failed]")
        st.markdown(f"### {count(len(known.scores) + len(known.failures), 'structure')}")
        st.markdown(" &nbsp; · &nbsp; ".join(parts))
        if worst is not None:
            st.markdown(
                f"The forces disagree most on **{plain(_name(worst))}**: U_Delta = "
                f"**{three_digits(worst.evaluation.force_delta)} eV/Å**.",
                help=words.FORCE_DELTA_HELP,
            )


def _filtered(table):
    """Rows by verdict and by text; the widgets keep their place while the table changes."""
    left, right = st.columns([2, 3], gap="medium")
    present = [level for level in words.LEVELS if (table["verdict"] == level).any()]
    with left:
        levels = st.multiselect(
            "Show", present, key="filter_level", format_func=lambda v: words.LEVELS[v].word, placeholder="every verdict"
        )
    with right:
        text = st.text_input("Filter", key="filter_text", placeholder="file name, formula or reason")
    return tables.filter_results(table, levels, text)


def _table(shown, top: float) -> None:
    if shown.empty:
        st.info("No row passes the filter.", icon=":material/filter_alt_off:")
        return
    number = st.column_config.NumberColumn
    order = [
        "verdict",
        "file",
        "index",
        "formula",
        "n_atoms",
        "force_delta_eV_per_A",
        "worst_atom",
        "worst_atom_eV_per_A",
    ]
    order += ["reference_percentile", "confidence_eV_per_A", "error_direct_eV_per_A", "error", "hint", "warnings"]
    key = "results_table"
    st.dataframe(
        shown,
        hide_index=True,
        height="content" if len(shown) <= ROWS_UNSCROLLED else 560,
        placeholder="",
        key=key,
        on_select=lambda: _row_clicked(key, shown),
        selection_mode="single-row",
        column_order=tables.columns_with_content(shown, order),
        alt="One row per structure, the largest U_Delta first, failures last. Selecting a row opens the structure below.",
        column_config={
            "verdict": st.column_config.TextColumn("Verdict"),
            "file": "File",
            "index": number("Frame", format="%d"),
            "formula": "Formula",
            "n_atoms": number("Atoms", format="localized"),
            "force_delta_eV_per_A": st.column_config.ProgressColumn(
                "U_Delta (eV/Å)", format="%.3g", min_value=0.0, max_value=top or 1.0, help=words.FORCE_DELTA_HELP
            ),
            "worst_atom": "Worst atom",
            "worst_atom_eV_per_A": number("its u_i (eV/Å)", format="%.3g", help=words.PER_ATOM_HELP),
            "reference_percentile": number("Percentile", format="%.0f", help=words.PERCENTILE_HELP),
            "confidence_eV_per_A": number("Expected error (eV/Å)", format="%.3g", help=words.CONFIDENCE_HELP),
            "error_direct_eV_per_A": number("Error of F_nc (eV/Å)", format="%.3g"),
            "error": st.column_config.TextColumn("Why it failed", width="large"),
            "hint": st.column_config.TextColumn("What to do", width="large"),
            "warnings": "Notes",
        },
    )


def _row_clicked(key: str, shown) -> None:
    rows = st.session_state[key]["selection"]["rows"]
    session.open_one(tables.row_key(shown, rows[0]) if rows else None)


def _opened(known: session.Results) -> None:
    wanted = session.open_score()
    if wanted is None:
        st.caption("Select a row to open that structure: picture, evidence and atoms.")
        return
    for score in known.scores:
        if (score.structure.file, score.structure.index) == wanted:
            single.show(score, alone=False)
            st.divider()
            return
    for failure in known.failures:
        if (failure.file, failure.index) == wanted:
            failed(failure)
            return


def _name(score) -> str:
    frame = f" (frame {score.structure.index})" if score.structure.index else ""
    return f"{score.structure.file}{frame}"
