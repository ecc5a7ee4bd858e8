"""An attack: live while it climbs, and afterwards the structures that it has found."""

from __future__ import annotations

import numpy as np
import streamlit as st

from fdcore import adversarial, adversarial_files, adversarial_plots, validation
from fdcore.adversarial import Adversarial, Found
from fdcore.distribution import reference_distribution
from fdcore.errors import FdcoreError
from fdcore.human import count, three_digits
from fdcore.scene import trajectory_scene
from fdcore.services import adversarial as attacks
from fdcore.services import runs
from fdcore.thumbnail import thumbnails
from pages.parts import attack_files, attack_truth, attacking, words
from pages.parts.attack_settings import APART_HELP
from pages.parts.run_parts import LAYOUT, headline, live, not_finished
from pages.parts.viewer import player
from pages.parts.words import plain

# A climb is looked at about once a second; its frames, which are heavier, less often.
TICK_S, FRAMES_TICK_S = 1.5, 3.0
# So many rows of the table are shown without scrolling; so high is each, for its picture (px); so many have one.
ROWS_UNSCROLLED, ROW_PX, MOST_PICTURES = 7, 72, 200


def show(run: runs.Run) -> None:
    """Everything below the structure and the model."""
    headline(run, "attack-settings-again", attacking.forget, "Attack on")
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
        attack_truth.show(run, found)
        attack_files.show(run, found)
    except FdcoreError as error:
        st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/error:")


# ---- while it climbs -----------------------------------------------------------------------------------------------


@st.fragment(run_every=TICK_S)
def _live() -> None:
    run = attacking.shown()
    if run is None or not run.active:
        st.rerun()
        return
    live(run)
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


# ---- when it has ended ---------------------------------------------------------------------------------------------


def _ended(run: runs.Run, found: Adversarial) -> None:
    if run.state == "done":
        return
    when = (
        f"after {run.done:,.0f} of {run.total:,.0f} steps. What was made is kept."
        if found.n_steps
        else "before it began: nothing was made."
    )
    not_finished(run, f":material/stop_circle: **Stopped** {when}", "Go on", attacking.follow)


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
            _table(run, found, items)
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


def _table(run: runs.Run, found: Adversarial, items: list[Found]) -> None:
    truths = validation.by_content(attack_truth.compared(run, found)[0])
    frame = adversarial_files.table(found, items, truths)
    frame["picture"] = _pictures(run, items)
    number = st.column_config.NumberColumn
    order = [
        "picture",
        "id",
        "force_delta_eV_per_A",
        "rise",
        "above_origin_eV_per_atom",
        "closest_share",
        "error_conservative_eV_per_A",
    ]
    if len(found.structures) > 1:
        order.insert(2, "parent")
    frame["rise"] = frame["rise"].astype(float)
    event = st.dataframe(
        frame,
        hide_index=True,
        key="attack-table",
        on_select="rerun",
        selection_mode="single-row",
        row_height=ROW_PX,
        height="content" if len(frame) <= ROWS_UNSCROLLED else ROW_PX * ROWS_UNSCROLLED,
        column_order=[c for c in order if c in frame],
        placeholder="–",
        alt="One row per structure of the dataset, the highest U_Delta first. Select one to see it.",
        column_config={
            "picture": st.column_config.ImageColumn(
                "u_i", width=ROW_PX, help="The atoms, coloured by u_i on one scale for all of them, as in 3D."
            ),
            "id": st.column_config.TextColumn("Structure"),
            "parent": "From",
            "force_delta_eV_per_A": st.column_config.ProgressColumn(
                "U_Delta (eV/Å)", format="%.3g", min_value=0.0, max_value=float(frame["force_delta_eV_per_A"].max())
            ),
            "rise": number("Times start", format="%.1f", width="small"),
            "above_origin_eV_per_atom": number("Above", format="%.3f", width="small", help="The start, in eV/atom."),
            "closest_share": number(
                "Closest", format="%.2f", width="small", help="Pair, of the sum of the two covalent radii."
            ),
            "error_conservative_eV_per_A": number(
                "Error", format="%.3g", width="small", help="Of F_c against the reference, in eV/Å."
            ),
        },
    )
    chosen = event["selection"]["rows"]  # pyright: ignore[reportIndexIssue]
    wanted = items[chosen[0]].row if chosen and chosen[0] < len(items) else None
    if wanted != attacking.row():
        attacking.show_row(wanted)
    st.caption("Select a row to see how it came about. No two are alike.", help=APART_HELP)


def _pictures(run: runs.Run, items: list[Found]) -> list[str | None]:
    """One per structure, as far as a table can carry them."""
    model = reference_distribution(run.spec.model.id if run.spec.model else "")
    ordinary = 0.0 if model is None else model.quantile(0.95)
    made = thumbnails([(i.structure, i.force_delta_per_atom) for i in items[:MOST_PICTURES]], ordinary)
    return [*made, *[None] * (len(items) - len(made))]


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
    frames = [(origin.structure, origin.force_delta_per_atom, "start")]
    frames += [
        (i.structure, i.force_delta_per_atom, f"step {i.step}: U_Delta {three_digits(i.force_delta)} eV/Å")
        for i in items
    ]
    model = run.spec.model.id if run.spec.model else ""
    scene = trajectory_scene(
        origin.structure,
        f"{run.id}-{start}",
        [f[0].positions for f in frames],
        [f[1] for f in frames],
        [f[2] for f in frames],
        reference_distribution(model),
        [f[0].cell for f in frames],
    )
    rows = [i.row for i in items]
    moment = 1 + rows.index(row) if row in rows else len(frames) - 1
    player(scene, f"attack-player-{run.id}", moment, lambda frame: None)
    st.caption(f"Start {start}: {_how(climb, run.active)}")


def _how(climb: adversarial.Climb, active: bool) -> str:
    began = "as given" if not climb.rattled else "displaced at random"
    end = "still climbing." if active else "not climbed to its end."
    if climb.reason:
        end = f"{adversarial.ENDINGS[climb.reason]}. {climb.text}"
    return f"{began}; {plain(end)}"
