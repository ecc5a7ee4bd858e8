"""The 3D view: a Streamlit component around 3Dmol.js, which the app serves itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import streamlit as st
from numpy.typing import NDArray

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


def viewer(score: Score, spread: NDArray[np.float64] | None = None) -> None:
    """Draw a score, and the `spread` (N,) of an ensemble as a further colouring; a click on an atom becomes
    `session.selected_atom()`."""
    _COMPONENT(
        key="viewer",
        data={
            "scene": scene(score, reference_distribution(score.model_id), spread),
            "selected": session.selected_atom(),
            "library": _static("3Dmol-min.js"),
        },
        default={"selected": None, "frame": None},
        on_selected_change=_clicked,
        on_frame_change=lambda: None,
    )


def player(scene: dict, key: str, moment: int | None, on_moment: Callable[[int], None]) -> None:
    """Draw a trajectory (`fdcore.scene.trajectory_scene`); the frame at which a person stops becomes `on_moment(frame)`."""

    def stopped() -> None:
        frame = st.session_state[key].get("frame")
        if frame is not None:
            on_moment(int(frame))

    _COMPONENT(
        key=key,
        data={"scene": scene, "selected": None, "frame": moment, "library": _static("3Dmol-min.js")},
        default={"selected": None, "frame": None},
        on_selected_change=lambda: None,
        on_frame_change=stopped,
    )


def _static(name: str) -> str:
    base = str(st.get_option("server.baseUrlPath") or "").strip("/")
    return f"/{base}/app/static/{name}" if base else f"/app/static/{name}"


def _clicked() -> None:
    atom = st.session_state["viewer"].get("selected")
    if atom is not None:
        session.select_atom(int(atom), refresh_table=True)
