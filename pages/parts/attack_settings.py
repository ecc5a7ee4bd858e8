"""What is asked of an attack: how many structures, everything else one fold away, the cost before the start."""

from __future__ import annotations

from typing import Any

import streamlit as st

from fdcore import services
from fdcore.errors import FdcoreError
from fdcore.human import count
from fdcore.records import Structure
from fdcore.services import adversarial, runs
from fdcore.tasks.attack import AttackParameters
from pages.parts import attacking, owner, session
from pages.parts.fields import Fields, seed
from pages.parts.refusals import failed
from pages.parts.words import plain

FOR_AND_NOT_FOR = (
    "**What they are for:** reference calculations whose results this model learns most from, and tests of how it fails. "
    "**What they are not:** structures that occur in nature, or a sample of any temperature."
)
STEP_HELP = (
    r"$\mathbf{r}_{new}=\mathbf{r}_{old}+\alpha\nabla U_\Delta-\beta\nabla E$: uphill in disagreement, downhill in energy. Equation 3 of "
    "*When forces disagree*; Schwalbe-Koda et al. 2021."
)
GRADIENT_NAMES = {
    "one-sided": "one-sided: the cheapest, a few percent off",
    "double-backward": "exact",
    "auto": "exact where memory lasts",
    "finite-difference": "low memory",
}
RISE_HELP = (
    "A structure belongs to the dataset when U_Delta is at least so many times that of the structure it came from."
)
APART_HELP = (
    "How much the local environments (SOAP) of two structures differ at least. 1 is what two random displacements of 0.1 Å per "
    "component differ by."
)

_fields = Fields(lambda name: f"attack-{name}", attacking.change)


def what_will_come() -> None:
    """Before anything was chosen: a working example, and what it shows."""
    with st.container(border=True):
        st.markdown("### Let the model show its weak spots")
        st.markdown(
            "Atoms are moved uphill in U_Delta, the disagreement of the model's two forces, while the energy holds them back. Bring a "
            "structure and get:\n"
            "- **structures** on which the model contradicts itself most, no two alike, none with overlapping atoms\n"
            "- the climb **live**: disagreement, what it costs in energy, and the atoms that cause it\n"
            "- **files** for DFT (VASP inputs) and for fine-tuning (extended xyz, ASE database)\n"
            "- where a reference is installed, whether U_Delta **ranks the true errors**"
        )
        examples = {e.id: e for e in services.examples()}
        example = examples.get("Mg17Al12") or next(iter(examples.values()))
        st.button(
            f"Try an example: {example.title}",
            type="primary",
            icon=":material/play_arrow:",
            on_click=session.choose_example,
            args=(example,),
            key="try_example",
        )
        st.caption(FOR_AND_NOT_FOR)


def nothing_readable() -> None:
    """Nothing in the choice could be read."""
    for failure in session.parsed().failures:
        failed(failure, done="taken")


def ask() -> None:
    """The settings, the cost, and the button that starts."""
    for failure in session.parsed().failures:
        failed(failure, done="taken")
    card = services.card(session.settings().model_id)
    if not any(s.periodic for s in attacking.structures()):
        attacking.changes().pop("strain", None)
    good, refused = adversarial.attackable(card, attacking.structures(), bool(attacking.changes().get("strain")))
    for failure in refused:
        failed(failure, done="taken")
    if len(session.structures()) > attacking.MOST_AT_ONCE:
        st.info(
            f"The first {attacking.MOST_AT_ONCE} of {len(session.structures())} structures are taken.",
            icon=":material/info:",
        )
    if not good:
        return
    with st.container(border=True, key="attack-settings"):
        now = {**{n: f.default for n, f in AttackParameters.__dataclass_fields__.items()}, **attacking.changes()}
        left, right = st.columns([2, 3], vertical_alignment="bottom")
        with left:
            _fields.number("count", "How many structures", now, step=1, minimum=1, maximum=10_000)
        with right:
            _fields.toggle(
                "spread", "Spread them over the range of U_Delta", now, "Off: those with the highest U_Delta."
            )
        _more(now, good)
        try:
            _cost_and_start(good, attacking.parameters())
        except FdcoreError as error:
            st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/error:")
    st.caption(FOR_AND_NOT_FOR)


