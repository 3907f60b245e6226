"""ES-BiDet: as bidet_ssd300 with an expanded trunk and expanded extras, at the same cost."""

_base_ = ["voc_ssd300.py"]

model = dict(
    type="SingleStageDetector",
    data_preprocessor={{_base_.preprocessor}},
    backbone=dict(type="ESBiDetVGG16", tau=2, groups=1, variant="bidet", shortcuts=True),
    bbox_head={{_base_.bidet_head}},
    train_cfg={{_base_.train_cfg}},
    test_cfg={{_base_.test_cfg}},
)
