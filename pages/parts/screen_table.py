"""The table of a screening: the largest U_Delta first, filters, one structure in 3D, and a selection that goes to other pages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from fdcore import tables
from fdcore.errors import FdcoreError
from fdcore.human import count, three_digits
from fdcore.records import Failure, Score
from fdcore.services import runs
from fdcore.services import screening as screenings
from fdcore.services.screening import Filter, Which
from pages.parts import owner, running, screening, session, words
from pages.parts.refusals import failed
from pages.parts.viewer import viewer
from pages.parts.words import plain

# While it goes on, the table is looked at this often, unless a person has selected something.
TICK_S = 4.0
# A longer table scrolls inside itself.
ROWS_UNSCROLLED = 12
PAGES = {
    "Score": ("pages/score.py", ":material/speed:", "Verdict, evidence and atoms of each."),
    "Dynamics": ("pages/dynamics.py", ":material/animation:", "What the disagreement means for a simulation."),
    "Adversarial": (
        "pages/adversarial.py",
        ":material/target:",
        "Structures nearby on which the forces disagree more.",
    ),
    "Ensemble": ("pages/ensemble.py", ":material/diversity_3:", "Whether other models disagree, too."),
}
_WIDGETS = "screen-filter-"


@st.fragment(run_every=TICK_S)
def live(run_id: str) -> None:
    """While it goes on."""
    _draw(run_id)


@st.fragment
def still(run_id: str) -> None:
    """When it has ended: a selection draws only this again."""
    _draw(run_id)


def _draw(run_id: str) -> None:
    _go()
    run = screening.shown()
    if run is None or run.id != run_id:
        st.rerun()
        return
    try:
        standing = screening.standing(run)
        if not standing.done:
            return
        st.markdown("#### Structures")
        _filters(list(standing.found.verdicts))
        _table(run, standing.count.done)
    except FdcoreError as error:
        st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/error:")


# ---- filters -------------------------------------------------------------------------------------------------------


def _filters(present: Sequence[str]) -> None:
    now = screening.wanted()
    _say("verdicts", [v for v in now.verdicts if v in words.LEVELS])
    _say("elements", " ".join(now.elements))
    for name in ("least_atoms", "most_atoms", "least", "most", "ties", "text"):
        _say(name, getattr(now, name))
    options = [level for level in words.LEVELS if level in present or level in now.verdicts]
    first, second, third, fourth = st.columns([3, 3, 4, 2.2], gap="medium", vertical_alignment="bottom")
    with first:
        st.multiselect(
            "Show",
            options,
            key=_WIDGETS + "verdicts",
            format_func=lambda v: words.LEVELS[v].word,
            placeholder="every verdict",
            on_change=_changed,
        )
    with second:
        st.text_input(
            "With these elements", key=_WIDGETS + "elements", placeholder="all; for example Na Cl", on_change=_changed
        )
    with third:
        st.text_input("Find", key=_WIDGETS + "text", placeholder="file name, formula, id or reason", on_change=_changed)
    set_here = sum(getattr(now, name) is not None for name in ("least_atoms", "most_atoms", "least", "most")) + now.ties
    label = "Size and U_Delta" + (f" ({set_here})" if set_here else "")
    with fourth, st.popover(label, icon=":material/tune:", key="screen-more-filters", width="stretch"):
        _ranges()
    problem = st.session_state.pop("fd_screen_filter_problem", None)
    if problem is not None:
        st.warning(f"{plain(problem.message)} {plain(problem.hint)}", icon=":material/filter_alt_off:")
    if screening.wanted() != Filter():
        st.button(
            "Show all",
            icon=":material/filter_alt_off:",
            type="tertiary",
            key="screen-all",
            on_click=screening.want,
            args=(Filter(),),
        )


def _say(name: str, value: Any) -> None:
    """What a widget shows. Only where it differs: what is being typed just now would be overwritten each time the table is looked at."""
    key = _WIDGETS + name
    if key not in st.session_state or st.session_state[key] != value:
        st.session_state[key] = value


def _ranges() -> None:
    """The filters that are one click away."""
    whole: dict[str, Any] = {"min_value": 1, "step": 1, "value": None, "placeholder": "any", "on_change": _changed}
    real: dict[str, Any] = {
        "min_value": 0.0,
        "value": None,
        "format": "%g",
        "placeholder": "any",
        "on_change": _changed,
    }
    for name, label, kind in (
        ("least_atoms", "Atoms from", whole),
        ("most_atoms", "Atoms to", whole),
        ("least", "U_Delta from (eV/Å)", real),
        ("most", "U_Delta to (eV/Å)", real),
    ):
        st.number_input(label, key=_WIDGETS + name, **kind)
    st.toggle(
        "Only ties",
        key=_WIDGETS + "ties",
        on_change=_changed,
        help="The model keeps a fixed number of neighbours, and cuts through a shell of equal distances: the answer depends on which it keeps.",
    )


def _changed() -> None:
    """What the widgets say becomes the filter; what makes no sense is said, and changes nothing."""
    given: dict[str, Any] = {
        name: st.session_state[_WIDGETS + name]
        for name in ("least_atoms", "most_atoms", "least", "most", "ties", "text")
    }
    symbols = str(st.session_state[_WIDGETS + "elements"]).replace(",", " ").split()
    try:
        new = Filter(
            elements=tuple(dict.fromkeys(s.capitalize() for s in symbols)),
            verdicts=tuple(st.session_state[_WIDGETS + "verdicts"]),
            **given,
        )
    except FdcoreError as error:
        st.session_state["fd_screen_filter_problem"] = error
        return
    screening.want(new)


# ---- rows ----------------------------------------------------------------------------------------------------------


def _table(run: runs.Run, done: int) -> None:
    before = st.session_state.get("fd_screen_table_key")
    selected = bool(before and before in st.session_state and st.session_state[before]["selection"]["rows"])
    found, as_of, key = screening.rows(run, done, keep=selected)
    st.session_state["fd_screen_table_key"] = key
    shown = found.rows.to_pandas()
    if shown.empty:
        st.info("No structure passes the filter.", icon=":material/filter_alt_off:")
        return
    more = f"{found.matching:,} structures pass; the {len(shown):,} with the largest U_Delta are shown." if found.matching > len(shown) else f"{count(found.matching, 'structure')}, the largest U_Delta first."  # fmt: skip
    chosen = _rows(shown, key)
    later = " More has been done since: clear the selection to see it." if as_of != done else ""
    st.caption(f"{more} Select one to see it in 3D, or several to send them to another page.{later}")
    if not chosen:
        return
    rows = [found.rows.slice(k, 1).to_pylist()[0] for k in chosen if k < len(found.rows)]
    which = [w for row in rows if (w := screenings.which(row)) is not None and row["verdict"] != "failed"]
    if len(rows) == 1 and not which:
        row = rows[0]
        failed(Failure(row["file"], row["error"], row["hint"] or "", row["index"]))
        return
    _send_buttons(run, which)
    if len(rows) == 1:
        _one(run, which[0])


def _rows(shown: pd.DataFrame, key: str) -> list[int]:
    number = st.column_config.NumberColumn
    order = [
        "verdict", "file", "index", "id", "formula", "n_atoms", "force_delta_eV_per_A", "worst", "worst_atom_eV_per_A",
        "reference_percentile", "confidence_eV_per_A", "error_direct_eV_per_A", "error", "warnings",
    ]  # fmt: skip
    # Where most have failed, what to do about it is what is looked for.
    failures = (shown["verdict"] == "failed").mean() > 0.5
    order += ["hint"] if failures else []
    frame = shown.assign(
        verdict=[words.LEVELS[v].word for v in shown["verdict"]],
        worst=[
            "" if pd.isna(atom) else f"{element}{atom:.0f}"
            for element, atom in zip(shown["worst_element"], shown["worst_atom"], strict=True)
        ],
    )
    top = shown["force_delta_eV_per_A"].max()
    event = st.dataframe(
        frame,
        hide_index=True,
        key=key,
        height="content" if len(frame) <= ROWS_UNSCROLLED else 480,
        on_select="rerun",
        selection_mode="multi-row",
        placeholder="",
        column_order=tables.columns_with_content(frame, order),
        alt="One row per structure, the largest U_Delta first, failures last. Selecting one shows it below.",
        column_config={
            "verdict": "Verdict",
            "file": "File",
            "index": number("Frame", format="%d"),
            "id": "Id",
            "formula": "Formula",
            "n_atoms": number("Atoms", format="localized"),
            "force_delta_eV_per_A": st.column_config.ProgressColumn(
                "U_Delta (eV/Å)",
                format="%.3g",
                min_value=0.0,
                max_value=1.0 if pd.isna(top) or not top else float(top),
                help=words.FORCE_DELTA_HELP,
            ),
            "worst": "Worst atom",
            "worst_atom_eV_per_A": number("its u_i (eV/Å)", format="%.3g", help=words.PER_ATOM_HELP),
            "reference_percentile": number("Percentile", format="%.0f", help=words.PERCENTILE_HELP),
            "confidence_eV_per_A": number("Expected error (eV/Å)", format="%.3g", help=words.CONFIDENCE_HELP),
            "error_direct_eV_per_A": number("Error of F_nc (eV/Å)", format="%.3g"),
            "error": st.column_config.TextColumn("Why it failed", width="large" if failures else "medium"),
            "hint": st.column_config.TextColumn("What to do", width="large"),
            "warnings": "Notes",
        },
    )
    return list(event["selection"]["rows"])  # pyright: ignore[reportIndexIssue]


# ---- a selection ---------------------------------------------------------------------------------------------------


def _send_buttons(run: runs.Run, which: Sequence[Which]) -> None:
    if not which:
        st.caption("None of the selected structures was scored.")
        return
    what = "it" if len(which) == 1 else f"these {len(which)}"
    with st.container(horizontal=True, vertical_alignment="center", key="screen-send"):
        st.markdown(f"**Take {what} to**")
        for label, (page, icon, text) in PAGES.items():
            st.button(
                label,
                icon=icon,
                key=f"screen-send-{label}",
                help=text,
                disabled=len(which) > screenings.MOST_CHOSEN,
                on_click=_send,
                args=(run, tuple(which), page),
            )
        if len(which) > screenings.MOST_CHOSEN:
            st.caption(f"Select up to {screenings.MOST_CHOSEN}.")


def _send(run: runs.Run, which: tuple[Which, ...], page: str) -> None:
    try:
        session.open_run(screenings.send(owner.viewer(), run, which))
    except FdcoreError as error:
        st.toast(f"{plain(error.message)} {plain(error.hint)}", icon=":material/error:")
        return
    st.session_state["fd_screen_go"] = page


def _go() -> None:
    page = st.session_state.pop("fd_screen_go", None)
    if page is not None:
        st.switch_page(page)


def _one(run: runs.Run, which: Which) -> None:
    """One structure with its atoms: scored on its own, which takes a moment."""
    with st.container(border=True, key="screen-one"):
        try:
            scored = _waited(screening.look(run, which))
            if scored.active:
                _wait(scored.id)
            else:
                _detail(scored)
        except FdcoreError as error:
            st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/error:")


def _waited(scored: runs.Run) -> runs.Run:
    """After at most a moment: most are there within it."""
    until = time.monotonic() + running.PATIENCE_S
    while scored.active and time.monotonic() < until:
        time.sleep(0.05)
        scored = runs.get(owner.viewer(), scored.id)
    return scored


@st.fragment(run_every=running.TICK_S)
def _wait(run_id: str) -> None:
    scored = runs.get(owner.viewer(), run_id)
    if not scored.active:
        st.rerun()
        return
    running.be_there()
    words.run_progress(scored)


def _detail(scored: runs.Run) -> None:
    found = session.results_of(scored)
    for failure in found.failures:
        failed(failure)
    for score in found.scores[:1]:
        _score(score)
    if scored.state == "failed":
        st.error(
            f"**{plain(scored.error or 'It could not be scored.')}** {plain(scored.hint or '')}",
            icon=":material/error:",
        )


def _score(score: Score) -> None:
    sign = words.LEVELS[score.verdict.level]
    left, right = st.columns([3, 2], gap="large")
    with left:
        viewer(score)
    with right:
        st.markdown(f"#### :{sign.color}[{sign.icon} {sign.word}]")
        st.markdown(plain(score.verdict.sentence))
        st.metric("U_Delta", f"{three_digits(score.evaluation.force_delta)} eV/Å", help=words.FORCE_DELTA_HELP)
        frame = f", frame {score.structure.index}" if score.structure.index else ""
        st.caption(
            f"{plain(score.structure.file)}{frame} · {score.structure.formula} · {count(score.structure.n_atoms, 'atom')} · {score.model_id}"
        )
        for item in score.verdict.evidence:
            status = words.STATUSES[item.status]
            st.markdown(f":{status.color}[{status.icon} **{status.word}**] &nbsp; **{item.name}**: {plain(item.text)}")
