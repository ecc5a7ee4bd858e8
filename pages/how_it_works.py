"""How it works: the method in two screens with one picture."""

import streamlit as st

from fdcore import plots
from pages.parts import words

st.title("How it works", anchor=False)

words_column, picture = st.columns([1, 1], gap="large", vertical_alignment="center")
with words_column:
    st.markdown("### One model, two forces")
    st.markdown(
        "A direct-force potential looks at the atoms once and gives two things: an **energy** $E$, and from a separate head the "
        "**direct force** $\\mathbf{F}_{nc}$ that fast simulations use. The energy implies a force of its own, the **conservative "
        "force** $\\mathbf{F}_c = -\\,\\partial E/\\partial\\mathbf{R}$, which automatic differentiation gives exactly."
    )
    st.markdown(
        "In nature the two are one. In the model they are learnt separately: where it has seen enough they agree, where it has to "
        "guess they drift apart. That gap needs no reference calculation and no second model:"
    )
    # Two formulas, so that neither scrolls in a narrow window.
    st.latex(r"U_\Delta=\sqrt{\tfrac{1}{3N}\sum_{i=1}^{N}|\mathbf{F}_{nc,i}-\mathbf{F}_{c,i}|^2}")
    st.latex(r"u_i=\sqrt{\tfrac13|\mathbf{F}_{nc,i}-\mathbf{F}_{c,i}|^2}")
    st.caption(
        "Both in eV/Å. U_Delta is the root mean square of u_i over the atoms: equation 2 of *When forces disagree*."
    )
with picture:
    st.altair_chart(
        plots.two_forces_picture(),
        alt="An energy curve along one coordinate. Within the known region the direct force follows the slope of the energy; "
        "beyond it the two separate, and their distance is the Force Delta.",
    )

st.divider()
st.markdown("### How to read the result")
reading = st.columns(3, gap="large")
with reading[0]:
    st.markdown("#### The verdict")
    for level, meaning in (
        (
            "consistent",
            "the forces agree as well as on structures the model was tested on, and nothing else looks unusual",
        ),
        ("caution", "usable, but something deserves a look: an atom, a short distance, an unusually large U_Delta"),
        ("unreliable", "outside of what the model knows; do not run dynamics on it without a reference calculation"),
        ("unknown", "no reference distribution ships for this model, so one number alone cannot be judged"),
    ):
        sign = words.LEVELS[level]
        st.markdown(f":{sign.color}[{sign.icon} **{sign.word}**]: {meaning}.")
with reading[1]:
    st.markdown("#### What it tells")
    st.write(words.TELLS)
    st.markdown("#### What to do next")
    st.markdown(
        "Look at the atoms with the largest u_i, and watch the energy of a short simulation on the Dynamics page. If U_Delta is high, use the conservative force, a shorter leash (fewer steps "
        "before a check), a model trained on such structures, or a reference calculation for exactly this one."
    )
with reading[2]:
    st.markdown("#### What it does not tell")
    st.write(words.DOES_NOT_TELL)
    st.markdown("#### How it is computed")
    st.markdown(
        "One neighbour graph, one forward and one backward pass. F_c is proven against finite differences in float64 for every "
        "model family (*About this model* says how); models that keep a fixed number of neighbours are checked for ties."
    )
