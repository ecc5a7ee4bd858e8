"""What follows a person from page to page: the chosen structures, the chosen model, the run that works on them.

Widgets lose their values when another page is shown, so choices live here under their own keys. Pages read and write them
only through these functions. Runs live in the store: a session holds their ids and a few results that it has read.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, replace
from typing import Any

import streamlit as st

from fdcore import services
from fdcore.errors import FdcoreError, UnknownRunError
from fdcore.records import Failure, ModelCard, Score, Structure
from fdcore.services import finetune, runs
from fdcore.spec import ModelChoice
from pages.parts import owner

# Results read per person: enough to go back and forth between examples and models without reading again.
KEPT_RESULTS = 6


@dataclass(frozen=True)
class Choice:
    """What was brought: one or several sources, and where they came from. `label` is how the page names them.

    An earlier run brings its own structures: `run` is its id, `share` the key of the link that showed it.
    """

    origin: str
    label: str
    sources: tuple[services.Source, ...] = ()
    example: str | None = None
    run: str | None = None
    share: str = ""

    @property
    def key(self) -> str:
        """The content of all sources as one hash: the same files give the same results."""
        digest = hashlib.sha256((self.run or "").encode())
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

    @property
    def model(self) -> ModelChoice:
        """As a run's spec names it."""
        return ModelChoice(self.model_id, self.dtype, self.device)


@dataclass(frozen=True)
class Results:
    """What a run has found, as pages show it. `when` and `seconds` are None where nothing was computed."""

    scores: tuple[Score, ...]
    failures: tuple[Failure, ...]
    provenance: dict[str, Any] | None = None
    when: float | None = None
    run_id: str | None = None


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
    select_atom(None)
    if not st.session_state.get("fd_model_chosen"):
        st.session_state["fd_settings"] = replace(settings(), model_id=_usual_model())
    show_address()


def choose_example(example: services.Example) -> None:
    """Take a shipped example into use."""
    source = services.example_source(example)
    choose(Choice(origin="example", label=example.title, sources=(source,), example=example.id))


def _usual_model() -> str:
    """The model for the present choice where the person named none: what an example's card says, else what suits the structures."""
    current = choice()
    if current is None or current.run is not None:
        return services.default_model_id()
    named = next((e.model for e in services.examples() if e.id == current.example), "")
    return named or services.suggested_model(parsed().structures)


def model_is_suggested() -> bool:
    """Whether the model in use was picked for the structures, and is not the one that everybody begins with."""
    return not st.session_state.get("fd_model_chosen") and settings().model_id != services.default_model_id()


def model_is_named() -> bool:
    """Whether the person has named the model in use."""
    return bool(st.session_state.get("fd_model_chosen"))


def uploader_generation() -> int:
    """Grows when the structures come from elsewhere: a fresh uploader then forgets its old files."""
    return st.session_state.get("fd_uploader", 0)


def parsed() -> services.Parsed:
    """The structures of the choice, read and validated once."""
    if "fd_parsed" not in st.session_state:
        st.session_state["fd_parsed"] = _read(choice())
    return st.session_state["fd_parsed"]


def _read(current: Choice | None) -> services.Parsed:
    if current is None:
        return services.read_sources([])
    if current.run is None:
        return services.read_sources(list(current.sources))
    brought = runs.get(owner.viewer(), current.run, current.share)
    return services.Parsed(runs.inputs(brought), runs.refusals(brought))


def title() -> str:
    """How the history names a run of this choice."""
    current = choice()
    if current is None:
        return ""
    found = structures()
    return found[0].file if current.origin == "upload" and len(found) == 1 else current.label


def structures() -> tuple[Structure, ...]:
    """The readable structures of the choice, with the charge and spin of the settings where a file is silent."""
    now = settings()
    return tuple(services.with_charge_spin(s, now.charge, now.spin) for s in parsed().structures)


# ---- the models ----------------------------------------------------------------------------------------------------


def own_models() -> tuple[ModelCard, ...]:
    """Models that runs of this person have made, the newest first. Looked for again when a run has come, ended or gone."""
    try:
        now = runs.outline(owner.viewer())
        known = st.session_state.get("fd_own_models")
        # While something is in work, it may just have finished one.
        if known is None or known[0] != now or now.active:
            known = (now, finetune.own_models(owner.viewer()))
            st.session_state["fd_own_models"] = known
    except FdcoreError:
        # Without the store there are the published ones; what needs it says what is wrong.
        return ()
    return known[1]


def models() -> dict[str, ModelCard]:
    """Every model that this person can choose, by its id: the listed ones, and their own. The one in use is among them also where it was
    brought by a run that somebody else has shared."""
    found = {c.id: c for c in (*services.list_models(), *own_models())}
    used = settings().model_id
    if used not in found:
        with contextlib.suppress(FdcoreError):
            found[used] = services.card(used)
    return found


def replace_lost_model() -> None:
    """Where the model in use is no more (the run that made it was deleted), go back to the default and say so."""
    used = settings().model_id
    try:
        services.card(used)
    except FdcoreError as error:
        st.session_state["fd_settings"] = replace(settings(), model_id=services.default_model_id())
        st.session_state["fd_model_chosen"] = False
        st.session_state["fd_lost_model"] = error


