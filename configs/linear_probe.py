"""A linear probe: only a new head is trained, on the features of a frozen backbone.

    python train.py --config=configs/linear_probe.py --config.data.path=/data/flowers \\
        --config.init_weights=vig_s.pth --workdir=runs/flowers_probe

The folder holds train/<class>/*.jpg and val/<class>/*.jpg. A linear probe measures the quality of
the features, and is the fastest classifier to train on few images. The values are a starting point,
not tuned.
"""

from ml_collections import ConfigDict

from vig_jax.config import named


def get_config() -> ConfigDict:
    return named.get_config("linear_probe")
