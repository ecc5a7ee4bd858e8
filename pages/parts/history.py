"""The history of a person's runs: a live list of what is active, a table of what has ended, and what can be done with it."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Sequence
from functools import partial
from urllib.parse import urlencode

import streamlit as st

from fdcore import adversarial, ensemble, motion, plots, report, reproduction, tables, validation
from fdcore.errors import FdcoreError
from fdcore.human import count, duration, size
from fdcore.services import checking, runs
from fdcore.services import screening as screenings
from pages.parts import (
    attacking,
    browser,
    ensembling,
    motion_view,
    moving,
    owner,
    reporting,
    reproducing,
    running,
    screening,
    session,
    tuning,
    validating,
    words,
)
from pages.parts.words import plain

# The page that shows the result of a task, and its address.
PAGES = {
    "score": "pages/score.py",
    **dict.fromkeys(motion.TASKS, "pages/dynamics.py"),
    adversarial.TASK: "pages/adversarial.py",
    ensemble.TASK: "pages/ensemble.py",
    reproduction.TASK: "pages/reproduce.py",
    report.TASK: "pages/report.py",
    screenings.TASK: "pages/screen.py",
    validation.TASK: "pages/validate.py",
    checking.TASK: "pages/models.py",
    **dict.fromkeys(tuning.TASKS, "pages/finetune.py"),
}
ADDRESSES = {
    "pages/score.py": "/",
    "pages/dynamics.py": "/dynamics",
    "pages/adversarial.py": "/adversarial",
    "pages/ensemble.py": "/ensemble",
    "pages/reproduce.py": "/reproduce",
    "pages/report.py": "/report",
    "pages/screen.py": "/screen",
    "pages/validate.py": "/validate",
    "pages/models.py": "/models",
    "pages/finetune.py": "/finetune",
}
# Runs on one page of the two lists: every active one is asked about each second.
CARDS, ROWS = 20, 200
# Enough to tell two apart; the whole is in the download.
SHOWN_OF_HASH = 16
# How often the page looks: while something is active, and for what another tab or a command line may have started.
TICK_S, IDLE_TICK_S = 1.0, 3.0
ROWS_UNSCROLLED = 12
# Beyond this a browser is the wrong tool to carry a run away.
MOST_DOWNLOADED = 300_000_000


def show() -> None:
    """Everything below the title."""
    _opened_by_address()
    outline = runs.outline(owner.viewer())
    st.session_state["fd_outline"] = outline
    if outline.active:
        _active()
    else:
        _watch()
        if not outline.ended and st.session_state.get("fd_shown_run") is None:
            _nothing_yet()
            return
    if outline.ended:
        chosen = _table(outline.ended)
        if len(chosen) > 1:
            _several(chosen)
            return
        if chosen:
            st.session_state["fd_shown_run"] = (chosen[0].id, "")
    _detail()


def _outline() -> runs.Outline:
    """As it is now; where it is another than the page was drawn for, the page is drawn anew."""
    outline = runs.outline(owner.viewer())
    if outline.differs(st.session_state["fd_outline"]):
        st.rerun()
    return outline


def _page(name: str, total: int, size: int) -> int:
    """Which page of a long list is shown, the first being 0; a choice of them where there are several."""
    pages = max(1, math.ceil(total / size))
    # Its key has the number of pages: one that no longer exists cannot stay chosen.
    return st.pagination(pages, key=f"{name}-of-{pages}") - 1 if pages > 1 else 0


def _nothing_yet() -> None:
    with st.container(border=True):
        st.markdown("### Nothing has run yet")
        st.markdown(
            "Whatever you start is kept here: with its progress while it runs, with its result afterwards, also when this page "
            "or this computer is closed meanwhile."
        )
        st.page_link("pages/score.py", label="Score a structure", icon=":material/speed:")


# ---- active --------------------------------------------------------------------------------------------------------


@st.fragment(run_every=IDLE_TICK_S)
def _watch() -> None:
    """Draws nothing while nothing is active, and the page anew when a run has come or gone."""
    # A database that restarts is asked again next time.
    with contextlib.suppress(FdcoreError):
        _outline()


@st.fragment(run_every=TICK_S)
def _active() -> None:
    """One line per waiting or running run; the page is drawn anew when one of them has ended or another has come."""
    running.be_there()
    try:
        outline = _outline()
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"#### {outline.running:,} running, {outline.waiting:,} waiting")
            page = _page("active-page", outline.active, CARDS)
        _cards(runs.active_runs(owner.viewer(), limit=CARDS, offset=page * CARDS))
    except FdcoreError as error:
        st.warning(f"**{plain(error.message)}** This page goes on by itself.", icon=":material/sync_problem:")
    _go_to_opened()


def _cards(listed: Sequence[runs.Run]) -> None:
    for run in listed:
        with st.container(border=True, key=f"active-{run.id}"):
            about, act = st.columns([5, 1.4], vertical_alignment="center")
            with about:
                sign = words.STATES[run.state]
                st.markdown(f":{sign.color}[{sign.icon} {sign.word}] · **{plain(run.title)}** · {_what(run)}")
                words.run_progress(run)
            with act, st.container(horizontal=True, horizontal_alignment="right"):
                if run.task in PAGES:
                    st.button("Open", key=f"open-{run.id}", on_click=_open, args=(run,))
                st.button(
                    "Stopping" if run.cancel_requested else "Stop",
                    key=f"stop-{run.id}",
                    icon=":material/stop_circle:",
                    disabled=run.cancel_requested,
                    on_click=_try,
                    args=(runs.cancel, run.id),
                )


# ---- ended ---------------------------------------------------------------------------------------------------------


def table_key(ended: Sequence[runs.Run]) -> str:
    """The selection is kept by row: another list is another table, or what is deleted might not be what was selected."""
    return f"runs-{hashlib.sha256(''.join(r.id for r in ended).encode()).hexdigest()[:16]}"


def _table(total: int) -> list[runs.Run]:
    """The table of ended runs, one page of it; returns those that are selected."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("#### Ended")
        page = _page("ended-page", total, ROWS)
    ended = runs.ended_runs(owner.viewer(), limit=ROWS, offset=page * ROWS)
    frame = tables.runs_table(ended, browser.timezone())
    frame["state"] = [words.STATES[state].word for state in frame["state"]]
    frame["task"] = [words.TASKS.get(task, task) for task in frame["task"]]
    order = tables.columns_with_content(frame, list(frame.columns))
    if not frame["shared"].any():
        order.remove("shared")
    event = st.dataframe(
        frame,
        hide_index=True,
        key=table_key(ended),
        on_select="rerun",
        selection_mode="multi-row",
        height="content" if len(frame) <= ROWS_UNSCROLLED else 460,
        column_order=order,
        alt="One row per ended run, the newest first. Select one to see it, several to compare or delete them.",
        column_config={
            "state": "State",
            "title": st.column_config.TextColumn("What", width="medium"),
            "task": "Task",
            "model": "Model",
            "ended": st.column_config.DatetimeColumn("Ended", format="DD MMM YYYY, HH:mm"),
            "took": "Took",
            "found": "Result",
            "attempts": st.column_config.NumberColumn(
                "Attempts", help="More than one: a worker or a compute process ended under it, and it went on."
            ),
            "size": "Size",
            "shared": st.column_config.CheckboxColumn("Shared"),
        },
    )
    chosen = event["selection"]["rows"]  # pyright: ignore[reportIndexIssue]
    few = "" if total <= ROWS else f" {page * ROWS + 1:,} to {page * ROWS + len(ended):,} of {total:,} runs."
    if few or not chosen:
        st.caption(f"Select a run to see it, several to compare or delete them.{few}")
    return [ended[k] for k in chosen if k < len(ended)]