def _more(now: dict[str, Any], structures: list[Structure]) -> None:
    with st.expander("More settings", icon=":material/tune:"):
        left, middle, right = st.columns(3)
        with left:
            st.markdown("**The climb**", help=STEP_HELP)
            _fields.number("steps", "Steps per start", now, step=5, minimum=1)
            starts = AttackParameters(count=int(now["count"])).starts_for(len(structures))
            _fields.optional_whole(
                "starts", "Starts", now, f"Copies that climb. Empty: {starts} for this many structures."
            )
            _fields.optional(
                "alpha",
                "alpha (Å³/eV)",
                now,
                "Empty: chosen from the first gradients, so that it needs no knowledge of the model.",
            )
            _fields.optional("beta", "beta (Å²/eV)", now, "Empty: chosen from the first gradients.")
            _fields.optional(
                "temperature_K",
                "Boltzmann weight at (K)",
                now,
                "Climb U_Delta · exp(−(E − E₀)/NkT) instead of weighing by a constant beta. Empty: a constant beta.",
            )
        with middle:
            st.markdown("**Where it begins**")
            _fields.optional(
                "relax_fmax_eV_per_A",
                "Relax first to (eV/Å)",
                now,
                "Along F_c. Empty: begin as given, e.g. with frames of a simulation.",
            )
            _fields.number(
                "rattle_A",
                "Random displacement (Å)",
                now,
                step=0.01,
                minimum=0.0,
                text="Of every copy but the first, per component.",
            )
            seed(
                "attack-seed",
                "fd_attack_seed",
                attacking.seed(),
                "Of the random displacements: the same seed gives the same structures.",
            )
            st.markdown("**Which are kept**")
            _fields.number(
                "rise", "U_Delta at least ... times that of the start", now, step=0.5, minimum=0.0, text=RISE_HELP
            )
            _fields.number("apart", "Difference between any two", now, step=0.05, minimum=0.0, text=APART_HELP)
        with right:
            st.markdown("**Bounds**")
            _fields.number("closest", "Closest pair, of covalent radii", now, step=0.05, minimum=0.0, maximum=1.0)
            _fields.number("window_eV_per_atom", "Energy above the start (eV/atom)", now, step=0.05, minimum=0.0001)
            _fields.number("max_force_eV_per_A", "Largest force (eV/Å)", now, step=5.0, minimum=0.1)
            _fields.number("max_step_A", "Farthest step of an atom (Å)", now, step=0.01, minimum=0.0001)
            _fields.select("gradient", "Gradient of U_Delta", GRADIENT_NAMES, now)
            if all(s.periodic for s in structures):
                _fields.toggle("strain", "Let the cell change, too", now)


# ---- cost and start ------------------------------------------------------------------------------------------------


def _cost_and_start(structures: list[Structure], parameters: dict[str, Any]) -> None:
    now = session.settings()
    card = services.card(now.model_id)
    spec = runs.spec_of("attack", structures, now.model, parameters, seed=attacking.seed())
    cost = adversarial.estimate(card, structures, spec, adversarial.measured_speed(owner.viewer(), card, now.dtype))
    here = services.model_is_here(card)
    wanted: AttackParameters = AttackParameters.of(spec)
    with st.container(horizontal=True, vertical_alignment="center"):
        label = (
            f"Make {count(wanted.count, 'structure')}"
            if here
            else f"{services.download_of(card)} and make {wanted.count}"
        )
        st.button(
            label,
            type="primary",
            icon=":material/play_arrow:",
            key="attack-start",
            on_click=_start,
            args=(structures, parameters),
            disabled=not cost.fits,
        )
        atoms = max(s.n_atoms for s in structures)
        st.markdown(
            f"{count(wanted.starts_for(len(structures)), 'start')} of up to {wanted.steps} steps, {count(atoms, 'atom')}: {cost.text}."
        )
    if not cost.fits:
        st.warning(
            f"The largest structure needs about {cost.memory_MB:,.0f} MB and {cost.available_MB:,.0f} MB are free. A smaller cell or a "
            "smaller model may fit.",
            icon=":material/memory:",
        )


def _start(structures: list[Structure], parameters: dict[str, Any]) -> None:
    try:
        run = adversarial.submit(
            owner.viewer(),
            structures,
            session.settings().model,
            parameters,
            title=session.title(),
            seed=attacking.seed(),
            refusals=session.parsed().failures,
        )
    except FdcoreError as error:
        st.toast(f"{plain(error.message)} {plain(error.hint)}", icon=":material/error:")
        return
    attacking.follow(run)
