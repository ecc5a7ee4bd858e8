"""A validation: live while it runs, and afterwards words first, then ranks, errors, calibration, alarms and consensus failures."""

from __future__ import annotations

from pathlib import PurePath

import streamlit as st

from fdcore import validation, validation_plots, validation_report, validation_words
from fdcore.errors import FdcoreError
from fdcore.human import count, three_digits
from fdcore.services import runs
from fdcore.services import validation as validations
from fdcore.validation import Validation
from fdcore.validation_report import Report
from pages.parts import run_parts, validating, words
from pages.parts.refusals import failed
from pages.parts.run_parts import Download
from pages.parts.validate_settings import RANK_HELP
from pages.parts.words import plain

TICK_S = 1.0
ROWS_UNSCROLLED = 12
# Failures in full; the rest by number, and all in the CSV.
MOST_FAILURES = 5
DIRECT_HELP = r"$\epsilon_{nc}$: root mean square over all 3N components of F_nc minus the reference, in eV/Å."
CONSERVATIVE_HELP = r"$\epsilon_{c}$: root mean square over all 3N components of F_c minus the reference, in eV/Å."
ENERGY_HELP = "Root mean square of the error per atom after a shift per element, fitted by least squares, was taken out: every code has another zero of energy."
ROC_HELP = "The chance that of two structures, one with a large error and one without, the first has the larger U_Delta: 1 always, 0.5 as often as not."


