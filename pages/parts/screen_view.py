"""A screening: how far it is, what was found so far, and what can be taken away."""

from __future__ import annotations

from functools import partial
from pathlib import PurePath

import pandas as pd
import streamlit as st

from fdcore import screening_plots
from fdcore.distribution import reference_distribution
from fdcore.errors import FdcoreError
from fdcore.human import count, duration, size, three_digits
from fdcore.services import runs
from fdcore.services import screening as screenings
from fdcore.services.screening import Filter, Standing
from pages.parts import owner, run_parts, running, screen_table, screening, words
from pages.parts.words import plain

TICK_S = 1.0
# Beyond this a browser is the wrong tool to carry a table away.
MOST_DOWNLOADED = 300_000_000


def show(run: runs.Run) -> None:
    """Everything below the title."""
    _headline(run)
    try:
        standing = screening.standing(run)
        if standing.active:
            _live()
            screen_table.live(run.id)
            _live_files()
        else:
            if not standing.count.complete:
                _not_finished(run, standing)
            _found(run, standing)
            screen_table.still(run.id)
            _take_away(run, standing)
    except FdcoreError as error:
        st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/error:")


def _headline(run: runs.Run) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Screen others", icon=":material/tune:", key="screen-again", on_click=screening.forget)
        model = run.spec.model.id if run.spec.model else ""
        st.caption(f"{plain(_name(run))} with {model}, begun {words.when(run.created_at)}")


def _name(run: runs.Run) -> str:
    return run.title.split(" (hand ")[0]


# ---- while it goes on ----------------------------------------------------------------------------------------------


@st.fragment(run_every=TICK_S)
def _live() -> None:
    """Progress, numbers and histogram, once a second; the whole page is drawn anew when it has ended."""
    run = screening.shown()
    if run is None:
        st.rerun()
        return
    try:
        standing = screening.standing(run)
    except FdcoreError as error:
        st.warning(f"**{plain(error.message)}** This page goes on by itself.", icon=":material/sync_problem:")
        return
    if not standing.active:
        st.rerun()
        return
    running.be_there()
    with st.container(border=True, key="progress"):
        _progress(standing)
        _stop(run, standing)
    _found(run, standing)


def _progress(standing: Standing) -> None:
    active = [hand for hand in standing.hands if hand.active]
    working = [hand for hand in active if hand.state == "running"]
    count_of = standing.count
    if not working or not count_of.listed or working[0].cancel_requested:
        # Waiting, loading, listing, stopping: as the run itself says it.
        words.run_progress((working or active)[0])
        return
    ahead = max(standing.done, *(int(hand.done) for hand in working))
    total = max(count_of.expected, ahead)
    parts = [f"{ahead:,} of {total:,} structures"]
    parts += [f"{count_of.failed:,} failed"] if count_of.failed else []
    parts += [f"{_rate(standing.rate)} a second"] if standing.rate else []
    if standing.seconds_left is not None and standing.seconds_left >= 2:
        parts.append(f"about {duration(standing.seconds_left)} left")
    st.progress(min(1.0, ahead / total) if total else 0.0, text=plain(", ".join(parts)))


