"""A small SSD of our own parts: the expanded binary ResNet-18, BiDet's head over its one map. An mmdet config file."""

_base_ = ["tiny_ssd.py"]

model = {
    "backbone": {"_delete_": True, "type": "ESBiDetResNet18", "tau": 2, "groups": 1, "frozen_stem": False},
    "bbox_head": {
        "_delete_": True,
        "type": "BiDetSSDHead",
        "num_classes": 20,
        "in_channels": (512,),
        "anchor_generator": {
            "type": "SSDAnchorGenerator",
            "scale_major": False,
            "input_size": 64,
            "min_sizes": [16],
            "max_sizes": [40],
            "strides": [16],
            "ratios": [[2, 3]],
        },
        "bbox_coder": {"type": "MeanVarianceCoder", "target_stds": (0.1, 0.1, 0.2, 0.2), "sigma": 0.01},
    },
}
