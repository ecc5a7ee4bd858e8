"""What a person has gathered on the Fine-tune page: labelled structures, settings, and a run for each of its steps. Kept over page changes.

The address names the run of the step that is shown, or the step and the attack that its structures come from: enough to find it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import streamlit as st

from fdcore import drifts, finetuning, generations, services
from fdcore.errors import FdcoreError
from fdcore.labels import LabelledSet
from fdcore.records import ModelCard, Structure
from fdcore.services import adversarial, finetune, labels, runs
from fdcore.spec import ModelChoice
from pages.parts import owner, session
from pages.parts.fields import Fields
from pages.parts.followed import Followed

STEPS = {
    "structures": "1 · Structures",
    "labels": "2 · Labels",
    "train": "3 · Fine-tune",
    "stability": "4 · Stability",
    "loop": "All of it at once",
}
TASKS = {
    labels.TASK: "labels",
    finetuning.TASK: "train",
    drifts.TASK: "stability",
    generations.TASK: "loop",
}
# Start structures that one measurement or loop takes.
MOST_STARTS = 4


def _always() -> None:
    """A step's run is shown until another is started: it does not depend on what other pages have chosen."""


_runs = {
    step: Followed(f"tune_{step}", (task,), goes_on, question=_always)
    for (task, step), goes_on in zip(
        TASKS.items(), ("The labelling", "The fine-tuning", "The measurement", "The loop"), strict=True
    )
}


def follow(step: str, run: runs.Run, share: str = "") -> None:
    """Show this run in its step."""
    _runs[step].follow(run, share)


def forget(step: str) -> None:
    """Ask this step anew."""
    _runs[step].forget()


def shown(step: str) -> runs.Run | None:
    """The run of a step as it is now; None where there is none."""
    return _runs[step].shown() if step in _runs else None


# ---- where the person is -----------------------------------------------------------------------------------------------


def step() -> str:
    return st.session_state.setdefault("fd_tune_step", "structures")


def go(to: str) -> None:
    st.session_state["fd_tune_step"] = to


def at_address() -> None:
    """Read the address once per session, and have it name what is shown."""
    _read_address()
    session.read_address()
    _write_address()


def _read_address() -> None:
    if st.session_state.get("fd_address_read"):
        return
    asked = st.query_params.to_dict()
    key = asked.get("key", "")
    if asked.get("step") in STEPS:
        go(asked["step"])
    try:
        if "from" in asked:
            take_attack(runs.get(owner.viewer(), asked["from"], key), key)
        if "run" in asked:
            run = runs.get(owner.viewer(), asked["run"], key)
            if run.task in TASKS:
                open_run(run, key)
                # Other pages would take its structures for what is to be scored.
                st.query_params.pop("run", None)
    except FdcoreError:
        # `session.read_address` says that there is no such run.
        return


def _write_address() -> None:
    run = shown(step())
    if run is not None:
        share = _runs[step()].share_key()
        named = {"run": run.id, **({"key": share} if share else {})}
    else:
        known = taken()
        named = {} if step() == "structures" and known is None else {"step": step()}
        if known is not None and known.attack:
            named["from"] = known.attack
            named |= {"key": known.share} if known.share else {}
        current = session.choice()
        if current is not None and current.example is not None and step() in ("stability", "loop"):
            named["example"] = current.example
    if st.query_params.to_dict() != named:
        st.query_params.from_dict(named)


def open_run(run: runs.Run, share: str = "") -> None:
    """Take a run of the history into use, with its structures and its parameters."""
    to = TASKS[run.task]
    given = runs.inputs(run)
    if run.task == labels.TASK:
        _take_inputs(run, labels.unlabelled(given))
    elif run.task == finetuning.TASK:
        n = len(given) - int(run.spec.parameters.get("n_replay", 0))
        _take_inputs(run, labels.of_files(given[:n]))
        _settings_of(run, to)
    else:
        n = len(given) - int(run.spec.parameters.get("n_replay", 0))
        st.session_state["fd_tune_starts"] = (run.title, given[:n])
        _settings_of(run, to)
    follow(to, run, share)
    go(to)


def _settings_of(run: runs.Run, to: str) -> None:
    known = dict(run.spec.parameters)
    for name in ("groups", "labels_sha256", "labelled_by", "n_replay", "replay_sha256"):
        known.pop(name, None)
    if run.spec.model is not None:
        if to == "stability":
            set_compared([run.spec.model.id, *known.pop("models", ())])
        else:
            set_base(run.spec.model.id)
    st.session_state[f"fd_tune_changes_{to}"] = known
    st.session_state[f"fd_tune_seed_{to}"] = run.spec.seed


# ---- structures and their labels ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taken:
    """The structures in work with what files say of them; `attack`: the run that they come from, where it is one."""

    label: str
    known: LabelledSet
    attack: str = ""
    share: str = ""
    failures: tuple[Any, ...] = ()


