"""Every setting of a run, with its default and unit. Config files start from here."""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    # Fine-tuning: a .pth or .safetensors file, or a run, to start from. A head for another number
    # of classes starts anew; a position embedding for another img_size is resized.
    config.init_weights = config_dict.placeholder(str)

    config.model = ConfigDict()
    config.model.name = "vig_t"
    # Unset: the variant's own value (for num_classes: the data set's).
    config.model.num_classes = config_dict.placeholder(int)
    config.model.img_size = config_dict.placeholder(int)
    config.model.patch_size = config_dict.placeholder(int)
    config.model.embed_dim = config_dict.placeholder(int)
    config.model.depth = config_dict.placeholder(int)
    config.model.embed_dims = config_dict.placeholder(tuple)  # of the four stages of ViG-H
    config.model.depths = config_dict.placeholder(tuple)  # of the four stages of ViG-H
    config.model.num_heads = config_dict.placeholder(object)  # ViG-H: four
    config.model.drop_path_rate = config_dict.placeholder(float)
    config.model.remat = False  # True: blocks computed twice, less memory
    config.model.dtype = "bfloat16"  # of the computation; parameters stay float32
    config.model.gla_implementation = config_dict.placeholder(str)  # unset: best for the device
    # On the sum of the two scan directions; unset: 1/2, as upstream trains.
    config.model.merge_scale = config_dict.placeholder(float)

    config.data = ConfigDict()
    config.data.source = "image_folder"  # or array_record, tar, parquet, fashion_mnist, synthetic
    config.data.path = config_dict.placeholder(str)
    # "stratified": for files without train and val; val_fraction of each class is held out, drawn
    # by split_seed.
    config.data.split = "given"
    config.data.val_fraction = 0.1
    config.data.split_seed = 0
    config.data.image_size = 224
    config.data.mean = (0.485, 0.456, 0.406)  # ImageNet's, in units of [0, 1]
    config.data.std = (0.229, 0.224, 0.225)
    config.data.crop = "random_resized"  # or "pad" (pad and crop), "none" (resize only)
    config.data.crop_scale = (0.08, 1.0)  # share of the area
    config.data.crop_ratio = (3 / 4, 4 / 3)  # width / height
    config.data.crop_padding = 0  # pixels each side, for "pad"
    config.data.hflip = 0.5  # probability
    config.data.crop_pct = 0.875  # evaluation: image_size / resized shorter side
    config.data.rand_augment_layers = 2  # operations in a row, each with probability 1/2; 0: off
    config.data.rand_augment_magnitude = 9.0  # of 10
    config.data.rand_augment_std = 0.5  # of the magnitude
    config.data.color_jitter = 0.0  # strength, only without RandAugment; 0: off
    config.data.erase_probability = 0.25  # of random erasing
    config.data.mixup_alpha = 0.8  # 0: off
    config.data.cutmix_alpha = 1.0  # 0: off
    config.data.mixup_group = 128  # examples that share one draw
    config.data.resize = "auto"  # or "pillow", "numba": the same pixels; auto: numba if installed
    config.data.workers = 8  # decoding processes; 0: in this process
    config.data.prefetch = 2  # batches ready per worker
    config.data.max_bad_images = 100  # stop above this many undecodable files

    config.optimizer = ConfigDict()  # AdamW; the three rates are per lr_batch images
    config.optimizer.base_lr = 1e-3
    config.optimizer.warmup_lr = 5e-7
    config.optimizer.min_lr = 5e-6
    config.optimizer.lr_batch = 512
    config.optimizer.warmup_epochs = 20.0  # or, with the others 0:
    config.optimizer.warmup_steps = 0
    config.optimizer.warmup_examples = 0
    config.optimizer.weight_decay = 0.05
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.clip_norm = 5.0  # 0: off
    # Fine-tuning: the rate of a layer is this times that of the layer above it.
    config.optimizer.layer_decay = 1.0
    # Fine-tuning: parameters that stay as they are, e.g. "patch_embed,pos_embed,blocks_[0-5]" or
    # "backbone" (all but the head).
    config.optimizer.freeze = ""

    config.train = ConfigDict()
    config.train.batch_size = 1024  # global, of one update
    config.train.accumulation_steps = 1  # parts that each batch is computed in: less memory
    config.train.epochs = 300  # or, with the others 0:
    config.train.steps = 0
    config.train.examples = 0
    config.train.label_smoothing = 0.1
    config.train.ema_decay = 0.9999  # 0: off
    config.train.log_every_steps = 50
    config.train.eval_every_epochs = 1  # or, with the others 0 (all 0: only at the end):
    config.train.eval_every_steps = 0
    config.train.eval_every_examples = 0
    config.train.checkpoint_every_steps = 1000  # or, with the others 0 (all 0: when evaluated):
    config.train.checkpoint_every_epochs = 0
    config.train.checkpoint_every_examples = 0
    config.train.keep_checkpoints = 2
    # Compiled programs are kept there, and the next start need not compile them; "": off.
    config.train.compilation_cache = "~/.cache/vig_jax"
    return config
