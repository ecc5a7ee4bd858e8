"""Choose a model, with what one must know of it before trusting it."""

from __future__ import annotations

from dataclasses import replace
from textwrap import shorten

import streamlit as st

from fdcore import services
from fdcore.records import ModelCard
from pages.parts import session
from pages.parts.words import plain

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("float32", "float64")
# The line under the select box; the whole text is in "About this model".
TRAINING_DATA_SHOWN = 130


def model_picker() -> None:
    """The select box, the facts, charge and spin where the model needs them, everything else one fold away."""
    session.replace_lost_model()
    cards = session.models()
    now = session.settings()
    st.session_state["model"] = now.model_id
    st.selectbox("Model", list(cards), format_func=lambda i: _label(cards[i]), key="model", on_change=_model_changed)
    card = cards[now.model_id]
    lost = session.lost_model()
    if lost is not None:
        st.warning(f"**{plain(lost.message)}** {card.id} is used instead.", icon=":material/link_off:")
    if session.model_is_suggested():
        st.caption(":material/auto_awesome: Chosen for these structures: they are of the kind that it was trained on.")
    st.caption(_facts(card))
    if card.needs_charge_spin:
        _charge_and_spin()
    with st.container(horizontal=True, gap="small"):
        with st.popover("About this model", icon=":material/info:", key="about"):
            about(card)
        with st.popover("More settings", icon=":material/tune:", key="more"):
            precision_and_device()


def place(card: ModelCard) -> str:
    """Whether the weights are on this machine, in words."""
    if not services.extra_is_here(card):
        return f"needs the package {card.extra}"
    if card.weights == "embedded":
        return "comes with the app"
    if card.weights == "local":
        return "fine-tuned here"
    if services.model_is_here(card):
        return "on this machine"
    gate = ", gated" if card.weights == "gated" else ""
    if card.weights == "file":
        return "a file, on the command line"
    size = f" of {card.download_MB:.0f} MB" if card.download_MB else ""
    return f"download{size}{gate}"


def about(card: ModelCard) -> None:
    """The whole card as a table."""
    cap = "none: every neighbour within the cutoff" if card.neighbour_cap is None else f"{card.neighbour_cap} nearest"
    facts = {
        "Kind": f"{card.kind} force",
        "Trained on": card.training_data,
        "Reference method": card.reference_method,
        "Elements": f"{len(card.elements)}: {', '.join(card.elements)}",
        "Reads": card.periodic,
        "Charge and spin": "must be given" if card.needs_charge_spin else "not used",
        "Neighbours": f"{cap}, {card.cutoff_A:g} Å",
        "Confidence head": "yes" if card.confidence_head else "no",
        "Size": f"{card.n_parameters / 1e6:.1f} million parameters",
        "Weights": place(card),
        "Licence": card.licence,
        "Not for": card.not_for or "nothing known",
        "F_c checked by": card.gradient_proof or "not yet",
        "Cite": card.citation or card.source,
    }
    st.markdown(f"**{card.id}**")
    st.write(card.summary)
    st.table({"": list(facts), " ": list(facts.values())}, border="horizontal", hide_index=True, hide_header=True)


def _label(card: ModelCard) -> str:
    return f"{card.id}  ·  {place(card)}"


def _facts(card: ModelCard) -> str:
    cap = "no neighbour cap" if card.neighbour_cap is None else f"{card.neighbour_cap} neighbours"
    charge = "needs charge and spin" if card.needs_charge_spin else "no charge or spin"
    trained = shorten(card.training_data, TRAINING_DATA_SHOWN, placeholder=" …")
    return (
        f"Trained on {trained} [{card.reference_method}]. {card.kind.capitalize()} force, {cap}, {charge}, "
        f"{len(card.elements)} elements, {card.licence}, {place(card)}."
    )


def _model_changed() -> None:
    session.set_settings(replace(session.settings(), model_id=st.session_state["model"]))


def _charge_and_spin() -> None:
    now = session.settings()
    structures = session.parsed().structures
    known = bool(structures) and all(s.charge is not None and s.spin is not None for s in structures)
    placeholder = "from the file" if known else "needed"
    left, right = st.columns(2)
    charge = left.number_input(
        "Total charge (e)",
        value=now.charge,
        step=1,
        placeholder=placeholder,
        help="Used for structures whose file gives none. A neutral molecule has 0.",
    )
    spin = right.number_input(
        "Spin multiplicity 2S+1",
        value=now.spin,
        min_value=1,
        step=1,
        placeholder=placeholder,
        help="1 when all electrons are paired, 2 for a radical, 3 for a triplet.",
    )
    session.set_settings(replace(now, charge=charge, spin=spin))


def precision_and_device() -> None:
    """How models are run, on all pages."""
    now = session.settings()
    dtype = st.radio(
        "Precision",
        DTYPES,
        index=DTYPES.index(now.dtype),
        horizontal=True,
        help="float32 is what people run; float64 takes about twice the time and memory and shows what is rounding.",
    )
    device = st.radio(
        "Device",
        DEVICES,
        index=DEVICES.index(now.device),
        horizontal=True,
        help="auto: a CUDA device where there is one, else the CPU.",
    )
    new = replace(now, dtype=dtype, device=device)
    if new != now:
        session.set_settings(new)
        st.rerun()
