"""Image classification: `python -m tasks.classification fit --config configs/classification/NAME.yaml`."""
