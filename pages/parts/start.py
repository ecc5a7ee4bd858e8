"""The first page before anything was chosen: a working example, and a picture of what will come."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from fdcore import services
from pages.parts import session

_STATIC = Path(__file__).parents[2] / "static"


def what_will_come() -> None:
    """One button that gives a result, beside what the result looks like."""
    with st.container(border=True):
        words, picture = st.columns([2, 3], gap="large", vertical_alignment="center")
        with words:
            st.markdown("### Two forces, one question")
            st.markdown(
                "Direct-force models predict forces twice: once from a force head (F_nc), once as the slope of their energy (F_c). "
                "Physics says they are equal. **U_Delta**, in eV/Å, is how far they are apart on your structure."
            )
            st.markdown(
                "- a verdict in one sentence, with its evidence\n- the atoms that cause it, in 3D\n"
                "- numbers, tables and files to take away"
            )
            examples = services.examples()
            if examples:
                st.button(
                    f"Try an example: {examples[0].title}",
                    type="primary",
                    icon=":material/play_arrow:",
                    on_click=session.choose_example,
                    args=(examples[0],),
                    key="try_example",
                )
        with picture:
            # The picture follows the theme; a server that does not know it yet shows the light one.
            shade = "dark" if st.context.theme.type == "dark" else "light"
            st.image(
                str(_STATIC / f"preview-{shade}.png"),
                width="stretch",
                alt="A result: the verdict with U_Delta, the structure in 3D coloured by disagreement, the evidence beside it.",
            )
