"""What is asked of a validation: labels or a reference, which model judges what, an ensemble beside it, and the cost before the start."""

from __future__ import annotations

import streamlit as st

from fdcore import services
from fdcore.errors import FdcoreError
from fdcore.human import count
from fdcore.records import Structure
from fdcore.services import ensemble, labels, validation
from fdcore.spec import Spec
from fdcore.tasks.validate import LABELS
from pages.parts import owner, run_parts, session, validating
from pages.parts.ensemble_settings import SPREAD_HELP
from pages.parts.model_picker import place
from pages.parts.refusals import failed
from pages.parts.words import plain

RANK_HELP = (
    "Spearman's $r_s$: the correlation of the ranks of U_Delta and of the error. 1: the order is the same; 0: U_Delta says nothing of the error. "
    "A pooled value over small and large displacements is high for any quantity that grows with the displacement; look at the groups, too."
)
BUTTON = "Use the shipped DFT labels"


def shipped_labels() -> None:
    """One click takes the labels that travel with the app."""
    problem = validating.problem()
    if problem is not None:
        st.error(f"**{plain(problem.message)}** {plain(problem.hint)}", icon=":material/error:")
    st.caption("With reference forces: extended xyz, ASE database, vasprun.xml, OUTCAR.")
    if session.choice() is not None:
        st.button(BUTTON, icon=":material/science:", key="shipped-small", on_click=validating.choose_shipped)


def what_will_come() -> None:
    """Before anything was chosen: working labels, and what they show."""
    with st.container(border=True):
        st.markdown("### Hold a model against the truth")
        st.markdown(
            "Bring structures with reference forces (extended xyz, ASE database, vasprun.xml, OUTCAR) and get, for any model:\n"
            "- **how wrong both forces are**, structure by structure, and the energy\n"
            "- **whether U_Delta ranks the errors**, pooled and within groups and bands, with intervals\n"
            "- **whether it is calibrated**, and which share of the bad structures a threshold finds\n"
            "- **consensus failures**: small U_Delta, large error, which no disagreement can show"
        )
        st.button(
            BUTTON,
            type="primary",
            icon=":material/play_arrow:",
            key="shipped",
            on_click=validating.choose_shipped,
            help="PBE energies and forces of small structures, from equilibrium to strongly distorted: ice, salts, Mg-Al, molecules.",
        )


def nothing_readable() -> None:
    """Nothing in the choice could be read."""
    for failure in session.parsed().failures:
        failed(failure, done="compared")


def ask() -> None:
    """The reference, the models, the cost, and the button that starts."""
    nothing_readable()
    listed = validating.structures()
    if len(session.structures()) > len(listed):
        st.info(
            f"The first {len(listed):,} of {len(session.structures()):,} structures are taken.", icon=":material/info:"
        )
    with st.container(border=True, key="validate-settings"):
        left, right = st.columns(2, gap="large")
        with left:
            _reference(listed)
        with right:
            _who(listed)
        with st.expander("More settings", icon=":material/tune:", expanded=bool(validating.members())):
            _members()
        _cost_and_start(listed)


def _reference(listed: list[Structure]) -> None:
    offered = {o.id: o for o in labels.offered_references() if o.is_here}
    options = [LABELS, *offered]
    st.session_state["validate-reference"] = validating.reference() if validating.reference() in options else LABELS
    st.selectbox(
        "Held against",
        options,
        format_func=lambda i: "the labels in the files" if i == LABELS else offered[i].title,
        key="validate-reference",
        on_change=lambda: validating.set_reference(st.session_state["validate-reference"]),
        help="What is true here. Part of every error is what the model's training method and this one differ by.",
    )
    if validating.reference() == LABELS:
        missing = validation.unlabelled(listed)
        if missing:
            st.caption(
                f":material/label_off: {count(missing, 'structure')} of {len(listed):,} bring no reference forces; each is listed with that reason."
            )
    elif validating.reference() in offered:
        st.caption(plain(offered[validating.reference()].about))


