"""The fourth step: did it become more stable? The same structures, momenta and displacements for every model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import streamlit as st

from fdcore import drift_plots, drift_report, drifts
from fdcore.drifts import Measured
from fdcore.errors import FdcoreError
from fdcore.human import count
from fdcore.records import Structure
from fdcore.services import dynamics, labels, runs, stability
from fdcore.tasks.stability import StabilityParameters
from pages.parts import finetune_start, owner, run_parts, session, tuning
from pages.parts.fields import seed
from pages.parts.model_picker import place
from pages.parts.refusals import failed
from pages.parts.run_parts import Download, not_finished
from pages.parts.structure_picker import structure_picker
from pages.parts.words import plain

STEP = "stability"
TICK_S = 2.0
DRIFT_HELP = (
    "The slope of a straight line through the total energy per atom against time, in meV/atom/ps, of a simulation at constant energy (NVE) "
    "that F_nc drives. It is zero for a force that is the slope of an energy. Figure 4 of *When forces disagree* shows what it comes to in 10 ps."
)
SEEDS_HELP = "Simulations of each model from different random momenta; the interval of the mean needs at least 5 of them (Student's t)."
NONE = "none"


def show() -> None:
    run = tuning.shown(STEP)
    if run is None:
        _ask()
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Change settings", icon=":material/tune:", key="tune-stability-again", on_click=tuning.forget, args=(STEP,)
        )
        n = 1 + len(run.spec.parameters.get("models", ()))
        st.caption(f"Stability of {count(n, 'model')} on {plain(run.title)}, seed {run.spec.seed}")
    if run.active:
        _live()
        return
    found = stability.of_run(run)
    if run.state != "done":
        done = f":material/stop_circle: **Stopped** after {run.done:,.0f} of {run.total:,.0f} steps. What was measured is kept."
        not_finished(run, done, "Go on", partial(tuning.follow, STEP))
    for sentence in drifts.sentences(found):
        st.markdown(f"- {plain(sentence)}")
    charts(found, "ended")
    tables(found)
    report(found, stability.provenance(run.spec, run.summary), "stability")
    names = list(dict.fromkeys(s.file for s in found.structures))
    run_parts.repeat(stability.command_line(names, run.spec))


@st.fragment(run_every=TICK_S)
def _live() -> None:
    run = tuning.shown(STEP)
    if run is None or not run.active:
        st.rerun()
        return
    run_parts.live(run)
    charts(stability.of_run(run), "live")


# ---- what was measured -------------------------------------------------------------------------------------------------


def charts(found: Measured, key: str) -> None:
    """Figures 4 and 8 of the paper, and errors by band, as far as they are known."""
    if any(m.runs for m in found.models):
        left, right = st.columns(2, gap="large")
        with left:
            st.altair_chart(
                drift_plots.drift_bars(found), alt="Mean drift of each model, a dot per run.", key=f"tune-drift-{key}"
            )
        with right:
            st.altair_chart(drift_plots.energy_lines(found), alt="Total energy per atom against time, a line per run.", key=f"tune-energy-{key}")  # fmt: skip
    if any(m.bands for m in found.models):
        st.altair_chart(
            drift_plots.band_lines(found),
            alt="Errors of both forces and U_Delta against the displacement, a line per model.",
            key=f"tune-bands-{key}",
        )


def tables(found: Measured) -> None:
    """The numbers behind the charts."""
    number = st.column_config.NumberColumn
    with st.expander("Numbers", icon=":material/table:"):
        st.dataframe(
            drifts.model_rows(found),
            hide_index=True,
            placeholder="–",
            column_config={
                "model": "Model",
                "nve_runs": "Runs",
                "drift_abs_meV_per_atom_per_ps": number("|drift| (meV/atom/ps)", format="%.3g", help=DRIFT_HELP),
                "drift_abs_ci": number("± 95 %", format="%.2g"),
                "r_s_error_direct": number("r_s(U, eps_nc)", format="%.2f"),
                "r_s_error_conservative": number("r_s(U, eps_c)", format="%.2f"),
                "steps_per_second": number("Steps per second", format="%.3g"),
            },
            alt="One row per model: drift with its interval, relaxation, rank correlations, speed.",
        )
        st.dataframe(
            drifts.band_rows(found), hide_index=True, placeholder="–", alt="One row per model and displacement."
        )


def report(found: Measured, provenance: Mapping[str, Any], name: str, notes: Sequence[str] = ()) -> None:
    if not any(m.runs or m.bands for m in found.models):
        return
    files = [
        Download("Report (HTML)", partial(drift_report.html, found, provenance, notes), f"{name}.html", "One page that needs nothing else; prints well."),
        Download("All as zip", partial(drift_report.archive, found, provenance, notes), f"{name}.zip", "The report, its figures as SVG and PNG, numbers as CSV and JSON."),
    ]  # fmt: skip
    with st.container(horizontal=True, key=f"tune-{name}-downloads"):
        run_parts.download_buttons(files, f"tune-{name}")


# ---- what is asked -----------------------------------------------------------------------------------------------------


def pick_start(key: str) -> tuple[str, tuple[Structure, ...]]:
    """Where simulations begin: what was attacked, or what is in use. Nothing where there is no structure yet."""
    offered = tuning.starts()
    chosen: tuple[str, tuple[Structure, ...]] = ("", ())
    if offered:
        name = st.selectbox("Begin with", list(offered), key=key, help="All models begin here, with the same momenta.")
        chosen = (name, offered.get(name, ()))
        st.caption(", ".join(f"{plain(s.formula)} ({count(s.n_atoms, 'atom')})" for s in chosen[1]))
    with st.expander("Other structures", icon=":material/upload_file:", expanded=not offered):
        structure_picker()
    return chosen


def _ask() -> None:
    with st.container(border=True, key="tune-stability-settings"):
        left, right = st.columns(2, gap="large")
        with left:
            chosen = _models()
        with right:
            title, given = pick_start("tune-stability-start")
        now = tuning.values(StabilityParameters, STEP)
        fields = tuning.fields(STEP)
        cells = st.columns(3)
        with cells[0]:
            fields.number("picoseconds", "Length of a run (ps)", now, step=1.0, minimum=0.001, text=DRIFT_HELP)
        with cells[1]:
            fields.number("seeds", "Seeds", now, step=1, minimum=5, maximum=64, text=SEEDS_HELP)
        with cells[2]:
            reference_field(STEP, now, optional=True)
        more(STEP, now)
        structures: list[Structure] = list(given)
        for name in chosen:
            structures, refused = dynamics.movable(session.models()[name], structures)
            for failure in refused:
                failed(failure, done="taken")
        _cost_and_start(chosen, structures, title)


def _models() -> list[str]:
    cards = session.models()
    chosen = [i for i in tuning.compared() if i in cards]
    lost = [i for i in tuning.compared() if i not in cards]
    for name in lost:
        st.warning(f"**{plain(name)}** is no more: the run that made it was deleted.", icon=":material/link_off:")
    st.session_state["tune-compared"] = chosen
    st.multiselect(
        "Models, the base first",
        list(cards),
        key="tune-compared",
        format_func=lambda i: f"{i}  ·  {place(cards[i])}",
        on_change=lambda: tuning.set_compared(st.session_state["tune-compared"]),
        placeholder="Choose a model and what was made of it",
        max_selections=12,
    )
    if not session.own_models():
        st.caption("No model was fine-tuned by you yet; a published one can be measured all the same.")
    return chosen


def reference_field(step: str, now: Mapping[str, Any], *, optional: bool) -> None:
    """Whose errors are told; only references that are here."""
    offered = {o.id: o for o in labels.offered_references() if o.is_here}
    options: list[str] = [*([NONE] if optional else []), *offered]
    key = f"tune-{step}-reference"
    wanted = now["reference"] or NONE
    st.session_state[key] = wanted if wanted in options else (options[0] if options else None)
    st.selectbox(
        "Reference",
        options,
        format_func=lambda i: "none: U_Delta only" if i == NONE else offered[i].title,
        key=key,
        on_change=lambda: tuning.changes(step).update(
            reference=None if st.session_state[key] == NONE else st.session_state[key]
        ),
        help="Says what is true: the errors of both forces are those against it.",
    )
    if not offered:
        finetune_start.install_hints()


def more(step: str, now: Mapping[str, Any]) -> None:
    fields = tuning.fields(step)
    with st.expander("More settings", icon=":material/tune:"):
        left, middle, right = st.columns(3)
        with left:
            measuring_left(step, now)
        with middle:
            fields.number("per_sigma", "Copies per displacement", now, step=1, minimum=1)
            sigmas(step, now)
        with right:
            fields.number("relax_fmax_eV_per_A", "Relax along F_nc to (eV/Å)", now, step=0.01, minimum=0.0001)
            fields.number("relax_steps", "Iterations at most", now, step=10, minimum=1)
        seed(
            f"tune-{step}-seed-field",
            f"fd_tune_seed_{step}",
            tuning.seed(step),
            "Of momenta and displacements, the same for all models.",
        )


def measuring_left(step: str, now: Mapping[str, Any]) -> None:
    fields = tuning.fields(step)
    fields.number("temperature_K", "Temperature of the first momenta (K)", now, step=50.0, minimum=1.0)
    fields.optional("timestep_fs", "Time step (fs)", now, "Empty: 0.5 with hydrogen, else 1.")


def sigmas(step: str, now: Mapping[str, Any]) -> None:
    """A list of numbers as text; what is none is said and not taken."""
    key = f"tune-{step}-sigmas"
    st.session_state.setdefault(key, ", ".join(f"{s:g}" for s in now["sigmas_A"]))

    def changed() -> None:
        try:
            tuning.changes(step)["sigmas_A"] = [
                float(x) for x in st.session_state[key].replace(";", ",").split(",") if x.strip()
            ]
        except ValueError:
            st.toast("Displacements are numbers with commas between them, e.g. 0.05, 0.1.", icon=":material/error:")

    st.text_input("Displacements (Å)", key=key, on_change=changed, help="Standard deviation per component: the bands in which errors are told.")  # fmt: skip


def _cost_and_start(chosen: list[str], structures: list[Structure], title: str) -> None:
    if not chosen or not structures:
        st.button("Measure", type="primary", icon=":material/play_arrow:", key="tune-measure", disabled=True)
        st.caption("Choose a model and a structure that all of them know.")
        return
    try:
        now = session.settings()
        spec = stability.spec_of(
            structures, chosen, tuning.changes(STEP), dtype=now.dtype, device=now.device, seed=tuning.seed(STEP)
        )
        cost = stability.estimate(spec, structures)
    except FdcoreError as error:
        st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/error:")
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            f"Measure {count(len(chosen), 'model')}",
            type="primary",
            icon=":material/play_arrow:",
            key="tune-measure",
            disabled=not cost.fits,
            on_click=_start,
            args=(chosen, structures, title),
        )
        st.markdown(f"{count(len(chosen), 'model')}, {count(len(structures), 'structure')}: {cost.text}.")
    if not cost.fits:
        run_parts.too_large(cost)


def _start(chosen: list[str], structures: list[Structure], title: str) -> None:
    now = session.settings()
    run: runs.Run | None = run_parts.attempt(
        lambda: stability.submit(
            owner.viewer(),
            structures,
            chosen,
            tuning.changes(STEP),
            title=title.split(": ", 1)[-1],
            dtype=now.dtype,
            device=now.device,
            seed=tuning.seed(STEP),
        )
    )
    if run is not None:
        tuning.follow(STEP, run)
