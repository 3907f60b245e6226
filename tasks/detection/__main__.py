"""Entry of `python -m tasks.detection`: fit, validate, test, predict."""

import sys

from esbnn_core.lit.cli import run
from tasks.detection.data import VOCDataModule
from tasks.detection.module import DetectionModule

if __name__ == "__main__":
    sys.exit(run(DetectionModule, VOCDataModule))
