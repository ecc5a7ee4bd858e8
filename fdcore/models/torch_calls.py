"""What every family that computes with torch shares: arrays out of tensors, repeatable sums, shortages of memory by one name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from fdcore.models.base import OutOfMemory


def array(tensor: torch.Tensor) -> NDArray[np.float64]:
    return tensor.detach().to("cpu", torch.float64).numpy()


@contextlib.contextmanager
def _repeatable() -> Iterator[None]:
    """The same numbers to the last bit every time, on a CPU: by default torch adds up gradients of shared rows in whatever
    order its threads come (2e-7 eV/Å from call to call). It costs nothing that can be measured. CUDA is left as it is."""
    if torch.are_deterministic_algorithms_enabled():
        yield
        return
    filling = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filling


def guarded[T](device: str, run: Callable[[], T]) -> T:
    """Repeatable to the last bit on a CPU; the backend's out-of-memory errors become the one that the base class acts on."""
    try:
        with _repeatable() if device == "cpu" else contextlib.nullcontext():
            return run()
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise OutOfMemory from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise OutOfMemory from error
        raise
