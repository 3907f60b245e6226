"""Entry of `python -m tasks.super_resolution`: fit, validate, test, predict."""

import sys

from esbnn_core.lit.cli import run
from tasks.super_resolution.data import SRDataModule
from tasks.super_resolution.module import SuperResolutionModule

if __name__ == "__main__":
    sys.exit(run(SuperResolutionModule, SRDataModule, links=("scale",)))