def _rate(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"


def _stop(run: runs.Run, standing: Standing) -> None:
    asked = all(hand.cancel_requested for hand in standing.hands if hand.active)
    with st.container(horizontal=True, vertical_alignment="center"):
        if owner.may_change(run):
            st.button(
                "Stopping" if asked else "Stop",
                icon=":material/stop_circle:",
                key="screen-stop",
                disabled=asked,
                on_click=lambda: run_parts.attempt(lambda: screenings.stop(owner.viewer(), run)),
                help="What is done is kept, and it can go on from there.",
            )
        hands = f"{count(standing.working, 'hand')} at work" if len(standing.hands) > 1 else ""
        waiting = f", {standing.waiting} waiting" if hands and standing.waiting else ""
        st.caption(f"It goes on when this page is closed; the Runs page keeps it. {hands}{waiting}")


# ---- what was found ------------------------------------------------------------------------------------------------


def _not_finished(run: runs.Run, standing: Standing) -> None:
    failed = next((hand for hand in standing.latest if hand.state == "failed"), None)
    with st.container(border=True, key="not-finished"):
        if failed is not None:
            st.error(
                f"**{plain(failed.error or 'The run failed.')}** {plain(failed.hint or '')}", icon=":material/error:"
            )
        expected = standing.count.expected
        of = f" of {count(expected, 'structure')}" if standing.count.listed else ""
        done = f"after {standing.done:,}{of}. What is done is kept." if standing.done else "before it began."
        st.markdown(f":material/stop_circle: **Stopped** {done}")
        if owner.may_change(run):
            st.button("Go on", icon=":material/play_arrow:", key="go_on", on_click=_go_on, args=(run,))


def _go_on(run: runs.Run) -> None:
    again = run_parts.attempt(lambda: screenings.go_on(owner.viewer(), run))
    if again is not None:
        screening.follow(again)


def _found(run: runs.Run, standing: Standing) -> None:
    """Words, counts by verdict, the histogram, and why some failed."""
    found = standing.found
    if not found.verdicts:
        if not standing.active and standing.count.complete:
            st.info(
                "There is no structure in what was screened. Bring files with structures: extended xyz, CIF, POSCAR, JSON.",
                icon=":material/search_off:",
            )
        elif standing.active:
            st.caption("The histogram and the first structures will show here.")
        return
    scored = sum(n for level, n in found.verdicts.items() if level != "failed")
    with st.container(border=True, key="summary"):
        st.markdown(f"#### {plain(_sentence(standing, scored))}")
        st.markdown(" &nbsp; · &nbsp; ".join(_counts(found.verdicts)))
        if found.worst:
            worst = found.worst[0]
            st.markdown(
                f"The forces disagree most on **{plain(_structure(worst))}** ({plain(str(worst['formula']))}): U_Delta = "
                f"**{three_digits(worst['force_delta_eV_per_A'])} eV/Å**.",
                help=words.FORCE_DELTA_HELP,
            )
        for level in ("unreliable", "caution"):
            if found.verdicts.get(level):
                _show_button(f"Show the {found.verdicts[level]:,} in the table", level)
                break
    if scored:
        model = run.spec.model.id if run.spec.model else ""
        chart = screening_plots.histogram(found.bins, reference_distribution(model))
        st.altair_chart(
            chart,
            key=f"screen-histogram-{'live' if standing.active else 'done'}",
            alt=f"Histogram of U_Delta over {scored:,} structures on a logarithmic axis; its numbers are in the table of bins.",
        )
    failed = found.verdicts.get("failed", 0)
    places = iter(st.columns(2, gap="medium") if scored and failed else [st.container()])
    if scored:
        with next(places), st.expander("The numbers of the histogram", icon=":material/table:"):
            _bins(screening_plots.bins_table(found.bins))
    if failed:
        with next(places), st.expander(f"Why {failed:,} failed", icon=":material/error:", expanded=not scored):
            _reasons(found.reasons)
    _notes(standing)


def _sentence(standing: Standing, scored: int) -> str:
    found, so_far = standing.found, " so far" if standing.active else ""
    if not scored:
        return f"None of {count(standing.done, 'structure')} could be scored{so_far}: the reasons are below."
    bad, careful = found.verdicts.get("unreliable", 0), found.verdicts.get("caution", 0)
    if bad:
        return f"Do not rely on this model on {bad:,} of {count(scored, 'structure')}{so_far}."
    if careful:
        return f"{careful:,} of {count(scored, 'structure')} deserve a look{so_far}."
    if found.verdicts.get("unknown", 0) == scored:
        return f"{count(scored, 'structure')} ranked{so_far}; no reference ships for this model, so compare them with each other."
    return f"The forces agree on all of {count(scored, 'structure')}{so_far}, as on structures that the model was tested on."


def _counts(verdicts) -> list[str]:
    return [
        f":{words.LEVELS[level].color}[{words.LEVELS[level].icon} **{verdicts[level]:,}** {words.LEVELS[level].word.lower()}]"
        for level in ("unreliable", "caution", "unknown", "consistent", "failed")
        if verdicts.get(level)
    ]


def _structure(row) -> str:
    return str(row["file"]) + (f" (frame {row['index']})" if row["index"] else "")


def _bins(table: pd.DataFrame) -> None:
    number = st.column_config.NumberColumn
    st.dataframe(
        table,
        hide_index=True,
        height="content" if len(table) < 8 else 240,
        alt="How many structures have a U_Delta in which range.",
        column_config={
            "from_eV_per_A": number("From (eV/Å)", format="%.3g"),
            "to_eV_per_A": number("To (eV/Å)", format="%.3g"),
            "structures": number("Structures", format="localized"),
        },
    )


def _reasons(reasons) -> None:
    listed = reasons.most_common()
    st.dataframe(
        {"Reason": [reason for reason, _ in listed], "Structures": [n for _, n in listed]},
        hide_index=True,
        alt="Why structures could not be scored, and how many.",
        column_config={"Reason": st.column_config.TextColumn(width="large")},
    )
    _show_button("Show them in the table", "failed")


def _show_button(label: str, level: str) -> None:
    """Look only for this verdict in the table, which is a fragment of its own."""
    if st.button(label, type="tertiary", icon=":material/filter_alt:", key=f"screen-show-{level}"):
        screening.want(Filter(verdicts=(level,)))
        st.rerun()


def _notes(standing: Standing) -> None:
    found = standing.found
    said = []
    if found.checked:
        said.append(
            f"{count(found.checked, 'structure')} of a sample {'was' if found.checked == 1 else 'were'} scored a second time, alone: U_Delta differs "
            f"by at most {found.largest_difference:.1e} eV/Å."
        )
    if found.ties:
        said.append(
            f"{found.ties:,} have a tie where their neighbour list is cut: their U_Delta depends on how it is broken."
        )
    if said:
        st.caption(plain(" ".join(said)))


@st.fragment(run_every=screen_table.TICK_S)
def _live_files() -> None:
    run = screening.shown()
    if run is not None:
        _take_away(run, screening.standing(run))


# ---- files ---------------------------------------------------------------------------------------------------------


def _take_away(run: runs.Run, standing: Standing) -> None:
    st.markdown("#### Take it away")
    if standing.active and not standing.done:
        st.caption("The table can be downloaded as soon as something is done, also while it goes on.")
    elif screenings.held_bytes(run) > MOST_DOWNLOADED:
        st.caption(
            f"The table has {size(screenings.held_bytes(run))}: take it with `fdcore runs export {run.id[:8]}` on the server."
        )
    elif standing.done:
        name = PurePath(_name(run)).stem or "screening"
        so_far = " What is done so far." if not standing.count.complete else ""
        files = (
            run_parts.Download(
                "Parquet", partial(screenings.table_bytes, run, "parquet"), f"{name}.parquet",
                f"One row per structure with units in the names of the columns.{so_far}",
            ),
            run_parts.Download(
                "CSV", partial(screenings.table_bytes, run, "csv"), f"{name}.csv", f"The same table as text.{so_far}"
            ),
            run_parts.Download(
                "Summary", partial(screenings.summary_json, run), f"{name}-summary.json",
                f"Counts, histogram, reasons, the worst, settings and versions as JSON.{so_far}",
            ),
        )  # fmt: skip
        with st.container(horizontal=True, key="screen-downloads"):
            run_parts.download_buttons(files, "screen")
    run_parts.repeat(screenings.command_line(run))
    if not standing.active:
        ended = max((hand.ended_at or 0.0 for hand in standing.hands), default=0.0)
        took = duration(standing.count.seconds) if standing.count.seconds else "no time"
        st.caption(f"Ended {words.when(ended or None)}; the chunks took {took} in all.")
