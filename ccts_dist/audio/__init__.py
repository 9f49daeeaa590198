"""Audio of any format to samples: decoding within limits, resampling, mixing down, augmentation."""