def _what(run: runs.Run) -> str:
    model = f" with {run.spec.model.id}" if run.spec.model else ""
    inputs = f" of {count(run.spec.n_structures, 'structure')}" if run.spec.n_structures else ""
    return f"{words.TASKS.get(run.task, run.task)}{inputs}{model}"


def _several(chosen: Sequence[runs.Run]) -> None:
    with st.container(horizontal=True, vertical_alignment="center", key="runs-selected"):
        st.markdown(f"**{count(len(chosen), 'run')}** selected")
        _delete_button([r.id for r in chosen], size(sum(r.bytes for r in chosen)))
    _into_view("runs-selected", tuple(r.id for r in chosen))
    moved = [r for r in chosen if r.task == "md"]
    if len(moved) > 1:
        motion_view.compare(moved)
    scored = [r for r in chosen if r.task == "score"]
    if len(scored) < 2:
        if len(moved) < 2:
            st.caption("Scoring runs can be compared with each other, and so can runs of dynamics.")
        return
    table = runs.compare(owner.viewer(), [r.id for r in scored])
    st.markdown("#### U_Delta of the same structures")
    if table.empty:
        st.info("These runs have no scored structure in common.", icon=":material/info:")
        return
    st.dataframe(
        table,
        hide_index=True,
        height="content" if len(table) <= ROWS_UNSCROLLED else 460,
        placeholder="–",
        column_config={
            "file": "File",
            "index": "Frame",
            "formula": "Formula",
            **{
                c: st.column_config.NumberColumn(
                    c.replace("force_delta_eV_per_A", "U_Delta (eV/Å)"), format="%.3g", help=words.FORCE_DELTA_HELP
                )
                for c in table.columns
                if c.endswith("force_delta_eV_per_A")
            },
        },
        alt="One row per structure, one column of U_Delta and one of the verdict per run.",
    )
    st.altair_chart(
        plots.compared_runs(table),
        alt="U_Delta of every structure, one mark per run: structures on which the runs differ stand out.",
    )
    st.download_button(
        "CSV of the comparison",
        lambda: table.to_csv(index=False),
        file_name="comparison.csv",
        icon=":material/download:",
        on_click="ignore",
    )


