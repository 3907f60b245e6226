"""ES-BiDet: as bidet_faster_rcnn_r18 with an expanded trunk, RPN and layer4, at the same cost.

tau and groups are options of the backbone, and the other parts follow it.
"""

_base_ = ["bidet_faster_rcnn_r18.py"]

model = dict(backbone=dict(type="ESBiDetResNet18", tau=2, groups=1))
