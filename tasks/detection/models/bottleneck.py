"""The information bottleneck of BiDet: little information in the features, few detections left.

Source: papers.md#bidet, #bidet-ssd, #bidet-faster-rcnn.

Both terms begin with the first decay of the learning rate. Tensors alone: no part of mmdet is needed here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import nms

EPSILON = 1e-6
"""Inside the logarithm. Differs from the paper's code: p log p without it is not a number once a score is 0."""


def feature_term(features: Sequence[Tensor]) -> Tensor:
    """Mean over the feature maps of each one's mean square, a scalar; maps may differ in shape."""
    return torch.stack([feature.pow(2).mean() for feature in features]).mean()


def posterior_entropy(scores: Tensor, objects: int) -> Tensor:
    """-sum p log(p + 1e-6) / objects for the scores (K,) of kept detections, p their shares of the sum.

    The sum is a constant of the step. 0, still with a gradient function, where there is no detection, and no division
    by 0 objects.
    """
    share = scores / scores.detach().sum().clamp(min=EPSILON)
    return -(share * (share + EPSILON).log()).sum() / max(objects, 1)


def prior_term(entropies: Sequence[Tensor], like: Tensor) -> Tensor:
    """Mean of the entropies; of none of them a 0 that hangs on `like`, so that backward finds its way."""
    return torch.stack(list(entropies)).mean() if entropies else like.sum() * 0


@torch.no_grad()
def kept(boxes: Tensor, scores: Tensor, threshold: float, iou: float, top: int) -> Tensor:
    """Indices, by falling score, of what is detected of one class: score > threshold, NMS, the `top` best.

    Args:
        boxes: (P, 4) corners. scores: (P,). iou: above which the lower score of two boxes goes.
    """
    index = (scores > threshold).nonzero().squeeze(1)
    # NMS has no half-precision form on the CPU
    return index[nms(boxes[index].float(), scores[index].float(), iou)[:top]]


def class_entropies(
    boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, iou: float, top: int = 200
) -> list[Tensor]:
    """Of one image: the posterior entropy of every present class with more detections than objects.

    Args:
        boxes: (P, 4) decoded boxes, shared by the classes. scores: (P, classes) softmax scores without the background.
        labels: (G,) of the objects. threshold, iou, top: as `kept`.

    Returns:
        a scalar with a gradient to `scores` for each such class, maybe none.
    """
    entropies = []
    for label in labels.unique().tolist():
        objects = int((labels == label).sum())
        found = scores[kept(boxes, scores[:, label], threshold, iou, top), label]
        if len(found) > objects:
            entropies.append(posterior_entropy(found, objects))
    return entropies


class Bottleneck(nn.Module):
    """Weights of the two terms and whether they count yet; a checkpoint remembers `on`, a bool buffer ().

    Args:
        feature, prior: weights of feature_term and prior_term, 0 leaves a term out.
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
        """To be called when the learning rate is first lowered."""
        self.on.fill_(True)

    def extra_repr(self) -> str:
        return f"feature={self.feature}, prior={self.prior}"
