"""A report: its lines as they come, and afterwards one page of plain words, the evidence, the charts, and files to take away."""

from __future__ import annotations

from pathlib import PurePath

import streamlit as st

from fdcore import report_files, report_plots
from fdcore.errors import FdcoreError
from fdcore.human import count
from fdcore.report import Examined, Report
from fdcore.report_pdf import pdf
from fdcore.report_verdict import Answer, LineOfReport, Use, sentence
from fdcore.report_words import name_of, said_of
from fdcore.services import report as reports
from fdcore.services import runs
from pages.parts import reporting, run_parts, words
from pages.parts.refusals import failed
from pages.parts.run_parts import Download
from pages.parts.words import Sign, plain

TICK_S = 1.5
ANSWERS: dict[Answer, Sign] = {
    "yes": Sign(":material/check_circle:", "yes", "green"),
    "with care": Sign(":material/visibility:", "with care", "orange"),
    "no": Sign(":material/dangerous:", "no", "red"),
    "not known": Sign(":material/help:", "not known", "gray"),
}
# What a person who does not see a chart is told; the files hold its numbers.
ALTS = {
    "pairs": "Norms of the blocks of the Jacobian and of their asymmetric parts against the distance of the atoms; in the files as pairs.csv.",
    "atoms": "The atoms with the largest shares of the asymmetry; in the files as atoms.csv.",
    "loops": "Work of both forces on every closed loop; in the files as loops.csv.",
    "jumps": "What the energy does along straight walks that F_c does not explain; in the files as jumps.csv.",
    "copies": "Deviations of turned, permuted and shifted copies beside U_Delta; in the files as copies.csv.",
    "drift": "Total energy per atom against time under either force.",
}
MISSING = Sign(":material/help:", "missing", "gray")


def show(run: runs.Run) -> None:
    """Everything below the structure and the model."""
    run_parts.headline(run, "report-again", reporting.forget, "Report on")
    if run.active:
        _live()
        return
    try:
        found = reporting.found(run)
        if run.state != "done":
            done = f"{len(found.examined):,} of {count(run.spec.n_structures, 'structure')}"
            stopped = f":material/stop_circle: **Stopped** in the middle: {done} looked at. What was done is below."
            run_parts.not_finished(run, stopped, "Go on", reporting.follow)
        for failure in found.failures:
            failed(failure, done="examined")
        if found.examined:
            _one(_chosen(found), found)
            _take_away(run, found)
    except FdcoreError as error:
        st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/error:")


@st.fragment(run_every=TICK_S)
def _live() -> None:
    run = reporting.shown()
    if run is None or not run.active:
        st.rerun()
        return
    run_parts.live(run, "What was looked at is kept, and it can go on from there.")
    try:
        found = reporting.found(run)
    except FdcoreError as error:
        st.warning(f"{plain(error.message)} {plain(error.hint)}", icon=":material/sync_problem:")
        return
    if found.examined:
        newest = found.examined[-1]
        said = [w for w in said_of(newest, found)[0] if _is_there(w, newest)]
        st.markdown(f"**{plain(name_of(newest))}**")
        _lines(said, "live")


def _is_there(line: LineOfReport, found: Examined) -> bool:
    """Not what has merely not been reached yet."""
    return line.figure != "–" or line.part in found.missing


def _chosen(found: Report) -> Examined:
    names = [name_of(e) for e in found.examined]
    which = min(st.session_state.get("fd_report_which", 0), len(names) - 1)
    if len(names) > 1:
        st.session_state["report-which"] = which
        st.selectbox(
            "Structure",
            range(len(names)),
            format_func=lambda k: names[k],
            key="report-which",
            on_change=lambda: st.session_state.update(fd_report_which=st.session_state["report-which"]),
        )
    return found.examined[which]


def _one(found: Examined, report: Report) -> None:
    said, good_for = said_of(found, report)
    st.markdown(f"#### {plain(sentence(good_for))}")
    _uses(good_for)
    st.markdown("#### What was looked at")
    _lines(said, "line")
    drawn = report_plots.charts(found)
    columns = st.columns(2, gap="large")
    for k, (name, chart) in enumerate(drawn.items()):
        with columns[k % 2]:
            st.altair_chart(chart, alt=ALTS[name], key=f"report-chart-{name}")


def _uses(good_for: list[Use]) -> None:
    columns = st.columns(2, gap="large")
    for k, use in enumerate(good_for):
        sign = ANSWERS[use.answer]
        with columns[k % 2], st.container(border=False, gap=None, key=f"report-use-{k}"):
            st.markdown(f":{sign.color}[{sign.icon} **{sign.word}**] &nbsp; **{plain(use.name)}**")
            st.caption(plain(use.why[0].upper() + use.why[1:]))


def _lines(said: list[LineOfReport], key: str) -> None:
    for k, line in enumerate(said):
        sign = MISSING if line.status == "unknown" else words.STATUSES[line.status]
        with st.container(border=False, gap=None, key=f"report-{key}-{k}"):
            figure = "" if line.figure == "–" else f" &nbsp; {plain(line.figure)}"
            st.markdown(f":{sign.color}[{sign.icon} **{sign.word}**] &nbsp; **{plain(line.name)}**{figure}")
            st.markdown(plain(line.text))
            if line.published:
                st.caption(f":material/menu_book: {plain(line.published)}")


def _take_away(run: runs.Run, found: Report) -> None:
    st.markdown("#### Take it away")
    name = PurePath(run.title).stem or "structure"
    provenance, refusals = runs.provenance_of(run), runs.refusals(run)
    files = (
        Download(
            "Report (HTML)", lambda: report_files.html(found, refusals, provenance), f"{name}-report.html",
            "One page that needs nothing else: plain words, every line, the figures. It prints well.",
        ),
        Download(
            "Report (PDF)", lambda: pdf(found, refusals, provenance), f"{name}-report.pdf",
            "The same words and figures on a page or two per structure.",
        ),
        Download(
            "JSON", lambda: report_files.as_json(found, refusals, provenance), f"{name}-report.json",
            "The document of `fdcore report --json`.",
        ),
        Download("CSV", lambda: report_files.lines_csv(found), f"{name}-report.csv", "One row per line of the report."),
        Download(
            "All as zip", lambda: report_files.archive(found, refusals, provenance), f"{name}-report.zip",
            "The page, the PDF, every figure as SVG and PNG, and the numbers behind them as CSV.",
        ),
    )  # fmt: skip
    with st.container(horizontal=True, key="report-downloads"):
        run_parts.download_buttons(files, "report")
    brought = list(dict.fromkeys(s.file for s in runs.inputs(run)))[:8]
    run_parts.repeat(reports.command_line(brought, run.spec))
    with st.container(horizontal=True):
        st.page_link("pages/dynamics.py", label="Dynamics", icon=":material/animation:")
        st.page_link("pages/score.py", label="Score this structure", icon=":material/speed:")
        st.page_link("pages/runs.py", label="All runs", icon=":material/history:")
    st.caption(f"Finished {words.when(run.ended_at)}.")
