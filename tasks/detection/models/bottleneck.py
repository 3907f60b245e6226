"""The information bottleneck of BiDet: little information in the features, few detections.

Both terms begin with the first decay of the learning rate. The file works on tensors and needs no part of mmdet. See
papers.md#bidet, #bidet-ssd, #bidet-faster-rcnn.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import nms

EPSILON = 1e-6
"""Added inside the logarithm.

Differs from the paper: its code has p log p, which is not a number once a score is 0."""


def feature_term(features: Sequence[Tensor]) -> Tensor:
    """The mean over the feature maps of their mean square, a scalar; maps may differ in shape."""
    return torch.stack([feature.pow(2).mean() for feature in features]).mean()


def posterior_entropy(scores: Tensor, objects: int) -> Tensor:
    """-sum p log(p + 1e-6) / objects for the scores (K,) of kept detections; p is a score's share of their sum.

    The sum has no gradient. Without a detection the result is 0, still with a gradient function. At least 1 object is
    counted.
    """
    share = scores / scores.detach().sum().clamp(min=EPSILON)
    return -(share * (share + EPSILON).log()).sum() / max(objects, 1)


def prior_term(entropies: Sequence[Tensor], like: Tensor) -> Tensor:
    """The mean of the entropies; without any a 0 that depends on `like`, so that backward works."""
    return torch.stack(list(entropies)).mean() if entropies else like.sum() * 0


@torch.no_grad()
def select_detections(boxes: Tensor, scores: Tensor, threshold: float, iou: float, top: int) -> Tensor:
    """Indices, by falling score, of the detections of one class: score > threshold, NMS, the `top` best.

    Args:
        boxes: (P, 4) corners.
        scores: (P,).
        threshold: of the score.
        iou: above which the lower score of two boxes is dropped.
        top: most detections.
    """
    index = (scores > threshold).nonzero().squeeze(1)
    # NMS has no half-precision form on the CPU
    return index[nms(boxes[index].float(), scores[index].float(), iou)[:top]]


def class_entropies(
    boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, iou: float, top: int = 200
) -> list[Tensor]:
    """The posterior entropy of every present class of an image with more detections than objects.

    Args:
        boxes: (P, 4) decoded boxes, shared by the classes.
        scores: (P, classes) softmax scores without the background.
        labels: (G,) of the objects.
        threshold: as select_detections.
        iou: as select_detections.
        top: as select_detections.

    Returns:
        A scalar with a gradient to `scores` for each such class, maybe none.
    """
    entropies = []
    for label in labels.unique().tolist():
        objects = int((labels == label).sum())
        found = scores[select_detections(boxes, scores[:, label], threshold, iou, top), label]
        if len(found) > objects:
            entropies.append(posterior_entropy(found, objects))
    return entropies


class Bottleneck(nn.Module):
    """Weights of the two terms, and whether they are on; a checkpoint keeps `on`, a bool buffer ().

    Args:
        feature: weight of feature_term, 0 leaves it out.
        prior: weight of prior_term, 0 leaves it out.
    """

    on: Tensor

    def __init__(self, feature: float, prior: float) -> None:
        super().__init__()
        self.feature, self.prior = feature, prior
        self.register_buffer("on", torch.tensor(False))

    @property
    def active(self) -> bool:
        """Whether any term counts now."""
        return bool(self.on) and (self.feature > 0 or self.prior > 0)

    def switch_on(self) -> None:
        """Switch the terms on; called when the learning rate first falls."""
        self.on.fill_(True)

    def extra_repr(self) -> str:
        return f"feature={self.feature}, prior={self.prior}"
