"""``python -m upcycle``: the command line, where the program itself is not on the path."""

import sys

from upcycle.cli import main

if __name__ == "__main__":
    sys.exit(main())
