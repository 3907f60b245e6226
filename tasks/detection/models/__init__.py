"""BiDet's detectors as parts of mmdet: heads, boxes, losses, and the trunks adapted to them."""
