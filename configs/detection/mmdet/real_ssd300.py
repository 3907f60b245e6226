"""Real-valued SSD300: mmdet's own VGG-16 and neck, images and detection as in the binary detectors."""

_base_ = ["voc_ssd300.py"]

model = dict(
    type="SingleStageDetector",
    data_preprocessor={{_base_.preprocessor}},
    backbone=dict(
        type="SSDVGG",
        depth=16,
        with_last_pool=False,
        ceil_mode=True,
        out_indices=(3, 4),
        out_feature_indices=(22, 34),
        init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://vgg16_caffe"),
    ),
    neck=dict(
        type="SSDNeck",
        in_channels=(512, 1024),
        out_channels={{_base_.in_channels}},
        level_strides=(2, 2, 1, 1),
        level_paddings=(1, 1, 0, 0),
        l2_norm_scale=20,
    ),
    bbox_head={{_base_.plain_head}},
    train_cfg={{_base_.train_cfg}},
    test_cfg={{_base_.test_cfg}},
)
