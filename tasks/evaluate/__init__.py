"""One checkpoint: what is expected of it against what it is measured to do."""

from tasks.evaluate.command import evaluate_name, main

__all__ = ["evaluate_name", "main"]
