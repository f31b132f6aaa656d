"""ViG-S on ImageNet-1k: 22.6 M parameters, top-1 81.7 % in the paper.

    python train.py --config=configs/vig_s.py --config.data.path=/data/imagenet

The folder holds train/<class>/*.jpg and val/<class>/*.jpg. The paper trains on eight GPUs of 128
images each; any number of devices that divides the batch will do, one included. The recipe is
that of hustvl/ViG.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()

    config.model.name = "vig_s"
    config.model.drop_path_rate = 0.2
    config.model.dtype = "bfloat16"

    config.data.source = "image_folder"
    config.data.image_size = 224
    config.data.crop = "random_resized"
    config.data.crop_scale = (0.08, 1.0)
    config.data.hflip = 0.5
    config.data.rand_augment_layers = 2
    config.data.rand_augment_magnitude = 9.0
    config.data.erase_probability = 0.25
    config.data.mixup_alpha = 0.8
    config.data.cutmix_alpha = 1.0

    config.optimizer.base_lr = 5e-4  # per 512 images
    config.optimizer.warmup_epochs = 20.0
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 5.0

    config.train.batch_size = 1024
    config.train.epochs = 300
    config.train.label_smoothing = 0.1
    config.train.ema_decay = 0.9999
    return config
