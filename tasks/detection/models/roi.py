"""BiDet's head on regions: layer4, its mean over space, two linear layers (papers.md#bidet-faster-rcnn, #es-bidet)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tasks.detection.mmdet.api import MODELS, BBoxHead, InstanceData, StandardRoIHead, bbox2roi, unpack_gt_instances
from tasks.detection.models.bottleneck import Bottleneck, class_entropies, feature_term, prior_term
from tasks.detection.models.coder import MeanVarianceCoder, at_least_float


@MODELS.register_module()
class BiDetBBoxHead(BBoxHead):
    """(R, C, h, w) -> scores (R, num_classes + 1), the background last, and codes (R, V), shared by the classes.

    The first in_channels of the C >= in_channels maps are averaged over space. With MeanVarianceCoder the means are
    drawn with the coder's sigma in training only.

    Args:
        in_channels: the nominal width, which is read.
        num_classes: without the background.
        options: of mmdet's BBoxHead, which refuses any other: bbox_coder, loss_cls, loss_bbox, init_cfg.
    """

    def __init__(self, in_channels: int = 512, num_classes: int = 20, **options: Any) -> None:
        super().__init__(
            with_avg_pool=True, in_channels=in_channels, num_classes=num_classes, reg_class_agnostic=True, **options
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled = x[:, : self.in_channels].mean((2, 3))
        scores, codes = at_least_float(self.fc_cls(pooled)), at_least_float(self.fc_reg(pooled))
        if isinstance(self.bbox_coder, MeanVarianceCoder) and self.training:
            codes = self.bbox_coder.draw(codes)
        return scores, codes

    def loss(
        self,
        cls_score: Tensor,
        bbox_pred: Tensor,
        rois: Tensor,
        labels: Tensor,
        label_weights: Tensor,
        bbox_targets: Tensor,
        bbox_weights: Tensor,
        reduction_override: str | None = None,
    ) -> dict[str, Tensor]:
        """As BBoxHead's, but only of the means if the coder also has log variances."""
        if isinstance(self.bbox_coder, MeanVarianceCoder):
            bbox_weights = self.bbox_coder.loss_weights(bbox_weights)
        losses: dict[str, Tensor] = super().loss(
            cls_score, bbox_pred, rois, labels, label_weights, bbox_targets, bbox_weights, reduction_override
        )
        return losses


@MODELS.register_module()
class BiDetRoIHead(StandardRoIHead):
    """mmdet's standard head for boxes, with the terms of the bottleneck.

    Args:
        feature_weight: of loss_roi_feature (tasks.detection.models.bottleneck), over the regions' means over space of
            all carried maps.
        prior_weight: of loss_roi_prior, over the scores of every present class with more detections than objects.
        prior_score: a detection of the prior has a higher score.
        prior_iou: of the NMS of the prior's detections.
        options: of mmdet's StandardRoIHead, which refuses any other: bbox_roi_extractor, bbox_head, shared_head,
            train_cfg, test_cfg, init_cfg.
    """

    def __init__(
        self,
        feature_weight: float = 0.0,
        prior_weight: float = 0.0,
        prior_score: float = 0.01,
        prior_iou: float = 0.3,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.bottleneck: Bottleneck | None = Bottleneck(feature_weight, prior_weight)
        self.prior_score, self.prior_iou = prior_score, prior_iou

    def drop_training_parts_(self) -> None:
        """Remove what only the loss uses (esbnn_core.packed)."""
        self.bottleneck = None

    def loss(
        self, x: Sequence[Tensor], rpn_results_list: Sequence[InstanceData], batch_data_samples: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Losses of boxes over sampled regions: loss_cls, loss_bbox, and the bottleneck's once it is on."""
        objects, ignored, metas = unpack_gt_instances(batch_data_samples)
        samples = []
        for proposals, truth, ignore in zip(rpn_results_list, objects, ignored, strict=True):
            proposals.priors = proposals.pop("bboxes")
            assigned = self.bbox_assigner.assign(proposals, truth, ignore)
            samples.append(self.bbox_sampler.sample(assigned, proposals, truth))
        rois = bbox2roi([sample.priors for sample in samples])
        found = self._bbox_forward(x, rois)
        scores, codes = found["cls_score"], found["bbox_pred"]
        losses: dict[str, Tensor] = self.bbox_head.loss_and_target(
            cls_score=scores, bbox_pred=codes, rois=rois, sampling_results=samples, rcnn_train_cfg=self.train_cfg
        )["loss_bbox"]
        if self.bottleneck is not None and self.bottleneck.active:
            losses["loss_roi_feature"] = self.bottleneck.feature * feature_term([found["bbox_feats"].mean((2, 3))])
            counts = [len(sample.priors) for sample in samples]
            entropies = []
            for regions, score, code, truth, meta in zip(
                rois.split(counts), scores.split(counts), codes.detach().split(counts), objects, metas, strict=True
            ):
                boxes = self.bbox_head.bbox_coder.decode(regions[:, 1:], code, max_shape=meta["img_shape"])
                present = score.softmax(1)[:, :-1]
                entropies += class_entropies(boxes, present, truth.labels, self.prior_score, self.prior_iou)
            losses["loss_roi_prior"] = self.bottleneck.prior * prior_term(entropies, scores)
        return losses
