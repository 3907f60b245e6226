"""What every Faster R-CNN on PASCAL VOC has: images, matching, proposals and detection; values of BiDet's.

Source: papers.md#bidet-faster-rcnn.

Differs from the paper: a batch's images are padded to the largest, where the original crops them to one ratio of the
sides too (data.group_by_aspect keeps wide and tall ones apart); an image's flipped copy is drawn half of the time, not
appended to the list.
"""

mean = (123.675, 116.28, 103.53)  # RGB, of 0..255: ImageNet's of images over 255; the images are read as BGR
std = (58.395, 57.12, 57.375)

preprocessor = dict(type="DetDataPreprocessor", mean=mean, std=std, bgr_to_rgb=True, pad_size_divisor=1)

# the shorter side becomes 600; the longer one has no limit that a photograph reaches
resize = dict(type="Resize", scale=(10000, 600), keep_ratio=True)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    resize,
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    resize,
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]

overlaps = dict(type="PixelOverlaps")
train_cfg = dict(
    rpn=dict(
        assigner=dict(
            type="MaxIoUAssigner",
            pos_iou_thr=0.7,
            neg_iou_thr=0.3,
            min_pos_iou=1e-6,  # every object's best anchor is positive, unless none touches it
            match_low_quality=True,
            ignore_iof_thr=-1,
            iou_calculator=overlaps,
        ),
        sampler=dict(type="RandomSampler", num=256, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False),
        allowed_border=0,  # anchors that are inside the image as a whole
        pos_weight=-1,
    ),
    rpn_proposal=dict(nms_pre=12000, max_per_img=2000, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=-1),
    rcnn=dict(
        assigner=dict(
            type="MaxIoUAssigner",
            pos_iou_thr=0.5,
            neg_iou_thr=0.5,
            min_pos_iou=0.5,
            match_low_quality=False,
            ignore_iof_thr=-1,
            iou_calculator=overlaps,
        ),
        sampler=dict(type="RandomSampler", num=256, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True),
        pos_weight=-1,
    ),
)
test_cfg = dict(
    rpn=dict(nms_pre=6000, max_per_img=300, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=-1),
    rcnn=dict(score_thr=0.0, nms=dict(type="nms", iou_threshold=0.3), max_per_img=100),
)

anchors = dict(type="PixelAnchors", strides=(16,), base_sizes=(16,), ratios=(0.5, 1.0, 2.0), scales=(8, 16, 32))
rpn_loss_cls = dict(type="CrossEntropyLoss", use_sigmoid=False)
rpn_loss_bbox = dict(type="SmoothL1Loss", beta=1 / 9)  # sigma 3
roi_layer = dict(type="RoIAlign", output_size=7, sampling_ratio=0, aligned=False)
stds = (0.1, 0.1, 0.2, 0.2)

# boxes of eight values
drawn_rpn_coder = dict(type="MeanVarianceCoder", sigma=0.001, whole_pixels=True)
drawn_roi_coder = dict(type="MeanVarianceCoder", sigma=0.001, whole_pixels=True, target_stds=stds)
# boxes of four values, for the baselines
plain_rpn_coder = dict(type="LegacyDeltaXYWHBBoxCoder")
plain_roi_coder = dict(type="LegacyDeltaXYWHBBoxCoder", target_stds=stds)
