"""ES-BiDet: as bidet_faster_rcnn_r18 with an expanded trunk, RPN and layer4, at the same cost.

tau and groups stand in three places, and out_channels follows them.
"""

_base_ = ["voc_faster_rcnn_r18.py"]

model = dict(
    type="FasterRCNN",
    data_preprocessor={{_base_.preprocessor}},
    backbone=dict(type="ESBiDetResNet18", tau=2, groups=1, variant="bidet", shortcuts=True, frozen_stem=True),
    rpn_head=dict(
        type="BiDetRPNHead",
        tau=2,
        groups=1,
        variant="bidet",
        anchor_generator={{_base_.anchors}},
        bbox_coder={{_base_.drawn_rpn_coder}},
        loss_cls={{_base_.rpn_loss_cls}},
        loss_bbox={{_base_.rpn_loss_bbox}},
        feature_weight=0.5,
        prior_weight=0.01,
    ),
    roi_head=dict(
        type="BiDetRoIHead",
        bbox_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer={{_base_.roi_layer}},
            out_channels=512,  # tau * groups * 256
            featmap_strides=(16,),
        ),
        shared_head=dict(type="ESBiDetResLayer", tau=2, groups=1, variant="bidet", shortcuts=True),
        bbox_head=dict(type="BiDetBBoxHead", num_classes=20, bbox_coder={{_base_.drawn_roi_coder}}),
        feature_weight=0.02,
        prior_weight=0.05,
    ),
    train_cfg={{_base_.train_cfg}},
    test_cfg={{_base_.test_cfg}},
)
