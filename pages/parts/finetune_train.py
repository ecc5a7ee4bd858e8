"""The third step of fine-tuning: what is asked, its cost before the start; see finetune_trained for what comes of it."""

from __future__ import annotations

from typing import Any

import streamlit as st

from fdcore import services
from fdcore.errors import FdcoreError
from fdcore.human import count
from fdcore.labels import LabelledSet
from fdcore.records import ModelCard, Structure
from fdcore.services import finetune, labels
from fdcore.tasks.finetune import FinetuneParameters
from pages.parts import finetune_trained, owner, run_parts, session, tuning
from pages.parts.fields import seed
from pages.parts.model_picker import place, precision_and_device
from pages.parts.refusals import failed
from pages.parts.words import plain

STEP = "train"
TRAINS = {
    "both": "F_c and F_nc: both forces and the energy learn together, so that they agree. A little more than twice the time.",
    "direct": "F_nc only: the force that drives simulations learns alone. Cheap; the energy follows only as far as it shares the network.",
}
PARTS = {"all": "the whole network", "heads": "only the heads", "low-rank": "heads and a low-rank change"}
ZEROS = {"auto": "where the labels are far away", "labels": "always", "model": "never"}
BASE_HELP = (
    "The model that is trained further. It stays as it is; what comes out is a model of its own with its own name."
)
LOSS_HELP = (
    r"$L=w_E L_E+w_{nc} L(\mathbf{F}_{nc})+w_c L(\mathbf{F}_c)$, each of the published loss of Orb. $\mathbf{F}_c=-dE/d\mathbf{R}$ is trained "
    "by differentiating through it (double backward)."
)
AVERAGING_HELP = (
    "The model is an exponential moving average (EMA) of the weights: so much of it remains after each step."
)
HELD_OUT_HELP = (
    "Never trained on; the weights with the least error on it are kept. Structures of one climb are held out together."
)
REPLAY_HELP = (
    "Labelled structures of what the base model was made for are looked at before and after: whether it has forgotten what it knew. "
    "They are not trained on."
)

_fields = tuning.fields(STEP)


def show() -> None:
    run = tuning.shown(STEP)
    if run is not None:
        finetune_trained.show(run)
        return
    known = tuning.known()
    if known is None or not known.labelled:
        st.info(
            "Nothing is labelled yet: there is nothing to learn from."
            if known is not None
            else "First choose structures and have them labelled.",
            icon=":material/arrow_back:",
        )
        to = "structures" if known is None else "labels"
        st.button(f"Go to {tuning.STEPS[to]}", on_click=tuning.go, args=(to,), key="go-back")
        return
    _ask(known)


def base_picker(key: str) -> ModelCard:
    """The models that can be fine-tuned, and why the others cannot."""
    able = tuning.bases()
    now = tuning.base()
    st.session_state[key] = now.id
    st.selectbox(
        "Base model",
        list(able),
        format_func=lambda i: f"{i}  ·  {place(able[i])}",
        key=key,
        on_change=lambda: tuning.set_base(st.session_state[key]),
        help=BASE_HELP,
    )
    with st.popover("Why is a model not in the list?", icon=":material/help:"):
        reasons: dict[str, list[str]] = {}
        for card in session.models().values():
            reason = finetune.can_train(card).removeprefix(card.id).strip()
            if reason:
                reasons.setdefault(reason, []).append(card.id)
        for reason, ids in reasons.items():
            st.markdown(f"**{plain(', '.join(ids))}** {plain(reason)}")
        st.markdown("Conservative models have one force only: there is nothing that could disagree.")
    with st.popover("Precision and device", icon=":material/memory:"):
        precision_and_device()
    return now


def replay_of(card: ModelCard, structures: tuple[Structure, ...]) -> list[Structure]:
    """What the check against forgetting looks at; nothing that is trained on."""
    seen = {s.content_id for s in structures}
    return [s for s in finetune.shipped_replay(card.id) if s.content_id not in seen]


def _ask(known: LabelledSet) -> None:
    with st.container(border=True, key="tune-settings"):
        left, right = st.columns([2, 3], gap="large")
        with left:
            card = base_picker("tune-base")
        now = tuning.values(FinetuneParameters, STEP)
        with right:
            _train(now)
        structures = labels.as_inputs(known)
        good, refused = finetune.trainable(card, structures)
        for failure in refused[:5]:
            failed(failure, done="taken")
        if len(refused) > 5:
            st.caption(f"and {len(refused) - 5} more")
        note = finetune.method_note(card, known)
        if note:
            st.warning(plain(note), icon=":material/join:")
        shipped = replay_of(card, structures)
        checked = False
        if shipped:
            st.session_state.setdefault("fd_tune_replay", True)
            st.session_state["tune-replay"] = st.session_state["fd_tune_replay"]
            checked = st.toggle(
                f"Look whether it forgets: {count(len(shipped), 'structure')} of its own domain",
                key="tune-replay",
                help=REPLAY_HELP,
                on_change=lambda: st.session_state.update(fd_tune_replay=st.session_state["tune-replay"]),
            )
        else:
            st.caption(
                "No structures of this model's own domain travel with it, so whether it forgets is not looked at."
            )
        _more(now)
        if good:
            try:
                _cost_and_start(card, good, shipped if checked else [])
            except FdcoreError as error:
                st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/error:")


