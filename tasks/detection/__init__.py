"""Detection on PASCAL VOC through mmdet: `python -m tasks.detection fit --config configs/detection/NAME.yaml`."""
