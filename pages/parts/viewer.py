"""The 3D view: a Streamlit component around 3Dmol.js, which the app serves itself."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from fdcore.distribution import reference_distribution
from fdcore.records import Score
from fdcore.scene import scene
from pages.parts import session

_HERE = Path(__file__).parent
_COMPONENT = st.components.v2.component(
    "force_delta_viewer",
    html=(_HERE / "viewer.html").read_text(encoding="utf-8"),
    css=(_HERE / "viewer.css").read_text(encoding="utf-8"),
    js=(_HERE / "viewer.js").read_text(encoding="utf-8"),
)


def viewer(score: Score) -> None:
    """Draw a score; a click on an atom becomes `session.selected_atom()`."""
    _COMPONENT(
        key="viewer",
        data={
            "scene": scene(score, reference_distribution(score.model_id)),
            "selected": session.selected_atom(),
            "library": _static("3Dmol-min.js"),
        },
        default={"selected": None},
        on_selected_change=_clicked,
    )


def _static(name: str) -> str:
    base = str(st.get_option("server.baseUrlPath") or "").strip("/")
    return f"/{base}/app/static/{name}" if base else f"/app/static/{name}"


def _clicked() -> None:
    atom = st.session_state["viewer"].get("selected")
    if atom is not None:
        session.select_atom(int(atom), refresh_table=True)
