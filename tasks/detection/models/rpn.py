"""BiDet's region proposal network: a binary 3x3, then real 1x1 layers for scores and for eight values a box.

See papers.md#bidet-faster-rcnn, #es-bidet.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from esbnn_core.errors import InputError
from esbnn_core.layers.widths import Expansion
from esbnn_core.models.bidet_resnet import Variant, variant_style
from esbnn_core.models.parts import make_readout
from esbnn_core.units.conv import BinaryUnit
from tasks.detection.mmdet.api import MODELS, InstanceData, RPNHead, unpack_gt_instances
from tasks.detection.models.bottleneck import Bottleneck, feature_term, posterior_entropy
from tasks.detection.models.coder import MeanVarianceCoder, at_least_float


@MODELS.register_module()
class BiDetRPNHead(RPNHead):
    """(N, tau*groups*in_channels, H, W) -> scores (N, A*C, H, W) and codes (N, A*V, H, W) of A anchors a cell.

    The binary 3x3 has a bias and only BatchNorm after it. The two real 1x1 read the first feat_channels of the
    tau*groups*feat_channels maps. With MeanVarianceCoder the means are drawn with the coder's sigma in training, once,
    so that loss and proposals have the same boxes. C = 2 (an object, the background) without use_sigmoid in loss_cls;
    the original has the background first.

    Args:
        in_channels: nominal width of the input.
        feat_channels: nominal width of the 3x3.
        tau: as the backbone's.
        groups: as the backbone's.
        variant: as the backbone's.
        feature_weight: of loss_rpn_feature (tasks.detection.models.bottleneck), over all carried maps of the normalised
            3x3.
        prior_weight: of loss_rpn_prior, over the proposals' scores. As in the original it has no gradient and is only
            logged.
        draw_in_evaluation: draw the means in evaluation too, as in the original.
            Differs from the paper: off, so that an evaluation gives one result.
        options: of mmdet's RPNHead, which refuses any other: anchor_generator, bbox_coder, loss_cls, loss_bbox,
            train_cfg, test_cfg, init_cfg.

    Raises:
        InputError: a width that tau*groups does not divide; in training an image with no anchor inside (named).
    """

    def __init__(
        self,
        in_channels: int = 256,
        feat_channels: int = 512,
        tau: int = 1,
        groups: int = 1,
        variant: Variant = "bidet",
        feature_weight: float = 0.0,
        prior_weight: float = 0.0,
        draw_in_evaluation: bool = False,
        **options: Any,
    ) -> None:
        # mmdet's constructor calls _init_layers, which reads these
        self.expansion, self.variant = Expansion(tau, groups), variant
        super().__init__(in_channels, feat_channels=feat_channels, **options)
        self.bottleneck: Bottleneck | None = Bottleneck(feature_weight, prior_weight)
        self.draw_in_evaluation = draw_in_evaluation

    def _init_layers(self) -> None:
        style = variant_style(self.variant)
        self.rpn_conv = BinaryUnit(
            self.in_channels, self.feat_channels, style=style, expansion=self.expansion, bias=True, name="rpn_conv"
        )
        self.read_out, width = make_readout(self.feat_channels, self.expansion)
        self.rpn_cls = nn.Conv2d(width, self.num_base_priors * self.cls_out_channels, 1)
        self.rpn_reg = nn.Conv2d(width, self.num_base_priors * self.bbox_coder.encode_size, 1)

    def drop_training_parts_(self) -> None:
        """Remove what only the loss uses (esbnn_core.packed)."""
        self.bottleneck = None

    def forward_single(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and codes of one level."""
        return self._read(self.rpn_conv(x))

    def _read(self, features: Tensor) -> tuple[Tensor, Tensor]:
        features = self.read_out(features)
        scores, codes = at_least_float(self.rpn_cls(features)), at_least_float(self.rpn_reg(features))
        if isinstance(self.bbox_coder, MeanVarianceCoder) and (self.training or self.draw_in_evaluation):
            values = self.bbox_coder.encode_size
            cells = codes.unflatten(1, (-1, values)).movedim(2, -1)
            codes = self.bbox_coder.draw(cells).movedim(-1, 2).flatten(1, 2)
        return scores, codes

    def loss_and_predict(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[Any], proposal_cfg: Any = None
    ) -> tuple[dict[str, Any], list[InstanceData]]:
        """Losses of RPNHead, with the terms of the bottleneck once it is on, and the proposals of every image."""
        objects, ignored, metas = unpack_gt_instances(batch_data_samples)
        features = [self.rpn_conv(level) for level in x]
        scores, codes = zip(*(self._read(level) for level in features), strict=True)
        losses = self.loss_by_feat(scores, codes, objects, metas, batch_gt_instances_ignore=ignored)
        proposals = self.predict_by_feat(scores, codes, batch_img_metas=metas, cfg=proposal_cfg)
        if self.bottleneck is not None and self.bottleneck.active:
            pairs = zip(proposals, objects, strict=True)
            entropies = [posterior_entropy(found.scores.detach(), len(truth)) for found, truth in pairs]
            losses["loss_rpn_feature"] = self.bottleneck.feature * feature_term(features)
            losses["loss_rpn_prior"] = self.bottleneck.prior * torch.stack(entropies).mean()
        return losses, proposals

    def loss_by_feat_single(
        self,
        cls_score: Tensor,
        bbox_pred: Tensor,
        anchors: Tensor,
        labels: Tensor,
        label_weights: Tensor,
        bbox_targets: Tensor,
        bbox_weights: Tensor,
        avg_factor: int,
    ) -> tuple[Tensor, Tensor]:
        """As AnchorHead's, but only of the means if the coder also has log variances."""
        if isinstance(self.bbox_coder, MeanVarianceCoder):
            bbox_weights = self.bbox_coder.loss_weights(bbox_weights)
        losses: tuple[Tensor, Tensor] = super().loss_by_feat_single(
            cls_score, bbox_pred, anchors, labels, label_weights, bbox_targets, bbox_weights, avg_factor
        )
        return losses

    def _get_targets_single(
        self,
        flat_anchors: Tensor,
        valid_flags: Tensor,
        gt_instances: InstanceData,
        img_meta: dict[str, Any],
        *rest: Any,
        **options: Any,
    ) -> tuple[Any, ...]:
        try:
            targets: tuple[Any, ...] = super()._get_targets_single(
                flat_anchors, valid_flags, gt_instances, img_meta, *rest, **options
            )
        except ValueError as error:
            if "no valid anchor" not in str(error):
                raise
            height, width = img_meta["img_shape"][:2]
            raise InputError(
                f"image {img_meta.get('img_path', '(unnamed)')} must be large enough for an anchor, got "
                f"{width}x{height} pixels: resize images to a longer side, or give the anchors smaller scales"
            ) from error
        return targets
