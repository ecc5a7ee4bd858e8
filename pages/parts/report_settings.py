"""What is asked of a report: usual settings with one click, everything else one fold away, the cost before the start."""

from __future__ import annotations

from typing import Any

import streamlit as st

from fdcore import services
from fdcore.errors import FdcoreError
from fdcore.examination import PARTS
from fdcore.human import count
from fdcore.records import Structure
from fdcore.services import report
from fdcore.tasks.report import WORDS, ReportParameters
from pages.parts import owner, reporting, run_parts, session
from pages.parts.fields import Fields, seed
from pages.parts.model_picker import DTYPES
from pages.parts.refusals import failed
from pages.parts.words import plain

LAMBDA_HELP = (
    r"$\lambda=\lVert(J-J^T)/2\rVert_F/\lVert J\rVert_F$ with $J=\partial F/\partial R$: 0 for the slope of an energy, 1 for a force that has "
    "nothing of one (Bigi, Langer, Ceriotti 2025)."
)
DYNAMICS_HELP = "The most expensive part: half a thousand steps and more under either force."

_fields = Fields(lambda name: f"report-{name}", reporting.change)


def what_will_come() -> None:
    """Before anything was chosen: a working example, and what it shows."""
    with st.container(border=True):
        st.markdown("### One page on whether the forces are the slope of an energy")
        st.markdown(
            "A force that is no slope of any energy does work out of nothing. How much, and whether it matters, depends on the structure and on "
            "what the model is for. Bring a structure and get, in plain words and with figures:\n"
            "- **for what** the model is conservative enough here, and for what not\n"
            "- the **asymmetry of the Jacobian** λ, with the atoms it comes from, and the **work on closed loops**\n"
            "- **jumps of the energy**, net force and torque, and what **turned and permuted copies** say otherwise\n"
            "- the **drift** of a short NVE run under either force; what others **published** beside it\n"
            "- a page to print or to send"
        )
        examples = {e.id: e for e in services.examples()}
        example = examples.get("Mg17Al12") or next(iter(examples.values()))
        st.button(
            f"Try an example: {example.title}",
            type="primary",
            icon=":material/play_arrow:",
            on_click=session.choose_example,
            args=(example,),
            key="try_example",
        )


def nothing_readable() -> None:
    """Nothing in the choice could be read."""
    for failure in session.parsed().failures:
        failed(failure, done="taken")


def ask() -> None:
    """The settings, the cost, and the button that starts."""
    for failure in session.parsed().failures:
        failed(failure, done="taken")
    card = services.card(session.settings().model_id)
    good, refused = report.examinable(card, reporting.structures())
    for failure in refused:
        failed(failure, done="taken")
    if len(session.structures()) > reporting.MOST_AT_ONCE:
        st.info(
            f"The first {reporting.MOST_AT_ONCE} of {len(session.structures())} structures are taken.",
            icon=":material/info:",
        )
    if not good:
        return
    with st.container(border=True, key="report-settings"):
        now = {**{n: f.default for n, f in ReportParameters.__dataclass_fields__.items()}, **reporting.changes()}
        _parts(now)
        _more(now)
        try:
            _cost_and_start(good)
        except FdcoreError as error:
            st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/error:")


def _parts(now: dict[str, Any]) -> None:
    key = _fields.key("parts")
    # Both forces are always looked at: everything else is compared with them.
    st.session_state[key] = [p for p in now["parts"] if p != "forces"]
    st.multiselect(
        "What is looked at, beside both forces",
        [p for p in PARTS if p != "forces"],
        format_func=lambda p: WORDS[p],
        key=key,
        on_change=lambda: reporting.change("parts", ["forces", *st.session_state[key]]),
        help=LAMBDA_HELP,
        placeholder="Nothing else",
    )


def _more(now: dict[str, Any]) -> None:
    with st.expander("More settings", icon=":material/tune:"):
        left, middle, right = st.columns(3)
        with left:
            st.markdown("**Jacobian and loops**", help=LAMBDA_HELP)
            _fields.number(
                "exact_atoms", "Whole Jacobian up to (atoms)", now, step=8, minimum=0, maximum=400,
                text="Beyond, λ is estimated from random directions, with its error.",
            )  # fmt: skip
            _fields.number("precision", "Relative error of that estimate", now, step=0.01, minimum=0.001, maximum=0.5)
            _fields.number("loops", "Random closed loops", now, step=1, minimum=1, maximum=200)
            _fields.number("loop_radius_A", "Their radius (Å per atom)", now, step=0.02, minimum=1e-4, maximum=1.0)
        with middle:
            st.markdown("**Walks and copies**")
            _fields.number("lines", "Straight walks", now, step=1, minimum=1, maximum=200)
            _fields.number("line_step_A", "Their step (Å per atom)", now, step=0.001, minimum=1e-4, maximum=0.05)
            _fields.number("line_points", "Points of a walk", now, step=10, minimum=5, maximum=2000)
            _fields.number("copies", "Turned, permuted, shifted copies, each", now, step=1, minimum=1, maximum=200)
        with right:
            st.markdown("**NVE**", help=DYNAMICS_HELP)
            _fields.number("picoseconds", "Length (ps)", now, step=0.5, minimum=0.001, maximum=10_000.0)
            _fields.number("equilibrate_ps", "Equilibration under F_c (ps)", now, step=0.1, minimum=0.001)
            _fields.number("temperature_K", "Temperature (K)", now, step=50.0, minimum=0.001)
            _fields.optional("timestep_fs", "Time step (fs)", now, "Empty: 0.5 with hydrogen, else 1.")
        seed("report-seed", "fd_report_seed", reporting.seed(), "Of directions, loops, copies and velocities.")
        st.session_state["report-dtype"] = reporting.dtype()
        st.radio(
            "Precision of the report",
            DTYPES[::-1],
            key="report-dtype",
            horizontal=True,
            on_change=lambda: st.session_state.update({reporting.DTYPE: st.session_state["report-dtype"]}),
            help="In float64 what is left of the controls is rounding. In float32, as models are mostly run, rounding stands beside what is "
            "measured, and F_c cannot be checked by differences.",
        )


def _cost_and_start(structures: list[Structure]) -> None:
    cost = report.estimate(reporting.spec(structures), structures)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Make the report",
            type="primary",
            icon=":material/play_arrow:",
            key="report-start",
            disabled=not cost.fits,
            on_click=_start,
            args=(structures,),
        )
        atoms = sum(s.n_atoms for s in structures)
        st.markdown(f"{count(len(structures), 'structure')}, {count(atoms, 'atom')}: {cost.text}.")
    if not cost.fits:
        run_parts.too_large(cost)


def _start(structures: list[Structure]) -> None:
    run = run_parts.attempt(
        lambda: report.submit(
            owner.viewer(),
            structures,
            reporting.model(),
            reporting.changes(),
            title=session.title(),
            seed=reporting.seed(),
            refusals=session.parsed().failures,
        )
    )
    if run is not None:
        reporting.follow(run)
