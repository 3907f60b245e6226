"""BiDet's detectors as parts of mmdet: heads, boxes, losses, and the trunks cut for them."""
