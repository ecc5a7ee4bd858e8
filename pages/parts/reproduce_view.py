"""A reproduction: every figure and table as soon as its parts are done, with what the paper says beside it."""

from __future__ import annotations

import streamlit as st

from fdcore import reproduction, reproduction_plots, reproduction_report
from fdcore.errors import FdcoreError
from fdcore.human import duration
from fdcore.reproduction import Finding, Reproduced
from fdcore.services import reproduce, runs
from pages.parts import reproducing, run_parts, words
from pages.parts.run_parts import Download
from pages.parts.words import plain

TICK_S = 2.0


def show(run: runs.Run) -> None:
    """Everything below the title."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Ask for others", icon=":material/tune:", key="reproduce-again", on_click=reproducing.forget)
        st.caption(f"{plain(run.title)}, preset {run.spec.parameters.get('preset', 'quick')}, seed {run.spec.seed}")
    if run.active:
        _live()
        return
    try:
        found = reproducing.found(run)
        if run.state != "done":
            done = len(found.seconds)
            stopped = f":material/stop_circle: **Stopped** after {done} of {len(found.asked.parts)} parts."
            run_parts.not_finished(run, stopped, "Go on", reproducing.follow)
        _results(found)
        _take_away(run, found)
    except FdcoreError as error:
        st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/error:")


@st.fragment(run_every=TICK_S)
def _live() -> None:
    run = reproducing.shown()
    if run is None or not run.active:
        st.rerun()
        return
    run_parts.live(run, "What is done is kept, and it can go on from there.")
    found = reproduce.of_run(run)
    if found.seconds:
        _results(found, live=True)


def _results(found: Reproduced, *, live: bool = False) -> None:
    with st.expander("What differs from the paper", icon=":material/difference:"):
        for line in reproduction.what_differs(found):
            st.markdown(f"- {plain(line)}")
    for finding in reproduction.findings(found):
        if live and not finding.rows:
            continue
        _finding(finding, live=live)


def _finding(finding: Finding, *, live: bool) -> None:
    target = finding.target
    st.markdown(f"#### {target.where}: {target.title}")
    for sentence in finding.said:
        sign = (
            ":material/priority_high:"
            if "NOT" in sentence
            else ":material/check:"
            if "as the paper" in sentence
            else ""
        )
        st.markdown(f"- {sign} {plain(sentence)}".replace("-  ", "- "))
    if not finding.rows:
        st.caption("Nothing was found.")
    for name, chart in reproduction_plots.charts(finding).items():
        st.altair_chart(
            chart,
            key=f"reproduce-{name}-{'live' if live else 'done'}",
            alt=f"{target.title}; the numbers are in the table below.",
        )
    ours, paper = st.columns([3, 2], gap="large")
    with ours:
        st.markdown("**Here**")
        _table(finding.rows, f"{target.where}, as found here.")
    with paper:
        st.markdown("**The paper**")
        if finding.paper:
            st.markdown(plain(finding.paper))
        _table(finding.published, f"{target.where}, as published.")
        if not finding.paper and not finding.published:
            st.caption("No numbers are given.")
    if finding.missing and not live:
        with st.expander(f"{len(finding.missing)} missing", icon=":material/visibility_off:"):
            for line in finding.missing:
                st.markdown(f"- {plain(line)}")


def _table(rows: tuple, alt: str) -> None:
    if not rows:
        return
    columns = [c for c in dict.fromkeys(c for r in rows for c in r) if c not in reproduction_report.HIDDEN]
    shown = {reproduction_report.HEADINGS.get(c, c): [reproduction_report.shown(r, c) for r in rows] for c in columns}
    st.dataframe(shown, hide_index=True, alt=alt)


def _take_away(run: runs.Run, found: Reproduced) -> None:
    st.markdown("#### Take it away")
    provenance = reproduce.provenance(run.spec, run.summary)
    files = (
        Download(
            "Report", lambda: reproduction_report.html(found, provenance), "reproduction.html",
            "One page that needs nothing else; prints well.",
        ),
        Download(
            "Everything", lambda: reproduction_report.archive(found, provenance), "reproduction.zip",
            "The page, every figure as SVG and PNG, the numbers as CSV and JSON.",
        ),
    )  # fmt: skip
    with st.container(horizontal=True, key="reproduce-downloads"):
        run_parts.download_buttons(files, "reproduce")
    names = list(dict.fromkeys(s.file for s in found.structures))
    run_parts.repeat(reproduce.command_line(names, run.spec))
    st.caption(f"Finished {words.when(run.ended_at)}; the parts took {duration(sum(found.seconds.values()))}.")
