"""What is to be reproduced: which figures and tables, by which models, of which systems, with how much effort; and the cost before the start."""

from __future__ import annotations

import streamlit as st

from fdcore.errors import FdcoreError
from fdcore.services import labels, reproduce
from pages.parts import owner, reproducing, run_parts, session
from pages.parts.model_picker import place, precision_and_device
from pages.parts.refusals import failed
from pages.parts.structure_picker import structure_picker
from pages.parts.words import plain

PRESETS = {
    "quick": "Minutes: the embedded models on the shipped systems, labelled by their teachers.",
    "paper": "The full protocol with the paper's models and labels by DFT: hours to days, and the weights are downloaded.",
}
FITTING = "fitting"
REFERENCE_HELP = (
    "Whose forces the errors eps_nc and eps_c are held against: CHGNet for crystals, GFN2-xTB for molecules, GPAW (PBE) in the full protocol. "
    "Where one is not installed, errors are missing, and it is said how to install it."
)
MOST_SHOWN, MOST_FAILURES = 12, 5


def ask() -> None:
    """Everything that is chosen, the cost, and the button that starts."""
    st.markdown(
        "Every figure and table of *When forces disagree* as a run: the protocol of the paper, on the models and structures that are here, with "
        "the paper's numbers beside what comes out. A claim about U_Delta is something that you can check, and refute."
    )
    with st.container(border=True, key="reproduce-settings"):
        _targets()
        left, right = st.columns([3, 2], gap="large")
        with left:
            _models()
            _systems()
        with right:
            _reference()
        _start()


def _targets() -> None:
    now = reproducing.chosen()
    st.session_state["reproduce-targets"] = list(reproducing.targets())
    st.multiselect(
        "Figures and tables",
        list(reproduce.TARGETS),
        key="reproduce-targets",
        format_func=lambda t: f"{reproduce.TARGETS[t].where}: {reproduce.TARGETS[t].title}",
        on_change=lambda: reproducing.choose(targets=st.session_state["reproduce-targets"]),
        placeholder="Choose at least one",
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "All of them",
            key="reproduce-all",
            icon=":material/select_all:",
            on_click=lambda: reproducing.choose(targets=list(reproduce.TARGETS)),
        )
        st.session_state["reproduce-preset"] = now["preset"]
        st.segmented_control(
            "Effort",
            list(PRESETS),
            key="reproduce-preset",
            on_change=lambda: reproducing.choose(preset=st.session_state["reproduce-preset"] or "quick"),
            label_visibility="collapsed",
        )
    st.caption(PRESETS[now["preset"]])


def _models() -> None:
    now = reproducing.chosen()
    cards = reproducing.offered_models()
    st.session_state["reproduce-models"] = list(reproducing.chosen_models())
    st.multiselect(
        "Models",
        list(cards),
        key="reproduce-models",
        format_func=lambda i: f"{i}  ·  {place(cards[i])}",
        on_change=lambda: reproducing.choose(models=st.session_state["reproduce-models"]),
        placeholder="The preset's own",
        help="Every chosen figure is made with these instead: models with both forces whose weights are on this machine. None: the preset's own.",
    )
    if not reproducing.chosen_models():
        own = reproduce.preset_models(now["preset"])
        named = dict.fromkeys(m for t in reproducing.targets() for m in own[t])
        if named:
            st.caption(f"The preset's own: {', '.join(named)}.")
    with st.popover("Precision and device", icon=":material/memory:"):
        precision_and_device()


def _systems() -> None:
    now = reproducing.chosen()
    st.session_state["reproduce-own"] = "mine" if now["own"] else "paper"
    st.radio(
        "Systems",
        ["paper", "mine"],
        key="reproduce-own",
        format_func={"paper": "the paper's, as they are shipped", "mine": "my own structures"}.__getitem__,
        on_change=lambda: reproducing.choose(own=st.session_state["reproduce-own"] == "mine"),
        horizontal=True,
    )
    if now["own"]:
        structure_picker()
        _not_taken()


def _not_taken() -> None:
    """What of the user's is left out, and why."""
    if session.choice() is None:
        return
    failures, given = session.parsed().failures, len(session.structures())
    for failure in failures[:MOST_FAILURES]:
        failed(failure, done="read")
    if len(failures) > MOST_FAILURES:
        st.caption(f"and {len(failures) - MOST_FAILURES} more")
    if given > MOST_SHOWN:
        st.caption(
            f":material/info: The first {MOST_SHOWN} of {given} structures take part. `fdcore reproduce --structures` takes all of them."
        )


def _reference() -> None:
    now = reproducing.chosen()
    offered = {o.id: o for o in labels.offered_references()}
    options = [FITTING, *offered, reproduce.NOBODY]
    words = {
        FITTING: "what fits each structure",
        reproduce.NOBODY: "nobody",
        **{i: o.title for i, o in offered.items()},
    }
    st.session_state["reproduce-reference"] = now["reference"] or FITTING
    st.selectbox(
        "Reference",
        options,
        key="reproduce-reference",
        format_func=words.__getitem__,
        on_change=_referred,
        help=REFERENCE_HELP,
    )
    st.session_state["reproduce-seed"] = now["seed"]
    st.number_input(
        "Seed",
        min_value=0,
        step=1,
        key="reproduce-seed",
        on_change=lambda: reproducing.choose(seed=st.session_state["reproduce-seed"]),
        help="Of everything that is random.",
    )


def _referred() -> None:
    chosen = st.session_state["reproduce-reference"]
    reproducing.choose(reference=None if chosen == FITTING else chosen)


def _asked() -> reproduce.Question | str:
    """The question, or why there is none."""
    now = reproducing.chosen()
    own = session.structures()[:MOST_SHOWN] if now["own"] else ()
    if now["own"] and not own:
        return "Choose a structure first, or take the paper's."
    if not reproducing.targets():
        return "Choose a figure or a table."
    try:
        how = session.settings()
        return reproduce.question(
            reproducing.targets(),
            preset=now["preset"],
            structures=own,
            chosen=reproducing.chosen_models(),
            reference=now["reference"],
            dtype=how.dtype,
            device=how.device,
            seed=now["seed"],
        )
    except FdcoreError as error:
        return f"{error.message} {error.hint or ''}"


def _start() -> None:
    asked = _asked()
    ready = isinstance(asked, reproduce.Question)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Reproduce",
            type="primary",
            icon=":material/play_arrow:",
            key="reproduce-start",
            disabled=not ready,
            on_click=_submit,
            args=(asked,),
        )
        st.markdown(f"{reproduce.cost(asked)}." if isinstance(asked, reproduce.Question) else plain(asked))
    if not isinstance(asked, reproduce.Question):
        return
    for note in asked.notes:
        st.caption(f":material/info: {plain(note)}")
    with st.expander("What will be done", icon=":material/list:"):
        st.dataframe(
            {
                "part": [p.name for p in asked.parts],
                "task": [p.task for p in asked.parts],
                "model": [p.model for p in asked.parts],
            },
            hide_index=True,
            alt="The parts of the run in their order.",
        )


def _submit(asked: reproduce.Question) -> None:
    targets = reproducing.targets()
    everything = len(targets) == len(reproduce.TARGETS)
    title = "the whole paper" if everything else ", ".join(reproduce.TARGETS[t].where for t in targets)
    run = run_parts.attempt(lambda: reproduce.submit(owner.viewer(), asked, title=title))
    if run is not None:
        reproducing.follow(run)
