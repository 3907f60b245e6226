"""As voc_faster_rcnn_r18 with the shorter side 300, for short runs: a quarter of the pixels, so anchors half as large
(overrides: rpn_head.anchor_generator.scales [4, 8, 16])."""

_base_ = ["voc_faster_rcnn_r18.py"]

train_pipeline = _base_.train_pipeline  # mmengine puts the values of the base there
test_pipeline = _base_.test_pipeline
train_pipeline[2]["scale"] = test_pipeline[1]["scale"] = (10000, 300)
