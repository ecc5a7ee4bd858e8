"""The only conversions of the program. Inside dynamics the units are Å, eV and amu; time follows from them.

The unit of time is sqrt(amu Å^2 / eV), about 10.18 fs; momenta are amu Å over that unit. The constants are those of ASE (CODATA
2014), which torch-sim shares; a test holds both and an independent integrator against each other.
"""

from __future__ import annotations

from ase import units as _ase

# One femtosecond and one picosecond in the internal unit of time.
FS: float = _ase.fs
PS: float = 1000.0 * _ase.fs
# Boltzmann's constant in eV/K.
KB: float = _ase.kB
MEV_PER_EV = 1000.0
SECONDS_PER_DAY = 86_400.0
PS_PER_NS = 1000.0


def ns_per_day(steps_per_second: float, timestep_fs: float) -> float:
    """How far a simulation gets in a day of computing, in nanoseconds."""
    return steps_per_second * timestep_fs * 1e-6 * SECONDS_PER_DAY
