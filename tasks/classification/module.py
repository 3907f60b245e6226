"""ClassificationModule: a network by name, cross entropy or soft labels, top-1 and top-5."""

from collections.abc import Callable
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from esbnn_core import list_models, model_spec
from esbnn_core.errors import InputError, check_at_least, check_choice
from esbnn_core.lit.data import IGNORE
from esbnn_core.lit.distributed import from_all_processes
from esbnn_core.lit.finite_loss import check_finite
from esbnn_core.lit.module import OnBits, TaskModule
from esbnn_core.lit.precision import load_weights
from esbnn_core.lit.weight_decay import DecayRule
from esbnn_core.models import create_model
from esbnn_core.packed.layers import is_packed
from esbnn_core.transforms.real_weights import real_weights_
from tasks.classification.objectives import Batch, LabelObjective, Objective
from tasks.classification.predictions import Prediction, best_classes, write_predictions

Loaded = tuple[Tensor, Tensor]


class ClassificationModule(TaskModule):
    """Trains and evaluates one network of esbnn_core.list_models().

    Logs train_loss and train_top1 (their means as _epoch); val_ and test_ loss, top1 and top5, in percent, over every
    image once.

    Args:
        network: name.
        num_classes: of the read-out (linked to the data module on the command line).
        network_options: further options of create_model, e.g. {tau: 2, groups: 1, in_channels: 1}.
        weights: a .safetensors file to start from or to evaluate, latent or packed (a packed one cannot be trained).
        real_weights: binary activations but real weights, step 1 of the two-step recipes (papers.md#two-steps). Without
            a file the weights start as torch's own convolutions do. Step 2 is the same network without this option, and
            `weights` the file that step 1 exported.
        train_on_bits: take the sums of the binary units from the packed operators in training too, and keep bits for
            backward (esbnn_core.train_on_bits_): the same gradients from less memory. "bfloat16" also rounds the
            gradients before backward's convolutions, which is faster where the device computes in it. BNext begins
            with it once its temperature is annealed.
        optimizer: parameters -> optimizer.
        decay: weight decay by kind of parameter, in place of the optimizer's own.
        lr_scheduler: optimizer -> scheduler; ProgressLR is given the run's length.
        lr_interval: whether the scheduler advances every step or every epoch.
        objective: what is minimised (tasks.classification.objectives), default cross entropy with the labels. Its
            teachers are built when fit starts and kept out of the state.
        untrained_teachers: build teachers with random weights, to try a recipe without downloads.
        channels_last: memory format of network and images.
        compile_backend: backend of torch.compile for training, e.g. inductor; none by default. On a CPU it shortens a
            step by a tenth, after half a minute at the start; not verified on a GPU yet.
        predictions: folder that predict writes predictions.csv into, default predictions in the run's own.
    """

    monitor = "val_top1"

    def __init__(
        self,
        network: str,
        num_classes: int = 10,
        network_options: dict[str, Any] | None = None,
        weights: str | None = None,
        real_weights: bool = False,
        train_on_bits: OnBits = False,
        optimizer: OptimizerCallable = torch.optim.Adam,
        decay: DecayRule | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "step",
        objective: Objective | None = None,
        untrained_teachers: bool = False,
        channels_last: bool = False,
        compile_backend: str | None = None,
        predictions: str | None = None,
    ) -> None:
        super().__init__()
        if compile_backend is not None:  # the list alone loads the compiler, which takes seconds
            known = ["eager", *torch.compiler.list_backends(exclude_tags=())]
            check_choice("compile_backend", compile_backend, known)
        if network in list_models(kind="trunk"):
            raise InputError(
                f"network must be a classifier, got {network}, the trunk of a detector: train {network}_classifier"
            )
        if "num_classes" in (network_options or {}):
            raise InputError(
                "network_options must not have num_classes, which is that of the data: set data.num_classes"
            )
        check_at_least(2, data__num_classes=num_classes)  # one class has neither a loss nor an accuracy
        self.network: nn.Module = create_model(network, num_classes=num_classes, **(network_options or {}))
        if real_weights and train_on_bits:
            raise InputError(
                "only one of real_weights and train_on_bits can be set: train step 1 with real weights and step 2 on "
                "bits"
            )
        if real_weights:
            real_weights_(self.network, fresh=weights is None)
        self.weights = self.started_from = weights
        if weights is not None:
            self.network = load_weights(weights, self.network).train()
            if real_weights and is_packed(self.network):
                raise InputError(f"weights must be a latent file with real_weights, got the packed {weights}")
        self.train_on_bits(train_on_bits)
        self.make_optimizer, self.make_scheduler, self.lr_interval = optimizer, lr_scheduler, lr_interval
        self.decay, self.compile_backend = decay, compile_backend
        self.objective: Objective = objective or LabelObjective()
        self.num_classes, self.untrained_teachers = num_classes, untrained_teachers
        self.lay_out(channels_last)
        self.predictions, self.found = predictions, list[Prediction]()
        self.metrics = nn.ModuleDict({stage: _metrics(num_classes) for stage in ("val_", "test_")})

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W), normalised -> logits (N, num_classes)."""
        logits: Tensor = self.network(x.contiguous(memory_format=self.memory_format))
        return logits

    def setup(self, stage: str) -> None:
        """Lightning's hook."""
        self.check_data(getattr(self.trainer, "datamodule", None))

    def check_data(self, data: L.LightningDataModule | None) -> None:
        """Raise InputError unless the first convolution takes the channels of the data module's images."""
        info, spec = getattr(data, "info", None), model_spec(self.network)
        taken = spec.options.get("in_channels") if spec else None
        if info is not None and taken is not None and info.channels != taken:
            raise InputError(
                f"dataset images have {info.channels} channels and network {spec.name} was built for "
                f"in_channels={taken}: set model.network_options to {{in_channels: {info.channels}}}"
            )

    def check_evaluation(self, run: str) -> None:
        """Raise InputError without a file of weights; for the command line alone, as callers may set the weights."""
        self._check_begun(self.weights is not None, run)

    def on_fit_start(self) -> None:
        """Build the teachers here, not in __init__: evaluation needs none."""
        self.objective.prepare(self.network, self.num_classes if self.untrained_teachers else None)
        if self.compile_backend is not None:  # in place: the state's names stay
            self.network.compile(backend=self.compile_backend)

    def training_step(self, batch: Loaded, batch_idx: int) -> Tensor:
        """Loss of one batch; stops the run at the first loss that is not finite."""
        images, labels = batch
        images = images.contiguous(memory_format=self.memory_format)
        epochs = self.trainer.max_epochs
        epochs = None if epochs is None or epochs < 0 else max(1, epochs)
        logits, loss = self.objective(self.network, Batch(images, labels, self.current_epoch, epochs))
        check_finite(loss, self.global_step, self.network, images)
        # the label with the larger share of mixed images
        hard = labels.argmax(1) if labels.is_floating_point() else labels
        top1 = 100 * (logits.argmax(1) == hard).float().mean()
        self.log_dict({"train_loss": loss, "train_top1": top1}, prog_bar=True)
        # means of the epoch over all processes; synchronising every step would slow training
        epoch = {"train_loss_epoch": loss, "train_top1_epoch": top1}
        self.log_dict(epoch, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Loaded, batch_idx: int) -> None:
        """Lightning's hook."""
        self._evaluate("val_", batch)

    def test_step(self, batch: Loaded, batch_idx: int) -> None:
        """Lightning's hook."""
        self._evaluate("test_", batch)

    def predict_step(self, batch: Loaded, batch_idx: int) -> Tensor:
        """Class indices (N,) of a batch; what predictions.csv says of it is kept."""
        logits = self(batch[0])
        self.found += best_classes(logits, batch[1])
        return logits.argmax(1)

    def on_predict_epoch_end(self) -> None:
        """Lightning's hook; the first process writes predictions.csv."""
        found, self.found = from_all_processes(self.found), []
        data: Any = getattr(self.trainer, "datamodule", None)
        if not self.trainer.is_global_zero or data is None or not getattr(data, "predict_files", None):
            return
        path = self.prediction_folder / "predictions.csv"
        write_predictions(path, found, data.predict_files, data.class_names)
        print(f"{path}: {len(found):,} images")

    def _evaluate(self, stage: str, batch: Loaded) -> None:
        images, labels = batch
        logits = self(images).float()
        counted = labels != IGNORE
        total = F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORE)
        number = counted.sum()
        metrics: Any = self.metrics[stage]
        metrics["loss"].update(total / number.clamp(min=1), weight=number)
        metrics["top1"].update(logits, labels)
        metrics["top5"].update(logits, labels)

    def _report(self, stage: str) -> None:
        metrics: Any = self.metrics[stage]
        self.log(f"{stage}loss", metrics["loss"].compute(), sync_dist=False)
        for name in ("top1", "top5"):
            self.log(f"{stage}{name}", 100 * metrics[name].compute(), prog_bar=name == "top1", sync_dist=False)
        # normal tensors: trainer.validate runs in inference mode, and a later fit may not write into its tensors
        with torch.inference_mode(False):
            for metric in metrics.values():
                metric.reset()

    def on_validation_epoch_end(self) -> None:
        """Lightning's hook."""
        self._report("val_")

    def on_test_epoch_end(self) -> None:
        """Lightning's hook."""
        self._report("test_")


class MeanLoss(MeanMetric):
    """torchmetrics' mean, whose sums stay float32 in a module of half precision.

    Lightning casts the module, metrics and all, and a sum in bfloat16 ends at a few hundred of what is added to it.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **options: Any) -> nn.Module:
        """torch's hook behind to(), cpu() and others: moves, and casts nothing."""
        return super()._apply(lambda state: state.to(fn(state).device), *args, **options)


def _metrics(num_classes: int) -> nn.ModuleDict:
    def accuracy(k: int) -> MulticlassAccuracy:
        return MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro", ignore_index=IGNORE)

    return nn.ModuleDict({"top1": accuracy(1), "top5": accuracy(5), "loss": MeanLoss()})
