"""What is asked of an ensemble: who its members are, by the method they were trained to reproduce, and the cost before the start."""

from __future__ import annotations

import streamlit as st

from fdcore import services
from fdcore.human import count
from fdcore.records import ModelCard, Structure
from fdcore.services import ensemble
from pages.parts import ensembling, owner, run_parts, session
from pages.parts.model_picker import place
from pages.parts.refusals import failed
from pages.parts.words import plain

SPREAD_HELP = (
    r"$U_{var}=\sqrt{\frac{1}{3N(M-1)}\sum_{i,m}|\mathbf{F}_{m,i}-\bar{\mathbf{F}}_i|^2}$, in eV/Å: the standard deviation of a force component "
    "over the M members (the root of the unbiased variance). Direct models give F_nc, conservative ones F_c: the force that each is run with."
)
METHOD_HELP = "Models that were trained to reproduce different methods differ also where none is wrong."
EXAMPLE = "ice_ladder"


def what_will_come() -> None:
    """Before anything was chosen: a working example, and what it shows."""
    with st.container(border=True):
        st.markdown("### Ask more than one model")
        st.markdown(
            "The usual way to see whether a model can be trusted is to ask several. It costs as many evaluations as there are models; "
            "U_Delta costs one more. Bring structures and get:\n"
            "- **U_Delta** of the chosen model beside **U_var** of the ensemble and, where there is one, its confidence head\n"
            "- **where they agree** and where not, structure by structure and atom by atom\n"
            "- what **each of them cost**, measured in the same run\n"
            "- where the file brings reference forces, **which of them ranks the errors**"
        )
        examples = {e.id: e for e in services.examples()}
        example = examples.get(EXAMPLE) or next(iter(examples.values()))
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
        failed(failure)


def ask() -> None:
    """Members, the cost, and the button that starts."""
    for failure in session.parsed().failures:
        failed(failure)
    card = services.card(session.settings().model_id)
    good, refused = ensemble.comparable(card, ensembling.structures())
    for failure in refused:
        failed(failure)
    if len(session.structures()) > ensembling.MOST_AT_ONCE:
        st.info(
            f"The first {ensembling.MOST_AT_ONCE} of {len(session.structures())} structures are taken.",
            icon=":material/info:",
        )
    if not good:
        return
    with st.container(border=True, key="ensemble-settings"):
        st.markdown("**Members of the ensemble**", help=SPREAD_HELP)
        cards = {c.id: c for c in ensemble.members_with(session.own_models())}
        # Also one that a shared run has brought.
        cards |= {i: c for i, c in session.models().items() if i == session.settings().model_id}
        chosen = [i for i in ensembling.members() if i in cards]
        st.session_state["ensemble-members"] = chosen
        st.multiselect(
            "Members",
            list(cards),
            key="ensemble-members",
            format_func=lambda i: f"{i}  ·  {cards[i].kind}  ·  {place(cards[i])}",
            on_change=lambda: ensembling.set_members(st.session_state["ensemble-members"]),
            label_visibility="collapsed",
            placeholder="Choose at least two models",
        )
        _groups([cards[i] for i in chosen])
        _missing([cards[i] for i in chosen], good)
        _cost_and_start(card, good, chosen)


def _groups(cards: list[ModelCard]) -> None:
    """Members by method; where there are several, what that means, and a switch to accept it."""
    groups = ensemble.reference_groups([c.id for c in cards])
    for method, ids in groups.items():
        st.caption(f"Trained on {plain(method)}: {', '.join(ids)}", help=METHOD_HELP)
    if len(groups) > 1:
        st.warning(
            "These members were trained to reproduce different methods. What they differ by is then not their error alone.",
            icon=":material/join:",
        )
        st.session_state["ensemble-mixing"] = ensembling.mixing()
        st.checkbox(
            "Mix them all the same",
            key="ensemble-mixing",
            on_change=lambda: ensembling.set_mixing(st.session_state["ensemble-mixing"]),
        )


def _missing(cards: list[ModelCard], structures: list[Structure]) -> None:
    """Which members cannot answer for what, before anything starts."""
    for card in cards:
        if not services.model_is_here(card):
            st.caption(
                f":material/download: {card.id} is not on this machine: {place(card)}. Where that fails it is left out."
            )
        unknown = sum(bool(card.covers(s.numbers)) for s in structures)
        if unknown:
            st.caption(
                f":material/visibility_off: {card.id} does not know elements of {count(unknown, 'structure')}; it is left out there."
            )


def _cost_and_start(card: ModelCard, structures: list[Structure], ids: list[str]) -> None:
    now = session.settings()
    mixed = ensemble.mixed_methods(ids) if len(ids) > 1 else ""
    ready = len(ids) > 1 and (not mixed or ensembling.mixing())
    cost = ensemble.estimate(card, structures, ids, now.dtype)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            f"Ask {count(len(ids), 'model')}",
            type="primary",
            icon=":material/play_arrow:",
            key="ensemble-start",
            disabled=not ready or not cost.fits,
            on_click=_start,
            args=(structures, ids),
        )
        atoms = sum(s.n_atoms for s in structures)
        st.markdown(f"{count(len(structures), 'structure')}, {count(atoms, 'atom')}: {cost.text}.")
    if len(ids) < 2:
        st.caption("An ensemble has at least two members.")
    if not cost.fits:
        st.warning(
            f"The largest structure needs about {cost.memory_MB:,.0f} MB and {cost.available_MB:,.0f} MB are free.",
            icon=":material/memory:",
        )


def _start(structures: list[Structure], ids: list[str]) -> None:
    run = run_parts.attempt(
        lambda: ensemble.submit(
            owner.viewer(),
            structures,
            session.settings().model,
            ids,
            mix_methods=ensembling.mixing(),
            title=session.title(),
            refusals=session.parsed().failures,
        )
    )
    if run is not None:
        ensembling.follow(run)
