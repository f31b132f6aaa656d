"""Solar cells, functional or defective: ViG-T from scratch on 1,968 photographs, one device.

    pip install elpv-dataset      # 91 MB; CC-BY-NC-SA 4.0: not for commercial use
    python train.py --config=configs/elpv.py

Electroluminescence photographs of 300 x 300 pixels; 656 are held out (a quarter, as in the paper).
A cell is defective if the experts' probability of it is at least 1/2. Metrics are accuracy (top1)
and F1 of the defective class (f1). Published, on another quarter and with another rule for the
doubtful cells: accuracy 82.4 % (SVM) and 88.4 % (VGG-19 from ImageNet; Deitsch et al. 2019).
The values below are a start, not tuned.
"""

from ml_collections import ConfigDict

from vig_jax.config import recipes


def get_config() -> ConfigDict:
    config = recipes.imagenet("vig_t")
    config.model.drop_path_rate = 0.1

    config.data.source = "elpv"
    config.data.mean = (0.599, 0.599, 0.599)
    config.data.std = (0.161, 0.161, 0.161)
    config.data.crop_scale = (0.6, 1.0)  # cracks at the rim matter, too
    config.data.crop_ratio = (0.9, 1.1)
    config.data.crop_pct = 1.0  # evaluation sees the whole cell
    # Dark spots and inverted grays are what defects look like: only mild changes of tone.
    config.data.rand_augment_layers = 0
    config.data.color_jitter = 0.2
    config.data.erase_probability = 0.0
    config.data.mixup_alpha = 0.2
    config.data.cutmix_alpha = 0.0
    config.data.mixup_group = 32

    config.optimizer.base_lr = 5e-4
    config.optimizer.warmup_lr = 1e-6
    config.optimizer.min_lr = 1e-5
    config.optimizer.lr_batch = 64
    config.optimizer.warmup_epochs = 10.0

    config.train.batch_size = 64
    config.train.epochs = 150
    config.train.ema_decay = 0.999
    config.train.log_every_steps = 30
    config.train.eval_every_epochs = 5
    config.train.checkpoint_every_steps = 0  # every evaluation saves
    return config
