"""From numbers to words: may this model be trusted on this structure, and why.

U_Delta alone ranks; it is not calibrated, it saturates far out of distribution and misses consensus failures (both forces
wrong together). So the verdict also looks at distances, force scale, element pairs, neighbour ties and the confidence head,
and says "unknown" where nothing can be compared. The thresholds are conventions, named here and shown in the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ase.data import covalent_radii

from fdcore.distribution import ReferenceDistribution
from fdcore.records import Evaluation, Evidence, EvidenceStatus, ModelCard, Structure, Verdict, VerdictLevel
from fdcore.site_symmetry import forces_vanish_by_symmetry
from fdcore.structures import closest_distance, closest_per_pair, without_neighbours

# U_Delta up to the first share of the reference distribution is ordinary, beyond the second alarming.
ORDINARY_SHARE = 0.95
ALARMING_SHARE = 0.99
# An atom stands out when its u_i is this many times the median over atoms, and not small in itself.
OUTLIER_TIMES_MEDIAN = 3.0
# Closest distance against the sum of covalent radii, where training distances are not known.
SHORT_BOND = 0.7
CRUSHED_BOND = 0.5
# Largest |F_nc| (eV/Å) that relaxations and MD produce, where the training range is not known.
LARGE_FORCE = 10.0
# A neighbour shell is split when the next neighbour outside the cut is this close (Å).
TIE_A = 1e-3
# Expected error of the confidence head (eV/Å): its bins end at 0.3.
CONFIDENCE_LOOK = 0.1
CONFIDENCE_FAIL = 0.2
CHARGE_AND_SPIN = "Charge and spin"

DOES_NOT_TELL = (
    "U_Delta compares the model with itself. It cannot see a mistake that both forces share, its size is not the size of the "
    "error, and far from anything the model knows it stops growing while the error goes on."
)


def judge(
    structure: Structure, evaluation: Evaluation, card: ModelCard, reference: ReferenceDistribution | None
) -> Verdict:
    """The verdict on one evaluated structure. `reference`: the model's shipped distribution, None if it has none."""
    # Needed twice, and most of what a verdict costs.
    pairs = closest_per_pair(structure) if reference is not None and reference.closest_A else {}
    evidence = [
        _agreement(structure, evaluation, reference),
        _outliers(structure, evaluation),
        _closest(structure, card, reference, pairs),
        _force_scale(evaluation, reference),
        _element_pairs(card, reference, pairs),
    ]
    if structure.kind not in card.trained_on:
        evidence.append(_kind(structure, card))
    if not card.needs_charge_spin and (structure.charge or (structure.spin or 1) != 1):
        evidence.append(_unread(structure, card))
    if card.neighbour_cap is not None:
        evidence.append(_ties(evaluation, card.neighbour_cap))
    if evaluation.confidence is not None:
        evidence.append(_confidence(structure, evaluation.confidence))
    percentile = None if reference is None else reference.percentile(evaluation.force_delta)
    level, sentence = _summary(evidence)
    return Verdict(level, sentence, tuple(evidence), percentile)


def _summary(evidence: Sequence[Evidence]) -> tuple[VerdictLevel, str]:
    failed = [e for e in evidence if e.status == "fail"]
    looks = [e for e in evidence if e.status == "look"]
    open_questions = [e for e in evidence if e.status == "unknown"]
    if failed:
        return "unreliable", f"Do not rely on this model here: {_lower(failed[0].text)}"
    if open_questions:
        return "unknown", f"This cannot be judged: {_lower(open_questions[0].text)}"
    if looks:
        return "caution", f"Use with care: {_lower(looks[0].text)}"
    return (
        "consistent",
        "The two forces agree as well as they do on structures this model was tested on, and nothing else looks unusual.",
    )


