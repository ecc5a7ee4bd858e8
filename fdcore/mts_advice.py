"""What a recorded run of the MTS advisor says: drift against cost, stride by stride, and the largest stride that keeps the drift small. Pure
functions of a recorded motion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fdcore.motion import COMPLETED, Motion, mean_of_known, pooled_slope, speed, summary
from fdcore.statistics import Slope
from fdcore.tasks.mts_advisor import AdvisorParameters
from fdcore.units import ns_per_day


@dataclass(frozen=True)
class Arm:
    """One driver of the advisor's comparison. `temperature_error_K`: mean temperature less that of the conservative arm;
    `cost_of_direct`: time of the processor per step over that of the direct arm. `within`: its drift differs from that of the
    conservative arm by no more than the tolerance; `allowed`: and so does every drift that its interval leaves possible."""

    name: str
    driver: str
    stride: int | None
    drift: Slope | None
    temperature_K: float | None
    temperature_error_K: float | None
    ns_per_day: float | None
    cost_of_direct: float | None
    within: bool | None
    allowed: bool | None


@dataclass(frozen=True)
class Advice:
    """All arms, and the largest stride up to which every one is allowed; None where not even the smallest is, or where it
    cannot be known yet."""

    arms: tuple[Arm, ...]
    recommended: int | None
    tolerance: float
    text: str


def advice(motion: Motion) -> Advice:
    """What the advisor's run says so far."""
    parameters: AdvisorParameters = AdvisorParameters.of(motion.spec)
    tolerance = parameters.tolerance_meV_per_atom_per_ps
    legs = list(enumerate(motion.legs))[1:]
    found = {k: [summary(motion, k, s) for s in range(len(motion.systems))] for k, _ in legs}
    drifts = {k: pooled_slope([s.drift for s in found[k]]) for k, _ in legs}
    complete = {k: all(s.stopped_because == COMPLETED for s in found[k]) for k, _ in legs}
    reference, direct = legs[0][0], legs[-1][0]
    mean = {k: mean_of_known([s.temperature_K for s in found[k]]) for k, _ in legs}
    rate = {k: found[k][0].steps_per_second for k, _ in legs}
    cost = {k: speed(motion, k, "processor_seconds") for k, _ in legs}
    arms = []
    for k, leg in legs:
        base, own = drifts[reference], drifts[k]
        within = allowed = None
        # Of an arm that still runs nothing is known; of one that has ended early it is that it did.
        if base is not None and own is not None and complete[reference] and (complete[k] or motion.result is not None):
            apart = abs(own.slope - base.slope)
            within = complete[k] and apart <= tolerance
            allowed = within and own.half_width is not None and apart + own.half_width <= tolerance
        # What one arm costs of another is that of the processor: a machine that was busy with one of them only would mislead.
        fast, own_cost, mine = cost[direct], cost[k], rate[k]
        arms.append(
            Arm(
                name=leg.name,
                driver=leg.driver,
                stride=leg.mts_stride if leg.driver == "mts" else None,
                drift=own,
                temperature_K=mean[k],
                temperature_error_K=None if None in (mean[k], mean[reference]) else mean[k] - mean[reference],
                ns_per_day=None if mine is None else ns_per_day(mine * len(motion.systems), leg.timestep_fs),
                cost_of_direct=None if own_cost is None or fast is None else fast / own_cost,
                within=within,
                allowed=allowed,
            )
        )
    return Advice(tuple(arms), *_recommend(arms, tolerance))


def _recommend(arms: Sequence[Arm], tolerance: float) -> tuple[int | None, float, str]:
    strides = [a for a in arms if a.stride is not None]
    if any(a.allowed is None for a in strides):
        return None, tolerance, "Not all strides have run yet."
    best = None
    for arm in strides:
        if not arm.allowed:
            break
        best = arm
    if best is None and strides[0].within:
        return (
            None,
            tolerance,
            f"These runs are too short to tell a drift of {tolerance:g} meV/atom/ps from fluctuation: take more steps, or more replicas.",
        )
    if best is None:
        return (
            None,
            tolerance,
            (
                f"No stride keeps the drift within {tolerance:g} meV/atom/ps of the conservative run: drive with F_c, or take a smaller time step."
            ),
        )
    faster = ""
    if best.cost_of_direct is not None and arms[0].cost_of_direct is not None:
        faster = f" It costs {best.cost_of_direct / arms[0].cost_of_direct:.2f} of F_c alone."
    return (
        best.stride,
        tolerance,
        (
            f"Correct every {best.stride} steps: the drift stays within {tolerance:g} meV/atom/ps of the conservative run.{faster}"
        ),
    )
