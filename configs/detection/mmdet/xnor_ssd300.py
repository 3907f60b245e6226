"""XNOR-style baseline: no shortcuts, zero borders, boxes of four values, no bottleneck."""

_base_ = ["voc_ssd300.py"]

model = dict(
    type="SingleStageDetector",
    data_preprocessor={{_base_.preprocessor}},
    backbone=dict(type="BiDetVGG16", variant="xnor", shortcuts=False),
    bbox_head={{_base_.plain_head}},
    train_cfg={{_base_.train_cfg}},
    test_cfg={{_base_.test_cfg}},
)