def lost_model() -> FdcoreError | None:
    """Why another model is in use than the one that was chosen; None where it is that one."""
    return st.session_state.get("fd_lost_model")


# ---- the settings --------------------------------------------------------------------------------------------------


def settings() -> Settings:
    """The chosen model and how it is run."""
    return st.session_state.setdefault("fd_settings", Settings(services.default_model_id()))


def set_settings(new: Settings) -> None:
    """Use another model, precision, device, charge or spin. A model that the person named is kept for other structures."""
    if new == settings():
        return
    if new.model_id != settings().model_id:
        st.session_state["fd_model_chosen"] = True
        st.session_state.pop("fd_lost_model", None)
    st.session_state["fd_settings"] = new
    show_address()


def read_address() -> None:
    """Once per session: ?example=...&model=... opens an example with a model, ?run=... a scoring run (&key=... somebody
    else's, shared). Unknown names are ignored; a run that may not be seen is said to be so."""
    if st.session_state.get("fd_address_read"):
        return
    st.session_state["fd_address_read"] = True
    model_id = st.query_params.get("model")
    if model_id in {c.id for c in (*services.list_models(), *own_models())}:
        st.session_state["fd_settings"] = Settings(str(model_id))
        st.session_state["fd_model_chosen"] = True
    wanted = st.query_params.get("example")
    for example in services.examples():
        if example.id == wanted:
            choose_example(example)
    run_id = st.query_params.get("run")
    if run_id:
        try:
            open_run(runs.get(owner.viewer(), run_id, st.query_params.get("key", "")), st.query_params.get("key", ""))
        except UnknownRunError as error:
            st.error(f"**{error.message}** {error.hint}", icon=":material/link_off:")


def show_address() -> None:
    """Name in the address what is shown, so that it can be kept and reloaded."""
    current, model_id, usual = choice(), settings().model_id, _usual_model()
    wanted: dict[str, str] = {}
    if current is not None and current.example is not None:
        wanted["example"] = current.example
        if model_id != usual:
            wanted["model"] = model_id
    elif (run_id := _runs().get(_question())) is not None:
        # The run says with which model.
        wanted["run"] = run_id
        if current is not None and current.run == run_id and current.share:
            wanted["key"] = current.share
    elif model_id != usual:
        wanted["model"] = model_id
    if st.query_params.to_dict() != wanted:
        st.query_params.from_dict(wanted)


# ---- the run -------------------------------------------------------------------------------------------------------


def open_run(run: runs.Run, share: str = "") -> None:
    """Take a run of the history into use, with its structures and its model; a scoring run is then the answer, too."""
    if run.spec.model is None:
        return
    known = run.spec.model
    st.session_state["fd_settings"] = Settings(known.id, known.dtype, known.device)
    st.session_state["fd_model_chosen"] = True
    current = Choice(origin="run", label=run.title, run=run.id, share=share)
    if run.task == "score":
        # Before `choose` writes the address, so that it names the run.
        _runs()[(current.key, settings())] = run.id
    choose(current)


def follow(run: runs.Run) -> None:
    """This run answers the present choice with the present settings."""
    _runs()[_question()] = run.id
    st.session_state["fd_run"] = run
    show_address()


def run(*, fresh: bool = False) -> runs.Run | None:
    """The run that answers the present choice, None where there is none yet. Asked anew only where it can have changed."""
    run_id = _runs().get(_question())
    if run_id is None:
        return None
    known = st.session_state.get("fd_run")
    if not fresh and known is not None and known.id == run_id and not known.active:
        return known
    current = choice()
    try:
        known = runs.get(owner.viewer(), run_id, current.share if current is not None else "")
    except UnknownRunError:
        # Deleted meanwhile, on the Runs page or by the operator.
        forget_run()
        return None
    st.session_state["fd_run"] = known
    return known


def forget_run() -> None:
    """Ask again: after an error, or when a run was deleted."""
    _runs().pop(_question(), None)
    st.session_state.pop("fd_run", None)


def _runs() -> dict[tuple[str, Settings], str]:
    """Run ids by question: content of the choice, and settings."""
    return st.session_state.setdefault("fd_runs", {})


def _question() -> tuple[str, Settings]:
    current = choice()
    return (current.key if current else "", settings())


def agree() -> None:
    """The person has seen what this choice with these settings will cost, and wants it."""
    st.session_state["fd_agreed"] = _question()


def agreed() -> bool:
    """Whether `agree` was called for exactly this choice and these settings."""
    return st.session_state.get("fd_agreed") == _question()


# ---- the results ---------------------------------------------------------------------------------------------------


def results() -> Results | None:
    """What the run of the present choice has found; None where there is no run or it is still active."""
    known = run()
    return None if known is None or known.active else results_of(known)


def results_of(ended: runs.Run) -> Results:
    """What an ended run has found, read once."""
    kept = st.session_state.setdefault("fd_results", {})
    if ended.id not in kept:
        found = runs.result(ended)
        kept[ended.id] = Results(found.scores, found.failures, found.provenance, ended.ended_at, ended.id)
        while len(kept) > KEPT_RESULTS:
            kept.pop(next(iter(kept)))
    return kept[ended.id]


def only_refusals() -> Results:
    """Nothing in the choice could be read: there is nothing to compute."""
    return Results((), tuple(parsed().failures))


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
