"""The Lightning module: it trains, resumes with a difference of 0.0, scores, writes pictures, exports and refuses."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from PIL import Image
from torch import Tensor

from esbnn_core import load_checkpoint
from esbnn_core.checkpoint.format import save_checkpoint
from esbnn_core.checkpoint.official import to_official
from esbnn_core.errors import InputError, TrainingError
from esbnn_core.lit.callbacks import EpochSeed, ExportWeights
from esbnn_core.training.on_bits import bit_training_report
from tasks.super_resolution import module as task
from tasks.super_resolution.data import SRDataModule
from tasks.super_resolution.export import ExportPipeline
from tasks.super_resolution.metrics import psnr_y, ssim_y
from tasks.super_resolution.module import SuperResolutionModule
from tasks.super_resolution.pipeline import SuperResolutionPipeline
from tasks.super_resolution.resize import imresize
from tests.helpers.super_resolution.tiny import OPTIONS, make_module, make_sets, write_sets

MakeTrainer = Callable[..., L.Trainer]


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sr"))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def state(module: SuperResolutionModule) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def merged(parts: Any) -> dict[str, float]:
    """Lightning gives one dict a loader."""
    return {key: value for part in parts for key, value in part.items()}


@pytest.mark.slow
def test_training_lowers_the_loss_on_real_images(sets: Path, make_trainer: MakeTrainer) -> None:
    losses: list[float] = []

    class Note(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            losses.append(float(trainer.callback_metrics["train_loss_epoch"]))

    trained = make_module(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2))
    trainer = make_trainer(max_epochs=8, callbacks=[EpochSeed(0), Note()], limit_val_batches=0)
    trainer.fit(trained, make_sets(sets))
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize("rule", ["first", "sample"])
def test_the_loss_is_l1_of_noise_added_by_the_schedule(sets: Path, make_trainer: MakeTrainer, rule: str) -> None:
    """One timestep for a batch under the original's rule, else one an image; noisy images by hand."""
    seen: list[tuple[Tensor, ...]] = []
    trained = make_module(unet={"group_rule": rule, "dropout": 0.0})
    trained.network.register_forward_hook(lambda module, args, out: seen.append((*args, out.sample.detach())))
    data = make_sets(sets, batch_size=3)
    batches: list[dict[str, Tensor]] = []
    losses: list[float] = []

    class Note(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
            batches.append(batch)
            losses.append(float(outputs["loss"]))

    make_trainer(max_epochs=2, callbacks=[EpochSeed(0), Note()], limit_val_batches=0).fit(trained, data)
    times = [tuple(t.tolist()) for _, t, *_ in seen]
    assert len(set(times)) == len(times) == 4  # new ones at every step
    assert all(len(set(t)) == (1 if rule == "first" else 3) for t in times)
    bars = torch.from_numpy(np.cumprod(1 - np.linspace(1e-6, 1e-2, 2000)))
    for (noisy, t, condition, predicted), batch, loss in zip(seen, batches, losses, strict=True):
        assert torch.equal(condition, batch["condition"])
        bar = bars[t].reshape(-1, 1, 1, 1)
        noise = (noisy - bar.sqrt() * batch["hr"]) / (1 - bar).sqrt()
        late = bar.flatten() < 0.99  # early on, the noise is lost in the rounding of the image
        assert (noise[late].mean().abs() < 0.1 and (noise[late].std() - 1).abs() < 0.1) or not late.any()
        assert loss == pytest.approx(float((predicted - noise).abs().mean()), rel=2e-3)


def fit(
    make_trainer: MakeTrainer, sets: Path, trained: SuperResolutionModule, average: bool, *more: Any, **options: Any
) -> dict[str, Tensor]:
    callbacks = [EpochSeed(0), *more, *([EMAWeightAveraging(decay=0.5)] if average else [])]
    source = options.pop("ckpt_path", None)
    trainer = make_trainer(max_epochs=2, limit_val_batches=0, callbacks=callbacks, **options)
    trainer.fit(trained, make_sets(sets), ckpt_path=source)
    return state(trained)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("average", "stops"), [(False, ["end-epoch=0-step=3", "epoch=1-step=4"]), (True, ["epoch=1-step=4"])]
)
def test_resume_differs_by_nothing(
    tmp_path: Path, sets: Path, make_trainer: MakeTrainer, average: bool, stops: list[str]
) -> None:
    """From an epoch's end and from the middle of one, with dropout, and with an average of the weights beside them."""
    keep = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}-{step}", save_top_k=-1, every_n_train_steps=4)
    ends = ModelCheckpoint(dirpath=tmp_path, filename="end-{epoch}-{step}", save_top_k=-1)
    whole = fit(make_trainer, sets, make_module(), average, keep, ends, enable_checkpointing=True)
    assert not same(whole, make_module().state_dict())
    for stop in stops:
        resumed = make_module()
        torch.manual_seed(99)  # what a new process would draw must not matter
        assert same(whole, fit(make_trainer, sets, resumed, average, ckpt_path=str(tmp_path / f"{stop}.ckpt")))


