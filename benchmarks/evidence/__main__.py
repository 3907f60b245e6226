"""Entry of `python -m benchmarks.evidence`."""

from benchmarks.evidence.tables import main

if __name__ == "__main__":
    main()
