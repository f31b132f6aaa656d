"""A small ViG on the images that come with this project: real training, no download, no GPU.

    python train.py --config=configs/fashion_mnist.py

Fashion-MNIST's 10,000 test images, split into 8,000 to train on and 2,000 held out. Expect a top-1
of 87 to 88 % on these.
"""

from ml_collections import ConfigDict

from vig_jax.config import named


def get_config() -> ConfigDict:
    return named.get_config("fashion_mnist")