def _agreement(structure: Structure, evaluation: Evaluation, reference: ReferenceDistribution | None) -> Evidence:
    value = evaluation.force_delta
    name = "Agreement of the two forces"
    if reference is None:
        words = (
            "no reference distribution ships for this model. Compare structures with each other: U_Delta ranks them."
        )
        return Evidence(name, "unknown", f"U_Delta is {value:.3g} eV/Å, but {words}")
    ordinary, alarming = reference.quantile(ORDINARY_SHARE), reference.quantile(ALARMING_SHARE)
    if value > alarming:
        text = f"U_Delta {value:.3g} eV/Å is larger than on {ALARMING_SHARE:.0%} of known structures ({alarming:.3g} eV/Å)."
        return Evidence(name, "fail", text)
    if value > ordinary:
        text = f"U_Delta {value:.3g} eV/Å is larger than on {ORDINARY_SHARE:.0%} of known structures ({ordinary:.3g} eV/Å)."
        return Evidence(name, "look", text)
    if forces_vanish_by_symmetry(structure):
        text = "Symmetry alone makes every force vanish here, so the two cannot disagree. Displace the atoms a little and score again."
        return Evidence(name, "unknown", text)
    text = f"U_Delta {value:.3g} eV/Å is within the {ORDINARY_SHARE:.0%} of known structures that stay below {ordinary:.3g}."
    return Evidence(name, "pass", text)


def _outliers(structure: Structure, evaluation: Evaluation) -> Evidence:
    per_atom = evaluation.force_delta_per_atom
    name = "Single atoms"
    threshold = OUTLIER_TIMES_MEDIAN * max(float(np.median(per_atom)), 0.01)
    atoms = tuple(int(i) for i in np.argsort(-per_atom, kind="stable") if per_atom[i] > threshold)
    if not atoms:
        return Evidence(name, "pass", "The disagreement is spread evenly over the atoms.")
    text = f"{_atoms(structure, atoms)} disagree{'s' if len(atoms) == 1 else ''} more than {OUTLIER_TIMES_MEDIAN:g} times the median atom."
    return Evidence(name, "look", text, atoms)


Pairs = Mapping[str, tuple[float, int, int]]


def _closest(structure: Structure, card: ModelCard, reference: ReferenceDistribution | None, pairs: Pairs) -> Evidence:
    """Atoms that are too close, and atoms with nobody near enough to act on them."""
    known = card.cutoff_A > 0 and not card.acts_beyond_cutoff
    alone = without_neighbours(structure, card.cutoff_A) if known else ()
    if structure.n_atoms == 1 and (alone or not structure.periodic):
        return Evidence("Closest atoms", "pass", "A single atom without neighbours.")
    found = _distances(structure, reference, pairs)
    if not alone:
        return found
    has, them = ("has", "it") if len(alone) == 1 else ("have", "them")
    text = (
        f"{_atoms(structure, alone)} {has} no neighbour within the {card.cutoff_A:g} Å that this model sees: nothing acts on {them}, so the "
        f"forces on {them} say nothing."
    )
    if found.status != "pass":
        return Evidence(found.name, found.status, f"{found.text} {text}", found.atoms)
    status: EvidenceStatus = "unknown" if len(alone) == structure.n_atoms else "look"
    return Evidence(found.name, status, text, alone)


def _distances(structure: Structure, reference: ReferenceDistribution | None, pairs: Pairs) -> Evidence:
    name = "Closest atoms"
    if reference is not None:
        for pair, (distance, i, j) in sorted(pairs.items(), key=lambda item: item[1][0]):
            known = reference.closest_A.get(pair)
            if known is not None and distance < known:
                words = f"{_atoms(structure, (i, j))} are {distance:.2f} Å apart, closer than any {pair} in the training data ({known:.2f} Å)."
                return Evidence(name, "fail" if distance < 0.9 * known else "look", words, (i, j))
    # Beyond what the pairs look at, nothing is close.
    nearest = min(pairs.values(), default=None)
    closest = closest_distance(structure) if nearest is None else (nearest[0], *sorted(nearest[1:]))
    assert closest is not None
    distance, i, j = closest
    bond = float(covalent_radii[structure.numbers[i]] + covalent_radii[structure.numbers[j]])
    words = f"{_atoms(structure, (i, j))} are {distance:.2f} Å apart; their covalent radii add up to {bond:.2f} Å."
    if distance < CRUSHED_BOND * bond:
        return Evidence(name, "fail", words, (i, j))
    if distance < SHORT_BOND * bond:
        return Evidence(name, "look", words, (i, j))
    return Evidence(name, "pass", f"The shortest distance, {distance:.2f} Å, is an ordinary one.", (i, j))


