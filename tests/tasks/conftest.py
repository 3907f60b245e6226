"""Shared pieces of the tasks' tests: the embedded real images, a trainer without noise, detectors with few channels."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from tasks.classification.data import ClassificationDataModule
from tests.helpers.classification import quiet_trainer


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A root that holds fashion_mnist_mini, unpacked once."""
    root = str(tmp_path_factory.mktemp("data"))
    ClassificationDataModule(root=root).prepare_data()
    return root


@pytest.fixture(scope="session")
def make_data(data_root: str) -> Callable[..., ClassificationDataModule]:
    """A small data module over the embedded images."""

    def make(**options: Any) -> ClassificationDataModule:
        return ClassificationDataModule(
            **{"root": data_root, "batch_size": 16, "val_size": 25, "train_size": 64, "test_size": 50, **options}
        )

    return make


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., L.Trainer]:
    """A CPU trainer that writes under tmp_path and reseeds every epoch."""

    return partial(quiet_trainer, tmp_path)


@pytest.fixture
def narrow_trunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the widths of BiDet's detectors, for properties that do not depend on them."""
    # here, because most tests of classification need no mmdet
    from tests.helpers.detection.narrow import narrow

    narrow(monkeypatch)
