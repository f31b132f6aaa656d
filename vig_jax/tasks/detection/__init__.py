"""Detection and instance segmentation with Mask R-CNN."""
