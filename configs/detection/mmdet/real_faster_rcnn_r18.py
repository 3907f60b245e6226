"""Real-valued Faster R-CNN: mmdet's own ResNet-18 and RPN; images, anchors and matching as for the binary ones."""

_base_ = ["voc_faster_rcnn_r18.py"]

norm = dict(type="BN", requires_grad=True)
start = dict(type="Pretrained", checkpoint="torchvision://resnet18")

model = dict(
    type="FasterRCNN",
    data_preprocessor={{_base_.preprocessor}},
    backbone=dict(
        type="ResNet",
        depth=18,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
        frozen_stages=0,
        norm_cfg=norm,
        norm_eval=False,
        style="pytorch",
        init_cfg=start,
    ),
    rpn_head=dict(
        type="RPNHead",
        in_channels=256,
        feat_channels=512,
        anchor_generator={{_base_.anchors}},
        bbox_coder={{_base_.plain_rpn_coder}},
        loss_cls={{_base_.rpn_loss_cls}},
        loss_bbox={{_base_.rpn_loss_bbox}},
    ),
    roi_head=dict(
        type="StandardRoIHead",
        bbox_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer={{_base_.roi_layer}},
            out_channels=256,
            featmap_strides=(16,),
        ),
        shared_head=dict(
            type="ResLayer",
            depth=18,
            stage=3,
            stride=2,
            style="pytorch",
            norm_cfg=norm,
            norm_eval=False,
            init_cfg=start,
        ),
        bbox_head=dict(type="BiDetBBoxHead", num_classes=20, bbox_coder={{_base_.plain_roi_coder}}),
    ),
    train_cfg={{_base_.train_cfg}},
    test_cfg={{_base_.test_cfg}},
)
