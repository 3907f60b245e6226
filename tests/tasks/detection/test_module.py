"""The Lightning module: it trains, resumes with a difference of 0.0, scores, draws, exports and refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor, nn

from esbnn_core import BinaryConfig, binarize_, load_checkpoint
from esbnn_core.checkpoint.format import save_checkpoint
from esbnn_core.errors import InputError, TrainingError
from esbnn_core.lit.callbacks import EpochSeed, ExportWeights
from esbnn_core.lit.data import mix_seed
from esbnn_core.lit.weight_decay import DecayRule
from tasks.detection.cost import count_detector
from tasks.detection.data import VOCDataModule
from tasks.detection.models.bottleneck import Bottleneck
from tasks.detection.module import DetectionModule
from tests.helpers.detection.tiny import TINY, make_detector

MakeVoc = Callable[..., VOCDataModule]
MakeTrainer = Callable[..., L.Trainer]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def decaying(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, [3])


def module() -> DetectionModule:
    return make_detector(lr_scheduler=decaying)


@pytest.mark.slow
def test_training_lowers_the_loss_on_real_images(make_voc: MakeVoc, make_trainer: MakeTrainer) -> None:
    losses: list[float] = []

    class Note(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            losses.append(float(trainer.callback_metrics["train_loss_epoch"]))

    trained = make_detector(optimizer=lambda p: torch.optim.Adam(p, lr=2e-3))
    trainer = make_trainer(max_epochs=12, callbacks=[EpochSeed(0), Note()], limit_val_batches=0)
    trainer.fit(trained, make_voc(augment=False, batch_size=4))
    assert losses[-1] < 0.6 * losses[0]
    assert {"train_loss_cls", "train_loss_bbox"} <= set(trainer.callback_metrics)


def test_an_image_without_objects_trains_and_evaluates(voc: Path, make_voc: MakeVoc, make_trainer: MakeTrainer) -> None:
    for path in (voc / "VOC2007" / "Annotations").iterdir():
        path.write_text("<annotation/>")
    trained, data = make_detector(), make_voc(root=str(voc))
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    trainer = make_trainer(max_epochs=1)
    trainer.fit(trained, data)
    assert not same(before, trained.state_dict())
    assert all(torch.isfinite(tensor).all() for tensor in trained.state_dict().values())
    (numbers,) = trainer.test(trained, data, verbose=False)
    assert numbers["test_map_11point"] == numbers["test_coco"] == 0


@pytest.mark.slow
def test_resume_differs_by_nothing(tmp_path: Path, make_voc: MakeVoc, make_trainer: MakeTrainer) -> None:
    """From an epoch's end, and from the middle of one, in which the learning rate has just been lowered."""

    def fit(detector: DetectionModule, source: str | None = None, **options: Any) -> dict[str, Tensor]:
        make_trainer(max_epochs=3, **options).fit(detector, make_voc(), ckpt_path=source)
        return {name: tensor.clone() for name, tensor in detector.state_dict().items()}

    keep = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}-{step}", save_top_k=-1, every_n_train_steps=2)
    whole = fit(module(), enable_checkpointing=True, callbacks=[EpochSeed(0), keep])
    for stop in ("epoch=0-step=4", "epoch=1-step=6"):
        torch.manual_seed(99)  # what a new process would draw must not matter
        resumed = make_detector(lr_scheduler=decaying, from_scratch=False)
        assert same(whole, fit(resumed, str(tmp_path / f"{stop}.ckpt"))), stop


def test_predict_never_replaces_its_sources(tmp_path: Path, make_voc: MakeVoc, make_trainer: MakeTrainer) -> None:
    for name in ("a.jpg", "b.png"):
        Image.new("RGB", (64, 48), "red").save(tmp_path / name)
    before = (tmp_path / "b.png").read_bytes()
    data = make_voc(predict=str(tmp_path))
    with pytest.raises(InputError, match=r"the prediction of .*b\.png would replace .*b\.png: set model\.predictions"):
        make_trainer().predict(make_detector(predictions=str(tmp_path)), data)
    # nothing was drawn before that either
    assert (tmp_path / "b.png").read_bytes() == before and not (tmp_path / "a.png").exists()
    make_trainer().predict(make_detector(predictions=str(tmp_path / "out")), make_voc(predict=str(tmp_path)))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png", "predictions.json"]


