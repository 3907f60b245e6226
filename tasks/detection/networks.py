"""Our networks under their names in mmdet's registries: importing this file is what registers them."""

import tasks.detection.anchors
import tasks.detection.backbones
import tasks.detection.coder
import tasks.detection.faster_rcnn
import tasks.detection.official
import tasks.detection.resnet_c4
import tasks.detection.roi
import tasks.detection.rpn
import tasks.detection.ssd_head
import tasks.detection.ssd_priors  # noqa: F401
