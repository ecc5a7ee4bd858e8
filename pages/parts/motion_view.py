"""A run of dynamics, relaxation or the advisor: live while it goes on, whole afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import PurePath
from typing import Any

import streamlit as st

from fdcore import motion, motion_files, motion_plots, mts_advice
from fdcore.distribution import reference_distribution
from fdcore.errors import FdcoreError
from fdcore.human import plus_minus, three_digits
from fdcore.motion import Motion, Summary
from fdcore.scene import trajectory_scene
from fdcore.services import dynamics, runs
from fdcore.statistics import Slope
from fdcore.tasks.motion import RELAXATION
from pages.parts import moving, owner, running, words
from pages.parts.run_parts import LAYOUT, Download, download_buttons, go_on, headline, not_finished, repeat, stop
from pages.parts.viewer import player
from pages.parts.words import plain

# A running simulation is looked at about once a second; its frames, which are heavier, less often.
TICK_S, FRAMES_TICK_S = 1.0, 4.0
# Numbers that a trajectory may send to the browser, and frames at most.
MOST_NUMBERS, MOST_FRAMES = 500_000, 200
MOST_COMPARED = 6
DRIFT_HELP = (
    "The fitted slope of the conserved quantity per atom (total energy in NVE), with a 95 % interval that respects correlation along the "
    "run. A force that is the slope of an energy has none, but for the error of the time step."
)
RATIO_HELP = "Drift per picosecond over the standard deviation of the kinetic energy: above 1, it soon exceeds what the run fluctuates by."


def show(run: runs.Run) -> None:
    """Everything below the structure and the model."""
    headline(run, "motion-settings-again", moving.forget)
    if run.active:
        _live()
        left, right = st.columns(LAYOUT, gap="large")
        with left:
            _live_charts()
        with right:
            _live_frames()
        return
    try:
        found = moving.motion(run)
        _ended(run)
        _head(found, live=False)
        _details(run.id)
    except FdcoreError as error:
        st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/error:")


@st.fragment
def _details(run_id: str) -> None:
    """Charts beside the trajectory: stopping at a moment draws only these again."""
    run = moving.shown()
    if run is None or run.id != run_id:
        st.rerun()
        return
    found = moving.motion(run)
    left, right = st.columns(LAYOUT, gap="large")
    with left:
        _charts(found, live=False)
    with right:
        _trajectory(run, found)
        if run.task == "md":
            _choose_compared(run)
        _take_away(run, found)


# ---- while it goes on ----------------------------------------------------------------------------------------------


@st.fragment(run_every=TICK_S)
def _live() -> None:
    run = moving.shown()
    if run is None or not run.active:
        st.rerun()
        return
    running.be_there()
    with st.container(border=True, key="progress"):
        words.run_progress(run)
        with st.container(horizontal=True, vertical_alignment="center"):
            stopping = run.cancel_requested
            st.button(
                "Pause",
                icon=":material/pause:",
                key="pause",
                disabled=stopping,
                on_click=_stop,
                args=(run.id, True),
                help="What was computed stays, and the run goes on from here to the last bit.",
            )
            st.button(
                "Cancel",
                icon=":material/stop_circle:",
                key="stop",
                disabled=stopping,
                on_click=_stop,
                args=(run.id, False),
            )
            st.caption("It goes on when this page is closed; the Runs page keeps it.")
    _head(runs.motion_of(run), live=True)


@st.fragment(run_every=TICK_S)
def _live_charts() -> None:
    run = moving.shown()
    if run is not None and run.active:
        _charts(runs.motion_of(run), live=True)


@st.fragment(run_every=FRAMES_TICK_S)
def _live_frames() -> None:
    run = moving.shown()
    if run is not None and run.active:
        _trajectory(run, runs.motion_of(run))


def _stop(run_id: str, pause: bool) -> None:
    st.session_state["fd_motion_paused"] = pause
    stop(run_id)


# ---- when it has ended ---------------------------------------------------------------------------------------------


def _ended(run: runs.Run) -> None:
    if run.state == "done":
        return
    word = (
        ":material/pause: **Paused**"
        if st.session_state.get("fd_motion_paused")
        else ":material/stop_circle: **Stopped**"
    )
    unit = "iterations" if run.task == "relax" else "steps"
    text = f"{word} after {run.done:,.0f} of {run.total:,.0f} {unit}. Everything up to here is kept."
    not_finished(run, text, "Continue", moving.follow)


# ---- results -------------------------------------------------------------------------------------------------------


def _head(found: Motion, *, live: bool) -> None:
    """Words and numbers, above the charts."""
    for system, descent in found.descents.items():
        if descent.text:
            agree = descent.text.startswith("Both")
            icon = ":material/check_circle:" if agree else ":material/warning:"
            name = f"**{plain(found.name_of(system))}**: " if len(found.systems) > 1 else ""
            st.markdown(f"{icon} {name}{plain(descent.text)}")
    if found.spec.task == "mts-advisor":
        _advice(found)
    if found.spec.task != "md":
        return
    leg = found.latest_leg
    if leg is None:
        st.caption("The first numbers will show here.")
        return
    summaries = _summaries(found, leg)
    if len(found.structures) > 1:
        # Different structures have no mean.
        summary_frame([(found.name_of(s.system), s) for s in summaries])
    else:
        _sentence(summaries, live)
        _metrics(motion.pooled(summaries), len(summaries))
    for index in range(len(found.legs)):
        _why_ended(found, _summaries(found, index))


def _summaries(found: Motion, leg: int) -> list[Summary]:
    return [motion.summary(found, leg, k) for k in range(len(found.systems)) if (leg, k) in found.tracks]


def _leg(found: Motion) -> int | None:
    """The leg on the charts: the newest one, or the one a person chose."""
    there = sorted({leg for leg, _ in found.tracks})
    if not there:
        return None
    if len(there) == 1:
        return there[-1]
    return st.radio(
        "Part of the run",
        there,
        index=len(there) - 1,
        format_func=lambda k: found.legs[k].name.capitalize(),
        key=f"leg-{len(there)}",
        horizontal=True,
        label_visibility="collapsed",
    )


def _sentence(summaries: Sequence[Summary], live: bool) -> None:
    if len(summaries) == 1:
        text = motion.sentence(summaries[0])
    else:
        drift = motion.pooled(summaries).drift
        text = "Too short to say anything about a drift."
        if drift is not None and drift.half_width is not None:
            text = f"The mean drift of {len(summaries)} replicas is {_slope(drift)} meV/atom/ps (95 % interval of their spread)."
    st.markdown(f"#### {plain(text)}" if not live else plain(text))


def _metrics(first: Summary, replicas: int) -> None:
    drift = first.drift
    cells = st.columns(5)
    cells[0].metric("Drift", "–" if drift is None else f"{_slope(drift)}", help=f"meV/atom/ps. {DRIFT_HELP}")
    cells[0].caption("meV/atom/ps" + (f", mean of {replicas}" if replicas > 1 else ""))
    kelvin = first.drift_K_per_ps
    cells[1].metric(
        "As heat",
        "–" if kelvin is None else _slope(kelvin),
        help="K/ps. The same energy as a temperature, if all of it went into motion.",
    )
    ratio = first.drift_over_fluctuation_per_ps
    cells[1].caption(
        "K/ps" if ratio is None else f"K/ps; {three_digits(ratio)} fluctuations of the kinetic energy per ps",
        help=RATIO_HELP,
    )
    mean = first.temperature_K
    cells[2].metric("Temperature", "–" if mean is None else f"{mean:.0f} K")
    by_element = ", ".join(f"{e} {t:.0f} K" for e, t in first.temperature_by_element_K.items())
    cells[2].caption(by_element if len(first.temperature_by_element_K) > 1 else "")
    u, top = first.force_delta_mean, first.force_delta_max
    cells[3].metric("U_Delta, mean", "–" if u is None else f"{three_digits(u)} eV/Å", help=words.FORCE_DELTA_HELP)
    cells[3].caption("" if top is None else f"at most {three_digits(top)} eV/Å")
    speed = first.steps_per_second
    cells[4].metric("Simulated", f"{first.time_ps:.3g} ps")
    cells[4].caption("" if speed is None else f"{speed:.1f} steps per second")


def _why_ended(found: Motion, summaries: Sequence[Summary]) -> None:
    for summary in summaries:
        if summary.stopped_text:
            name = f"**{plain(found.name_of(summary.system))}** " if len(found.systems) > 1 else ""
            st.warning(
                f"{name}ended after {summary.steps_done:,} of {summary.steps_asked:,} steps. {plain(summary.stopped_text)}",
                icon=":material/front_hand:",
            )


def _charts(found: Motion, *, live: bool) -> None:
    if found.spec.task == "relax":
        _relaxation(found)
        return
    if found.spec.task == "mts-advisor":
        _arms(found)
        return
    leg = _leg(found)
    if leg is None:
        return
    summaries = _summaries(found, leg)
    shown = summaries[:MOST_COMPARED]
    lines = [
        line
        for s in shown
        if (line := motion_plots.line(found, leg, s.system, found.name_of(s.system), None if live else s)) is not None
    ]
    compared = [] if live else _compared(found)
    own = f"{motion_files.DRIVER_WORDS[found.legs[leg].driver]}, this run"
    if compared:
        first = motion_plots.line(found, leg, shown[0].system, own, shown[0])
        lines = [x for x in [first, *compared] if x is not None]
    if len(summaries) > len(shown):
        st.caption(f"The charts show the first {len(shown)} of {len(summaries)} replicas; all are in the downloads.")
    parameters = found.spec.parameters
    energy, temperature, u = motion_plots.drift_charts(
        lines,
        quantity="Total energy" if found.legs[leg].ensemble == "nve" else "Conserved quantity",
        stop_above=parameters.get("stop_above"),
        moment_ps=None if live else _moment_ps(found, leg),
    )
    st.altair_chart(
        energy,
        alt="Energy per atom from its start against time; a straight line is the fitted drift.",
        key=f"chart-energy-{live}",
    )
    st.altair_chart(temperature, alt="Temperature against time.", key=f"chart-temperature-{live}")
    st.altair_chart(u, alt="U_Delta against time, wherever it was computed.", key=f"chart-u-{live}")
    if compared:
        _compared_table(found, shown[0], own)


def _moment_ps(found: Motion, leg: int) -> float | None:
    """The time of the frame at which the trajectory stands, where it belongs to this part of the run."""
    frame = moving.moment()
    rows = found.frame_rows
    if frame is None or not rows:
        return None
    chosen = _frame_numbers(found, 0)
    if frame >= len(chosen) or int(rows["leg"][chosen[frame]]) != leg:
        return None
    return float(rows["time_ps"][chosen[frame]])


# ---- comparison ----------------------------------------------------------------------------------------------------


def _compared(found: Motion) -> list[motion_plots.Line]:
    """Production of the other runs that were chosen to lie over this one."""
    out = []
    for name, other in _others(found):
        leg = other.production
        line = motion_plots.line(other, leg, 0, name, motion.summary(other, leg, 0))
        if line is not None:
            out.append(line)
    return out


def _others(found: Motion) -> list[tuple[str, Motion]]:
    out = []
    for run_id in st.session_state.get("motion-compare", []):
        try:
            run = runs.get(owner.viewer(), run_id)
        except FdcoreError:
            continue
        other = moving.motion(run)
        if other.legs:
            out.append((run_name(run, other), other))
    return out


def run_name(run: runs.Run, found: Motion) -> str:
    """A run on a chart with others: what drove it, and which it is."""
    leg = found.legs[found.production]
    stride = f" M = {leg.mts_stride}" if leg.driver == "mts" else ""
    return f"{motion_files.DRIVER_WORDS[leg.driver]}{stride}, {run.title} ({run.id[:6]})"


def _compared_table(found: Motion, summary: Summary, own: str) -> None:
    rows = [(own, summary)]
    rows += [(name, motion.summary(other, other.production, 0)) for name, other in _others(found)]
    summary_frame(rows)


def summary_frame(rows: Sequence[tuple[str, Summary]]) -> None:
    """What several runs come to, one row each."""
    number = st.column_config.NumberColumn
    st.dataframe(
        motion_files.summary_table(rows),
        hide_index=True,
        placeholder="–",
        alt="One row per run: driver, drift with its interval, temperatures, U_Delta and speed.",
        column_config={
            "run": "Run",
            "driver": "Driver",
            "ensemble": "Ensemble",
            "time_ps": number("Time (ps)", format="%.3g"),
            "drift_meV_per_atom_per_ps": number("Drift (meV/atom/ps)", format="%.3g", help=DRIFT_HELP),
            "drift_half_width": number("± (95 %)", format="%.2g"),
            "drift_K_per_ps": number("Drift (K/ps)", format="%.3g"),
            "drift_over_fluctuation_per_ps": number("Over fluctuation (1/ps)", format="%.3g", help=RATIO_HELP),
            "temperature_K": number("Temperature (K)", format="%.0f"),
            "temperature_fluctuation_K": number("Its fluctuation (K)", format="%.1f"),
            "force_delta_mean": number("U_Delta, mean (eV/Å)", format="%.3g", help=words.FORCE_DELTA_HELP),
            "force_delta_max": number("U_Delta, largest", format="%.3g"),
            "steps_per_second": number("Steps/s", format="%.1f"),
            "ended": "Ended",
        },
    )


def compare(listed: Sequence[runs.Run]) -> None:
    """Several runs on one set of charts, for the Runs page."""
    motions = [(run, moving.motion(run)) for run in listed[:MOST_COMPARED]]
    rows = [(run_name(run, m), motion.summary(m, m.production, 0)) for run, m in motions]
    lines = [
        line
        for (name, s), (_, m) in zip(rows, motions, strict=True)
        if (line := motion_plots.line(m, m.production, 0, name, s)) is not None
    ]
    st.markdown("#### Dynamics compared")
    if lines:
        for chart, text in zip(motion_plots.drift_charts(lines), ("energy", "temperature", "U_Delta"), strict=True):
            st.altair_chart(chart, alt=f"The {text} of every chosen run against time.")
    summary_frame(rows)


# ---- relaxation and advice -----------------------------------------------------------------------------------------


def _relaxation(found: Motion) -> None:
    if found.relaxation is None or not found.descents:
        return
    listed = list(found.descents.items())[:MOST_COMPARED]
    charts = motion_plots.relaxation_charts(
        [(found.name_of(k), found.systems[k].n_atoms, d) for k, d in listed],
        found.relaxation.fmax_eV_per_A,
        found.relaxation.driver,
    )
    for chart, text in zip(charts, ("Energy per atom", "Largest force of both kinds", "U_Delta"), strict=True):
        st.altair_chart(chart, alt=f"{text} against the iteration of the relaxation.")


def _arms(found: Motion) -> None:
    """Every driver of the advisor on one set of charts."""
    legs = [k for k, _ in enumerate(found.legs) if k and (k, 0) in found.tracks]
    lines = [
        line
        for k in legs
        if (line := motion_plots.line(found, k, 0, found.legs[k].name, motion.summary(found, k, 0))) is not None
    ]
    if not lines:
        return
    charts = motion_plots.drift_charts(lines)
    for chart, text in zip(charts, ("Energy per atom", "Temperature", "U_Delta"), strict=True):
        st.altair_chart(chart, alt=f"{text} of every driver against time.")


def _advice(found: Motion) -> None:
    advice = mts_advice.advice(found)
    if advice.recommended is not None or found.result is not None:
        st.markdown(f"#### {plain(advice.text)}")
    known = [a for a in advice.arms if a.drift is not None]
    if not known:
        return
    if found.result is not None:
        st.altair_chart(
            motion_plots.advice_chart(advice),
            alt="Drift of every driver against its speed; a band shows what is tolerated around the conservative run.",
        )
    number = st.column_config.NumberColumn
    st.dataframe(
        motion_files.advice_table(advice),
        hide_index=True,
        placeholder="–",
        alt="One row per driver: drift, temperature against the conservative run, speed and cost.",
        column_config={
            "arm": "Driver",
            "mts_stride": number("M"),
            "drift_meV_per_atom_per_ps": number("Drift (meV/atom/ps)", format="%.3g", help=DRIFT_HELP),
            "drift_half_width": number("± (95 %)", format="%.2g"),
            "temperature_K": number("Temperature (K)", format="%.1f"),
            "temperature_error_K": number("Less that of F_c (K)", format="%.1f"),
            "ns_per_day": number("ns/day", format="%.3g"),
            "cost_of_direct": number("Cost of F_nc = 1", format="%.2f"),
            "allowed": st.column_config.CheckboxColumn("Within tolerance"),
        },
    )
    if advice.recommended is not None:
        st.button(
            f"Run dynamics with M = {advice.recommended}",
            icon=":material/play_arrow:",
            key="use-advice",
            on_click=_use_advice,
            args=(advice.recommended,),
        )


def _use_advice(stride: int) -> None:
    moving.forget()
    st.session_state["fd_motion_kind"] = "md"
    moving.change("driver", "mts")
    moving.change("mts_stride", stride)


# ---- the trajectory ------------------------------------------------------------------------------------------------


def _frame_numbers(found: Motion, system: int) -> list[int]:
    """Rows of the frames that the player shows of one system, evenly thinned."""
    n_atoms = found.systems[system].n_atoms
    most = max(2, min(MOST_FRAMES, MOST_NUMBERS // (4 * n_atoms)))
    return motion.chosen_frames(found, system, most).tolist()


def _trajectory(run: runs.Run, found: Motion) -> None:
    folder = runs.folder(run)
    if folder is None or not motion.frame_count(found):
        return
    system = _system_shown(found)
    chosen = _frame_numbers(found, system)
    views = list(motion.frames_at(found, folder, chosen))
    if not views:
        return
    model = run.spec.model.id if run.spec.model else ""
    scene = trajectory_scene(
        found.systems[system],
        f"{run.id}-{system}",
        [v.positions for v in views],
        [v.force_delta_per_atom for v in views],
        ["relaxed" if v.leg == RELAXATION else f"{v.time_ps:.3f} ps" for v in views],
        reference_distribution(model),
    )
    player(scene, f"player-{run.id}", moving.moment(), moving.set_moment)


def _system_shown(found: Motion) -> int:
    if len(found.systems) == 1:
        return 0
    return st.selectbox(
        "Show",
        list(range(len(found.systems))),
        format_func=found.name_of,
        key="motion-system",
        label_visibility="collapsed",
    )


# ---- below ---------------------------------------------------------------------------------------------------------


def _take_away(run: runs.Run, found: Motion) -> None:
    _downloads(run, found)
    files = list(dict.fromkeys(s.file for s in found.structures))[:8]
    repeat(dynamics.command_line(files, run.spec))
    _next(run)


def _choose_compared(run: runs.Run) -> None:
    others = {
        r.id: r
        for r in runs.list_runs(owner.viewer(), states=("done", "cancelled"), limit=60)
        if r.task == "md" and r.id != run.id
    }
    if not others:
        st.caption("Run the same structure with another driver, and both can be laid over each other here.")
        return
    known = [i for i in st.session_state.get("motion-compare", []) if i in others]
    st.session_state["motion-compare"] = known
    st.multiselect(
        "Lay other runs over this one",
        list(others),
        format_func=lambda i: _other_label(others[i]),
        max_selections=MOST_COMPARED - 1,
        key="motion-compare",
    )


def _other_label(run: runs.Run) -> str:
    driver = run.spec.parameters.get("driver", "direct")
    return f"{motion_files.DRIVER_WORDS[driver]}: {run.title} ({run.id[:6]}, {words.when(run.ended_at)})"


def _downloads(run: runs.Run, found: Motion) -> None:
    folder = runs.folder(run)
    if folder is None:
        return
    name = PurePath(run.title).stem or "run"
    shown = st.session_state.get("motion-system", 0) if len(found.systems) > 1 else 0
    provenance = runs.provenance_of(run)
    refused = runs.refusals(run)
    files: list[tuple[str, Any, str, str]] = [
        (
            "JSON",
            partial(motion_files.document_json, found, folder, refused, provenance),
            f"{name}.json",
            "Summary and series.",
        ),
    ]
    if found.tracks:
        files.append(("CSV", partial(motion_files.series_csv, found), f"{name}-series.csv", "Every recorded step."))
    if found.descents:
        files.append(
            (
                "CSV of the relaxation",
                partial(motion_files.relaxation_csv, found),
                f"{name}-relaxation.csv",
                "Every iteration.",
            )
        )
    if motion.frame_count(found):
        files.append(
            (
                "extXYZ",
                partial(motion_files.trajectory_extxyz, found, folder),
                f"{name}-trajectory.extxyz",
                "Kept frames with velocities and both forces.",
            )
        )
        files.append(
            (
                "HDF5",
                partial(motion_files.trajectory_hdf5, found, folder, shown),
                f"{name}-trajectory.h5",
                "The same frames as arrays" + ("; of the structure that is shown." if len(found.systems) > 1 else "."),
            )
        )
    files.append(
        (
            "All as zip",
            partial(runs.archive_bytes, owner.viewer(), run.id, moving.share_key()),
            f"run-{run.id[:8]}.zip",
            "Spec, versions, seed, inputs, and everything that was recorded.",
        )
    )
    with st.container(horizontal=True, key="motion-downloads"):
        download_buttons([Download(*file) for file in files], "motion")


def _next(run: runs.Run) -> None:
    with st.container(horizontal=True):
        if owner.may_change(run) and run.state == "done":
            st.button(
                "Repeat", icon=":material/replay:", key="motion-repeat", on_click=go_on, args=(run.id, moving.follow)
            )
        st.page_link("pages/score.py", label="Score this structure", icon=":material/speed:")
        st.page_link("pages/runs.py", label="All runs", icon=":material/history:")


def _slope(slope: Slope) -> str:
    return plus_minus(slope.slope, slope.half_width)
