"""What the pages of long runs share: what is shown, stopping and going on, files to take away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import streamlit as st

from fdcore import services, vasp_inputs
from fdcore.errors import FdcoreError, RunStateError
from fdcore.services import runs
from pages.parts import owner, running, words
from pages.parts.words import plain

# Charts beside the 3D view.
LAYOUT = (3, 2)


class Download(NamedTuple):
    """A file that is made when somebody wants it."""

    label: str
    content: Callable[[], Any]
    file_name: str
    text: str


def headline(run: runs.Run, key: str, forget: Callable[[], None], task: str = "") -> None:
    """What is shown (`task`: where "Dynamics of" and the like are not the words), and the way back to the settings."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Change settings", icon=":material/tune:", key=key, on_click=forget)
        model = run.spec.model.id if run.spec.model else ""
        st.caption(f"{task or words.TASKS[run.task] + ' of'} {plain(run.title)} with {model}, seed {run.spec.seed}")


def attempt(action: Callable[[], Any]) -> Any:
    """What an action gives; what goes wrong is said and nothing else changes."""
    try:
        return action()
    except FdcoreError as error:
        st.toast(f"{plain(error.message)} {plain(error.hint)}", icon=":material/error:")
        return None


def stop(run_id: str) -> None:
    try:
        runs.cancel(owner.viewer(), run_id)
    except RunStateError:
        # That it has just ended is what was wanted.
        return
    except FdcoreError as error:
        st.toast(f"{plain(error.message)} {plain(error.hint)}", icon=":material/error:")


def go_on(run_id: str, follow: Callable[[runs.Run], None]) -> None:
    """Another attempt, which goes on from where the run was saved."""
    again = attempt(lambda: runs.retry(owner.viewer(), run_id))
    if again is not None:
        follow(again)


def live(run: runs.Run, kept: str = "What was made is kept, and it can go on from there.", key: str = "stop") -> None:
    """What an active run does, how far it is, and a way to stop it; `kept`: what becomes of it then."""
    running.be_there()
    with st.container(border=True, key="progress"):
        words.run_progress(run)
        with st.container(horizontal=True, vertical_alignment="center"):
            st.button(
                "Stop",
                icon=":material/stop_circle:",
                key=key,
                disabled=run.cancel_requested,
                on_click=stop,
                args=(run.id,),
                help=kept,
            )
            st.caption("It goes on when this page is closed; the Runs page keeps it.")


def too_large(cost: services.Estimate) -> None:
    """Why a run cannot start here: its largest structure does not fit in memory."""
    st.warning(
        f"The largest structure needs about {cost.memory_MB:,.0f} MB and {cost.available_MB:,.0f} MB are free. A smaller cell or a smaller "
        "model may fit.",
        icon=":material/memory:",
    )


def not_finished(run: runs.Run, stopped: str, label: str, follow: Callable[[runs.Run], None]) -> None:
    """Why a run ended early (`stopped`: in words, where a person did that), and how it goes on."""
    with st.container(border=True, key="not-finished"):
        if run.state == "failed":
            st.error(f"**{plain(run.error or 'The run failed.')}** {plain(run.hint or '')}", icon=":material/error:")
        else:
            st.markdown(stopped)
        if owner.may_change(run):
            st.button(label, icon=":material/play_arrow:", on_click=go_on, args=(run.id, follow), key="go_on")


def download_buttons(files: Sequence[Download], key: str) -> None:
    """A button each, in the container that is open."""
    for file in files:
        st.download_button(
            file.label,
            file.content,
            file_name=file.file_name,
            icon=":material/download:",
            on_click="ignore",
            key=f"{key}-{file.label}",
            help=file.text,
        )


def repeat(command: str) -> None:
    """How the same is done without a page."""
    st.caption("Repeat this on a command line:")
    # Without colours: those of options are too pale on the light background.
    st.code(command, language=None, wrap_lines=True)


def dft_set(key: str) -> str:
    """The input set that was chosen under this key, or the usual one."""
    return st.session_state.get(key) or next(iter(vasp_inputs.DFT_SETS))


def dft_inputs(key: str) -> None:
    """Which input set the VASP folders are of."""
    with st.popover("DFT inputs", icon=":material/settings:"):
        st.selectbox(
            "Input set of the VASP folders in the zip",
            list(vasp_inputs.DFT_SETS),
            format_func=lambda k: f"{k}: {vasp_inputs.DFT_SETS[k]}",
            key=key,
            help="pymatgen's. Potentials are named in POTCAR.spec, not shipped.",
        )