# ---- one -----------------------------------------------------------------------------------------------------------


def _opened_by_address() -> None:
    """/runs?run=... shows that run; &key=... somebody else's that was shared."""
    if st.session_state.get("fd_runs_address_read"):
        return
    st.session_state["fd_runs_address_read"] = True
    wanted = st.query_params.get("run")
    if wanted:
        st.session_state["fd_shown_run"] = (wanted, st.query_params.get("key", ""))


def _detail() -> None:
    shown = st.session_state.get("fd_shown_run")
    if shown is None:
        return
    run_id, key = shown
    try:
        run = runs.get(owner.viewer(), run_id, key)
    except FdcoreError as error:
        st.session_state.pop("fd_shown_run")
        st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/link_off:")
        return
    if run.active:
        return
    sign = words.STATES[run.state]
    with st.container(border=True, key="run-detail"):
        st.markdown(f"### :{sign.color}[{sign.icon} {sign.word}] &nbsp; {plain(run.title)}")
        again = f", {run.attempt} attempts" if run.attempt > 1 else ""
        st.markdown(f"{_what(run)}. Ended {words.when(run.ended_at)}, took {duration(run.seconds)}{again}.")
        if run.error:
            st.error(f"**{plain(run.error)}** {plain(run.hint or '')}", icon=":material/error:")
        _actions(run, key)
        if owner.may_change(run):
            _sharing(run)
        _facts(run)
    _into_view("run-detail", (run.id,))


def _into_view(key: str, of: tuple[str, ...]) -> None:
    """Scroll to what was selected just now, which would be below the edge of the window where many runs are active. Once: then
    the person may scroll."""
    if st.session_state.get("fd_brought_into_view") == of:
        return
    st.session_state["fd_brought_into_view"] = of
    script = f"document.querySelector('.st-key-{key}')?.scrollIntoView({{block: 'nearest'}})"
    st.html(f"<script>{script}</script>", unsafe_allow_javascript=True)


def _actions(run: runs.Run, key: str) -> None:
    with st.container(horizontal=True, key="run-actions"):
        if run.task in PAGES:
            st.button(
                "Open", type="primary", icon=":material/open_in_new:", key="open", on_click=_open, args=(run, key)
            )
        if owner.may_change(run):
            label = "Repeat" if run.state == "done" else "Go on"
            st.button(label, icon=":material/replay:", key="repeat", on_click=_try, args=(runs.retry, run.id))
        if run.bytes <= MOST_DOWNLOADED:
            st.download_button(
                "Download",
                # Who asks is settled now: the file is made later, where no browser is in front of it.
                partial(runs.archive_bytes, owner.viewer(), run.id, key),
                file_name=f"run-{run.id[:8]}.zip",
                icon=":material/download:",
                on_click="ignore",
                key="download-run",
                help="One zip: what was asked, versions, attempts, inputs, results, and everything that was recorded.",
            )
        else:
            st.caption(f"{size(run.bytes)}: take it with `fdcore runs export {run.id[:8]}` on the server.")
        if owner.may_change(run):
            _delete_button([run.id], size(run.bytes))
    _go_to_opened()


