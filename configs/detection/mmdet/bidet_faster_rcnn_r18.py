"""BiDet (SC): Faster R-CNN over the binary ResNet-18 with a shortcut around every binary convolution.

shortcuts=False in the backbone is BiDet without the extra ones; the other parts follow it.
"""

_base_ = ["voc_faster_rcnn_r18.py"]

model = dict(
    type="BiDetFasterRCNN",
    data_preprocessor={{_base_.preprocessor}},
    backbone=dict(type="BiDetResNet18", variant="bidet", shortcuts=True, frozen_stem=True),
    rpn_head=dict(
        type="BiDetRPNHead",
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
            featmap_strides=(16,),
        ),
        shared_head=dict(type="ESBiDetResLayer"),
        bbox_head=dict(type="BiDetBBoxHead", num_classes=20, bbox_coder={{_base_.drawn_roi_coder}}),
        feature_weight=0.02,
        prior_weight=0.05,
    ),
    train_cfg={{_base_.train_cfg}},
    test_cfg={{_base_.test_cfg}},
)
