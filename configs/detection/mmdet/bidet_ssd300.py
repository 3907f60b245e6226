"""BiDet (SC): SSD300 over the binary VGG-16, a shortcut around each of its blocks; shortcuts=False is plain BiDet."""

_base_ = ["voc_ssd300.py"]

model = dict(
    type="SingleStageDetector",
    data_preprocessor={{_base_.preprocessor}},
    backbone=dict(type="BiDetVGG16", variant="bidet", shortcuts=True),
    bbox_head={{_base_.bidet_head}},
    train_cfg={{_base_.train_cfg}},
    test_cfg={{_base_.test_cfg}},
)
