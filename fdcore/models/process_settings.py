"""What belongs to the whole process and packages change behind one's back: kept while one of them loads or runs."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import warnings
from collections.abc import Iterator

import numpy as np
import torch

# One at a time: what follows is global.
LOADING = threading.RLock()


@contextlib.contextmanager
def settings_kept() -> Iterator[None]:
    """Default precision, random states, logging and warnings as they were; meanwhile no package talks."""
    with LOADING:
        dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        root = logging.getLogger()
        handlers, level, disabled = root.handlers[:], root.level, root.manager.disable
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                logging.disable(logging.WARNING)
                torch.set_default_dtype(torch.float32)
                yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_float32_matmul_precision(precision)
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
            torch.set_rng_state(states[2])
            root.handlers[:] = handlers
            root.setLevel(level)
            logging.disable(disabled)
