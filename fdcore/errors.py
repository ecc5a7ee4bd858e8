"""One exception tree. Every error carries a message in the user's words and a hint: the next thing to do.

FdcoreError
├── StructureError              the file or structure cannot be used
│   ├── FormatError             not the format it claims to be, torn, or not text
│   ├── LimitError              larger or slower than the limits allow
│   └── GeometryError           cell, positions or distances that no model can read
├── ModelError                  the model cannot be used
│   ├── UnknownModelError       no model of that name
│   ├── WeightsError            weights missing, gated, damaged or of another architecture
│   ├── UnsupportedStructureError   this model cannot read this structure (element, pbc, charge)
│   ├── BuildError              the environment of a model that needs its own cannot be built
│   └── ComputeError            the model ran and gave something unusable (NaN, out of memory)
│       ├── UnconvergedError    an iteration (SCF) that did not end: there is no number
│       └── WorkerError         the process that a model runs in ended, hangs, or is of another version
├── JobError                    a run cannot be submitted, found or carried on
│   ├── UnknownRunError         no such run, or somebody else's
│   ├── QuotaError              more runs or storage than the operator allows
│   ├── RunStateError           the run is not in a state in which this can be done
│   └── StoreError              the database or the files of a run cannot be read or written
└── UsageError                  contradictory or impossible request

Only pages and the command line catch these and show them (STYLE 9); nothing in fdcore turns a failed quantity into a number.
"""

from __future__ import annotations


class FdcoreError(Exception):
    """Base of all errors that fdcore raises on purpose.

    Parameters
    ----------
    message : what happened, to what, in the user's words.
    hint : the next step that would help.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.message, self.hint)


class StructureError(FdcoreError):
    """The file or structure cannot be used."""


class FormatError(StructureError):
    """Not the format it claims to be, torn, empty, or not text."""


class LimitError(StructureError):
    """Larger than the limits, or not read within them."""


class GeometryError(StructureError):
    """A cell, positions or distances that no model can read."""


class ModelError(FdcoreError):
    """The model cannot be used."""


class UnknownModelError(ModelError):
    """No model of that name."""


class WeightsError(ModelError):
    """Weights are missing, gated, damaged, or belong to another architecture."""


class UnsupportedStructureError(ModelError):
    """This model cannot read this structure: an element, a boundary condition, a missing charge or spin."""


class ComputeError(ModelError):
    """The model ran and what it gave is unusable: NaN, out of memory."""


class BuildError(ModelError):
    """The environment of a model that needs one of its own cannot be built."""


class UnconvergedError(ComputeError):
    """An iteration, of a density to self-consistency, did not end: there is no number."""


class WorkerError(ComputeError):
    """The process that a model runs in ended, hangs, or is of another version."""


class UsageError(FdcoreError):
    """A contradictory or impossible request."""


class JobError(FdcoreError):
    """A run cannot be submitted, found or carried on."""


class UnknownRunError(JobError):
    """No such run, or it belongs to somebody else: the two are not told apart."""


class QuotaError(JobError):
    """More runs or more storage than the operator allows."""


class RunStateError(JobError):
    """The run is not in a state in which this can be done."""


class StoreError(JobError):
    """The database or the files of a run cannot be read or written."""