@pytest.mark.slow
def test_validation_scores_every_image_by_the_papers_metrics(
    tmp_path: Path, sets: Path, make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = make_module(weights=saved(tmp_path), num_inference_steps=3, val_steps=1)
    numbers = merged(make_trainer().validate(judged, make_sets(sets, val=["small", "odd"]), verbose=False))
    assert len(judged.scores.images) == 5 and {"val_psnr", "val_ssim"} <= set(numbers)
    tested = merged(make_trainer().test(judged, make_sets(sets), verbose=False))
    data = make_sets(sets)
    data.setup("test")
    for name, loader in zip(data.test_names, data.test_dataloader(), strict=True):
        items = [item for batch in loader for item in batch]
        results = [judged.upsample([item], "test")[0] for item in items]
        pixels = [np.rint(r.permute(1, 2, 0).double().numpy() * 255).astype(np.uint8) for r in results]
        psnr = np.mean([psnr_y(p, item.hr, 2) for p, item in zip(pixels, items, strict=True)])
        ssim = np.mean([ssim_y(p, item.hr, 2) for p, item in zip(pixels, items, strict=True)])
        assert tested[f"test_psnr_{name}"] == pytest.approx(psnr, rel=1e-6)
        assert tested[f"test_ssim_{name}"] == pytest.approx(ssim, rel=1e-5)
        bicubic = np.mean([psnr_y(imresize(item.lr, 2), item.hr, 2) for item in items])
        (row,) = [line for line in capsys_lines(capsys, judged) if line.startswith(name)]
        assert f" {len(items)} " in row and f"{psnr:.2f}" in row and f"{bicubic:.2f}" in row
    # other steps, other pictures: validation has its own number of them
    assert numbers["val_psnr"] != pytest.approx(np.mean([s.psnr for s in judged.scores.images]), abs=1e-3)


def capsys_lines(capsys: pytest.CaptureFixture[str], module: SuperResolutionModule) -> list[str]:
    capsys.readouterr()
    assert module.scores is not None
    return module.scores.table().splitlines()


def saved(folder: Path, **options: Any) -> str:
    """A file of the tiny network's weights."""
    path = folder / "weights.safetensors"
    save_checkpoint(make_module(**options).network, path)
    return str(path)


def test_test_prints_the_table_the_cost_and_why_there_is_no_lpips(
    tmp_path: Path, sets: Path, make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(task.Lpips, "find", classmethod(lambda cls: "LPIPS is not measured, no weights"))
    module = make_module(weights=saved(tmp_path))
    make_trainer().test(module, make_sets(sets), verbose=False)
    printed = capsys.readouterr().out
    assert module.scores.table() in printed and "LPIPS is not measured, no weights" in printed
    assert " at 256x256" in printed and "parameters 0.042 M" in printed
    assert all(image.lpips is None for image in module.scores.images)


def test_lpips_is_logged_where_it_is_at_hand(
    tmp_path: Path, sets: Path, make_trainer: MakeTrainer, monkeypatch: Any
) -> None:
    class Distance(task.Lpips):
        def __init__(self) -> None:
            super().__init__(torch.nn.Linear(1, 1))

        def __call__(self, sr: Any, hr: Any, scale: int = 1) -> float:
            return float(np.abs(sr.astype(float) - hr).mean())

    monkeypatch.setattr(task.Lpips, "find", classmethod(lambda cls: Distance()))
    module = make_module(weights=saved(tmp_path))
    numbers = merged(make_trainer().test(module, make_sets(sets), verbose=False))
    want = [image.lpips for image in module.scores.images if image.dataset == "odd"]
    assert numbers["test_lpips_odd"] == pytest.approx(np.mean(want)) and min(want) > 0
    assert not any("lpips" in name for name in module.state_dict())


@pytest.mark.slow
def test_scores_depend_on_no_batch(tmp_path: Path, sets: Path, make_trainer: MakeTrainer) -> None:
    module = make_module(weights=saved(tmp_path)).double()
    found = []
    for batch_size, sample_batch in ((1, 1), (3, 2), (2, 3)):
        module.sample_batch = sample_batch
        make_trainer(precision="64-true").test(module, make_sets(sets, batch_size=batch_size), verbose=False)
        found.append({(s.dataset, s.name): (s.psnr, s.ssim) for s in module.scores.images})
    assert len(found[0]) == 5
    assert found[0] == found[1] == found[2]


def test_predict_writes_pictures_of_the_sources_modes_and_a_sheet(
    tmp_path: Path, make_trainer: MakeTrainer, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (14, 11, 4), dtype=np.uint8)
    for name, mode in (("clear", "RGBA"), ("grey", "L"), ("plain", "RGB"), ("tiny", "RGB")):
        part = pixels[:3, :2] if name == "tiny" else pixels
        Image.fromarray(part).convert(mode).save(images / f"{name}.png")
    module = make_module(weights=saved(tmp_path), predictions=str(out))
    paths = make_trainer().predict(module, SRDataModule(images=str(images), batch_size=3))
    assert [path.name for batch in paths for path in batch] == ["clear.png", "grey.png", "plain.png", "tiny.png"]
    assert {path.name for path in out.iterdir()} == {"clear.png", "grey.png", "plain.png", "tiny.png", "_sheet.png"}
    for name, mode in (("clear", "RGBA"), ("grey", "L"), ("plain", "RGB"), ("tiny", "RGB")):
        with Image.open(images / f"{name}.png") as source, Image.open(out / f"{name}.png") as result:
            assert result.mode == mode and result.size == (2 * source.width, 2 * source.height)
    assert f"{out}: 4 images x2, side by side in _sheet.png" in capsys.readouterr().out
    assert 0 < len(list(images.iterdir())) == 4


@pytest.mark.slow
def test_predict_keeps_the_sets_apart(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    elsewhere = tmp_path / "other"
    for folder, side in ((tmp_path / "sets" / "a", 16), (tmp_path / "sets" / "b" / "c", 18), (elsewhere, 20)):
        folder.mkdir(parents=True)
        Image.new("RGB", (side, side)).save(folder / "same.webp")
    for names, out in (
        (["a"], "one"),
        (["a", "b/c"], "two"),
        (["b/c", str(elsewhere)], "three"),
        (["a", "../other"], "four"),
    ):
        data = SRDataModule(root=str(tmp_path / "sets"), test=names, batch_size=2)
        make_trainer().predict(make_module(weights=saved(tmp_path), predictions=str(tmp_path / out)), data)
    found = {str(path.relative_to(tmp_path)): Image.open(path).width for path in tmp_path.glob("**/same.png")}
    assert found == {
        **{"one/same.png": 16, "two/a/same.png": 16, "two/b/c/same.png": 18, "three/b/c/same.png": 18},
        **{f"three{elsewhere}/same.png": 20, "four/a/same.png": 16, "four/other/same.png": 20},
    }


def test_predict_never_replaces_its_sources(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    module = make_module(weights=saved(tmp_path), predictions=str(tmp_path))
    with pytest.raises(InputError, match=r"the prediction of .*a\.png would replace .*a\.png: set model\.predictions"):
        make_trainer().predict(module, SRDataModule(images=str(tmp_path)))
    assert (tmp_path / "a.png").read_bytes() == before
    (tmp_path / "hr").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "hr" / "a.png")
    before = (tmp_path / "hr" / "a.png").read_bytes()
    module = make_module(weights=saved(tmp_path), predictions=str(tmp_path / "hr"))
    with pytest.raises(InputError, match=r"prediction of .*a\.png would replace .*hr/a\.png: set model"):
        make_trainer().predict(module, SRDataModule(images=str(tmp_path), hr=str(tmp_path / "hr")))
    assert (tmp_path / "hr" / "a.png").read_bytes() == before
    shutil.rmtree(tmp_path / "hr")
    (tmp_path / "a.png").rename(tmp_path / "_sheet.png")
    module = make_module(weights=saved(tmp_path), predictions=str(tmp_path / "out"))
    with pytest.raises(InputError, match=r"_sheet\.png must not be named _sheet, as the sheet of predict is"):
        make_trainer().predict(module, SRDataModule(images=str(tmp_path)))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"tau": 2}], ids=["bi", "es"])
