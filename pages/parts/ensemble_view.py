"""An ensemble's answer: live while it is asked, and afterwards U_Delta and U_var side by side."""

from __future__ import annotations

from pathlib import PurePath

import streamlit as st

from fdcore import ensemble, ensemble_files, ensemble_plots
from fdcore.ensemble import Compared, Spread
from fdcore.errors import FdcoreError
from fdcore.human import count, duration, three_digits
from fdcore.records import Score, Verdict
from fdcore.services import ensemble as ensembles
from fdcore.services import runs
from fdcore.statistics import FEWEST_GROUPS
from pages.parts import ensembling, run_parts, words
from pages.parts.ensemble_settings import SPREAD_HELP
from pages.parts.refusals import failed
from pages.parts.run_parts import Download
from pages.parts.viewer import viewer
from pages.parts.words import plain

TICK_S = 1.0
ROWS_UNSCROLLED = 12


def show(run: runs.Run) -> None:
    """Everything below the structure and the model."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Change members", icon=":material/tune:", key="ensemble-again", on_click=ensembling.forget)
        model_id = run.spec.model.id if run.spec.model else ""
        st.caption(f"{plain(run.title)}: {model_id} beside {count(len(run.spec.parameters['members']), 'model')}")
    if run.active:
        _live()
        return
    try:
        found = ensembling.compared(run)
        _ended(run, found)
        for failure in found.failures:
            failed(failure)
        for name, reason in found.unloadable.items():
            st.warning(f"**{name} is left out.** {plain(reason)}", icon=":material/person_off:")
        if found.spreads:
            _results(run, found)
    except FdcoreError as error:
        st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/error:")


@st.fragment(run_every=TICK_S)
def _live() -> None:
    run = ensembling.shown()
    if run is None or not run.active:
        st.rerun()
        return
    run_parts.live(run, "What was answered is kept, and it can go on from there.")


def _ended(run: runs.Run, found: Compared) -> None:
    if run.state != "done":
        done = f"{len(found.spreads):,} of {count(run.spec.n_structures, 'structure')}"
        stopped = f":material/stop_circle: **Stopped** after {done}."
        run_parts.not_finished(run, stopped, "Go on", ensembling.follow)


# ---- the answer ----------------------------------------------------------------------------------------------------


def _results(run: runs.Run, found: Compared) -> None:
    st.markdown(f"#### {_sentence(found)}")
    _metrics(found)
    left, right = st.columns(2, gap="large")
    with left:
        if len(found.spreads) > 1:
            st.altair_chart(
                ensemble_plots.both_estimates(ensemble_files.table(found)),
                alt="U_Delta against U_var, one mark per structure; the table is below.",
            )
        st.altair_chart(
            ensemble_plots.costs(found), alt="Seconds that U_Delta, every member and the whole ensemble took."
        )
    with right:
        if found.pairwise() is not None:
            st.altair_chart(
                ensemble_plots.difference_matrix(found),
                alt="RMS difference in eV/Å of every pair of members; the numbers are in the JSON download.",
            )
        _rankings(found)
    _structures(found)
    _take_away(run, found)


def _sentence(found: Compared) -> str:
    """Words first."""
    agreement = ensemble.agreement(found)
    if agreement.r_s is None:
        if len(found.spreads) == 1:
            return "One structure: two numbers, and nothing to rank."
        return "Too few structures to say whether U_Delta and U_var point the same way."
    # A few in order are so by chance more often than one would think.
    ordered = agreement.in_order and agreement.n >= FEWEST_GROUPS
    if not ordered and (agreement.low is None or agreement.low <= 0 <= (agreement.high or 0)):
        return (
            f"Whether U_Delta and U_var point the same way cannot be told from {count(agreement.n, 'structure')}: "
            f"r_s = {agreement.text}."
        )
    how = "the same way" if agreement.r_s > 0.7 else "partly the same way" if agreement.r_s > 0.3 else "different ways"
    return f"U_Delta and U_var point {how}: r_s = {agreement.text} over {count(agreement.n, 'structure')}."


def _metrics(found: Compared) -> None:
    worst = max(found.spreads, key=lambda s: s.evaluation.force_delta)
    spread = max((s.ensemble_spread for s in found.spreads if s.ensemble_spread is not None), default=None)
    cells = st.columns(4)
    cells[0].metric("Largest U_Delta", three_digits(worst.evaluation.force_delta), help=words.FORCE_DELTA_HELP)
    cells[0].caption("eV/Å")
    cells[1].metric("Largest U_var", "–" if spread is None else three_digits(spread), help=SPREAD_HELP)
    cells[1].caption("eV/Å")
    cost = found.relative_cost
    cells[2].metric(
        "Cost of U_Delta",
        "–" if cost is None else f"{cost:.2f}",
        help="Time for both forces of the model over time for the forces of all members, in this run, structure by structure in turn.",
    )
    cells[2].caption(
        "" if cost is None else f"of U_var: {duration(found.seconds_both)} against {duration(found.seconds_ensemble)}"
    )
    confidences = [s.confidence for s in found.spreads if s.confidence is not None]
    cells[3].metric(
        "Confidence head", three_digits(max(confidences)) if confidences else "–", help=words.CONFIDENCE_HELP
    )
    cells[3].caption("eV/Å, mean over the atoms, the largest" if confidences else "this model has none")


def _rankings(found: Compared) -> None:
    rows = ensemble.rankings(found)
    if not rows:
        st.caption(
            "With an extended xyz that holds reference forces, this page also says which estimate ranks the errors."
        )
        return
    st.altair_chart(ensemble_plots.against_errors(found), alt="Both estimates against the error of the direct force.")
    st.dataframe(
        {
            "estimate": [ensemble.ESTIMATES[r.estimate] for r in rows],
            "error": [ensemble.ERRORS[r.error] for r in rows],
            "r_s": [r.found.r_s for r in rows],
            "95 % from": [r.found.low for r in rows],
            "to": [r.found.high for r in rows],
            "n": [r.found.n for r in rows],
        },
        hide_index=True,
        column_config={name: st.column_config.NumberColumn(format="%.2f") for name in ("r_s", "95 % from", "to")},
        alt="Spearman's rank correlation of every estimate with every error.",
    )


@st.fragment
def _structures(found: Compared) -> None:
    """The table, and the structure that is chosen in it."""
    table = ensemble_files.table(found)
    order = {(s.structure.file, s.structure.index): s for s in found.spreads}
    st.markdown("#### Structures")
    labelled = table["error_direct_eV_per_A"].notna().any()
    columns = [
        "file", "index", "formula", "n_atoms", "force_delta_eV_per_A", "ensemble_spread_eV_per_A", "confidence_eV_per_A",
        *(["error_direct_eV_per_A", "error_conservative_eV_per_A"] if labelled else []),
        "members", "left_out", "outlier",
    ]  # fmt: skip
    chosen = st.dataframe(
        table[[c for c in columns if table[c].notna().any()]],
        hide_index=True,
        selection_mode="single-row",
        on_select="rerun",
        key="ensemble-table",
        height="auto" if len(table) <= ROWS_UNSCROLLED else 460,
        column_config={
            "index": "frame",
            "n_atoms": "atoms",
            "force_delta_eV_per_A": st.column_config.NumberColumn("U_Delta (eV/Å)", format="%.3g"),
            "ensemble_spread_eV_per_A": st.column_config.NumberColumn("U_var (eV/Å)", format="%.3g"),
            "confidence_eV_per_A": st.column_config.NumberColumn("confidence (eV/Å)", format="%.3g"),
            "error_direct_eV_per_A": st.column_config.NumberColumn("eps_nc (eV/Å)", format="%.3g"),
            "error_conservative_eV_per_A": st.column_config.NumberColumn("eps_c (eV/Å)", format="%.3g"),
            "left_out": "left out",
            "outlier": "stands apart",
        },
        alt="One row per structure, largest U_var first; a click shows it below.",
    )
    rows = chosen["selection"]["rows"]
    row = min(rows[0] if rows else 0, len(table) - 1)
    shown = order[(table["file"].iloc[row], int(table["index"].iloc[row]))]
    _picture(found, shown)


def _picture(found: Compared, spread: Spread) -> None:
    left, right = st.columns([3, 2], gap="large")
    per_atom = spread.ensemble_spread_per_atom
    with left:
        unknown = Verdict("unknown", "", ())
        viewer(Score(spread.structure, found.model_id, spread.evaluation, unknown), spread=per_atom)
        st.caption("Colour by u_i or by the spread of the ensemble, in the list above the picture.")
    with right:
        st.markdown(f"**{plain(spread.structure.file)}**, frame {spread.structure.index}: {spread.structure.formula}")
        if per_atom is None:
            st.caption("Fewer than two members could read it.")
            return
        u = spread.evaluation.force_delta_per_atom
        worst = sorted(range(len(u)), key=lambda k: -u[k])[:ROWS_UNSCROLLED]
        st.dataframe(
            {
                "atom": [f"{spread.structure.symbols[k]}{k}" for k in worst],
                "u_i (eV/Å)": [float(u[k]) for k in worst],
                "spread (eV/Å)": [float(per_atom[k]) for k in worst],
            },
            hide_index=True,
            column_config={
                name: st.column_config.NumberColumn(format="%.3g") for name in ("u_i (eV/Å)", "spread (eV/Å)")
            },
            alt="The atoms with the largest u_i, and the spread of the ensemble on each.",
        )
        both = set(worst[:3]) & set(sorted(range(len(u)), key=lambda k: -per_atom[k])[:3])
        if len(u) > 3:
            st.caption(
                f"Of the three atoms with the largest u_i, {len(both)} {'is' if len(both) == 1 else 'are'} among the three with the "
                "largest spread."
            )


def _take_away(run: runs.Run, found: Compared) -> None:
    st.markdown("#### Take it away")
    name = PurePath(run.title).stem or "ensemble"
    provenance = runs.provenance_of(run)
    files = (
        Download(
            "JSON", lambda: ensemble_files.as_json(found, runs.refusals(run), provenance), f"{name}-ensemble.json",
            "The document of `fdcore ensemble --json`: both estimates of every structure and atom, pairs, costs, rankings.",
        ),
        Download("CSV", lambda: ensemble_files.as_csv(found), f"{name}-ensemble.csv", "One row per structure."),
        Download(
            "extXYZ", lambda: ensemble_files.as_extxyz(found), f"{name}-ensemble.extxyz",
            "F_nc, F_c, u_i and the spread of the ensemble as per-atom arrays.",
        ),
    )  # fmt: skip
    with st.container(horizontal=True, key="ensemble-downloads"):
        run_parts.download_buttons(files, "ensemble")
    assert run.spec.model is not None
    parameters = run.spec.parameters
    run_parts.repeat(
        ensembles.command_line(
            list(dict.fromkeys(s.file for s in runs.inputs(run)))[:8],
            run.spec.model,
            parameters["members"],
            bool(parameters.get("mix_methods", False)),
        )
    )
    st.caption(f"Finished {words.when(run.ended_at)}.")
