"""Entry of `python -m benchmarks.evidence`."""

from benchmarks.command import run_command
from benchmarks.evidence.tables import main

if __name__ == "__main__":
    run_command(main)
