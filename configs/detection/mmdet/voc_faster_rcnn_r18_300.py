"""As voc_faster_rcnn_r18 with the shorter side 300, for short runs: a quarter of the pixels, so anchors half as large
(overrides: rpn_head.anchor_generator.scales [4, 8, 16])."""

_base_ = ["voc_faster_rcnn_r18.py"]

resize = dict(type="Resize", scale=(10000, 300), keep_ratio=True)
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
