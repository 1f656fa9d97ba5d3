"""`python -m geopose` is the command `geopose`."""

from __future__ import annotations

import sys

from geopose.cli import main

if __name__ == "__main__":
    sys.exit(main())
