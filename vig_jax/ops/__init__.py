"""Operations of detectors on boxes, anchors, samples and masks: pure functions, static shapes."""
