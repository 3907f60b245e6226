"""BiDet's SSD head: real 3x3 convolutions, boxes as mean and log variance, multibox and bottleneck loss.

See papers.md#bidet-ssd.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.detection.mmdet.api import MODELS, InstanceData, SSDHead
from tasks.detection.models.bottleneck import Bottleneck, class_entropies, feature_term, prior_term
from tasks.detection.models.coder import MeanVarianceCoder, at_least_float
from tasks.detection.models.ssd_priors import SSDPriors

NEGATIVES = 3
"""Hard negatives for each positive prior."""


def multibox_loss(scores: Tensor, means: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy over positives and their hardest negatives, and smooth L1 over positives.

    Each is summed over the batch and divided by the number of its positives (at least 1).

    Args:
        scores: (N, P, K + 1) logits, the background last.
        means: (N, P, 4) coded boxes.
        labels: (N, P), K for the background.
        targets: (N, P, 4) coded boxes.
    """
    background = scores.shape[-1] - 1
    positive = labels != background
    each = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    # a positive is not a candidate: it ranks after every negative
    rank = each.detach().masked_fill(positive, -1.0).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    hard = ~positive & (rank < NEGATIVES * positive.sum(1, keepdim=True))
    count = positive.sum().clamp(min=1)
    boxes = F.smooth_l1_loss(means[positive], targets[positive], reduction="sum")
    return each[positive | hard].sum() / count, boxes / count


@MODELS.register_module()
class BiDetSSDHead(SSDHead):
    """Six maps (N, C, h, w) -> per map logits (N, priors * (K + 1), h, w) and box codes (N, priors * 8, h, w).

    The convolutions are real, as in the original's code (its README differs). Their weights have the background first,
    as in the original; forward returns it as the last class, as mmdet expects.

    Args:
        num_classes: K.
        in_channels: of the maps.
        anchor_generator: config of mmdet.
        bbox_coder: config of mmdet, for a MeanVarianceCoder.
        feature_weight: of the bottleneck's feature term (tasks.detection.models.bottleneck).
        prior_weight: of the bottleneck's prior term.
        prior_score: a detection of the prior term has a higher score.
        prior_iou: of the NMS of the prior term.
        prior_top: most detections of a class in the prior term.
        train_cfg: as mmdet's SSDHead.
        test_cfg: as mmdet's SSDHead.
    """

    prior_generator: SSDPriors
    bbox_coder: MeanVarianceCoder

    def __init__(
        self,
        num_classes: int,
        in_channels: Sequence[int],
        anchor_generator: Mapping[str, Any],
        bbox_coder: Mapping[str, Any],
        feature_weight: float = 0.1,
        prior_weight: float = 0.2,
        prior_score: float = 0.03,
        prior_iou: float = 0.45,
        prior_top: int = 200,
        train_cfg: Any = None,
        test_cfg: Any = None,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            anchor_generator=anchor_generator,
            bbox_coder=bbox_coder,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            init_cfg=None,
        )
        self.bottleneck: Bottleneck | None = Bottleneck(feature_weight, prior_weight)
        self.prior_score, self.prior_iou, self.prior_top = prior_score, prior_iou, prior_top

    def _init_layers(self) -> None:
        """mmdet's hook: the convolutions, initialised as in the original."""
        self.cls_convs, self.reg_convs = nn.ModuleList(), nn.ModuleList()
        for channels, priors in zip(self.in_channels, self.num_base_priors, strict=True):
            self.cls_convs.append(nn.Conv2d(channels, priors * self.cls_out_channels, 3, padding=1))
            self.reg_convs.append(nn.Conv2d(channels, priors * 8, 3, padding=1))
        for conv in [*self.cls_convs, *self.reg_convs]:
            nn.init.xavier_normal_(conv.weight)
            nn.init.zeros_(conv.bias)

    def drop_training_parts_(self) -> None:
        """Remove what only the loss uses (esbnn_core.packed)."""
        self.bottleneck = None

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits and box codes of every map, in float32 if the network runs in half precision."""
        scores = [self._background_last(conv(y)) for conv, y in zip(self.cls_convs, x, strict=True)]
        codes = [conv(y) for conv, y in zip(self.reg_convs, x, strict=True)]
        return [at_least_float(y) for y in scores], [at_least_float(y) for y in codes]

    def _background_last(self, scores: Tensor) -> Tensor:
        return scores.unflatten(1, (-1, self.cls_out_channels)).roll(-1, 2).flatten(1, 2)

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """Losses of a batch by name; with the bottleneck on, loss_feature and loss_prior beside the multibox loss."""
        losses: dict[str, Tensor] = super().loss(x, batch_data_samples)
        if self.bottleneck is not None and self.bottleneck.active:
            losses["loss_feature"] = self.bottleneck.feature * feature_term(x)
        return losses

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict[str, Any]],
        batch_gt_instances_ignore: list[InstanceData] | None = None,
    ) -> dict[str, Tensor]:
        """Multibox loss and, with the bottleneck on, the prior term; arguments as in mmdet's heads.

        The priors of difficult objects (batch_gt_instances_ignore) are background, as in the original.
        """
        sizes = [tuple(scores.shape[-2:]) for scores in cls_scores]
        priors, valid = self.get_anchors(sizes, batch_img_metas, device=cls_scores[0].device)
        labels, _, targets, _, _ = self.get_targets(
            priors, valid, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
        )
        scores = _by_prior(cls_scores, self.cls_out_channels)
        codes = _by_prior(bbox_preds, self.bbox_coder.encode_size)
        means = self.bbox_coder.mean(self.bbox_coder.draw(codes))
        target_means = self.bbox_coder.mean(torch.cat(targets, 1))
        loss_cls, loss_bbox = multibox_loss(scores, means, torch.cat(labels, 1), target_means)
        losses = {"loss_cls": loss_cls, "loss_bbox": loss_bbox}
        if self.bottleneck is not None and self.bottleneck.active and self.bottleneck.prior > 0:
            term = self._prior_term(scores, codes.detach(), torch.cat(priors[0]), batch_gt_instances, batch_img_metas)
            losses["loss_prior"] = self.bottleneck.prior * term
        return losses

    def _prior_term(
        self, scores: Tensor, codes: Tensor, priors: Tensor, objects: list[InstanceData], metas: list[dict[str, Any]]
    ) -> Tensor:
        """The sparse prior over the classes of each image; scores (N, P, K + 1) are logits, codes (N, P, 8)."""
        entropies = []
        for each, code, truth, meta in zip(scores.softmax(-1), codes, objects, metas, strict=True):
            boxes = self.bbox_coder.decode(priors, code, max_shape=meta["img_shape"])
            entropies += class_entropies(
                boxes, each[:, :-1], truth.labels, self.prior_score, self.prior_iou, self.prior_top
            )
        return prior_term(entropies, scores)


def _by_prior(maps: Sequence[Tensor], values: int) -> Tensor:
    """Maps (N, priors * values, h, w) -> (N, P, values), in the order of the priors."""
    return torch.cat([y.permute(0, 2, 3, 1).reshape(len(y), -1, values) for y in maps], 1)