def test_a_run_exports_files_that_upsample_the_same(
    tmp_path: Path, sets: Path, make_trainer: MakeTrainer, options: dict[str, Any]
) -> None:
    trained = make_module(unet=options)
    callbacks = [EpochSeed(0), ExportWeights(str(tmp_path)), ExportPipeline(str(tmp_path))]
    make_trainer(max_epochs=1, limit_val_batches=0, callbacks=callbacks).fit(trained, make_sets(sets))
    data = make_sets(sets)
    data.setup("test")
    items = next(iter(data.test_dataloader()[0]))
    trained.eval()
    want = trained.upsample(items, "test")
    for name in ("weights", "packed"):
        path = str(tmp_path / f"{name}.safetensors")
        other = make_module(unet=options, weights=path).eval()
        for a, b in zip(want, other.upsample(items, "test"), strict=True):
            assert torch.equal(a, b) if name == "weights" else torch.allclose(a, b, atol=1e-3)
    with pytest.raises(InputError, match="the network is packed and holds no latent weights to train"):
        make_trainer(max_epochs=1).fit(other, make_sets(sets))
    assert Path(path).stat().st_size < (tmp_path / "weights.safetensors").stat().st_size
    pipe = SuperResolutionPipeline.from_pretrained(tmp_path / "pipeline")
    assert same(pipe.unet.state_dict(), trained.network.state_dict())
    assert {p.name for p in tmp_path.iterdir()} >= {"pipeline"} and not list(tmp_path.glob(".*"))
    # a second run replaces the folder as a whole
    ExportPipeline(str(tmp_path)).on_fit_end(make_trainer(), make_module(unet=options))
    assert not same(SuperResolutionPipeline.from_pretrained(tmp_path / "pipeline").unet.state_dict(), state(trained))


