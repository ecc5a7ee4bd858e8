"""An attack: live while it climbs, and afterwards the structures that it has found."""

from __future__ import annotations

from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np
import streamlit as st

from fdcore import adversarial, adversarial_files, adversarial_plots, truth
from fdcore.adversarial import Adversarial, Found
from fdcore.distribution import reference_distribution
from fdcore.errors import FdcoreError, RunStateError
from fdcore.human import three_digits
from fdcore.scene import trajectory_scene
from fdcore.services import adversarial as attacks
from fdcore.services import runs
from pages.parts import attacking, owner, running, words
from pages.parts.attack_settings import APART_HELP, FOR_AND_NOT_FOR
from pages.parts.viewer import player
from pages.parts.words import count, plain

# A climb is looked at about once a second; its frames, which are heavier, less often.
TICK_S, FRAMES_TICK_S = 1.5, 3.0
LAYOUT = (3, 2)
ROWS_UNSCROLLED = 12


def show(run: runs.Run) -> None:
    """Everything below the structure and the model."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Change settings", icon=":material/tune:", key="attack-settings-again", on_click=attacking.forget)
        st.caption(
            f"Attack on {plain(run.title)} with {run.spec.model.id if run.spec.model else ''}, seed {run.spec.seed}"
        )
    if run.active:
        _live()
        left, right = st.columns(LAYOUT, gap="large")
        with left:
            _live_charts()
        with right:
            _live_frames()
        return
    try:
        found = attacking.attack(run)
        _ended(run, found)
        _details(run.id)
        _truth(run, found)
        _take_away(run, found)
    except FdcoreError as error:
        st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/error:")


# ---- while it climbs -----------------------------------------------------------------------------------------------


@st.fragment(run_every=TICK_S)
def _live() -> None:
    run = attacking.shown()
    if run is None or not run.active:
        st.rerun()
        return
    running.be_there()
    with st.container(border=True, key="progress"):
        words.run_progress(run)
        with st.container(horizontal=True, vertical_alignment="center"):
            st.button(
                "Stop",
                icon=":material/stop_circle:",
                key="stop",
                disabled=run.cancel_requested,
                on_click=_stop,
                args=(run.id,),
                help="What was made is kept, and it can go on from there.",
            )
            st.caption("It goes on when this page is closed; the Runs page keeps it.")
    _metrics(attacks.of_run(run))


@st.fragment(run_every=TICK_S)
def _live_charts() -> None:
    run = attacking.shown()
    if run is not None and run.active:
        found = attacks.of_run(run)
        if found.n_steps:
            _charts(found, _newest(found), live=True)
        else:
            st.caption("The climb will show here.")


@st.fragment(run_every=FRAMES_TICK_S)
def _live_frames() -> None:
    run = attacking.shown()
    if run is not None and run.active:
        found = attacks.of_run(run)
        start = _newest(found)
        if start is not None:
            _path(run, found, start, None)


def _newest(found: Adversarial) -> int | None:
    """Among the starts that still climb, the first."""
    climbing = [c for c in found.climbs if not c.reason and len(c.rows) > 1] or list(found.climbs[-1:])
    return climbing[0].start if climbing else None


def _stop(run_id: str) -> None:
    try:
        runs.cancel(owner.viewer(), run_id)
    except FdcoreError as error:
        # That it has just ended is what was wanted.
        if not isinstance(error, RunStateError):
            st.toast(f"{plain(error.message)} {plain(error.hint)}", icon=":material/error:")


# ---- when it has ended ---------------------------------------------------------------------------------------------


def _ended(run: runs.Run, found: Adversarial) -> None:
    if run.state == "done":
        return
    with st.container(border=True, key="not-finished"):
        if run.state == "failed":
            st.error(f"**{plain(run.error or 'The run failed.')}** {plain(run.hint or '')}", icon=":material/error:")
        else:
            when = (
                f"after {run.done:,.0f} of {run.total:,.0f} steps. What was made is kept."
                if found.n_steps
                else "before it began: nothing was made."
            )
            st.markdown(f":material/stop_circle: **Stopped** {when}")
        if owner.may_change(run):
            st.button("Go on", icon=":material/play_arrow:", on_click=_go_on, args=(run.id,), key="go_on")


def _go_on(run_id: str) -> None:
    try:
        attacking.follow(runs.retry(owner.viewer(), run_id))
    except FdcoreError as error:
        st.toast(f"{plain(error.message)} {plain(error.hint)}", icon=":material/error:")


@st.fragment
def _details(run_id: str) -> None:
    """Words, numbers, the table and the 3D view: choosing a row draws only these again."""
    run = attacking.shown()
    if run is None or run.id != run_id:
        st.rerun()
        return
    found = attacking.attack(run)
    for origin in found.origins.values():
        if origin.problem:
            st.warning(
                f"**{plain(found.name_of(origin.parent))}** was not attacked: {plain(origin.problem)}",
                icon=":material/error:",
            )
    st.markdown(f"#### {plain(adversarial.sentence(found))}")
    if adversarial.shortage(found):
        st.info(plain(adversarial.shortage(found)), icon=":material/info:")
    for sentence in adversarial.without(found):
        st.info(plain(sentence), icon=":material/info:")
    _metrics(found)
    _how_it_began(found)
    items = adversarial.dataset(found)
    left, right = st.columns(LAYOUT, gap="large")
    with left:
        if items:
            _table(found, items)
        if found.n_steps:
            st.altair_chart(
                adversarial_plots.map_chart(found),
                alt="U_Delta against the energy above the start; the structures of the dataset stand out.",
                key="chart-map",
            )
            _charts(found, _shown_start(found, items), live=False)
    with right:
        start = _shown_start(found, items)
        if start is not None:
            _path(run, found, start, _shown_row(found, items))


def _shown_row(found: Adversarial, items: list[Found]) -> int | None:
    row = attacking.row()
    if row is not None and row < found.n_steps:
        return row
    return items[0].row if items else None


def _shown_start(found: Adversarial, items: list[Found]) -> int | None:
    row = _shown_row(found, items)
    if row is not None:
        return int(found.steps["start"][row])
    return found.climbs[0].start if found.climbs else None


def _metrics(found: Adversarial) -> None:
    if not found.n_steps:
        return
    rows = list(found.selected.rows)
    cells = st.columns(4)
    cells[0].metric("Structures", f"{len(rows)} of {found.parameters.count}")
    cells[0].caption(f"{found.n_steps:,} visited by {count(len(found.climbs), 'start')}")
    allowed = found.steps["allowed"] > 0
    u = found.steps["force_delta_eV_per_A"][allowed]
    highest = float(u.max()) if len(u) else 0.0
    cells[1].metric("Highest U_Delta", f"{three_digits(highest)} eV/Å", help=words.FORCE_DELTA_HELP)
    first = [o.force_delta for o in found.origins.values() if o.force_delta > 0 and not o.problem]
    cells[1].caption(f"{three_digits(min(first))} eV/Å at the start" if first else "")
    above = found.steps["above_eV_per_atom"][rows] if rows else found.steps["above_eV_per_atom"][allowed]
    cells[2].metric("Energy above the start", f"{three_digits(float(above.max(initial=0.0)))} eV/atom")
    cells[2].caption(f"at most; the bound is {found.parameters.window_eV_per_atom:g}")
    share = found.steps["closest_share"][rows] if rows else found.steps["closest_share"][allowed]
    near = float(np.min(share, initial=np.inf))
    cells[3].metric(
        "Closest pair", "–" if not np.isfinite(near) else f"{near:.2f}", help="Of the sum of the two covalent radii."
    )
    cells[3].caption(f"of covalent radii; at least {found.parameters.closest:g}")


def _how_it_began(found: Adversarial) -> None:
    symmetric = [c for c in found.climbs if "symmetry" in c.rattled]
    if symmetric:
        st.markdown(
            f":material/casino: {count(len(symmetric), 'start')} had no slope to climb, by symmetry or because both forces agree, and "
            f"{'was' if len(symmetric) == 1 else 'were'} displaced at random (seed {found.spec.seed})."
        )
    ends = ", ".join(f"{adversarial.ENDINGS[k]}: {n}" for k, n in found.endings.items())
    if ends:
        st.caption(f"How the starts ended: {ends}.")


def _table(found: Adversarial, items: list[Found]) -> None:
    truths = truth.by_content(_compared(found))
    frame = adversarial_files.table(found, items, truths)
    number = st.column_config.NumberColumn
    order = [
        "id",
        "force_delta_eV_per_A",
        "rise",
        "above_origin_eV_per_atom",
        "closest_share",
        "error_conservative_eV_per_A",
    ]
    if len(found.structures) > 1:
        order.insert(1, "parent")
    frame["rise"] = frame["rise"].astype(float)
    event = st.dataframe(
        frame,
        hide_index=True,
        key="attack-table",
        on_select="rerun",
        selection_mode="single-row",
        height="content" if len(frame) <= ROWS_UNSCROLLED else 440,
        column_order=[c for c in order if c in frame],
        placeholder="–",
        alt="One row per structure of the dataset, the highest U_Delta first. Select one to see it.",
        column_config={
            "id": st.column_config.TextColumn("Structure"),
            "parent": "From",
            "force_delta_eV_per_A": st.column_config.ProgressColumn(
                "U_Delta (eV/Å)", format="%.3g", min_value=0.0, max_value=float(frame["force_delta_eV_per_A"].max())
            ),
            "rise": number("Times the start", format="%.1f"),
            "above_origin_eV_per_atom": number("eV/atom above", format="%.3f"),
            "closest_share": number("Closest pair", format="%.2f", help="Of the sum of the two covalent radii."),
            "error_conservative_eV_per_A": number("Error of F_c (eV/Å)", format="%.3g"),
        },
    )
    chosen = event["selection"]["rows"]  # pyright: ignore[reportIndexIssue]
    wanted = items[chosen[0]].row if chosen and chosen[0] < len(items) else None
    if wanted != attacking.row():
        attacking.show_row(wanted)
    st.caption("Select a row to see how it came about. No two are alike.", help=APART_HELP)


def _charts(found: Adversarial, start: int | None, *, live: bool) -> None:
    u, energy = adversarial_plots.climb_charts(found, start)
    st.altair_chart(u, alt="U_Delta against the step, one line per start.", key=f"chart-u-{live}")
    st.altair_chart(energy, alt="Energy above the start against the step.", key=f"chart-energy-{live}")


def _path(run: runs.Run, found: Adversarial, start: int, row: int | None) -> None:
    """The way of one start in 3D, its atoms glowing with u_i; at `row`, or at its newest structure."""
    climb = next(c for c in found.climbs if c.start == start)
    items = adversarial.found(found, climb.rows.tolist())
    origin = found.origins[climb.parent]
    if not items:
        return
    frames = [(origin.structure.positions, _per_atom(origin), "start")]
    frames += [
        (i.structure.positions, i.force_delta_per_atom, f"step {i.step}: U_Delta {three_digits(i.force_delta)} eV/Å")
        for i in items
    ]
    model = run.spec.model.id if run.spec.model else ""
    scene = trajectory_scene(
        origin.structure,
        f"{run.id}-{start}",
        [f[0] for f in frames],
        [f[1] for f in frames],
        [f[2] for f in frames],
        reference_distribution(model),
    )
    rows = [i.row for i in items]
    moment = 1 + rows.index(row) if row in rows else len(frames) - 1
    player(scene, f"attack-player-{run.id}", moment, lambda frame: None)
    st.caption(f"Start {start}: {_how(climb)}")


def _per_atom(origin: adversarial.Origin) -> Any:
    return np.sqrt(np.mean((origin.forces_direct - origin.forces_conservative) ** 2, axis=1))


def _how(climb: adversarial.Climb) -> str:
    began = "as given" if not climb.rattled else "displaced at random"
    end = "still climbing." if not climb.reason else f"{adversarial.ENDINGS[climb.reason]}. {climb.text}"
    return f"{began}; {plain(end)}"


# ---- a reference ---------------------------------------------------------------------------------------------------


def _compared(found: Adversarial) -> list[truth.Compared]:
    run = attacking.truth()
    return [] if run is None or found.result is None else attacks.truth_of_run(run)[0]


def _truth(run: runs.Run, found: Adversarial) -> None:
    """Does U_Delta rank the true errors? Asked of a reference that is installed."""
    if not found.selected.rows:
        return
    with st.expander(
        "Hold them against a reference", icon=":material/balance:", expanded=attacking.truth() is not None
    ):
        following = attacking.truth()
        if following is not None and following.active:
            _truth_live()
            return
        if following is not None and following.state == "failed":
            st.error(f"**{plain(following.error or '')}** {plain(following.hint or '')}", icon=":material/error:")
        if following is not None:
            _truth_found(following)
        _ask_truth(run, found)


@st.fragment(run_every=TICK_S)
def _truth_live() -> None:
    run = attacking.truth()
    if run is None or not run.active:
        st.rerun()
        return
    words.run_progress(run)
    st.button(
        "Stop",
        icon=":material/stop_circle:",
        key="stop-truth",
        disabled=run.cancel_requested,
        on_click=_stop,
        args=(run.id,),
    )


def _truth_found(run: runs.Run) -> None:
    compared, failures = attacks.truth_of_run(run)
    bands = truth.bands(compared)
    name = _reference_title(run)
    st.markdown(f"**{plain(truth.sentence(bands, name))}**")
    if failures:
        st.warning(
            f"{count(len(failures), 'structure')} could not be compared: {plain(failures[0].error)}",
            icon=":material/error:",
        )
    if not compared:
        return
    left, right = st.columns(LAYOUT, gap="large")
    with left:
        st.altair_chart(
            adversarial_plots.errors_chart(compared, name),
            alt="Errors of both forces against U_Delta, one pair of points per structure.",
            key="chart-errors",
        )
    with right:
        st.dataframe(
            _band_frame(bands),
            hide_index=True,
            alt="Rank correlation of U_Delta with both errors, for all structures and for thirds of the range.",
        )
        st.caption(
            "Spearman's r_s with a 95 % bootstrap interval. Within a narrow band of U_Delta there is less to rank, so it is lower there."
        )


def _band_frame(bands: list[truth.Band]) -> dict[str, list[str]]:
    def r(found: Any) -> str:
        return "–" if found.r_s is None else f"{found.r_s:.2f} ({found.low:.2f} to {found.high:.2f})"

    return {
        "U_Delta (eV/Å)": [f"{b.name}: {b.low:.3g} to {b.high:.3g}" for b in bands],
        "n": [str(b.conservative.n) for b in bands],
        "r_s, error of F_c": [r(b.conservative) for b in bands],
        "r_s, error of F_nc": [r(b.direct) for b in bands],
    }


def _reference_title(run: runs.Run) -> str:
    known = {o.id: o.title for o in attacks.offered_references()}
    name = str(run.spec.parameters.get("reference", ""))
    return known.get(name, name)


def _ask_truth(run: runs.Run, found: Adversarial) -> None:
    offered = {o.id: o for o in attacks.offered_references()}
    here = [o for o in offered.values() if o.is_here]
    if here and owner.may_change(run):
        left, right = st.columns([2, 3], vertical_alignment="bottom")
        with left:
            chosen = st.selectbox(
                "Reference", [o.id for o in here], format_func=lambda i: offered[i].title, key="attack-reference"
            )
        with right:
            st.button(
                f"Compare with {offered[chosen].title}",
                icon=":material/balance:",
                key="compare",
                on_click=_compare,
                args=(run, found, chosen),
            )
        st.caption(plain(offered[chosen].about))
    for missing in (o for o in offered.values() if not o.is_here):
        st.caption(f"{missing.title} is not installed here: `{missing.install}`.")


def _compare(run: runs.Run, found: Adversarial, reference: str) -> None:
    model = run.spec.model
    if model is None:
        return
    try:
        following = attacks.compare(
            owner.viewer(), attacks.to_compare(found), model, reference, title=f"{run.title} against {reference}"
        )
    except FdcoreError as error:
        st.toast(f"{plain(error.message)} {plain(error.hint)}", icon=":material/error:")
        return
    attacking.follow_truth(following)


# ---- below ---------------------------------------------------------------------------------------------------------


def _take_away(run: runs.Run, found: Adversarial) -> None:
    st.caption(FOR_AND_NOT_FOR)
    compared = _compared(found)
    name = PurePath(run.title).stem or "attack"
    following = attacking.truth()
    reference = _reference_title(following) if following is not None and compared else ""
    known = truth.by_content(compared)
    provenance = runs.provenance_of(run)
    sets = list(adversarial_files.DFT_SETS)
    dft_set = st.session_state.get("attack-dft-set") or sets[0]
    crystals = any(s.periodic for s in found.structures)
    files: list[tuple[str, Any, str, str]] = []
    if found.selected.rows:
        files = [
            (
                "extXYZ",
                partial(adversarial_files.dataset_extxyz, found, known),
                f"{name}-adversarial.extxyz",
                "The dataset with U_Delta, u_i, both forces, origin, step, seed and model.",
            ),
            (
                "ASE database",
                partial(adversarial_files.dataset_db, found, known),
                f"{name}-adversarial.db",
                "As orb-models and fairchem-core read it.",
            ),
        ]
        if crystals:
            files.append(
                (
                    "CIF",
                    partial(adversarial_files.dataset_cif, found),
                    f"{name}-adversarial.cif",
                    "One block per structure.",
                )
            )
        files += [
            (
                "CSV",
                partial(adversarial_files.dataset_csv, found, known),
                f"{name}-adversarial.csv",
                "One row per structure.",
            ),
            (
                "All as zip",
                partial(adversarial_files.dataset_zip, found, provenance, compared, reference, dft_set),
                f"{name}-adversarial.zip",
                "All of these, VASP inputs per structure, provenance and a README.",
            ),
        ]
    files.append(
        (
            "JSON",
            partial(adversarial_files.document_json, found, runs.refusals(run), provenance, compared, reference),
            f"{name}-adversarial.json",
            "Every start, the dataset, and how it was made.",
        )
    )
    with st.container(horizontal=True, key="attack-downloads", vertical_alignment="bottom"):
        for label, content, file_name, text in files:
            st.download_button(
                label,
                content,
                file_name=file_name,
                icon=":material/download:",
                on_click="ignore",
                key=f"attack-{label}",
                help=text,
            )
        if crystals and found.selected.rows:
            with st.popover("DFT inputs", icon=":material/settings:"):
                st.selectbox(
                    "Input set of the VASP folders in the zip",
                    sets,
                    format_func=lambda k: f"{k}: {adversarial_files.DFT_SETS[k]}",
                    key="attack-dft-set",
                    help="pymatgen's. Potentials are named in POTCAR.spec, not shipped.",
                )
    st.caption("Repeat this on a command line:")
    names = list(dict.fromkeys(s.file for s in found.structures))[:8]
    # Without colours: those of options are too pale on the light background.
    st.code(attacks.command_line(names, run.spec), language=None, wrap_lines=True)
    with st.container(horizontal=True):
        st.page_link("pages/score.py", label="Score this structure", icon=":material/speed:")
        st.page_link("pages/dynamics.py", label="Dynamics", icon=":material/animation:")
        st.page_link("pages/runs.py", label="All runs", icon=":material/history:")