@pytest.mark.parametrize("rule", [None, DecayRule("affine", 0.0, rate=0.0)], ids=["one rate", "frozen norms"])
@pytest.mark.parametrize("resume", [False, True])
def test_the_bottleneck_is_switched_on_at_the_first_decay(
    tmp_path: Path, make_voc: MakeVoc, make_trainer: MakeTrainer, resume: bool, rule: DecayRule | None
) -> None:
    on: list[bool] = []

    class Note(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            on.append(bool(pl_module.network.bottleneck.on))

    def warm_then_drop(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (0.5, 1.0, 1.0, 0.1)[min(step, 3)])

    def made() -> DetectionModule:
        detector = make_detector(lr_scheduler=warm_then_drop, decay=rule)
        detector.network.bottleneck = Bottleneck(0.1, 0.2)
        return detector

    if resume:
        # behind the third step the rate is already low, and no rate of this process was higher
        keep = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=3)
        make_trainer(max_steps=3, enable_checkpointing=True, callbacks=[EpochSeed(0), keep]).fit(made(), make_voc())
    source = str(tmp_path / "step=3.ckpt") if resume else None
    make_trainer(max_steps=6, callbacks=[EpochSeed(0), Note()]).fit(made(), make_voc(), ckpt_path=source)
    assert on == [True] * 3 if resume else [False, False, False, True, True, True]


def test_predict_draws_boxes_and_writes_cocos_json(
    tmp_path: Path, make_voc: MakeVoc, make_trainer: MakeTrainer
) -> None:
    detector = make_detector(predictions=str(tmp_path / "out"), draw_above=0.0)
    data = make_voc()
    results = make_trainer().predict(detector, data)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"000243.png", "004774.png", "005642.png", "008257.png", "predictions.json"}
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [image["file_name"] for image in written["images"]] == sorted(n.replace("png", "jpg") for n in names)[:4]
    assert len(written["annotations"]) == sum(len(found) for batch in results or [] for found in batch) > 0
    size = {image["id"]: (image["width"], image["height"]) for image in written["images"]}
    for found in written["annotations"]:
        x, y, width, height = found["bbox"]
        assert 0 <= found["score"] <= 1 and 0 <= found["category_id"] < 20
        assert x >= 0 and y >= 0 and x + width <= size[found["image_id"]][0] + 0.01
        assert y + height <= size[found["image_id"]][1] + 0.01
    with Image.open(tmp_path / "out" / "000243.png") as drawn:
        source = Image.open(data.splits["predict"].records[0]["img_path"])
        assert drawn.size == source.size and drawn.tobytes() != source.convert("RGB").tobytes()


