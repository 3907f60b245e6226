"""ES-BiDet: as bidet_faster_rcnn_r18 with an expanded trunk, RPN and layer4, at the same cost.

tau and groups stand in three places, and out_channels follows them.
"""

_base_ = ["bidet_faster_rcnn_r18.py"]

model = dict(
    backbone=dict(type="ESBiDetResNet18", tau=2, groups=1),
    rpn_head=dict(tau=2, groups=1),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=512),  # tau * groups * 256
        shared_head=dict(type="ESBiDetResLayer", tau=2, groups=1),
    ),
)
