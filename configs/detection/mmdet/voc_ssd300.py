"""What every SSD300 on PASCAL VOC has: images, augmentation, matching and detection; values of the original SSD."""

size = (300, 300)
mean = (123, 117, 104)  # RGB; the images are read as BGR

preprocessor = dict(type="DetDataPreprocessor", mean=mean, std=(1, 1, 1), bgr_to_rgb=True, pad_size_divisor=1)

train_pipeline = [
    dict(type="LoadImageFromFile", to_float32=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(
        type="PhotoMetricDistortion",
        brightness_delta=32,
        contrast_range=(0.5, 1.5),
        saturation_range=(0.5, 1.5),
        hue_delta=18,
    ),
    dict(type="Expand", mean=mean, to_rgb=True, ratio_range=(1, 4)),
    dict(type="MinIoURandomCrop", min_ious=(0.1, 0.3, 0.5, 0.7, 0.9), min_crop_size=0.3),
    dict(type="RandomFlip", prob=0.5),
    dict(type="Resize", scale=size, keep_ratio=False),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=size, keep_ratio=False),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]

train_cfg = dict(
    assigner=dict(
        type="MaxIoUAssigner",
        pos_iou_thr=0.5,
        neg_iou_thr=0.5,
        min_pos_iou=0.0,
        ignore_iof_thr=-1,
        gt_max_assign_all=False,
    ),
    sampler=dict(type="PseudoSampler"),
    allowed_border=-1,
    pos_weight=-1,
    neg_pos_ratio=3,
    smoothl1_beta=1.0,
)
test_cfg = dict(
    nms_pre=1000, nms=dict(type="nms", iou_threshold=0.45), min_bbox_size=0, score_thr=0.01, max_per_img=200
)

in_channels = (512, 1024, 512, 256, 256, 256)
stds = (0.1, 0.1, 0.2, 0.2)
# boxes of four values, for the baselines
plain_head = dict(
    type="SSDHead",
    num_classes=20,
    in_channels=in_channels,
    anchor_generator=dict(type="SSDPriors"),
    bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_stds=stds),
)
# boxes of eight values and the bottleneck
bidet_head = dict(
    type="BiDetSSDHead",
    num_classes=20,
    in_channels=in_channels,
    anchor_generator=dict(type="SSDPriors"),
    bbox_coder=dict(type="MeanVarianceCoder", target_stds=stds, sigma=0.0),
    feature_weight=0.1,
    prior_weight=0.2,
)