def test_an_official_file_is_read(tmp_path: Path) -> None:
    source = make_module()
    path = tmp_path / "net_g.pth"
    torch.save({"params": to_official(source.network)}, path)
    with torch.no_grad():
        fresh = copy.deepcopy(source)
        for parameter in fresh.network.parameters():
            parameter.zero_()
    loaded = make_module(weights=str(path))
    assert same(loaded.state_dict(), source.state_dict()) and not same(loaded.state_dict(), fresh.state_dict())
    with pytest.raises(InputError, match=r"gone\.pth does not exist"):
        make_module(weights="gone.pth")


def test_bfloat16_trains_and_validates(sets: Path, make_trainer: MakeTrainer) -> None:
    trained = make_module()
    trainer = make_trainer(max_epochs=1, precision="bf16-mixed")
    trainer.fit(trained, make_sets(sets))
    assert torch.isfinite(trainer.callback_metrics["train_loss_epoch"]) and "val_psnr" in trainer.callback_metrics
    assert {parameter.dtype for parameter in trained.parameters()} == {torch.float32}
    assert not same(trained.state_dict(), make_module().state_dict())


def test_training_on_bits_gives_the_same_gradients(sets: Path, make_trainer: MakeTrainer) -> None:
    def fit(**options: Any) -> dict[str, Tensor]:
        # without dropout: its mask follows the memory format, which differs
        options = {"unet": {"dropout": 0.0}, **options}
        trained = make_module(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1), **options)
        report = set(bit_training_report(trained.network).values())
        assert report == {""} if "train_on_bits" in options else "" not in report
        first = next(module for module in trained.modules() if isinstance(module, torch.nn.Conv2d))
        first.register_forward_pre_hook(lambda _, args: layouts.append(layout(args[0])))
        make_trainer(max_steps=1, limit_val_batches=0).fit(trained, make_sets(sets))
        return state(trained)

    def layout(x: Tensor) -> bool:
        return x.is_contiguous(memory_format=torch.channels_last)

    layouts: list[bool] = []
    plain, bits, last = fit(), fit(train_on_bits=True), fit(train_on_bits=True, channels_last=True)
    assert layouts == [False, False, True]
    for found in (bits, last):
        assert all(torch.allclose(plain[name], found[name], atol=1e-5) for name in plain)
    assert not same(plain, make_module().state_dict())


def test_a_loss_that_is_not_finite_stops_with_its_place(sets: Path, make_trainer: MakeTrainer) -> None:
    trained = make_module()
    trained.network.middle[0].conv1.conv.weight.data[0] = float("nan")
    with pytest.raises(
        TrainingError, match=r"at step 0, first not finite in parameter middle\.0\.conv1\.conv\.weight: lower"
    ):
        make_trainer(max_epochs=1, limit_val_batches=0).fit(trained, make_sets(sets))


def test_what_does_not_fit_is_one_sentence(tmp_path: Path, sets: Path, make_trainer: MakeTrainer) -> None:
    with pytest.raises(InputError, match=r"an option of model\.unet must be one of in_channels, .*, got 'depth'"):
        make_module(unet={"depth": 3})
    with pytest.raises(InputError, match=r"total_steps of model\.unet must be the 2000 of training, got 1000"):
        make_module(unet={"total_steps": 1000})
    with pytest.raises(InputError, match="val_steps must be a whole number of at least 1, got 0"):
        make_module(val_steps=0)
    for run in ("validate", "test", "predict"):
        with pytest.raises(InputError, match=f"there are no trained weights to {run}: give a file"):
            getattr(make_trainer(), run)(make_module(), make_sets(sets))
    with pytest.raises(InputError, match=r"data\.scale and model\.scale must be equal, got 4 and 2"):
        make_trainer(max_epochs=1).fit(make_module(), make_sets(sets, scale=4))
    with pytest.raises(InputError, match="does not fit the network"):
        make_module(unet={"tau": 2}, weights=saved(tmp_path))
    assert OPTIONS["inner_channels"] == 8
    loaded = load_checkpoint(saved(tmp_path), make_module().network)
    assert same(loaded.state_dict(), make_module().network.state_dict())