def _who(listed: list[Structure]) -> None:
    """Which model judges what; a choice only where one model does not suit all structures."""
    own = validation.suggested(listed)
    if len(own.ids) > 1:
        st.session_state["validate-each"] = validating.each_its_own()
        st.toggle(
            "Each structure by the model that suits it",
            key="validate-each",
            on_change=lambda: validating.set_each_its_own(st.session_state["validate-each"]),
            help="As the command line does where no model is named. U_Delta of different models is not on one scale: each is told by itself.",
        )
    judges = validating.judges(listed)
    for model_id, its in judges.of_model(listed).items():
        card = session.models().get(model_id) or services.card(model_id)
        unknown = sum(bool(card.covers(s.numbers)) for s in its)
        st.caption(f"{model_id}: {count(len(its), 'structure')}, trained to reproduce {plain(card.reference_method)}")
        if unknown:
            st.caption(f":material/visibility_off: It does not know elements of {count(unknown, 'structure')}.")


def _members() -> None:
    st.markdown("**An ensemble beside it**", help=SPREAD_HELP)
    cards = {c.id: c for c in ensemble.members_with(session.own_models())}
    chosen = [i for i in validating.members() if i in cards]
    st.session_state["validate-members"] = chosen
    st.multiselect(
        "Members",
        list(cards),
        key="validate-members",
        format_func=lambda i: f"{i}  ·  {cards[i].kind}  ·  {place(cards[i])}",
        on_change=lambda: validating.set_members(st.session_state["validate-members"]),
        label_visibility="collapsed",
        placeholder="None: U_Delta alone",
    )
    if len(chosen) > 1 and ensemble.mixed_methods(chosen):
        st.warning(
            "These members were trained to reproduce different methods. What they differ by is then not their error alone.",
            icon=":material/join:",
        )
        st.session_state["validate-mixing"] = validating.mixing()
        st.checkbox(
            "Mix them all the same",
            key="validate-mixing",
            on_change=lambda: validating.set_mixing(st.session_state["validate-mixing"]),
        )
    if len(chosen) == 1:
        st.caption("An ensemble has at least two members.")


def _spec(listed: list[Structure]) -> Spec:
    now = session.settings()
    return validation.spec_of(
        listed,
        validating.judges(listed),
        reference=validating.reference(),
        members=validating.members(),
        mix_methods=validating.mixing(),
        dtype=now.dtype,
        device=now.device,
    )


def _cost_and_start(listed: list[Structure]) -> None:
    try:
        spec = _spec(listed)
        cost = validation.estimate(listed, spec)
    except FdcoreError as error:
        st.button("Compare", type="primary", icon=":material/play_arrow:", key="validate-start", disabled=True)
        st.caption(f":material/info: {plain(error.message)} {plain(error.hint)}")
        return
    none = validating.reference() == LABELS and validation.unlabelled(listed) == len(listed)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            f"Compare {count(len(listed), 'structure')}",
            type="primary",
            icon=":material/play_arrow:",
            key="validate-start",
            disabled=none or not cost.fits,
            on_click=_start,
            args=(listed, spec),
        )
        atoms = sum(s.n_atoms for s in listed)
        st.markdown(f"{count(len(listed), 'structure')}, {count(atoms, 'atom')}: {cost.text}.")
    if none:
        st.warning(
            "None of these structures brings reference forces. Choose a reference above, or bring an extended xyz, an ASE database, a "
            "vasprun.xml or an OUTCAR with forces.",
            icon=":material/label_off:",
        )
    if not cost.fits:
        run_parts.too_large(cost)


def _start(listed: list[Structure], spec: Spec) -> None:
    run = run_parts.attempt(
        lambda: validation.submit(
            owner.viewer(), listed, spec, title=session.title(), refusals=session.parsed().failures
        )
    )
    if run is not None:
        validating.follow(run)
