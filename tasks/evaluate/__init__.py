"""One checkpoint: what is expected of it against what it is measured to do."""

from tasks.evaluate.command import evaluate_name, main
from tasks.evaluate.measure import Measured, evaluate
from tasks.evaluate.options import EvaluateRequest

__all__ = ["EvaluateRequest", "Measured", "evaluate", "evaluate_name", "main"]
