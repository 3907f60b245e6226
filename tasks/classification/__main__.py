"""Entry of the classification task: fit, validate, test, predict."""

import sys

from esbnn_core.lit.cli import run
from tasks.classification.data import ClassificationDataModule
from tasks.classification.module import ClassificationModule

if __name__ == "__main__":
    sys.exit(run(ClassificationModule, ClassificationDataModule))