def _train(now: Any) -> None:
    key = _fields.key("train")
    st.session_state[key] = now["train"]
    st.radio(
        "What learns",
        list(TRAINS),
        format_func=lambda k: TRAINS[k],
        key=key,
        on_change=_fields.changed("train"),
        help=LOSS_HELP,
    )


def _more(now: Any) -> None:
    with st.expander("More settings", icon=":material/tune:"):
        training(STEP, now, both=now["train"] == "both")
        seed(
            "tune-train-seed-field",
            "fd_tune_seed_train",
            tuning.seed(STEP),
            "Of what is held out, the order, rotations and ranks.",
        )


def training(step: str, now: Any, *, both: bool = True, epochs: bool = True) -> None:
    """The fields of a training; those of a loop are the same. `epochs`: that field, too."""
    fields = tuning.fields(step)
    left, middle, right = st.columns(3)
    with left:
        st.markdown("**How long**")
        if epochs:
            fields.number("epochs", "Epochs at most", now, step=5, minimum=1, text="How often every structure is seen.")
        fields.number("patience", "Stop after epochs without gain", now, step=1, minimum=0, text="0: never early.")
        fields.number(
            "batch", "Structures per step", now, step=1, minimum=1, text="Divided where memory does not last."
        )
        fields.number("held_out", "Share held out", now, step=0.05, minimum=0.0, maximum=0.9, text=HELD_OUT_HELP)
    with middle:
        st.markdown("**How**")
        fields.optional(
            "learning_rate",
            "Learning rate",
            now,
            "Of AdamW at its highest: it rises first, then falls to zero along a cosine. Empty: 1e-3 for small models, 3e-4 for others.",
        )
        fields.number("weight_decay", "Weight decay", now, step=0.001, minimum=0.0, maximum=1.0)
        fields.number(
            "averaging", "Averaging (EMA)", now, step=0.001, minimum=0.0, maximum=0.999999, text=AVERAGING_HELP
        )
        fields.number(
            "clip", "Gradient at most", now, step=0.1, minimum=1e-6, text="A longer gradient is shortened to this."
        )
        fields.toggle(
            "rotate",
            "Turn structures at random",
            now,
            "Orb is not equivariant by construction: it learns it from turned structures.",
        )
    with right:
        st.markdown("**What**", help=LOSS_HELP)
        fields.select("parts", "What may change", PARTS, now)
        if now["parts"] == "low-rank":
            fields.number(
                "rank", "Rank", now, step=1, minimum=1, text="Of the change of every matrix (LoRA, Hu et al. 2021)."
            )
        fields.number("direct_weight", "Weight of F_nc", now, step=0.5, minimum=0.0)
        if both:
            fields.number("conservative_weight", "Weight of F_c", now, step=0.5, minimum=0.0)
            fields.number("energy_weight", "Weight of the energy", now, step=0.5, minimum=0.0)
        fields.select("zero", "Shift reference energies per element", ZEROS, now, "Codes count energies from different zeros; without the shift nothing else is learnt first.")  # fmt: skip


def _cost_and_start(card: ModelCard, good: list[Structure], replay: list[Structure]) -> None:
    groups = finetune.groups_of(good)
    spec = finetune.spec_of(
        good, replay, tuning.choice(card), tuning.changes(STEP), seed=tuning.seed(STEP), groups=groups
    )
    cost = finetune.estimate(card, spec, [*good, *replay])
    here = services.model_is_here(card)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            f"Fine-tune on {count(len(good), 'structure')}" if here else f"{services.download_of(card)} and fine-tune",
            type="primary",
            icon=":material/play_arrow:",
            key="tune-start",
            disabled=not cost.fits,
            on_click=_start,
            args=(card, good, replay, groups),
        )
        st.markdown(f"{count(len(good), 'structure')}: {cost.text}.")
    if groups is not None:
        st.caption(
            f"They come from {count(len(set(groups)), 'climb')}; those of one climb are alike and are held out together."
        )
    if not cost.fits:
        run_parts.too_large(cost)


def _start(card: ModelCard, good: list[Structure], replay: list[Structure], groups: tuple[int, ...] | None) -> None:
    now = tuning.taken()
    assert now is not None
    run = run_parts.attempt(
        lambda: finetune.submit(
            owner.viewer(),
            good,
            replay,
            tuning.choice(card),
            tuning.changes(STEP),
            title=now.label,
            seed=tuning.seed(STEP),
            groups=groups,
        )
    )
    if run is not None:
        tuning.set_compared(None)
        tuning.follow(STEP, run)