def _force_scale(evaluation: Evaluation, reference: ReferenceDistribution | None) -> Evidence:
    name = "Size of the forces"
    norms = np.linalg.norm(evaluation.forces_direct, axis=1)
    worst = int(np.argmax(norms))
    largest = float(norms[worst])
    known = LARGE_FORCE if reference is None or reference.largest_force is None else reference.largest_force
    if largest <= known:
        return Evidence(name, "pass", f"The largest direct force, {largest:.3g} eV/Å, is in the usual range.")
    words = (
        f"The direct force on atom {worst} is {largest:.3g} eV/Å, beyond the {known:.3g} eV/Å of ordinary structures."
    )
    return Evidence(name, "fail" if largest > 2 * known else "look", words, (worst,))


def _element_pairs(card: ModelCard, reference: ReferenceDistribution | None, pairs: Pairs) -> Evidence:
    name = "Elements"
    if reference is None or not reference.closest_A:
        return Evidence(name, "pass", "Every element occurs in the training data.")
    new = {
        pair: place for pair, place in pairs.items() if pair not in reference.closest_A and place[0] <= card.cutoff_A
    }
    if not new:
        return Evidence(
            name, "pass", "Every element, and every pair of neighbouring elements, occurs in the training data."
        )
    atoms = tuple(sorted({i for _, *ij in new.values() for i in ij}))
    listed = ", ".join(sorted(new))
    return Evidence(name, "fail", f"The training data has no structure in which {listed} are neighbours.", atoms)


def _kind(structure: Structure, card: ModelCard) -> Evidence:
    """A molecule has surroundings that no crystal has; the inside of a large droplet is much like the liquid in its cell."""
    name = "Kind of structure"
    if structure.periodic:
        return Evidence(name, "look", f"{card.id} was trained without periodic cells: {card.periodic}.")
    return Evidence(name, "fail", f"This is a molecule, and {card.id} has never seen one: it reads {card.periodic}.")


def _unread(structure: Structure, card: ModelCard) -> Evidence:
    """A charge or a spin that is given to a model that has no place for it."""
    given = [f"charge {structure.charge:+d}"] if structure.charge else []
    if (structure.spin or 1) != 1:
        given.append(f"spin multiplicity {structure.spin}")
    text = f"{' and '.join(given).capitalize()} were given, but {card.id} does not read them: another charge or spin gives the same numbers."
    if len(given) == 1:
        text = text.replace("were given", "was given").replace("read them", "read it")
    return Evidence(CHARGE_AND_SPIN, "look", text)


def _ties(evaluation: Evaluation, cap: int) -> Evidence:
    name = "Neighbour shells"
    gap = evaluation.graph_tie_A
    if gap is None:
        return Evidence(name, "pass", f"No atom has more neighbours than the {cap} the model keeps.")
    if gap > TIE_A:
        return Evidence(
            name, "pass", f"The {cap} nearest neighbours are well defined (gap of {gap:.2g} Å to the next)."
        )
    words = (
        f"The model keeps {cap} neighbours and the next one is equally far ({gap:.1g} Å): energy and both forces depend on "
        "which is dropped. Compare with the model's 'inf' sibling."
    )
    return Evidence(name, "look", words)


def _confidence(structure: Structure, confidence: np.ndarray) -> Evidence:
    name = "Confidence head"
    mean, worst = float(confidence.mean()), int(np.argmax(confidence))
    words = f"The model itself expects force errors of {mean:.2g} eV/Å, most on {_atoms(structure, (worst,))} ({confidence[worst]:.2g}; its scale ends at 0.3)."
    status: EvidenceStatus = "fail" if mean > CONFIDENCE_FAIL else "look" if mean > CONFIDENCE_LOOK else "pass"
    return Evidence(name, status, words, () if status == "pass" else (worst,))


def _atoms(structure: Structure, indices: Sequence[int]) -> str:
    """ "Na3, Cl7 and 12 more"."""
    shown = [f"{structure.symbols[i]}{i}" for i in indices[:4]]
    if len(indices) > 4:
        return ", ".join(shown) + f" and {len(indices) - 4} more"
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]


def _lower(text: str) -> str:
    """A sentence as a clause: the first letter is lowered unless it starts a symbol or a name."""
    first = text.split(" ", 1)[0]
    return text if any(c.isdigit() or c == "_" for c in first) or first.isupper() else text[0].lower() + text[1:]
