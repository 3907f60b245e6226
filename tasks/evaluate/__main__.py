"""Entry of `python -m tasks.evaluate`."""

import sys

from tasks.evaluate.command import main

if __name__ == "__main__":
    sys.exit(main())
