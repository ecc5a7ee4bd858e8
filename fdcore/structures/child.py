"""The process that parses: `python -m fdcore.structures.child`. See `wire` for the contract."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from fdcore.structures.limits import Limits
from fdcore.structures.read import read_source
from fdcore.structures.wire import serve


def bound_memory(limits: Limits) -> None:
    """Lower the address space to what the request allows, where the system can (not on macOS or Windows)."""
    try:
        import resource
    except ImportError:
        return
    with contextlib.suppress(ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = limits.max_memory_MB * 1_000_000
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    # The parent decides when to stop: Ctrl-C in its terminal reaches this process too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The real standard output belongs to the protocol; whatever a library prints goes to standard error.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    # Imported before "ready", so that no file pays for it.
    from fdcore.structures import cif, json_text, outcar, poscar, vasprun, xyz  # noqa: F401 - cif brings scipy.spatial too

    # The parent that is gone needs no answer.
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin.buffer, out, read_source, bound_memory)


if __name__ == "__main__":
    main()
