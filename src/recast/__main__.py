"""`python -m recast` runs the command `recast`."""

import sys

from recast.cli import main

if __name__ == "__main__":
    sys.exit(main())
