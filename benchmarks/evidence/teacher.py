"""The real-valued ResNet-20 that teaches in the study's runs with distillation, and its training.

python -m benchmarks.evidence.teacher --data DATA [--epochs 10] [--seed 0] [--out benchmarks/results/teacher]

All 50,000 training images of CIFAR-10 at 16x16 with crop and mirror, SGD with one cycle. It writes cifar16.safetensors
(float16) and cifar16.json with its top-1 on the 10,000 test images, which chose nothing, and its command.
"""

import argparse
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from benchmarks.command import positive, run_command
from esbnn_core.files import ROOT, write_atomically
from esbnn_core.lit.refusals import ends_as_signalled
from tasks.classification.data import ClassificationDataModule
from tasks.classification.teachers import NetworkTeacher, load_teacher

WIDTHS = (16, 32, 64)
BLOCKS = 3
"""A stage's; of two convolutions each, with the stem and the classifier 20 layers."""


def build_resnet20(num_classes: int = 10) -> nn.Sequential:
    """He et al.'s ResNet for CIFAR (arXiv 1512.03385, section 4.2) with 1x1 shortcuts: (N, 3, H, W) -> (N, classes)."""
    before = WIDTHS[0]
    steps = OrderedDict[str, nn.Module](
        conv=nn.Conv2d(3, before, 3, padding=1, bias=False), norm=nn.BatchNorm2d(before), act=nn.ReLU()
    )
    for number, width in enumerate(WIDTHS, start=1):
        stage: list[nn.Module] = []
        for index in range(BLOCKS):
            stride = 2 if index == 0 and number > 1 else 1
            shortcut = None
            if stride > 1:
                shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            stage.append(BasicBlock(before, width, stride, shortcut))
            before = width
        steps[f"layer{number}"] = nn.Sequential(*stage)
    steps.update(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(before, num_classes))
    return nn.Sequential(steps)


class ResNet20Teacher(NetworkTeacher):
    """The network of build_resnet20 from a file that this module wrote.

    Args:
        path: of the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def build(self) -> nn.Module:
        fix = "train it with python -m benchmarks.evidence.teacher"
        return load_teacher(build_resnet20(), Path(self.path), "the study's teacher", fix)

    def build_untrained(self, num_classes: int) -> nn.Module:
        return build_resnet20(num_classes)


class Lesson(L.LightningModule):
    """Trains the teacher on labels; logs val_top1 in percent."""

    def __init__(self) -> None:
        super().__init__()
        self.network = build_resnet20()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Lightning's hook."""
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Lightning's hook."""
        hits = (self.network(batch[0]).argmax(1) == batch[1]).float()
        self.log("val_top1", 100 * hits.mean(), on_epoch=True, batch_size=len(hits))

    def configure_optimizers(self) -> Any:
        """SGD with one cycle up to 0.4."""
        optimizer = torch.optim.SGD(self.parameters(), 0.4, momentum=0.9, nesterov=True, weight_decay=5e-4)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.4, steps, pct_start=0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train_teacher(data: str, epochs: int, seed: int, out: Path) -> dict[str, Any]:
    """Train it and write both files; returns what the json has."""
    L.seed_everything(seed, verbose=False)
    lesson = Lesson()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with ends_as_signalled():
        trainer.fit(lesson, ClassificationDataModule("cifar10", data, image_size=16, on_device=True, seed=seed))
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in lesson.network.state_dict().items()}
    # of the file, in the precision that teaches
    lesson.network.load_state_dict(tensors)
    (found,) = trainer.validate(lesson, trainer.datamodule, verbose=False)
    record = {
        "command": f"python -m benchmarks.evidence.teacher --data DATA --epochs {epochs} --seed {seed}",
        "top1": found["val_top1"],
        "parameters": sum(p.numel() for p in lesson.parameters()),
        "epochs": epochs,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "cifar16.safetensors", save(tensors))
    write_atomically(out / "cifar16.json", (json.dumps(record, indent=2) + "\n").encode())
    return record


def main() -> None:
    """Train it and print its top-1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence.teacher", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", required=True, help="folder of cifar-10-batches-py")
    parser.add_argument("--epochs", type=positive, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "teacher")
    args = parser.parse_args()
    print(json.dumps(train_teacher(args.data, args.epochs, args.seed, args.out), indent=2))


if __name__ == "__main__":
    run_command(main)
