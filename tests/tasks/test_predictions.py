"""Classification's predict: a folder of one's own images gives the answers that the test split gives."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from esbnn_core.errors import InputError
from tasks.classification.data import ClassificationDataModule
from tasks.classification.module import ClassificationModule
from tasks.classification.predictions import FolderImages, best_classes, class_names, write_predictions
from tests.helpers.classification import make_module

MakeTrainer = Callable[..., Any]


def predict(module: ClassificationModule, data: ClassificationDataModule, trainer: Any) -> list[dict[str, str]]:
    trainer.predict(module, data, return_predictions=False)
    with (Path(str(module.predictions)) / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_gives_what_the_test_split_gives(
    tmp_path: Path, make_data: Callable[..., ClassificationDataModule], make_trainer: MakeTrainer
) -> None:
    split = make_data(test_size=6)
    split.setup("test")
    for i in range(6):
        split.splits["test"].dataset[i][0].save(tmp_path / f"{i:02}.png")
    module = make_module(predictions=str(tmp_path / "out")).eval()
    rows = predict(module, make_data(predict=str(tmp_path)), make_trainer())
    assert [row["file"] for row in rows] == [f"{i:02}.png" for i in range(6)]
    with torch.no_grad():
        shares = module(torch.stack([split.splits["test"][i, 0][0] for i in range(6)])).softmax(1)
    for row, share in zip(rows, shares, strict=True):
        order = share.argsort(descending=True)[:5].tolist()
        assert [int(row[key]) for key in ("class", *(f"class_{i}" for i in range(2, 6)))] == order
        assert row["name"] == datasets.FashionMNIST.classes[order[0]]
        assert float(row["probability"]) == pytest.approx(share.max().item(), abs=1e-5)
    whole = predict(module, make_data(), make_trainer())
    assert [row["class"] for row in whole[:6]] == [row["class"] for row in rows] and whole[3]["file"] == "3"


def test_folders_in_the_folder_are_read_and_hidden_ones_are_not(tmp_path: Path) -> None:
    for name in ("b/c d.JPG", "a.webp", ".git/e.png", "b/.f.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 7), (255, 0, 0)).save(path, format="PNG")
    (tmp_path / "b" / "readme.md").touch()
    images = FolderImages(tmp_path, 3, None)
    assert images.names == ["a.webp", "b/c d.JPG"]
    assert images[0][0].size == (9, 7) and images[0][0].mode == "RGB" and images[1][1] == 1
    grey = FolderImages(tmp_path, 1, 28)
    assert grey[0][0].size == (28, 28) and grey[0][0].mode == "L"
    assert np.unique(np.asarray(grey[0][0])).tolist() == [76]  # red in ITU-R 601's grey


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(InputError, match=r"folder .* holds no image .*: set data\.predict"):
        FolderImages(tmp_path, 3, None)
    with pytest.raises(InputError, match="does not exist"):
        FolderImages(tmp_path / "none", 3, None)


def test_padding_is_left_out_and_rows_are_in_order(tmp_path: Path) -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    found = best_classes(logits, torch.tensor([1, -1, 0]))
    assert [(place, classes[0]) for place, classes, _ in found] == [(1, 1), (0, 2)]
    assert all(sum(shares) == pytest.approx(1) for _, _, shares in found)
    write_predictions(tmp_path / "p.csv", found, ["x,1.png", "y.png"], ["zero", "one", "two"])
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0] == "file,class,name,probability,class_2,name_2,probability_2,class_3,name_3,probability_3"
    assert lines[1].startswith('"x,1.png",2,two,0.99') and lines[2].startswith("y.png,1,one,0.66")


def test_names_of_classes() -> None:
    assert [name.split(",")[0] for name in class_names(None, 1000)[:2]] == ["tench", "goldfish"]
    assert class_names(None, 3) == ["0", "1", "2"]
