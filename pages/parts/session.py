"""What follows a person from page to page: the chosen structures, the chosen model, the results.

Widgets lose their values when another page is shown, so choices live here under their own keys. Pages read and write them
only through these functions.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

from fdcore import services
from fdcore.records import Failure, Score, Structure

# Results kept per person: enough to go back and forth between examples and models without computing again.
KEPT_RESULTS = 6


@dataclass(frozen=True)
class Choice:
    """What was brought: one or several sources, and where they came from. `label` is how the page names them."""

    origin: str
    label: str
    sources: tuple[services.Source, ...]
    example: str | None = None

    @property
    def key(self) -> str:
        """The content of all sources as one hash: the same files give the same results."""
        digest = hashlib.sha256()
        for source in self.sources:
            digest.update(source.name.encode() + b"\0" + str(source.format).encode() + b"\0" + source.data + b"\0")
        return digest.hexdigest()


@dataclass(frozen=True)
class Settings:
    """Which model, and how it is run. Charge and spin are used where a file is silent."""

    model_id: str
    dtype: str = "float32"
    device: str = "auto"
    charge: int | None = None
    spin: int | None = None


@dataclass
class Results:
    """Scores and failures of one choice with one setting; `complete` is False while it runs and after a stop."""

    settings: Settings
    total: int
    scores: list[Score] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    provenance: dict[str, Any] | None = None
    when: float = field(default_factory=time.time)
    seconds: float = 0.0
    complete: bool = False


# ---- the choice ----------------------------------------------------------------------------------------------------


def choice() -> Choice | None:
    """The structures in use, None at the start."""
    return st.session_state.get("fd_choice")


def choose(new: Choice) -> None:
    """Take other structures into use. An example is named in the address, so that the page can be shared."""
    st.session_state["fd_choice"] = new
    st.session_state.pop("fd_parsed", None)
    st.session_state["fd_uploader"] = uploader_generation() + (new.origin != "upload")
    st.session_state["fd_open"] = None
    st.session_state["fd_stopped"] = False
    select_atom(None)
    _address()


def choose_example(example: services.Example) -> None:
    """Take a shipped example into use."""
    source = services.example_source(example)
    choose(Choice(origin="example", label=example.title, sources=(source,), example=example.id))


def uploader_generation() -> int:
    """Grows when the structures come from elsewhere: a fresh uploader then forgets its old files."""
    return st.session_state.get("fd_uploader", 0)


def parsed() -> services.Parsed:
    """The structures of the choice, read and validated once."""
    if "fd_parsed" not in st.session_state:
        current = choice()
        st.session_state["fd_parsed"] = services.read_sources(list(current.sources) if current else [])
    return st.session_state["fd_parsed"]


def structures() -> tuple[Structure, ...]:
    """The readable structures of the choice, with the charge and spin of the settings where a file is silent."""
    now = settings()
    return tuple(services.with_charge_spin(s, now.charge, now.spin) for s in parsed().structures)


# ---- the settings --------------------------------------------------------------------------------------------------


def settings() -> Settings:
    """The chosen model and how it is run."""
    return st.session_state.setdefault("fd_settings", Settings(services.default_model_id()))


def set_settings(new: Settings) -> None:
    """Use another model, precision, device, charge or spin."""
    if new != settings():
        st.session_state["fd_stopped"] = False
    st.session_state["fd_settings"] = new
    _address()


def read_address() -> None:
    """Once per session: ?example=...&model=... opens an example with a model. Unknown names are ignored."""
    if st.session_state.get("fd_address_read"):
        return
    st.session_state["fd_address_read"] = True
    model_id = st.query_params.get("model")
    if model_id in {c.id for c in services.list_models()}:
        st.session_state["fd_settings"] = Settings(str(model_id))
    wanted = st.query_params.get("example")
    for example in services.examples():
        if example.id == wanted:
            choose_example(example)


def _address() -> None:
    current, model_id = choice(), settings().model_id
    wanted: dict[str, str] = {}
    if current is not None and current.example is not None:
        wanted["example"] = current.example
    if model_id != services.default_model_id():
        wanted["model"] = model_id
    st.query_params.from_dict(wanted)


# ---- the results ---------------------------------------------------------------------------------------------------


def results() -> Results | None:
    """What is known of this choice with these settings."""
    return _kept().get(_results_key())


def start_results(total: int) -> Results:
    """An empty result for this choice and these settings; the oldest ones are forgotten."""
    fresh = Results(settings(), total, failures=list(parsed().failures))
    kept = _kept()
    kept[_results_key()] = fresh
    while len(kept) > KEPT_RESULTS:
        kept.pop(next(iter(kept)))
    return fresh


def agree() -> None:
    """The person has seen what this choice with these settings will cost, and wants it."""
    st.session_state["fd_agreed"] = _results_key()


def agreed() -> bool:
    """Whether `agree` was called for exactly this choice and these settings."""
    return st.session_state.get("fd_agreed") == _results_key()


def forget_results() -> None:
    """Compute again: used after an error that may not come back."""
    _kept().pop(_results_key(), None)


def _kept() -> dict[tuple[str, Settings], Results]:
    return st.session_state.setdefault("fd_results", {})


def _results_key() -> tuple[str, Settings]:
    current = choice()
    return (current.key if current else "", settings())


# ---- the selection -------------------------------------------------------------------------------------------------


def selected_atom() -> int | None:
    """The atom that was clicked, in the viewer or in the table."""
    return st.session_state.get("fd_atom")


def select_atom(atom: int | None, *, refresh_table: bool = False) -> None:
    """Mark one atom everywhere. A table can only be told its selection when it is made anew: `refresh_table`."""
    st.session_state["fd_atom"] = atom
    if refresh_table:
        st.session_state["fd_table"] = table_generation() + 1


def table_generation() -> int:
    """Part of the key of the atoms table."""
    return st.session_state.get("fd_table", 0)


def open_score() -> tuple[str, int | None] | None:
    """Which of many structures is shown in detail: its file and frame."""
    return st.session_state.get("fd_open")


def open_one(which: tuple[str, int | None] | None) -> None:
    """Show one of many structures in detail."""
    if which != open_score():
        select_atom(None)
    st.session_state["fd_open"] = which
