"""Registers our networks in mmdet's registries when it is imported."""

import tasks.detection.models.anchors
import tasks.detection.models.coder
import tasks.detection.models.faster_rcnn
import tasks.detection.models.resnet_c4
import tasks.detection.models.roi
import tasks.detection.models.rpn
import tasks.detection.models.ssd_head
import tasks.detection.models.ssd_priors
import tasks.detection.models.ssd_vgg  # noqa: F401
