"""XNOR-style baseline: ResNet's own shortcuts, zero borders, boxes of four values, no bottleneck."""

_base_ = ["bireal_faster_rcnn_r18.py"]

model = dict(backbone=dict(variant="xnor", shortcuts=False))