def _sharing(run: runs.Run) -> None:
    if run.share is None:
        st.button(
            "Share by link",
            icon=":material/link:",
            key="share",
            on_click=_try,
            args=(runs.share, run.id, True),
            help="Whoever has the link can see this run, its structures and its results, and download them. Nobody else can.",
        )
        return
    page = ADDRESSES.get(PAGES.get(run.task, ""), "/runs")
    address = f"{browser.base_address()}{page}?{urlencode({'run': run.id, 'key': run.share})}"
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(":material/link: Shared: whoever has this link can see the run.")
        st.button("Stop sharing", key="unshare", on_click=_try, args=(runs.share, run.id, False))
    st.code(address, language=None, wrap_lines=True)


def _facts(run: runs.Run) -> None:
    with st.expander("How it was made", icon=":material/fact_check:"):
        choice = run.spec.model
        facts = {
            "Run": run.id,
            "Spec (SHA-256)": run.spec_sha256[:SHOWN_OF_HASH],
            "Model": f"{choice.id}, {choice.dtype} on {(run.summary or {}).get('device', choice.device)}"
            if choice
            else "–",
            "Weights (SHA-256)": str(
                (run.summary or {}).get("weights_sha256") or (choice.weights_sha256 if choice else None) or "–"
            ),
            "Seed": str(run.spec.seed),
            "Structures": str(run.spec.n_structures),
            "Versions": ", ".join(f"{name} {v}" for name, v in run.spec.versions.items()),
            "Submitted": words.when(run.created_at),
            "Started": words.when(run.started_at),
            "Ended": words.when(run.ended_at),
            "Kept": size(run.bytes),
        }
        st.table({"": list(facts), " ": list(facts.values())}, border="horizontal", hide_index=True, hide_header=True)
        attempts = runs.attempts(run)
        if len(attempts) > 1:
            st.markdown("**Attempts**")
            st.dataframe(
                tables.attempts_table(attempts),
                hide_index=True,
                alt="One row per attempt: on which worker, from where to where, how it ended and why.",
            )
        st.caption(f"On the server: `fdcore runs show {run.id[:8]}`")


def _delete_button(ids: Sequence[str], held: str) -> None:
    with st.popover("Delete", icon=":material/delete:", key="delete"):
        st.markdown(f"Delete {count(len(ids), 'run')} ({held}) for good? Download first what is still needed.")
        st.button("Delete for good", type="primary", key="delete-now", on_click=_delete, args=(tuple(ids),))


# ---- callbacks -----------------------------------------------------------------------------------------------------


def _open(run: runs.Run, key: str = "") -> None:
    if run.task in motion.TASKS:
        moving.open_run(run, key)
    elif run.task == adversarial.TASK:
        attacking.open_run(run, key)
    elif run.task == validation.TASK:
        validating.open_run(run, key)
    elif run.task == ensemble.TASK:
        ensembling.open_run(run, key)
    elif run.task == reproduction.TASK:
        reproducing.open_run(run, key)
    elif run.task == report.TASK:
        reporting.open_run(run, key)
    elif run.task == screenings.TASK:
        screening.open_run(run, key)
    elif run.task in tuning.TASKS:
        tuning.open_run(run, key)
    else:
        session.open_run(run, key)
    st.session_state["fd_go_to"] = PAGES[run.task]


def _go_to_opened() -> None:
    page = st.session_state.pop("fd_go_to", None)
    if page is not None:
        st.switch_page(page)


def _try(action, *arguments) -> None:
    """Do something with the viewer's runs; what goes wrong is said and nothing else changes."""
    try:
        action(owner.viewer(), *arguments)
    except FdcoreError as error:
        st.toast(f"{plain(error.message)} {plain(error.hint)}", icon=":material/error:")


def _delete(ids: Sequence[str]) -> None:
    for run_id in ids:
        _try(runs.delete, run_id)
    st.session_state.pop("fd_shown_run", None)
