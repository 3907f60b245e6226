"""Two processes on the CPU: one network, every image scored once."""

import os
import socket
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from esbnn_core.lit.callbacks import EpochSeed
from tests.helpers import processes
from tests.helpers.detection.small_bidet import detector, images
from tests.helpers.detection.tiny import make_detector

NAMES = ("bidet", "tiny")
"""BiDet's Faster R-CNN, and an SSD that learns something in a few steps."""


def trainer(**options: Any) -> L.Trainer:
    silent: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    silent |= {"enable_checkpointing": False, "use_distributed_sampler": False, "accelerator": "cpu"}
    return L.Trainer(**silent, num_sanity_val_steps=0, check_val_every_n_epoch=99, callbacks=[EpochSeed(0)], **options)


def module(name: str) -> Any:
    if name == "bidet":
        return detector(name)
    return make_detector(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=2e-3))


def data(name: str, folder: Path, **options: Any) -> Any:
    """For the SSD all images there are, an odd number to score; for Faster R-CNN four, one of them with an object."""
    if name == "tiny":
        lists = ["VOC2007/test", "VOC2007/train"]
        return images("ssd", folder, augment=False, train=lists, val=lists, test_size=11, **options)
    return images(
        name, folder, root=str(folder / "VOCdevkit"), train_size=4, test_size=3, group_by_aspect=True, **options
    )


def worker(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    # what torchrun sets, so that Lightning joins the two instead of starting others
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"WORLD_SIZE": "2"}
    for name in NAMES:
        epochs = 2 if name == "bidet" else 6
        both = trainer(devices=2, strategy=DDPStrategy(process_group_backend="gloo"), max_epochs=epochs)
        trained = module(name)
        both.fit(trained, data(name, Path(folder)))
        assert both.world_size == 2 and both.global_step == (2 if name == "bidet" else 18)
        # one process's statistics for all, as a file of the run holds them
        for buffer in trained.network.buffers():
            torch.distributed.broadcast(buffer, 0)
        both.validate(trained, data(name, Path(folder), batch_size=1), verbose=False)
        # as text: a class without objects has nan, which no number equals
        torch.save((trained.network.state_dict(), repr(trained.scores)), f"{folder}/{name}{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_one_network_and_score_every_image_once(tmp_path: Path, voc: Path) -> None:
    """In Faster R-CNN one process or both have no object in a step: still every parameter gets its gradient."""
    for name in (voc / "VOC2007/ImageSets/Main/train.txt").read_text().split()[1:4]:
        (voc / f"VOC2007/Annotations/{name}.xml").write_text("<annotation/>")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes.start(worker, 2, str(tmp_path), port)
    for name in NAMES:
        (first, scores), (second, others) = (
            torch.load(tmp_path / f"{name}{rank}.pt", weights_only=True) for rank in (0, 1)
        )
        start = module(name)
        assert all(torch.equal(value, second[key]) for key, value in first.items()), name
        learned = [key for key, p in start.network.named_parameters() if p.requires_grad]
        still = [key for key in learned if torch.equal(first[key], start.network.state_dict()[key])]
        assert len(still) < 0.1 * len(learned), still
        start.network.load_state_dict(first)
        trainer(devices=1).validate(start, data(name, tmp_path, batch_size=1), verbose=False)
        assert scores == others == repr(start.scores), name
        assert start.scores.images == (3 if name == "bidet" else 11)
        assert sum(row.found for row in start.scores.rows) > 20
    assert start.scores.map_11point > 5  # of the second: the numbers that agree say something