def test_test_prints_the_table_and_the_cost(
    make_voc: MakeVoc, make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer().test(make_detector(), make_voc(), verbose=False)
    printed = capsys.readouterr().out
    assert "4 images; VOC mAP" in printed and "COCO mAP" in printed and "tvmonitor" in printed
    assert "OPs 0.0" in printed and "at 64x64; parameters 0.8" in printed


def test_cost_is_that_of_the_layers_by_hand() -> None:
    detector = make_detector().network
    macs = 0

    def add(layer: Any, _: Any, output: Tensor) -> None:
        nonlocal macs
        macs += layer.weight.numel() * output.shape[2] * output.shape[3]

    cost = count_detector(detector, (3, 64, 64))
    for layer in detector.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(add)
    detector(torch.zeros(1, 3, 64, 64))
    assert cost.ops == macs and cost.binary_params == 0
    assert cost.params == sum(p.numel() for p in detector.parameters())


def test_bfloat16_trains(make_voc: MakeVoc, make_trainer: MakeTrainer) -> None:
    trained = make_detector()
    trainer = make_trainer(max_epochs=1, precision="bf16-mixed")
    trainer.fit(trained, make_voc())
    assert torch.isfinite(trainer.callback_metrics["train_loss_epoch"])
    assert {parameter.dtype for parameter in trained.parameters()} == {torch.float32}


def test_a_loss_that_is_not_finite_stops_with_its_place(make_voc: MakeVoc, make_trainer: MakeTrainer) -> None:
    trained = make_detector()
    trained.network.backbone.layer2[0].conv1.weight.data[0] = float("nan")
    with pytest.raises(
        TrainingError, match=r"at step 0, first not finite in parameter backbone\.layer2\.0\.conv1\.weight"
    ):
        make_trainer(max_epochs=1).fit(trained, make_voc())


def test_training_needs_a_start_and_evaluation_weights(
    tmp_path: Path, make_voc: MakeVoc, make_trainer: MakeTrainer
) -> None:
    fetching = {"backbone.init_cfg": {"type": "Pretrained", "checkpoint": "torchvision://resnet18"}}
    bare = make_detector(from_scratch=False, overrides=fetching)
    with pytest.raises(
        InputError, match=r"names torchvision://resnet18, which is not fetched.*model\.from_scratch true"
    ):
        make_trainer(max_epochs=1).fit(bare, make_voc())
    for run in ("validate", "test", "predict"):
        with pytest.raises(InputError, match=f"there are no trained weights to {run}"):
            getattr(make_trainer(), run)(make_detector(from_scratch=False), make_voc())
    with pytest.raises(InputError, match=r"from_scratch must be given without a file of weights, got a\.pth too"):
        DetectionModule(TINY, from_scratch=True, backbone="a.pth")


def test_a_backbone_file_is_loaded_strictly_but_for_its_read_out(tmp_path: Path) -> None:
    source = make_detector().network.backbone
    state = {name: tensor + 1 for name, tensor in source.state_dict().items()}
    path = tmp_path / "resnet.pth"
    torch.save({"state_dict": {**state, "fc.weight": torch.zeros(5, 128)}}, path)
    loaded = make_detector(from_scratch=False, backbone=str(path)).network.backbone
    assert same(loaded.state_dict(), state)
    torch.save({**{n: t for n, t in state.items() if n != "bn1.bias"}, "neck.w": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"bn1\.bias is missing; neck\.w is not expected"):
        make_detector(from_scratch=False, backbone=str(path))
    path.write_bytes(b"no pickle")
    with pytest.raises(InputError, match=r"resnet\.pth cannot be read as plain tensors"):
        make_detector(from_scratch=False, backbone=str(path))
    with pytest.raises(InputError, match=r"gone\.pth does not exist"):
        make_detector(from_scratch=False, backbone="gone.pth")


@pytest.mark.slow
def test_a_whole_detectors_file_gives_the_same_predictions(
    tmp_path: Path, make_voc: MakeVoc, make_trainer: MakeTrainer
) -> None:
    first = make_detector()
    make_trainer(max_epochs=1).fit(first, make_voc())
    save_checkpoint(first.network, tmp_path / "weights.safetensors")
    torch.manual_seed(mix_seed(5))
    second = DetectionModule(TINY, weights=str(tmp_path / "weights.safetensors"))
    found = [make_trainer().predict(m, make_voc()) for m in (first, second)]
    for one, two in zip(*found, strict=True):
        for a, b in zip(one, two, strict=True):
            assert torch.equal(a.bboxes, b.bboxes) and torch.equal(a.scores, b.scores) and len(a) > 0


@pytest.mark.slow
def test_a_run_exports_a_packed_detector_that_predicts_the_same(
    tmp_path: Path, make_voc: MakeVoc, make_trainer: MakeTrainer
) -> None:
    """No name in the file can build a detector: the config does, and the packed file goes into it."""

    def binary() -> DetectionModule:
        detector = make_detector()
        inner = BinaryConfig(filter_fn=lambda name, module: not isinstance(module, nn.Conv2d) or module.in_channels > 3)
        binarize_(detector.network.backbone, inner)
        return detector

    trained = binary()
    make_trainer(max_epochs=1, callbacks=[EpochSeed(0), ExportWeights(str(tmp_path))]).fit(trained, make_voc())
    found = [make_trainer().predict(trained, make_voc())]
    for name in ("weights", "packed"):
        other = binary()
        load_checkpoint(tmp_path / f"{name}.safetensors", other.network)
        found.append(make_trainer().predict(other, make_voc()))
        if name == "packed":
            with pytest.raises(InputError, match="the detector is packed and holds no latent weights"):
                make_trainer(max_epochs=1).fit(other, make_voc())
    assert (tmp_path / "packed.safetensors").stat().st_size < (tmp_path / "weights.safetensors").stat().st_size / 4
    for batches in zip(*found, strict=True):
        for latent, again, packed in zip(*batches, strict=True):
            assert torch.equal(latent.bboxes, again.bboxes) and len(latent) > 0
            assert torch.allclose(latent.bboxes, packed.bboxes, atol=1e-2)
            assert torch.equal(latent.labels, packed.labels)
            assert torch.allclose(latent.scores, packed.scores, atol=1e-4)
