"""Entry of `python -m tasks.reproduce`."""

import sys

from tasks.reproduce.command import main

if __name__ == "__main__":
    sys.exit(main())
