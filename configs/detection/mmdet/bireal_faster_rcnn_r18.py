"""Bi-Real-style baseline: shortcuts, zero borders, boxes of four values, no bottleneck."""

_base_ = ["voc_faster_rcnn_r18.py"]

model = dict(
    type="BiDetFasterRCNN",
    data_preprocessor={{_base_.preprocessor}},
    backbone=dict(type="BiDetResNet18", variant="bireal", shortcuts=True, frozen_stem=True),
    rpn_head=dict(
        type="BiDetRPNHead",
        anchor_generator={{_base_.anchors}},
        bbox_coder={{_base_.plain_rpn_coder}},
        loss_cls={{_base_.rpn_loss_cls}},
        loss_bbox={{_base_.rpn_loss_bbox}},
    ),
    roi_head=dict(
        type="BiDetRoIHead",
        bbox_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer={{_base_.roi_layer}},
            featmap_strides=(16,),
        ),
        shared_head=dict(type="ESBiDetResLayer"),
        bbox_head=dict(type="BiDetBBoxHead", num_classes=20, bbox_coder={{_base_.plain_roi_coder}}),
    ),
    train_cfg={{_base_.train_cfg}},
    test_cfg={{_base_.test_cfg}},
)
