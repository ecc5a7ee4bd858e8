"""What a validation says in words. Every sentence is made here, so that pages, reports and command lines say the same."""

from __future__ import annotations

from collections.abc import Sequence

from fdcore.calibration import Calibration
from fdcore.human import count, three_digits
from fdcore.statistics import FEWEST_GROUPS, FEWEST_PAIRS, IN_ORDER, RankCorrelation
from fdcore.validation import ERRORS, ESTIMATES, POOLED, SHARED, Band, Detection, Validation


def sentence(found: Sequence[Band], reference: str, noun: str = "climbs") -> str:
    """What the correlation of all structures says, or why there is none; `noun`: what an interval draws as a whole."""
    pooled = next((b for b in found if b.name == POOLED), None)
    if pooled is None:
        return "No structure could be compared, so nothing can be said of whether U_Delta ranks the errors."
    c, d = pooled.conservative, pooled.direct
    if c.n < FEWEST_PAIRS:
        were = "1 structure was" if c.n == 1 else f"{c.n} structures were"
        return (
            f"{were} compared with {reference}. Whether U_Delta ranks the errors is a correlation, which needs {FEWEST_PAIRS} or more: give "
            "more structures."
        )
    if c.r_s is None or d.r_s is None:
        return f"All {c.n} structures have the same U_Delta or the same error against {reference}: there is nothing to rank."
    over = f"{c.n} structures" if c.groups == c.n else f"{c.n} structures of {c.groups} {noun}"
    return f"Against {reference}, U_Delta ranks the error of F_c with r_s = {c.text} and that of F_nc with {d.text}, over {over}."


def interval_text(found: Sequence[Band]) -> str:
    """What the intervals are, in one sentence; empty where there are none."""
    pooled = next((b.conservative for b in found if b.name == POOLED), None)
    if pooled is None or pooled.r_s is None:
        return ""
    if _too_few(pooled):
        return f"No intervals: structures of one climb are alike, and fewer than {FEWEST_GROUPS} climbs say nothing about another one."
    if pooled.groups == pooled.n:
        return f"In brackets: 95 % bootstrap intervals over structures.{_ordered(found)}"
    return (
        f"In brackets: 95 % bootstrap intervals over whole climbs, since structures of one climb are alike; a band with fewer than "
        f"{FEWEST_GROUPS} climbs has none.{_ordered(found)}"
    )


def _too_few(pooled: RankCorrelation) -> bool:
    """Whether nothing has an interval because there are too few of what is drawn."""
    return pooled.low is None and not (pooled.in_order and pooled.groups >= FEWEST_GROUPS)


def _ordered(found: Sequence[Band]) -> str:
    """Why some have no interval although they are enough; with a space before it, empty where there are none."""
    if not any(r.in_order and r.low is None for b in found for r in (b.conservative, b.direct)):
        return ""
    return f" What is {IN_ORDER} has none: so is every sample of it, and it is too few to tell how others would be."


# ---- one model against a reference ---------------------------------------------------------------------------------

# What nobody can say of fewer.
DRAWN = {
    "climbs": "whole climbs, since structures of one climb are alike",
    "groups": "whole groups, so that they hold for other groups like these",
    "structures": "structures; they say nothing of other systems",
}


def headline(found: Validation, reference: str) -> str:
    """The answer in a sentence or two: how well U_Delta ranks the errors, pooled and within what is alike."""
    pooled = found.pooled
    if pooled.conservative.r_s is None or pooled.direct.r_s is None:
        return sentence(found.bands, reference)
    first = sentence(found.bands, reference, found.drawn)
    return f"{first} {inflation(found)}".rstrip()


def inflation(found: Validation) -> str:
    """The same within groups or bands: what is left where structures do not differ by their amplitude alone."""
    parts = []
    c, d = found.within_conservative, found.within_direct
    if c.mean is not None and d.mean is not None and c.groups > 1:
        parts.append(f"within one {called(found.group_by)} {c.text} and {d.text} on average ({c.groups} of them)")
    thirds = [b for b in found.bands if b.name != POOLED and b.conservative.r_s is not None]
    if thirds:
        low, high = (f(b.conservative.r_s or 0.0 for b in thirds) for f in (min, max))
        lower, upper = (f(b.direct.r_s or 0.0 for b in thirds) for f in (min, max))
        parts.append(f"within a third of U_Delta's range {low:.2f} to {high:.2f} and {lower:.2f} to {upper:.2f}")
    if not parts:
        return ""
    return f"Pooled values are inflated where structures were displaced by very different amounts: {'; '.join(parts)}."


def called(key: str) -> str:
    """A group of this kind, in words."""
    return {"": "group", "sigma_a": "displacement", "sigma": "displacement", "config_type": "configuration type"}.get(
        key, key
    )


def intervals(found: Validation) -> str:
    """What the brackets are."""
    pooled = found.pooled.conservative
    if pooled.r_s is None:
        return ""
    if _too_few(pooled):
        return f"No intervals: fewer than {FEWEST_GROUPS} {found.drawn} say nothing about others."
    return (
        f"In brackets: 95 % bootstrap intervals over {DRAWN[found.drawn]}; a band of fewer than {FEWEST_GROUPS} of them has none. Of a single "
        "group they are over its structures; the mean over groups has one by Student's t."
        f"{_ordered([*found.bands, *found.groups, *found.sigmas])}"
    )


