"""DetectionModule: a detector of an mmdet config, its losses, and average precision as in VOC and COCO."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from esbnn_core.checkpoint.official import load_official
from esbnn_core.errors import InputError, reason_of
from esbnn_core.lit.distributed import from_all_processes
from esbnn_core.lit.finite_loss import check_finite
from esbnn_core.lit.image_files import check_none_replaced
from esbnn_core.lit.module import OnBits, TaskModule
from esbnn_core.lit.precision import load_weights
from esbnn_core.lit.weight_decay import DecayRule
from tasks.detection.annotations import VOC_CLASSES
from tasks.detection.cost import count_detector
from tasks.detection.data import Batch
from tasks.detection.drawing import write_drawing, write_results
from tasks.detection.mmdet import api as mm
from tasks.detection.models import register as networks
from tasks.detection.models.bottleneck import Bottleneck
from tasks.detection.scoring import ImageResult, Scores, collect, collect_from_all, score
from tasks.detection.weights import load_backbone_

NETWORKS = networks.__name__
"""Imported because it registers our networks, which an mmdet config may name."""


class DetectionModule(TaskModule):
    """Trains and evaluates one detector of mmdet.

    Args:
        model: an mmdet config file with a `model`, or such a model as a dict. Weights that a config would fetch are
            not fetched: they come from `backbone` or `weights`.
        overrides: values of the model by dotted name, as mmdet's --cfg-options, e.g. {backbone.tau: 4}.
        num_classes: of the box head (linked to the data module on the command line).
        backbone: file of a trained backbone to start from (tasks.detection.weights).
        weights: file of a whole detector: a .safetensors, latent or packed (a packed one cannot be trained), or an
            official one.
        from_scratch: train from random weights; otherwise training needs `backbone` or `weights`.
        train_on_bits: compute the sums of the binary units by the packed operators in training too
            (esbnn_core.train_on_bits_): the same gradients from less memory; "bfloat16" also rounds them before
            backward's convolutions.
        optimizer: parameters -> optimizer.
        decay: weight decay by kind of parameter, in place of the optimizer's own.
        lr_scheduler: optimizer -> scheduler; ProgressLR receives the length of the run.
        lr_interval: whether the scheduler advances every step or every epoch.
        channels_last: memory format of network and images; with train_on_bits on a CPU it saves copies of maps.
        predictions: folder that predict writes, default predictions in the run's own.
        draw_above: lowest score drawn.

    Logs train_loss and its parts, and for val_ and test_ map_11point, map_area, coco, coco50, coco75, in percent, over
    every image once. When the learning rate first falls, every Bottleneck is switched on (papers.md#bidet-ssd,
    #bidet-faster-rcnn).

    Raises:
        InputError: at construction a config, option or file that does not fit; at the start of fit, if there are no
            weights to start from.
    """

    what = "detector"
    start_files = ("weights", "backbone")
    monitor = "val_map_11point"
    peak_lr: Tensor

    def __init__(
        self,
        model: str | dict[str, Any],
        overrides: dict[str, Any] | None = None,
        num_classes: int = 20,
        backbone: str | None = None,
        weights: str | None = None,
        from_scratch: bool = False,
        train_on_bits: OnBits = False,
        optimizer: OptimizerCallable = torch.optim.Adam,
        decay: DecayRule | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "step",
        channels_last: bool = False,
        predictions: str | None = None,
        draw_above: float = 0.3,
    ) -> None:
        super().__init__()
        config = model_config(model, overrides or {}, num_classes)
        self.fetched = mm.list_pretrained(config)
        if from_scratch and (backbone or weights):
            raise InputError(
                f"from_scratch must be given without a file of weights, got {backbone or weights} too: leave one out"
            )
        if backbone and weights:
            raise InputError("backbone must be given without weights, which contain a backbone: leave one of them out")
        if not 0 <= draw_above <= 1:
            raise InputError(f"draw_above must be a score from 0 to 1, got {draw_above}")
        self.network: Any = mm.build(config)
        if backbone is not None:
            load_backbone_(self.network, backbone)
        if weights is not None:
            _load_weights(self.network, weights)
        self.train_on_bits(train_on_bits)
        self.lay_out(channels_last)
        self.started_from = weights or backbone
        self.begun = from_scratch or self.started_from is not None
        self.make_optimizer, self.make_scheduler, self.lr_interval = optimizer, lr_scheduler, lr_interval
        self.decay, self.num_classes = decay, num_classes
        self.predictions, self.draw_above = predictions, draw_above
        self.found: list[ImageResult] = []
        self.files: dict[str, str] = {}
        self.scores: Scores | None = None
        self.input_size: tuple[int, int, int] | None = None
        # in the checkpoint, so that a run resumed right after the first decay knows of it
        self.register_buffer("peak_lr", torch.zeros((), dtype=torch.float64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DetectionModule":
        """Move or convert as any module does, but leave the peak rate exact.

        Rounded up to bfloat16 it would look like the first decay.
        """
        peak = self.peak_lr
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.peak_lr = peak.to(self.peak_lr.device)
        return self

    def check_fit(self, resumes: bool) -> None:
        """Raise InputError unless the detector may be trained; the command line calls this before it writes a file.

        Args:
            resumes: whether the weights come from the checkpoint of a run.
        """
        self.check_latent()
        if not self.begun and not resumes:
            fetched = f" (the config names {self.fetched[0]}, which is not fetched)" if self.fetched else ""
            raise InputError(
                f"the detector has no trained backbone to start from{fetched}: give its file as model.backbone, or set "
                f"model.from_scratch true"
            )

    def on_fit_start(self) -> None:
        """Lightning's hook, after a checkpoint is loaded."""
        self.check_fit(resumes=False)

    def forward(self, images: Tensor) -> Any:
        """Normalised images (N, 3, H, W) -> the raw outputs of the heads, as mmdet's mode "tensor"."""
        return self.network(images.contiguous(memory_format=self.memory_format))

    def prepare(self, batch: Batch, training: bool) -> dict[str, Any]:
        """inputs (N, 3, H, W), normalised and padded to the largest, and data_samples, on the module's device."""
        preprocessor = self.network.data_preprocessor
        # mmdet's preprocessor keeps a device of its own, which Lightning does not set
        if preprocessor.device != self.device:
            preprocessor.to(self.device)
        data: dict[str, Any] = preprocessor(batch, training)
        data["inputs"] = data["inputs"].to(self.dtype, memory_format=self.memory_format)
        return data

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Switch the bottlenecks on at the first step with a learning rate below an earlier one."""
        super().on_train_batch_start(batch, batch_idx)
        optimizer: Any = self.optimizers()
        lr = float(optimizer.param_groups[-1]["lr"])  # of what has no rate of its own
        if lr < float(self.peak_lr) * (1 - 1e-9):
            for module in self.network.modules():
                if isinstance(module, Bottleneck):
                    module.switch_on()
        self.peak_lr.fill_(max(lr, float(self.peak_lr)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch; stops the run at the first loss that is not finite."""
        data = self.prepare(batch, training=True)
        loss, parts = self.network.parse_losses(self.network(**data, mode="loss"))
        check_finite(loss, self.global_step, self.network, data["inputs"], lambda: self.network(**data, mode="loss"))
        number = len(batch["inputs"])
        named = {f"train_{name}": value.detach() for name, value in parts.items() if name != "loss"}
        self.log_dict(named, batch_size=number)
        self.log("train_loss", loss.detach(), prog_bar=True, batch_size=number)
        self.log("train_loss_epoch", loss.detach(), on_step=False, on_epoch=True, sync_dist=True, batch_size=number)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Lightning's hook."""
        self.found += collect(self.detect(batch))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Lightning's hook."""
        self.found += collect(self.detect(batch))

    def on_predict_start(self) -> None:
        """Lightning's hook; refuses a folder of predictions in which a drawing would replace an image."""
        super().on_predict_start()
        records = getattr(getattr(self.trainer.predict_dataloaders, "dataset", None), "records", ())
        images = [Path(record["img_path"]) for record in records]
        drawings = [self._drawing(str(record["img_id"])) for record in records]
        check_none_replaced(zip(drawings, images, strict=True), images)

    def _drawing(self, identity: str) -> Path:
        return self.prediction_folder / f"{identity}.png"

    def predict_step(self, batch: Batch, batch_idx: int) -> list[mm.InstanceData]:
        """Detect on a batch, and draw bboxes, scores and labels of each image into the folder of predictions."""
        samples = self.detect(batch)
        found = collect(samples)
        sources = [sample.metainfo["img_path"] for sample in samples if not sample.metainfo.get("padded", False)]
        for source, image in zip(sources, found, strict=True):
            write_drawing(source, self._drawing(image.identity), image, self.classes, self.draw_above)
            # with an identity of folder and name the file is named with its folder too
            self.files[image.identity] = str(Path(image.identity).parent / Path(source).name)
        self.found += found
        return [sample.pred_instances for sample in samples]

    def detect(self, batch: Batch) -> list[mm.DetDataSample]:
        """The batch's samples with pred_instances (bboxes, scores, labels), in pixels of the original images."""
        data = self.prepare(batch, training=False)
        self.input_size = tuple(data["inputs"].shape[1:])
        samples: list[mm.DetDataSample] = self.network(**data, mode="predict")
        return samples

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes: the data module's, else VOC's, else numbers."""
        data = getattr(self._trainer, "datamodule", None)
        names = getattr(data, "classes", VOC_CLASSES)
        return names if len(names) == self.num_classes else [str(i) for i in range(self.num_classes)]

    def on_validation_epoch_end(self) -> None:
        """Lightning's hook."""
        self._report("val_")

    def on_test_epoch_end(self) -> None:
        """Lightning's hook; the first process prints."""
        scores = self._report("test_")
        if not self.trainer.is_global_zero:
            return
        print(scores.table())
        try:
            assert self.input_size is not None
            print(count_detector(self.network, self.input_size).sentence())
        except InputError as error:
            print(f"OPs were not counted: {error}; parameters {sum(p.numel() for p in self.network.parameters()):,}")

    def on_predict_epoch_end(self) -> None:
        """Lightning's hook; the first process writes predictions.json."""
        files = dict(from_all_processes(list(self.files.items())))
        found, self.found, self.files = collect_from_all(self.found), [], {}
        if self.trainer.is_global_zero:
            write_results(self.prediction_folder / "predictions.json", found, files, self.classes)
            number = sum(len(image.scores) for image in found)
            print(f"{self.prediction_folder}: {len(found):,} images drawn, {number:,} detections in predictions.json")

    def _report(self, stage: str) -> Scores:
        found, self.found = collect_from_all(self.found), []
        self.scores = score(found, self.classes)
        values = {name: getattr(self.scores, name) for name in ("map_area", "coco", "coco50", "coco75")}
        # every process has all images and the same numbers: their mean is each of them
        self.log_dict({stage + name: value for name, value in values.items()}, sync_dist=True)
        self.log(f"{stage}map_11point", self.scores.map_11point, prog_bar=True, sync_dist=True)
        return self.scores


def model_config(model: str | dict[str, Any], overrides: dict[str, Any], num_classes: int) -> Any:
    """The model of an mmdet config, with overrides and the number of classes set in its box heads.

    Args:
        model: an mmdet config file, or a model as a dict.
        overrides: values by dotted name.
        num_classes: of the box heads.

    Raises:
        InputError: a config without a model, or an override that does not fit.
    """
    whole = mm.load_config(model) if isinstance(model, str) else mm.Config({"model": dict(model)})
    if not whole.get("model"):
        raise InputError(f"config {model} must have a model, got none: give another mmdet config file")
    try:
        whole.merge_from_dict({f"model.{name}": value for name, value in overrides.items()})
    except (TypeError, KeyError, AssertionError) as error:
        raise InputError(f"model.overrides cannot be set ({reason_of(error)}): name parts of the config") from error
    _set_classes(whole.model, num_classes)
    return whole.model


def _set_classes(config: Any, number: int) -> None:
    """Set num_classes of every bbox_head anywhere in the config; a cascade has a list of them."""
    for key, value in config.items() if isinstance(config, dict) else ():
        heads = value if isinstance(value, list | tuple) else [value]
        for head in heads:
            if key == "bbox_head" and isinstance(head, dict):
                head["num_classes"] = number
            _set_classes(head, number)


def _load_weights(network: nn.Module, path: str) -> None:
    if Path(path).suffix == ".safetensors":
        load_weights(path, network).train()
    else:
        load_official(network, path)
