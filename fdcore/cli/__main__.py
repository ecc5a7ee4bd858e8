"""`python -m fdcore.cli` is `fdcore`."""

import sys

from fdcore.cli import main

sys.exit(main())
