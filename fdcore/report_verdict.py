"""From figures to words: for what is this model conservative enough here, and for what not. Thresholds are conventions, named below with their
reasons; every figure is shown beside its word, so that anybody can hold it against a threshold of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from fdcore.examination import PARTS
from fdcore.human import plus_minus, three_digits
from fdcore.records import EvidenceStatus, ModelCard
from fdcore.report import Examined
from fdcore.statistics import Slope
from fdcore.units import MEV_PER_EV
from fdcore.verdict import CONFIDENCE_FAIL, CONFIDENCE_LOOK

Answer = Literal["yes", "with care", "no", "not known"]


@dataclass(frozen=True)
class Limit:
    """Up to `look` a figure passes, above `fail` it fails."""

    look: float
    fail: float

    def status(self, value: float) -> EvidenceStatus:
        return "pass" if value <= self.look else "look" if value <= self.fail else "fail"


# U_Delta in eV/Å. Relaxations are commonly ended at 0.05 eV/Å: forces that differ by less point to the same minimum.
FORCE_DELTA = Limit(0.05, 0.2)
# lambda of F_nc. Of the direct models of Bigi et al. 2025, PET-NC (0.004) heats slowest, and SOAP-BPNN-NC (0.032) fails to relax liquid water.
ASYMMETRY = Limit(0.005, 0.03)
# lambda of F_c: the Hessian of an energy is symmetric to rounding. By differences, or in single precision, it is what those leave.
CONTROL = {"float64": Limit(1e-6, 1e-4), "float32": Limit(1e-4, 1e-2)}
CONTROL_BY_DIFFERENCES = {"float64": Limit(1e-4, 1e-2), "float32": Limit(2e-2, 0.1)}
# Mean |work| of F_nc on random loops of thermal size over their length, eV/Å: what no conservative force can explain. A fiftieth and a fifth of
# the 0.05 eV/Å at which relaxations end.
WORK_PER_LENGTH = Limit(0.001, 0.01)
# |work| on one turn of a molecule in meV: a gain of kT at 300 K (26 meV) per turn is no small thing, a twenty-fifth of it is.
MOLECULE_WORK_MEV = Limit(1.0, 26.0)
# |work| of F_c on any loop, in eV.
CONTROL_WORK_EV = {"float64": Limit(1e-6, 1e-3), "float32": Limit(1e-4, 1e-2)}
# |sum F| / N in eV/Å and |sum r x F| / N in eV: what pushes or turns the whole.
NET_FORCE = Limit(1e-4, 1e-2)
NET_TORQUE = Limit(1e-4, 1e-2)
# The largest jump of the energy in meV: a fifth of kT at 300 K fails, what a phonon calculation notices is looked at.
JUMP_MEV = Limit(0.1, 5.0)
# Deviation of turned, permuted or shifted copies as a share of U_Delta: below a tenth U_Delta is signal, above a half as much of it is noise.
NOISE_SHARE = Limit(0.1, 0.5)
# A U_Delta so small (eV/Å) is itself rounding.
NO_FORCE_DELTA = 1e-6
# |drift| of NVE under F_nc in K/ps. Bigi et al. call 7 K/ps (PET-NC) and 70 K/ps (ORB-v2, both on water) entirely useless for NVE.
DRIFT_K_PER_PS = Limit(0.5, 5.0)
# The same where a thermostat of 0.1 ps takes the heat: by their table 2 such a one is then about (K/ps) x 0.1 ps too hot (1.4 K and 4.2 K).
THERMOSTATTED_K_PER_PS = Limit(10.0, 50.0)
# |drift| under F_c in meV/atom/ps: the integrator's.
CONTROL_DRIFT_MEV = Limit(0.1, 1.0)

# What others have published, by line, and what is different there.
WATER = "on a few structures of liquid water (Cheng et al. 2019), their own small models for the last two"
PUBLISHED: Mapping[str, str] = {
    "Jacobian asymmetry": f"Bigi et al. 2025: ORB-v2 0.015, EquiformerV2 0.017, PET-NC 0.004, SOAP-BPNN-NC 0.032, {WATER}.",
    "Work on one molecule": "Bigi et al. 2025: ORB-v2 15 meV, EquiformerV2 -241 meV, PET-NC 132 meV, SOAP-BPNN-NC -410 meV, on a larger path of their "
    "own: one molecule of liquid water turned and deformed in 1000 steps, its parameters not given. Here it turns by 20° to either side and "
    "stretches by 3 %.",
    "Drift under F_nc": "Bigi et al. 2025, liquid water: PET-NC about 7 K/ps, ORB-v2 about 70 K/ps.",
}


@dataclass(frozen=True)
class LineOfReport:
    """One thing that was looked at: how it came out, its figure with its unit, in words, and what others published."""

    part: str
    name: str
    status: EvidenceStatus
    figure: str
    text: str
    published: str = ""


@dataclass(frozen=True)
class Use:
    """What the model might be used for, whether it is conservative enough for that, and why."""

    name: str
    answer: Answer
    why: str


# What a missing part would have said.
NAMES = {
    "forces": "U_Delta",
    "gradient": "F_c is the slope of the energy",
    "asymmetry": "Jacobian asymmetry",
    "loops": "Work on closed loops",
    "lines": "Jumps of the energy",
    "symmetry": "Turned and permuted copies",
    "dynamics": "Drift under F_nc",
}
NOT_DONE = "Not done: it was stopped before."


def lines(found: Examined, card: ModelCard, dtype: str, asked: Sequence[str] = PARTS) -> list[LineOfReport]:
    """Every line, in the order of the parts; a part that is missing is one line that says why."""
    out: list[LineOfReport] = []
    makers: Mapping[str, Any] = {
        "forces": _forces,
        "gradient": _gradient,
        "asymmetry": _asymmetry,
        "loops": _loops,
        "lines": _jumps,
        "symmetry": _symmetry,
        "dynamics": _dynamics,
    }
    for part in asked:
        made = makers[part](found, card, dtype)
        if part in found.missing:
            made.append(LineOfReport(part, NAMES[part], "unknown", "–", found.missing[part]))
        elif part not in found.seconds and made:
            made.append(LineOfReport(part, f"{NAMES[part]}: the rest", "unknown", "–", NOT_DONE))
        elif not made:
            made.append(LineOfReport(part, NAMES[part], "unknown", "–", NOT_DONE))
        out += [_with_published(line) for line in made]
    return out


def _with_published(line: LineOfReport) -> LineOfReport:
    # Beside a figure only.
    return replace(line, published=PUBLISHED.get(line.name, "")) if line.figure != "–" else line


def _forces(found: Examined, card: ModelCard, dtype: str) -> list[LineOfReport]:
    del dtype
    evaluation = found.evaluation
    if evaluation is None:
        return []
    u = evaluation.force_delta
    worst = int(evaluation.force_delta_per_atom.argmax())
    out = [
        LineOfReport(
            "forces",
            "U_Delta",
            FORCE_DELTA.status(u),
            f"{three_digits(u)} eV/Å",
            f"The two forces differ by so much as a root mean square, most on {found.structure.symbols[worst]}{worst}. Relaxations end at 0.05 eV/Å.",
        ),
        _net(found, "Net force", "eV/Å per atom", found.net_force, NET_FORCE, "pushes the whole structure along"),
    ]
    if found.structure.periodic:
        out.append(
            LineOfReport("forces", "Net torque", "unknown", "–", "A crystal has no torque: it belongs to molecules.")
        )
    else:
        out.append(_net(found, "Net torque", "eV per atom", found.net_torque, NET_TORQUE, "turns the whole molecule"))
    if evaluation.confidence is None:
        text = f"{card.id} has no confidence head."
        out.append(LineOfReport("forces", "Confidence head", "unknown", "–", text))
    else:
        mean = float(evaluation.confidence.mean())
        out.append(
            LineOfReport(
                "forces",
                "Confidence head",
                Limit(CONFIDENCE_LOOK, CONFIDENCE_FAIL).status(mean),
                f"{three_digits(mean)} eV/Å",
                "The error of F_nc that the model itself expects, mean over the atoms; its scale ends at 0.3 eV/Å.",
            )
        )
    return out


def _net(found: Examined, name: str, unit: str, of: Any, limit: Limit, what: str) -> LineOfReport:
    direct, conservative = of("direct"), of("conservative")
    text = f"What {what}. Of F_c: {three_digits(conservative)}."
    return LineOfReport("forces", name, limit.status(direct), f"{three_digits(direct)} {unit}", text)


def _gradient(found: Examined, card: ModelCard, dtype: str) -> list[LineOfReport]:
    del card, dtype
    check = found.check
    if check is None:
        return []
    share = check["error"] / max(check["scale"], 1e-300)
    text = (
        f"F_c against central differences of the energy in {check['components']} components, steps of {check['step_A']:g} Å: off by "
        f"{check['error']:.1e} of {three_digits(check['scale'])} eV/Å."
    )
    return [
        LineOfReport(
            "gradient", NAMES["gradient"], "pass" if check["passed"] else "fail", f"{share:.0e} of the largest", text
        )
    ]


def _asymmetry(found: Examined, card: ModelCard, dtype: str) -> list[LineOfReport]:
    del card
    if not found.asymmetry:
        return []
    direct, control = found.asymmetry["direct"], found.asymmetry["conservative"]
    how = {
        "derivatives": "by automatic differentiation through the force head",
        "differences": "by central differences of the force, since the model shows no derivatives here",
    }.get(found.asymmetry_by, "")
    if direct.exact:
        extent = f"The whole Jacobian ({direct.dimensions} x {direct.dimensions}), {how}"
    else:
        extent = f"Estimated from {direct.probes} random directions of {direct.dimensions}, {how}"
        if found.asymmetry_by == "derivatives":
            extent += ", and differences for its transpose"
    per = f"|A| = {three_digits(direct.antisymmetric_norm)} of |J| = {three_digits(direct.norm)} eV/Å²."
    limits = CONTROL_BY_DIFFERENCES if found.asymmetry_by == "differences" or not direct.exact else CONTROL
    limit = limits[dtype]
    half = None if direct.exact else 1.96 * direct.standard_error
    return [
        LineOfReport(
            "asymmetry",
            NAMES["asymmetry"],
            ASYMMETRY.status(direct.value),
            f"λ = {plus_minus(direct.value, half)}",
            f"{extent}; the repulsion of close atoms counts, as the model is run with it. {per}",
        ),
        LineOfReport(
            "asymmetry",
            "Asymmetry of F_c (control)",
            limit.status(control.value),
            f"λ = {control.value:.1e}",
            f"The Hessian of the energy must be symmetric; what is left of it here is how exact the line above is (at most {limit.look:g}).",
        ),
    ]


def _loops(found: Examined, card: ModelCard, dtype: str) -> list[LineOfReport]:
    del card
    out = []
    mean = found.mean_work("random", "direct")
    if mean is not None:
        per_length = found.work_per_length("direct") or 0.0
        n, loops = found.structure.n_atoms, [k for k in found.loops if k.kind == "random"]
        out.append(
            LineOfReport(
                "loops",
                NAMES["loops"],
                WORK_PER_LENGTH.status(per_length),
                f"{plus_minus(mean.value, mean.half_width)} meV a loop",
                f"Mean |work| of F_nc over {mean.n} random circles: {three_digits(mean.value / n)} meV per atom, "
                f"{three_digits(per_length)} eV/Å of path ({three_digits(loops[0].length_A)} Å long). {_settled(loops)}",
            )
        )
    for loop in found.loops:
        if loop.kind == "molecule":
            value = loop.direct.value * MEV_PER_EV
            out.append(
                LineOfReport(
                    "loops",
                    "Work on one molecule",
                    MOLECULE_WORK_MEV.status(abs(value)),
                    f"{three_digits(value, sign=True)} meV",
                    f"One molecule is turned and stretched and comes back, all other atoms at rest. {_settled([loop])}",
                )
            )
    if mean is not None and not any(k.kind == "molecule" for k in found.loops) and "loops" in found.seconds:
        text = "No group of bonded atoms here ends within the structure, so no molecule can be turned."
        out.append(LineOfReport("loops", "Work on one molecule", "unknown", "–", text))
    if out:
        worst = max(abs(k.conservative.value) for k in found.loops)
        text = "The largest |work| of F_c on any of these loops: zero, but for jumps of the energy and rounding."
        limit = CONTROL_WORK_EV[dtype]
        out.append(LineOfReport("loops", "Work of F_c (control)", limit.status(worst), f"{worst:.1e} eV", text))
    return out


def _settled(loops: Sequence[Any]) -> str:
    worst, points = max(k.direct.error for k in loops) * MEV_PER_EV, max(k.direct.points for k in loops)
    return f"At most {points} points a loop; half of them change it by {worst:.1g} meV."


def _jumps(found: Examined, card: ModelCard, dtype: str) -> list[LineOfReport]:
    del dtype
    jump = found.largest_jump_meV
    if jump is None:
        return []
    changes = found.neighbour_changes
    cap = "every neighbour" if card.neighbour_cap is None else f"the {card.neighbour_cap} nearest neighbours"
    text = (
        f"The largest step of the energy that F_c does not explain, on {len(found.lines)} straight walks; {changes:,} neighbours came or went on "
        f"them. The model sees {cap} within {card.cutoff_A:g} Å."
    )
    return [LineOfReport("lines", NAMES["lines"], JUMP_MEV.status(jump), f"{three_digits(jump)} meV", text)]


_COPY_WORDS = {
    "rotation": ("Turned copies", "turned at random"),
    "permutation": ("Permuted copies", "with their atoms in another order"),
    "translation": ("Shifted copies", "shifted as a whole"),
}


def _symmetry(found: Examined, card: ModelCard, dtype: str) -> list[LineOfReport]:
    del card, dtype
    out = []
    assert found.evaluation is not None
    u = found.evaluation.force_delta
    for noise in found.noises:
        name, what = _COPY_WORDS[noise.kind]
        figures = f"of F_c by {three_digits(noise.conservative)}, the energy by {three_digits(noise.energy_meV_per_atom)} meV/atom"
        if u < NO_FORCE_DELTA:
            text = f"Of {noise.copies} copies {what} F_nc differs by so much, {figures}. U_Delta is rounding here."
            out.append(LineOfReport("symmetry", name, "unknown", f"{three_digits(noise.direct)} eV/Å", text))
            continue
        share = max(noise.direct, noise.conservative) / u
        of_u = f"{share:.1%}" if share >= 1e-3 else "less than 0.1 %"
        says = {
            "pass": "far below U_Delta, which is signal",
            "look": "a good part of U_Delta",
            "fail": "more than half of it, which is then as much noise as signal",
        }[NOISE_SHARE.status(share)]
        text = f"Of {noise.copies} copies {what} F_nc differs by so much, {figures}: {of_u} of U_Delta, {says}."
        out.append(
            LineOfReport("symmetry", name, NOISE_SHARE.status(share), f"{three_digits(noise.direct)} eV/Å", text)
        )
    return out


def _dynamics(found: Examined, card: ModelCard, dtype: str) -> list[LineOfReport]:
    del card, dtype
    out = []
    direct, control = found.drifts.get("direct"), found.drifts.get("conservative")
    if direct is not None and direct.slope is not None and direct.slope_K is not None:
        status: EvidenceStatus = "fail" if direct.ended else _by_interval(direct.slope_K, DRIFT_K_PER_PS)
        length = f"{direct.time_ps[-1]:.2g} ps of NVE"
        figure = f"ended after {direct.time_ps[-1]:.2g} ps" if direct.ended else f"{_slope(direct.slope)} meV/atom/ps"
        ended = f" It ended early: {direct.ended}" if direct.ended else ""
        out.append(
            LineOfReport(
                "dynamics",
                NAMES["dynamics"],
                status,
                figure,
                f"As a temperature {_slope(direct.slope_K)} K/ps, if all of it went into motion: the slope of the total energy over {length}.{ended}",
            )
        )
    if control is not None and control.slope is not None:
        out.append(
            LineOfReport(
                "dynamics",
                "Drift under F_c (control)",
                "fail" if control.ended else _by_interval(control.slope, CONTROL_DRIFT_MEV),
                f"{_slope(control.slope)} meV/atom/ps",
                "From the same atoms with the same momenta: the integrator's, and that of jumps of the energy."
                + (f" It ended early: {control.ended}" if control.ended else ""),
            )
        )
    return out


def _by_interval(slope: Slope, limit: Limit) -> EvidenceStatus:
    """Passes and fails only where the interval does; in doubt it is looked at."""
    value, half = abs(slope.slope), slope.half_width
    if half is None:
        return "look"
    if value + half <= limit.look:
        return "pass"
    return "fail" if value - half > limit.fail else "look"


def _slope(slope: Slope) -> str:
    return plus_minus(slope.slope, slope.half_width, sign=True)


# ---- what it is good for -------------------------------------------------------------------------------------------

_ANSWERS: Mapping[EvidenceStatus, Answer] = {"pass": "yes", "look": "with care", "fail": "no", "unknown": "not known"}
_ORDER: tuple[EvidenceStatus, ...] = ("pass", "look", "unknown", "fail")


def uses(found: Examined, said: Sequence[LineOfReport]) -> list[Use]:
    """Each judged by the lines that matter to it."""
    known = {line.name: line for line in said}
    checked = known.get(NAMES["gradient"])
    wrong = checked is not None and checked.status == "fail"

    def use(name: str, why: str, *names: str, status: EvidenceStatus | None = None) -> Use:
        found_lines = [known[n] for n in names if n in known]
        # What was not measured decides nothing, and leaves the answer open.
        statuses: list[EvidenceStatus] = [known[n].status if n in known else "unknown" for n in names]
        worst: EvidenceStatus = status or (max(statuses, key=_ORDER.index) if statuses else "unknown")
        if wrong:
            return Use(name, "not known", "F_c is not the slope of the energy here, so nothing can be said.")
        said = [f"{line.name} {line.figure}" for line in found_lines if line.figure != "–"]
        unsaid = [n for n in names if n not in known or known[n].figure == "–"]
        said += [f"{n} not measured" for n in unsaid]
        return Use(name, _ANSWERS[worst], f"{why}: {', '.join(said)}.")

    drift = found.drifts.get("direct")
    thermostatted: EvidenceStatus = "unknown"
    if drift is not None and drift.slope_K is not None:
        thermostatted = "fail" if drift.ended else _by_interval(drift.slope_K, THERMOSTATTED_K_PER_PS)
    return [
        use("Relaxation along F_nc", "decided by how far the forces differ", "U_Delta"),
        use(
            "Dynamics with a thermostat under F_nc",
            "a thermostat of 0.1 ps must carry the heat away",
            NAMES["dynamics"],
            status=thermostatted,
        ),
        use("NVE under F_nc", "decided by the drift", NAMES["dynamics"]),
        use(
            "Barriers and work along paths by F_nc",
            "decided by the work on closed loops",
            NAMES["loops"],
            *(["Work on one molecule"] if any(k.kind == "molecule" for k in found.loops) else []),
        ),
        use("Phonons and Hessians of F_nc", "decided by the asymmetry", NAMES["asymmetry"]),
        use(
            "Dynamics and minima of F_c",
            "decided by jumps and drift under F_c",
            NAMES["lines"],
            "Drift under F_c (control)",
        ),
    ]


def sentence(found: Sequence[Use]) -> str:
    """ "Conservative enough for ...; with care for ...; not for ..." """
    parts = []
    for answer, words in (("yes", "Conservative enough for"), ("with care", "with care for"), ("no", "not for")):
        names = [_lower(u.name) for u in found if u.answer == answer]
        if names:
            parts.append(f"{words} {_and(names)}")
    unknown = [_lower(u.name) for u in found if u.answer == "not known"]
    if unknown:
        parts.append(f"not known for {_and(unknown)}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _lower(text: str) -> str:
    return text if text.startswith("NVE") else text[0].lower() + text[1:]


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
