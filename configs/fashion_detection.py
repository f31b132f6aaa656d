"""Detection and instance segmentation with a small ViG-H: real training, no download, no GPU.

    python train.py --config=configs/fashion_detection.py

The 64 x 64 scenes are composed of the Fashion-MNIST photographs that come with this project: two to
six products on a cluttered background. 4,000 scenes to train on and 500 held out use different
photographs. The task is to find the box, the class and the mask of every product.
"""

from ml_collections import ConfigDict

from vig_jax.config import named


def get_config() -> ConfigDict:
    return named.get_config("fashion_detection")
