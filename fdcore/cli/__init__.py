"""The command line: the same verbs as the pages. Results go to stdout, everything else to stderr.

Exit codes: 0 everything asked was done, 1 a part was not (the others still are; `doctor`: something fails), 2 wrong usage or
no model, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from fdcore.cli.output import EXIT_OK, EXIT_STOPPED, EXIT_USAGE, stdout_for_results
from fdcore.cli.parser import build_parser
from fdcore.errors import FdcoreError


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `fdcore`."""
    arguments = build_parser().parse_args(argv)
    with stdout_for_results() as results:
        try:
            return arguments.run(arguments, results)
        except FdcoreError as error:
            print(f"fdcore: {error.message}", file=sys.stderr)
            if error.hint:
                print(f"        {error.hint}", file=sys.stderr)
            return EXIT_USAGE
        except BrokenPipeError:
            # `fdcore score ... | head`: the reader has gone, which is not an error of ours.
            os.dup2(os.open(os.devnull, os.O_WRONLY), results.fileno())
            return EXIT_OK
        except KeyboardInterrupt:
            print("\nfdcore: stopped", file=sys.stderr)
            return EXIT_STOPPED