def calibrated(found: Calibration, error: str) -> str:
    """Whether U_Delta may be read as this error in eV/Å."""
    name = ERRORS[error]
    if found.factor is None or found.before is None or found.after is None:
        return f"Whether U_Delta is as large as {name} cannot be told from {count(found.n, 'structure')}."
    factor = three_digits(found.factor)
    if found.low is not None and found.high is not None:
        factor += f" ({three_digits(found.low)} to {three_digits(found.high)})"
    if found.calibrated:
        start = f"U_Delta is about as large as {name} here: the ratio is {factor}."
    else:
        start = f"U_Delta is not calibrated; here {name} is about {factor} times U_Delta."
    half = f"half of the {found.halves}"
    return (
        f"{start} Single structures scatter around that by a factor of {three_digits(found.scatter or 1.0)}. Multiplied by "
        f"{three_digits(found.fitted or 1.0)}, fitted on {half}, it is off by {found.after:.0%} per bin on the other half, without it by "
        f"{found.before:.0%}."
    )


def detected(found: Detection, error: str) -> str:
    """How well U_Delta points at structures with a large error."""
    name, limit = ERRORS[error], found.large
    x = f"{three_digits(limit.above)} eV/Å"
    why = " (the median: hardly any structure is on the other side of the usual bound)" if limit.why == "median" else ""
    rocs = found.structures
    if rocs.n < FEWEST_PAIRS:
        return f"Whether U_Delta tells structures with a large {name} from others cannot be told from {count(rocs.n, 'structure')}."
    if rocs.area is None:
        side = "none" if rocs.bad == 0 else "every one"
        return f"Of {count(rocs.n, 'structure')} {side} has {name} above {x}{why}: there is nothing to tell apart."
    text = (
        f"{name} is above {x}{why} in {rocs.bad} of {count(rocs.n, 'structure')}; U_Delta tells them from the others with an area under the "
        f"ROC curve of {rocs.text}"
    )
    if found.atoms is not None and found.atoms.area is not None:
        text += f", u_i the atoms with {found.atoms.text}"
    return text + "."


def alarmed(found: Detection, error: str) -> str:
    """What the threshold of the verdict does; empty for a model without one."""
    a = found.alarm
    if a is None or a.hits is None or a.false_alarms is None or a.n < FEWEST_PAIRS:
        return ""
    return (
        f"The verdict's own threshold, {three_digits(a.threshold)} eV/Å, points at {a.caught} of the {a.bad} structures with large "
        f"{ERRORS[error]} ({a.hits:.0%}) and at {a.flagged - a.caught} of the {a.n - a.bad} others ({a.false_alarms:.0%})."
    )


def consensus(found: Validation) -> str:
    """Whether both forces are wrong together somewhere."""
    n, of = len(found.consensus), len(found.compared)
    about = "U_Delta is small while both forces are wrong together, by much more"
    if of < 15:
        return f"Whether there are structures in which {about} cannot be told from {count(of, 'structure')}."
    if not n:
        return f"In none of {of} structures {about}: no consensus failure was found."
    return (
        f"In {n} of {of} structures {about}: consensus failures, which no disagreement of the two can show. U_Delta is among the lowest third, or "
        f"ordinary for this model; both errors are among the highest third and more than {SHARED:g} times U_Delta."
    )


def energies(found: Validation) -> str:
    """The error of the energy, and what was taken out of it."""
    e = found.energies
    if e.rms is None:
        return "The labels bring no energies, or too few to take out the zero of energy."
    shift = "the mean shift" if e.fitted == 1 else f"a shift per element ({e.fitted} fitted)"
    return (
        f"The error of the energy is {three_digits(1000 * e.rms)} meV/atom, after {shift} was taken out by least squares, since every code "
        "has another zero of energy."
    )


def beside(found: Validation) -> str:
    """U_Delta beside U_var."""
    by = {(e.estimate, e.error): e for e in found.estimates}
    if not by:
        return ""
    parts = []
    for error, name in ERRORS.items():
        both = [f"{ESTIMATES[estimate]} {by[estimate, error].pooled.text}" for estimate in ESTIMATES]
        parts.append(f"{name}: {', '.join(both)}")
    n = found.estimates[0].pooled.n
    return f"Over the {count(n, 'structure')} that have both, the rank correlation with {'; with '.join(parts)}."


def units(found: Validation, reference: str) -> str:
    """That the reference may be in another unit, and what then; empty where nothing says so."""
    doubt = found.unit_doubt
    if doubt is None:
        return ""
    then = "Then every error here is wrong: give forces in eV/Å."
    if doubt.ratio is None:
        return (
            f"Warning: half of the forces of {reference} are above {three_digits(doubt.median)} eV/Å, as in no ordinary structure: are they in "
            f"another unit? {then}"
        )
    return (
        f"Warning: the forces of {reference} point as the model's do and are {three_digits(doubt.ratio)} times as large: they look like "
        f"{doubt.unit}. {then}"
    )


def sentences(found: Validation, reference: str) -> list[str]:
    """The whole of it, in the order in which it matters."""
    both = (("error_conservative", found.conservative), ("error_direct", found.direct))
    return [
        text
        for text in (
            units(found, reference),
            headline(found, reference),
            beside(found),
            calibrated(found.calibration_conservative, "error_conservative"),
            calibrated(found.calibration_direct, "error_direct"),
            *(part for error, detection in both for part in (detected(detection, error), alarmed(detection, error))),
            consensus(found),
            energies(found),
        )
        if text
    ]
