"""Shared pieces of the model's tests: the official network, built and filled once, and small ones."""

import pytest

from esbnn_core.checkpoint.official import to_official
from tasks.super_resolution.unet import BIDiffSRUNet
from tests.helpers.golden import fill


@pytest.fixture(scope="session")
def official() -> BIDiffSRUNet:
    """The official network in float64, every tensor filled by its official name as the golden records were made."""
    unet = BIDiffSRUNet()
    assert len(to_official(unet)) == 1371
    fill(unet)
    return unet