def taken() -> Taken | None:
    return st.session_state.get("fd_tune_set")


def take(new: Taken | None) -> None:
    """Work on other structures; what was made of the ones before is on the Runs page."""
    st.session_state["fd_tune_set"] = new
    st.session_state.pop("fd_tune_attached", None)
    for name in ("labels", "train"):
        forget(name)


def take_attack(run: runs.Run, share: str = "") -> None:
    """The dataset of an attack, and its model as the one to begin with."""
    found = adversarial.of_run(run)
    structures = adversarial.dataset_of(found)
    take(Taken(run.title, labels.unlabelled(structures), run.id, share))
    starts = tuple(adversarial.origins_of(found)[:MOST_STARTS])
    st.session_state["fd_tune_starts"] = (run.title, starts)
    if run.spec.model is not None:
        set_base(run.spec.model.id)


def _take_inputs(run: runs.Run, known: LabelledSet) -> None:
    """The structures of a run, unless they are among those that are in work."""
    before = taken()
    ids = {s.content_id for s in known.structures}
    if before is None or not ids <= {s.content_id for s in before.known.structures}:
        take(Taken(run.title, known))


def put_known(known: LabelledSet) -> None:
    """The same structures with more labels."""
    now = taken()
    assert now is not None
    st.session_state["fd_tune_set"] = replace(now, known=known)


def known() -> LabelledSet | None:
    """The structures in work with every label that there is: of files, and of the run that is shown."""
    now, run = taken(), shown("labels")
    if now is None:
        return None
    return now.known if run is None else labels.merged(now.known, labelled_by(run))


def labelled_by(run: runs.Run) -> LabelledSet:
    return _runs["labels"].read(run, labels.of_run)


def trained(run: runs.Run) -> finetuning.Trained:
    return _runs["train"].read(run, finetune.of_run)


# ---- models and settings -----------------------------------------------------------------------------------------------


def bases() -> dict[str, ModelCard]:
    """What can be fine-tuned by this person, by id: what is on this machine first."""
    cards = [c for c in session.models().values() if not finetune.can_train(c)]
    return {c.id: c for c in sorted(cards, key=lambda c: not services.model_is_here(c))}


def base() -> ModelCard:
    """The model to begin with: the one that was named or attacked, else the one in use, else the default."""
    able = bases()
    for name in (st.session_state.get("fd_tune_base"), session.settings().model_id, services.default_model_id()):
        if name in able:
            return able[name]
    return next(iter(able.values()))


def set_base(model_id: str) -> None:
    st.session_state["fd_tune_base"] = model_id


def choice(card: ModelCard) -> ModelChoice:
    """How it is run: precision and device as everywhere."""
    now = session.settings()
    return ModelChoice(card.id, now.dtype, now.device)


def compared() -> list[str]:
    """The models whose stability is measured, the base first: those that were chosen, else the base and what was made of it here."""
    known_ids = st.session_state.get("fd_tune_compared")
    if known_ids is not None:
        return list(known_ids)
    run = shown("train")
    made = None if run is None or run.active else finetune.model_of(run)
    return [base().id, *([made.id] if made is not None and made.id != base().id else [])]


def set_compared(ids: Sequence[str] | None) -> None:
    st.session_state["fd_tune_compared"] = None if ids is None else list(ids)


def changes(of: str) -> dict[str, Any]:
    """Parameters of a step that were set by hand."""
    return st.session_state.setdefault(f"fd_tune_changes_{of}", {})


def fields(of: str) -> Fields:
    return Fields(lambda name: f"tune-{of}-{name}", lambda name, value: changes(of).update({name: value}))


def seed(of: str) -> int:
    return st.session_state.setdefault(f"fd_tune_seed_{of}", 0)


def values(kind: type[Any], of: str) -> Mapping[str, Any]:
    """What is in force: the defaults of a parameter record with what was changed."""
    return {**{n: f.default for n, f in kind.__dataclass_fields__.items()}, **changes(of)}


# ---- what is simulated -------------------------------------------------------------------------------------------------


def starts() -> dict[str, tuple[Structure, ...]]:
    """Structures that a simulation can begin with, by where they come from, the likeliest first."""
    out: dict[str, tuple[Structure, ...]] = {}
    remembered = st.session_state.get("fd_tune_starts")
    if remembered is not None and remembered[1]:
        out[f"what was attacked: {remembered[0]}"] = remembered[1]
    current = session.choice()
    if current is not None and session.structures():
        out[f"what is in use on the other pages: {current.label}"] = session.structures()[:MOST_STARTS]
    now = taken()
    if now is not None and len(now.known):
        out[f"the first of the structures in work: {now.label}"] = now.known.structures[:1]
    return out
