"""How the neighbour-list package is imported: quietly, and without the compiler it would bring along.

nvalchemiops decorates a small helper with torch.compile. That imports torch's compiler (7 s of every start, measured on two
cores) and compiles for 10 s on the first batch, for a step that takes milliseconds as it is. During this one import
torch.compile therefore hands functions back unchanged; afterwards it is itself again.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import Any

_IMPORTING = threading.Lock()


def import_neighbour_lists() -> None:
    """Import the package once; cheap to call again. Its kernels stop greeting on stdout, errors still show."""
    import torch
    import warp

    warp.config.log_level = warp.LOG_ERROR
    with _IMPORTING:
        compile_function = torch.compile
        torch.compile = _unchanged  # type: ignore[assignment]
        try:
            importlib.import_module("nvalchemiops.torch.neighbors")
        finally:
            torch.compile = compile_function


def _unchanged(function: Callable | None = None, **options: Any) -> Callable:
    """torch.compile's two forms of use, `@compile` and `@compile(...)`, without the compilation."""
    del options
    return function if function is not None else lambda f: f
