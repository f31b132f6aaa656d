"""Detection and instance segmentation with a small ViG-H: real training, no download, no GPU.

    python train.py --config=configs/fashion_detection.py

The 64 x 64 scenes are composed of the Fashion-MNIST photographs that come with this project: two to
six products on a cluttered background. 4,000 scenes to train on and 500 held out use different
photographs. The task is to find the box, the class and the mask of every product.
"""

from ml_collections import ConfigDict

from vig_jax.config import recipes


def get_config() -> ConfigDict:
    config = recipes.coco("vig_h_t")
    config.model.embed_dims = (32, 64, 96, 128)
    config.model.depths = (1, 1, 2, 1)
    config.model.num_heads = (1, 2, 3, 4)
    config.model.drop_path_rate = 0.0
    config.model.dtype = "float32"

    config.task.resize_scale = (64, 64)
    config.task.buckets = ((64, 64),)
    config.task.max_boxes = 6
    config.task.mask_side = 28
    config.task.channels = 32
    config.task.box_channels = 256
    config.task.anchor_scale = 3.0  # squares of 12, 24 and 48 pixels at the first three levels
    config.task.rpn_samples = 64
    config.task.proposals = 48
    config.task.train_level_proposals = 48
    config.task.eval_level_proposals = 48
    config.task.roi_samples = 24
    config.task.sampling_ratio = 1
    config.task.score_threshold = 0.01
    config.task.detections = 50

    config.data.source = "fashion_scenes"
    config.data.image_size = 64  # of the scenes
    config.data.workers = 0

    config.optimizer.base_lr = 4e-3  # for 16 images
    config.optimizer.warmup_lr = 1e-5
    config.optimizer.warmup_steps = 200
    config.optimizer.schedule = "cosine"
    config.optimizer.milestones = ()
    config.optimizer.weight_decay = 0.005

    config.train.batch_size = 8
    config.train.epochs = 12
    config.train.ema_decay = 0.99
    config.train.log_every_steps = 250
    config.train.eval_every_epochs = 6
    config.train.checkpoint_every_steps = 0  # every evaluation saves
    return config
