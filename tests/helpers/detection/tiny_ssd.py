"""An SSD of mmdet's own parts, small enough for tests: an mmdet config file."""

size = (64, 64)
train_pipeline = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations", "with_bbox": True},
    {"type": "PhotoMetricDistortion"},
    {"type": "Expand", "mean": (123, 117, 104), "to_rgb": True, "ratio_range": (1, 2)},
    {"type": "MinIoURandomCrop"},
    {"type": "Resize", "scale": size, "keep_ratio": False},
    {"type": "RandomFlip", "prob": 0.5},
    {"type": "PackDetInputs"},
]
test_pipeline = [
    {"type": "LoadImageFromFile"},
    {"type": "Resize", "scale": size, "keep_ratio": False},
    {"type": "LoadAnnotations", "with_bbox": True},
    {"type": "PackDetInputs", "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")},
]
model = {
    "type": "SingleStageDetector",
    "data_preprocessor": {
        "type": "DetDataPreprocessor",
        "mean": (123, 117, 104),
        "std": (58, 57, 57),
        "bgr_to_rgb": True,
    },
    "backbone": {"type": "ResNet", "depth": 18, "base_channels": 16, "out_indices": (2, 3)},
    "bbox_head": {
        "type": "SSDHead",
        "num_classes": 20,
        "in_channels": (64, 128),
        "anchor_generator": {
            "type": "SSDAnchorGenerator",
            "scale_major": False,
            "input_size": 64,
            "min_sizes": [16, 32],
            "max_sizes": [32, 60],
            "strides": [16, 32],
            "ratios": [[2], [2]],
        },
        "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_stds": (0.1, 0.1, 0.2, 0.2)},
    },
    "train_cfg": {
        "assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "min_pos_iou": 0.0},
        "sampler": {"type": "PseudoSampler"},
        "smoothl1_beta": 1.0,
        "allowed_border": -1,
        "pos_weight": -1,
        "neg_pos_ratio": 3,
    },
    "test_cfg": {
        "nms_pre": 1000,
        "nms": {"type": "nms", "iou_threshold": 0.45},
        "min_bbox_size": 0,
        "score_thr": 0.02,
        "max_per_img": 50,
    },
}
