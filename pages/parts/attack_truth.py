"""An attack held against a reference: does U_Delta rank the true errors?"""

from __future__ import annotations

import streamlit as st

from fdcore import adversarial_plots, validation, validation_words
from fdcore.adversarial import Adversarial
from fdcore.human import count
from fdcore.services import adversarial as attacks
from fdcore.services import labels, runs
from pages.parts import attacking, owner, words
from pages.parts.run_parts import LAYOUT, attempt, stop
from pages.parts.words import plain

TICK_S = 1.5


def show(run: runs.Run, found: Adversarial) -> None:
    """Ask, watch, read; a comparison belongs to its attack and is found again with it."""
    if not found.selected.rows:
        return
    following = attacking.truth(run, found)
    with st.expander("Hold them against a reference", icon=":material/balance:", expanded=following is not None):
        if following is not None and following.active:
            _live()
            return
        if following is not None and following.state == "failed":
            st.error(f"**{plain(following.error or '')}** {plain(following.hint or '')}", icon=":material/error:")
        if following is not None:
            _found(following)
        _ask(run, found)


def compared(run: runs.Run, found: Adversarial) -> tuple[list[validation.Compared], str]:
    """What the comparison that is shown has found, and the name of its reference."""
    following = None if run.active else attacking.truth(run, found)
    known = [] if following is None else attacks.truth_of_run(following)[0]
    return known, reference_title(following) if following is not None and known else ""


def reference_title(run: runs.Run) -> str:
    known = {o.id: o.title for o in labels.offered_references()}
    name = str(run.spec.parameters.get("reference", ""))
    return known.get(name, name)


@st.fragment(run_every=TICK_S)
def _live() -> None:
    shown = attacking.shown()
    run = None if shown is None else attacking.truth(shown, attacking.attack(shown))
    if run is None or not run.active:
        st.rerun()
        return
    words.run_progress(run)
    st.button(
        "Stop",
        icon=":material/stop_circle:",
        key="stop-truth",
        disabled=run.cancel_requested,
        on_click=stop,
        args=(run.id,),
    )


def _found(run: runs.Run) -> None:
    known, failures = attacks.truth_of_run(run)
    bands = validation.bands(known)
    name = reference_title(run)
    st.markdown(f"**{plain(validation_words.sentence(bands, name))}**")
    if failures:
        st.warning(
            f"{count(len(failures), 'structure')} could not be compared: {plain(failures[0].error)}",
            icon=":material/error:",
        )
    if not known:
        return
    left, right = st.columns(LAYOUT, gap="large")
    with left:
        st.altair_chart(
            adversarial_plots.errors_chart(known, name),
            alt="Errors of both forces against U_Delta, one pair of points per structure.",
            key="chart-errors",
        )
    with right:
        st.dataframe(
            {
                "U_Delta (eV/Å)": [f"{b.name}: {b.low:.3g} to {b.high:.3g}" for b in bands],
                "n": [str(b.conservative.n) for b in bands],
                "r_s, error of F_c": [b.conservative.text for b in bands],
                "r_s, error of F_nc": [b.direct.text for b in bands],
            },
            hide_index=True,
            alt="Rank correlation of U_Delta with both errors, for all structures and for thirds of the range.",
        )
        st.caption(
            f"Spearman's r_s. {validation_words.interval_text(bands)} Within a narrow band of U_Delta there is less to rank, so it is lower there."
        )


def _ask(run: runs.Run, found: Adversarial) -> None:
    offered = {o.id: o for o in labels.offered_references()}
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
    title = f"{run.title} against {reference}"
    following = attempt(lambda: attacks.compare(owner.viewer(), found, model, reference, title=title))
    if following is not None:
        attacking.follow_truth(following)