def show(run: runs.Run) -> None:
    """Everything below the structure and the model."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Change settings", icon=":material/tune:", key="validate-again", on_click=validating.forget)
        judges = dict.fromkeys([run.spec.model.id if run.spec.model else "", *run.spec.parameters.get("further", ())])
        st.caption(f"{plain(run.title)} against {plain(validations.reference_title(run.spec))}: {', '.join(judges)}")
    if run.active:
        _live()
        return
    try:
        compared, failures = validating.compared(run)
        if run.state != "done":
            done = f"{len(compared):,} of {count(run.spec.n_structures, 'structure')}"
            stopped = f":material/stop_circle: **Stopped** after {done}."
            run_parts.not_finished(run, stopped, "Go on", validating.follow)
        for failure in failures[:MOST_FAILURES]:
            failed(failure, done="compared")
        if len(failures) > MOST_FAILURES:
            st.caption(f"and {len(failures) - MOST_FAILURES} more; the CSV has all, with their reasons")
        if compared:
            _results(run)
    except FdcoreError as error:
        st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/error:")


@st.fragment(run_every=TICK_S)
def _live() -> None:
    run = validating.shown()
    if run is None or not run.active:
        st.rerun()
        return
    run_parts.live(run, "What was compared is kept, and it can go on from there.")


# ---- the answer ----------------------------------------------------------------------------------------------------


@st.fragment
def _results(run: runs.Run) -> None:
    """How to look at it, then all of it; only this is drawn anew when somebody looks otherwise."""
    compared, _ = validating.compared(run)
    _ways_to_look(compared)
    try:
        report = validating.report(run)
    except FdcoreError as error:
        st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/error:")
        return
    found = _one_of(report)
    _say(found, report)
    _metrics(found)
    _ranks(found)
    _errors(found)
    _calibration(found)
    _alarms(found)
    _consensus(found)
    _parity(found)
    _structures(found)
    _take_away(run, report)


def _ways_to_look(compared: list[validation.Compared]) -> None:
    keys = validation.group_keys([c.structure for c in compared])
    left, right, _ = st.columns([1, 1, 1])
    with left:
        if keys:
            st.session_state["validate-group"] = validating.group_by() or keys[0]
            st.selectbox(
                "Groups",
                keys,
                key="validate-group",
                on_change=lambda: validating.set_group_by(st.session_state["validate-group"]),
                help="What is alike. Correlations are told within groups, and intervals draw whole groups.",
            )
    with right:
        st.session_state["validate-above"] = validating.above()
        st.number_input(
            "Large: an error above (eV/Å)",
            min_value=0.0001,
            value=None,
            format="%g",
            placeholder="0.1, or the median",
            key="validate-above",
            on_change=lambda: validating.set_above(st.session_state["validate-above"]),
            help="Which structures count as bad for the ROC curve and for consensus failures.",
        )


def _one_of(report: Report) -> Validation:
    """Where several models judged, the one that is shown: two of them are not on one scale."""
    if len(report.found) == 1:
        return report.found[0]
    by = {v.model_id: v for v in report.found}
    chosen = st.radio(
        "Model",
        list(by),
        format_func=lambda i: f"{i} ({count(len(by[i].compared), 'structure')})",
        horizontal=True,
        key="validate-model",
    )
    return by[chosen or report.found[0].model_id]


def _say(found: Validation, report: Report) -> None:
    doubt = validation_words.units(found, report.reference)
    if doubt:
        st.warning(plain(doubt), icon=":material/straighten:")
    st.markdown(f"#### {plain(validation_words.sentence(found.bands, report.reference, found.drawn))}")
    for sentence in (validation_words.inflation(found), validation_words.beside(found)):
        if sentence:
            st.markdown(f"**{plain(sentence)}**")
    trained = validating.card_of(found.model_id)
    if report.labels and trained:
        st.caption(
            f"Labels: {plain('; '.join(report.labels))}. The model was trained to reproduce {plain(trained)}. What these differ by is "
            "part of every error."
        )


def _metrics(found: Validation) -> None:
    cells = st.columns(4)
    errors = [c.error_direct for c in found.compared], [c.error_conservative for c in found.compared]
    for cell, name, values, text in zip(
        cells, ("eps_nc, median", "eps_c, median"), errors, (DIRECT_HELP, CONSERVATIVE_HELP), strict=False
    ):
        cell.metric(name, three_digits(sorted(values)[len(values) // 2]), help=text)
        cell.caption(f"eV/Å, at most {three_digits(max(values))}")
    energy = found.energies.rms
    cells[2].metric("Energy", "–" if energy is None else three_digits(1000 * energy), help=ENERGY_HELP)
    cells[2].caption("meV/atom, after a shift per element" if energy is not None else "no labels, or too few")
    area = found.conservative.structures.area
    cells[3].metric("Area under the ROC curve", "–" if area is None else f"{area:.2f}", help=ROC_HELP)
    cells[3].caption(f"structures with eps_c above {three_digits(found.conservative.large.above)} eV/Å")


def _ranks(found: Validation) -> None:
    st.markdown("#### Does it rank the errors?", help=RANK_HELP)
    cells = validation_report.rank_cells(found)
    st.dataframe(
        {name: [row[k] for row in cells] for k, name in enumerate(validation_report.RANK_COLUMNS)},
        hide_index=True,
        height="content" if len(cells) <= ROWS_UNSCROLLED else 460,
        alt="Spearman's r_s of U_Delta with both errors: pooled, by thirds of U_Delta, within groups, by displacement.",
    )
    st.caption(validation_words.intervals(found))
    if found.estimates:
        cells = validation_report.estimate_cells(found)
        st.dataframe(
            {name: [row[k] for row in cells] for k, name in enumerate(validation_report.ESTIMATE_COLUMNS)},
            hide_index=True,
            alt="Spearman's r_s of U_Delta and of U_var with both errors.",
        )


def _errors(found: Validation) -> None:
    left, right = st.columns(2, gap="large")
    with left:
        st.altair_chart(
            validation_plots.against_error(found, "error_conservative"),
            alt="eps_c against U_Delta, one mark per structure; the table is below.",
            key="validate-chart-c",
        )
    with right:
        st.altair_chart(
            validation_plots.against_error(found, "error_direct"),
            alt="eps_nc against U_Delta, one mark per structure; the table is below.",
            key="validate-chart-nc",
        )


def _calibration(found: Validation) -> None:
    left, right = st.columns(2, gap="large")
    with left:
        st.altair_chart(
            validation_plots.reliability(found),
            alt="RMS error of bins of structures against their U_Delta, as it is and rescaled.",
            key="validate-chart-calibration",
        )
    with right:
        st.markdown("#### Is it as large as the error?")
        st.markdown(f"- {plain(validation_words.calibrated(found.calibration_conservative, 'error_conservative'))}")
        st.markdown(f"- {plain(validation_words.calibrated(found.calibration_direct, 'error_direct'))}")
        st.markdown(f"- {plain(validation_words.energies(found))}")


def _alarms(found: Validation) -> None:
    left, right = st.columns(2, gap="large")
    with left:
        st.altair_chart(
            validation_plots.roc_curves(found),
            alt="Hits against false alarms for structures with a large error; the areas are in the text.",
            key="validate-chart-roc",
        )
    with right:
        st.markdown("#### Does it point at the bad ones?", help=ROC_HELP)
        for error, detection in (("error_conservative", found.conservative), ("error_direct", found.direct)):
            for sentence in (validation_words.detected(detection, error), validation_words.alarmed(detection, error)):
                if sentence:
                    st.markdown(f"- {plain(sentence)}")


def _consensus(found: Validation) -> None:
    st.markdown("#### Small U_Delta, large error")
    st.markdown(plain(validation_words.consensus(found)))
    rows = validation_report.consensus_rows(found)
    if rows:
        _table(rows, "validate-consensus", "The consensus failures, the worst first.")


def _parity(found: Validation) -> None:
    left, right = st.columns(2, gap="large")
    with left:
        st.altair_chart(
            validation_plots.parity(found, "conservative"),
            alt="Components of F_c against the reference.",
            key="validate-parity-c",
        )
    with right:
        st.altair_chart(
            validation_plots.parity(found, "direct"),
            alt="Components of F_nc against the reference.",
            key="validate-parity-nc",
        )


def _structures(found: Validation) -> None:
    st.markdown("#### Structures")
    rows = sorted(validation_report.structure_rows(found), key=lambda r: -r["error_conservative_eV_per_A"])
    _table(rows, "validate-table", "One row per structure, the largest eps_c first.")


def _table(rows: list[dict], key: str, alt: str) -> None:
    number = st.column_config.NumberColumn
    shown = ["file", "index", "formula", "n_atoms", "group", "force_delta_eV_per_A", "ensemble_spread_eV_per_A",
             "error_direct_eV_per_A", "error_conservative_eV_per_A", "error_energy_meV_per_atom"]  # fmt: skip
    st.dataframe(
        {name: [row.get(name) for row in rows] for name in shown if any(row.get(name) is not None for row in rows)},
        hide_index=True,
        key=key,
        placeholder="–",
        height="content" if len(rows) <= ROWS_UNSCROLLED else 460,
        column_config={
            "index": "frame",
            "n_atoms": "atoms",
            "force_delta_eV_per_A": number("U_Delta (eV/Å)", format="%.3g", help=words.FORCE_DELTA_HELP),
            "ensemble_spread_eV_per_A": number("U_var (eV/Å)", format="%.3g"),
            "error_direct_eV_per_A": number("eps_nc (eV/Å)", format="%.3g", help=DIRECT_HELP),
            "error_conservative_eV_per_A": number("eps_c (eV/Å)", format="%.3g", help=CONSERVATIVE_HELP),
            "error_energy_meV_per_atom": number("energy (meV/atom)", format="%.3g", help=ENERGY_HELP),
        },
        alt=alt,
    )


def _take_away(run: runs.Run, report: Report) -> None:
    st.markdown("#### Take it away")
    name = PurePath(run.title).stem or "validation"
    files = (
        Download("JSON", lambda: validation_report.as_json(report), f"{name}-validation.json", "The document of `fdcore validate --json`: all of it."),
        Download("CSV", lambda: validation_report.as_csv(report), f"{name}-validation.csv", "One row per structure, failures with their reason."),
        Download("Report (HTML)", lambda: validation_report.html(report), f"{name}-validation.html", "One page that needs nothing else; prints well."),
        Download("All as zip", lambda: validation_report.archive(report), f"{name}-validation.zip", "The report, its figures as SVG and PNG, numbers as JSON and CSV."),
    )  # fmt: skip
    with st.container(horizontal=True, key="validate-downloads"):
        run_parts.download_buttons(files, "validate")
    listed = runs.inputs(run)
    names = [] if validating.is_shipped(listed) else list(dict.fromkeys(s.file for s in listed))[:8]
    run_parts.repeat(
        validations.command_line(
            names,
            run.spec,
            suggested_models="model_of" in run.spec.parameters,
            group_by=validating.group_by(),
            above=validating.above(),
        )
    )
    st.caption(f"Finished {words.when(run.ended_at)}.")
