"""Recipes: the one place of the values that runs are trained with.

The configs of `vig_jax.config.named` start from one. `vig_jax.config.schema` has the types.
"""

from ml_collections import ConfigDict, config_dict


def imagenet(name: str = "vig_t") -> ConfigDict:
    """Returns every setting of a run, with the values of the paper's ImageNet recipe.

    The learning rate, weight decay and drop path rate are those of ViG-T. The pages of the other
    models and other recipes change what differs.

    Args:
        name: of the model, one of `vig_jax.list_models()`.

    Returns:
        A config whose keys are those of `vig_jax.config.RunConfig`.

    Source: hustvl/ViG (`classification/configs`) and section 4 of the paper.
    """
    config = ConfigDict()
    config.seed = 0
    config.plugins = ()  # modules of your own, see docs/extending.md
    config.task = ConfigDict({"name": "classification"})  # a name of vig_jax.tasks.registry
    # Fine-tuning: a .pth or .safetensors file, or a run, to start from. A head for another number
    # of classes is initialised randomly; a position embedding for another img_size is resized.
    config.init_weights = config_dict.placeholder(str)

    config.model = ConfigDict()
    config.model.name = name
    # Unset (None): the model's default, and for num_classes the number of the data set's classes.
    config.model.num_classes = config_dict.placeholder(int)
    config.model.img_size = config_dict.placeholder(int)
    config.model.patch_size = config_dict.placeholder(int)
    config.model.embed_dim = config_dict.placeholder(int)
    config.model.depth = config_dict.placeholder(int)
    config.model.embed_dims = config_dict.placeholder(tuple)  # ViG-H: one per stage
    config.model.depths = config_dict.placeholder(tuple)  # ViG-H: one per stage
    config.model.num_heads = config_dict.placeholder(object)  # ViG-H: one per stage
    config.model.drop_path_rate = config_dict.placeholder(float)
    config.model.remat = False  # True: recompute blocks in the backward pass to save memory
    config.model.dtype = "bfloat16"  # of the computation; parameters are float32
    config.model.gla_implementation = config_dict.placeholder(
        str
    )  # unset: the fastest on this device
    # Factor on the sum of the two scan directions; unset: 1/2, as in upstream's training.
    config.model.merge_scale = config_dict.placeholder(float)

    config.data = ConfigDict()
    config.data.source = "image_folder"  # or array_record, tar, parquet, fashion_mnist, synthetic
    config.data.path = config_dict.placeholder(str)
    # "stratified": for data without train and val folders. Holds out val_fraction of each class,
    # drawn with split_seed.
    config.data.split = "given"
    config.data.val_fraction = 0.1
    config.data.split_seed = 0
    config.data.image_size = 224
    config.data.eval_size = config_dict.placeholder(tuple)  # (height, width) if not square
    # True: images keep their size and aspect, and share rows of tokens; see docs/training.md.
    config.data.native_sizes = False
    config.data.max_tokens = 0  # of an image; larger ones are reduced; 0: those of image_size
    config.data.row_images = 8  # images of a row; divides train.batch_size
    config.data.row_tokens = 0  # tokens of a row; 0: row_images * max_tokens
    config.data.mean = (0.485, 0.456, 0.406)  # ImageNet's, in units of [0, 1]
    config.data.std = (0.229, 0.224, 0.225)
    config.data.crop = "random_resized"  # or "pad" (pad and crop), "none" (resize only)
    config.data.crop_scale = (0.08, 1.0)  # fraction of the image's area
    config.data.crop_ratio = (3 / 4, 4 / 3)  # width / height
    config.data.crop_padding = 0  # pixels each side, for "pad"
    config.data.hflip = 0.5  # probability
    config.data.crop_pct = 0.875  # evaluation: image_size / resized shorter side
    config.data.rand_augment_layers = 2  # operations per image, each with probability 1/2; 0: off
    config.data.rand_augment_magnitude = 9.0  # mean, 0 to 10
    config.data.rand_augment_std = 0.5  # standard deviation of the magnitude
    config.data.augmentations = ()  # of plugins, before all others
    config.data.color_jitter = 0.0  # strength; used only without RandAugment; 0: off
    config.data.erase_probability = 0.25  # probability of random erasing
    config.data.mixup_alpha = 0.8  # 0: off
    config.data.cutmix_alpha = 1.0  # 0: off
    config.data.mixup_group = 128  # images that share one draw of lambda
    config.data.resize = "auto"  # or "pillow", "numba" (same pixels); auto: numba if installed
    config.data.workers = 8  # decoding processes; 0: threads of this process
    config.data.prefetch = 2  # batches kept ready per worker
    config.data.max_image_pixels = 2**26  # width * height; larger images are left out
    config.data.damaged_jpegs = "use"  # or "leave_out": JPEGs that decode in spite of damage
    config.data.image_seconds = 60.0  # for reading and preprocessing one image; 0: no limit
    config.data.max_bad_images = 100  # above this many undecodable images the run stops

    config.optimizer = ConfigDict()  # AdamW; the three learning rates are per lr_batch images
    config.optimizer.base_lr = 1e-3
    config.optimizer.warmup_lr = 5e-7
    config.optimizer.min_lr = 5e-6
    config.optimizer.lr_batch = 512
    config.optimizer.warmup_epochs = 20.0  # set one of the three, the others to 0
    config.optimizer.warmup_steps = 0
    config.optimizer.warmup_examples = 0
    config.optimizer.schedule = "cosine"  # or "poly", "poly_from_start", "step"
    config.optimizer.power = 1.0  # of the polynomial
    config.optimizer.milestones = ()  # of "step": epochs after which the rate falls to a tenth
    config.optimizer.weight_decay = 0.05
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.clip_norm = 5.0  # 0: off
    # Fine-tuning: the learning rate of a layer is this times that of the layer above it.
    config.optimizer.layer_decay = 1.0
    # Fine-tuning: parameters that are not trained, e.g. "patch_embed,pos_embed,blocks_[0-5]" or
    # "backbone" (all but the head).
    config.optimizer.freeze = ""

    config.train = ConfigDict()
    config.train.batch_size = 1024  # global, of one update
    config.train.accumulation_steps = 1  # parts of the batch, computed in sequence to save memory
    config.train.epochs = 300  # set one of the three, the others to 0
    config.train.steps = 0
    config.train.examples = 0
    config.train.label_smoothing = 0.1
    config.train.ema_decay = 0.9999  # 0: off
    config.train.log_every_steps = 50
    config.train.loggers = ("tensorboard",)  # or wandb, mlflow, or of plugins
    config.train.eval_every_epochs = 1  # set one of the three; all 0: only at the end
    config.train.eval_every_steps = 0
    config.train.eval_every_examples = 0
    config.train.checkpoint_every_steps = 1000  # set one of the three; all 0: when evaluated
    config.train.checkpoint_every_epochs = 0
    config.train.checkpoint_every_examples = 0
    config.train.keep_checkpoints = 2
    # Folder of compiled programs, so that the next start need not compile them; "": off.
    config.train.compilation_cache = "~/.cache/vig_jax"
    # Or "bfloat16": half the bytes between devices, and each addition of gradients rounds.
    config.train.reduce_dtype = "float32"
    config.train.lost_after_seconds = 120

    config.mesh = ConfigDict()  # the product of the axes is the number of devices
    config.mesh.data = 0  # the batch is split over it; 0: all devices that the other axes leave
    config.mesh.fsdp = 1  # the batch is split over it, and parameters, EMA and optimizer as well
    config.mesh.sequence = 1  # the rows of each image are split over it
    return config


# Of dense tasks: Vision-RWKV's for the plain models, Swin's and VMamba's for the others.
_DROP_PATH = {
    "vig_t": 0.1,
    "vig_s": 0.2,
    "vig_b": 0.3,
    "vig_h_t": 0.2,
    "vig_h_s": 0.3,
    "vig_h_b": 0.6,
}


def ade20k(name: str = "vig_h_t") -> ConfigDict:
    """Returns the settings of UperNet on ADE20K: 160,000 updates of 16 crops of 512 x 512.

    The recipe starts from ImageNet weights: set `config.init_weights`. ViG's authors published
    neither code nor settings for segmentation. The plain models follow BEiT and Vim, with a
    layer-wise learning rate; ViG-H follows Swin and VMamba.

    Args:
        name: of the backbone, one of `vig_jax.list_models()`.

    Sources: mmsegmentation 1.2.2 (`configs/_base_/datasets/ade20k.py`, `configs/swin`), microsoft/
    unilm (`beit/semantic_segmentation`), hustvl/Vim (`seg`), MzeroMiko/VMamba (`segmentation`).
    """
    config = imagenet(name)
    plain = not name.startswith("vig_h")
    config.model.drop_path_rate = _DROP_PATH.get(name, 0.2)

    config.task = ConfigDict()
    config.task.name = "segmentation"
    config.task.channels = 512  # width of UPerHead
    config.task.aux_channels = 256  # width of the auxiliary FCNHead; 0: none
    config.task.aux_weight = 0.4
    config.task.dropout = 0.1  # of whole channels before the logits
    config.task.norm_last = False  # plain models: apply the backbone's norm to the last map
    config.task.avg_non_ignore = False  # True: average the loss over labelled pixels only
    config.task.reduce_zero_label = True  # label 0 is "other": ignored; label k is class k - 1
    config.task.resize_scale = (2048, 512)  # long and short side, pixels
    config.task.resize_ratio = (0.5, 2.0)  # random factor on them
    config.task.crop_max_share = 0.75  # most of a crop that one class may cover
    config.task.photometric = True  # brightness, contrast, saturation, hue
    config.task.eval_mode = "slide"  # or "whole"
    config.task.eval_stride = 341  # pixels between sliding windows
    config.task.eval_scales = (1.0,)  # published multi-scale results: 0.5, 0.75, ..., 1.75
    config.task.eval_flip = False

    config.data.source = "ade20k"  # or mask_folder, voc, cityscapes, fashion_scenes, nuclei
    config.data.image_size = 512  # of training crops and sliding windows

    config.optimizer.base_lr = 1e-4 if plain else 6e-5
    config.optimizer.warmup_lr = 1e-6 * config.optimizer.base_lr
    config.optimizer.min_lr = 0.0
    config.optimizer.lr_batch = 16
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.warmup_steps = 1500
    config.optimizer.schedule = "poly"
    config.optimizer.weight_decay = 0.05 if plain else 0.01
    config.optimizer.clip_norm = 0.0
    config.optimizer.layer_decay = 0.9 if plain else 1.0

    config.train.batch_size = 16
    config.train.epochs = 0
    config.train.steps = 160_000
    config.train.label_smoothing = 0.0
    config.train.ema_decay = 0.0
    config.train.eval_every_epochs = 0
    config.train.eval_every_steps = 16_000
    config.train.checkpoint_every_steps = 4_000
    return config


def coco(name: str = "vig_h_t", *, multi_scale: bool = False) -> ConfigDict:
    """Returns the settings of Mask R-CNN on COCO: 12 epochs of batches of 16 images ("1x").

    The recipe starts from ImageNet weights: set `config.init_weights`. ViG's authors published
    neither code nor settings for detection. The recipe is that of Swin and VMamba for ViG-H, and
    that of Vision-RWKV for the plain models, whose neck differs: see docs/detection.md.

    Args:
        name: of the backbone, one of `vig_jax.list_models()`.
        multi_scale: 36 epochs with images of many sizes and random crops ("3x").

    Sources: mmdetection 2.28.2 (`configs/_base_`), OpenGVLab/Vision-RWKV (`detection/configs`),
    MzeroMiko/VMamba (`detection/configs`).
    """
    config = imagenet(name)
    plain = not name.startswith("vig_h")
    config.model.drop_path_rate = _DROP_PATH.get(name, 0.2)

    config.task = ConfigDict()
    config.task.name = "detection"
    config.task.masks = True  # instance segmentation; False: boxes alone
    config.task.resize_scale = (1333, 800)  # long and short side, pixels
    config.task.multi_scale = "resize_crop" if multi_scale else "none"  # or "resize"
    config.task.short_sides = tuple(range(480, 801, 32))  # of "resize" and "resize_crop", pixels
    config.task.crop_short_sides = (400, 500, 600)  # of "resize_crop" before the crop, pixels
    config.task.crop_sides = (384, 600)  # of the crop, pixels
    config.task.buckets = (  # height and width of padded images; each compiles a program
        *((800, 1088), (800, 1216), (800, 1344)),
        *((1088, 800), (1216, 800), (1344, 800)),
    )
    config.task.max_boxes = 100  # of a training image
    config.task.mask_side = 112  # of an object's mask in its box, pixels
    config.task.channels = 256  # of the pyramid, the RPN head and the mask head
    config.task.box_channels = 1024  # of the box head
    config.task.anchor_scale = 8.0  # side of a square anchor over the stride
    config.task.anchor_ratios = (0.5, 1.0, 2.0)  # height over width
    config.task.rpn_positive = 0.7  # least IoU of a positive anchor
    config.task.rpn_negative = 0.3  # highest IoU of the background
    config.task.rpn_samples = 256  # anchors of an image in the loss
    config.task.rpn_positive_share = 0.5  # of them that may be positive
    config.task.rpn_nms = 0.7
    config.task.proposals = 1000  # of an image
    config.task.train_level_proposals = 2000  # best anchors of a level before their suppression
    config.task.eval_level_proposals = 1000
    config.task.roi_positive = 0.5  # least IoU of a positive region
    config.task.roi_samples = 512  # regions of an image in the loss
    config.task.roi_positive_share = 0.25  # of them that may be positive
    config.task.sampling_ratio = 2  # samples of RoIAlign along a side of a bin
    config.task.score_threshold = 0.05  # a detection has more
    config.task.nms = 0.5  # of the detections of a class
    config.task.detections = 100  # of an image
    config.task.rpn_class_weight = 1.0
    config.task.rpn_box_weight = 1.0
    config.task.class_weight = 1.0
    config.task.box_weight = 1.0
    config.task.mask_weight = 1.0

    config.data.source = "coco"  # or fashion_scenes, nuclei

    config.optimizer.base_lr = 2e-4 if name == "vig_t" else 1e-4
    config.optimizer.warmup_lr = 1e-3 * config.optimizer.base_lr
    config.optimizer.min_lr = 0.0
    config.optimizer.lr_batch = 16
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.warmup_steps = 500 if plain else 1000
    config.optimizer.schedule = "step"
    config.optimizer.milestones = (27, 33) if multi_scale else (8, 11)
    config.optimizer.weight_decay = 0.01 if name == "vig_t" else 0.05
    config.optimizer.clip_norm = 0.0
    config.optimizer.layer_decay = 0.85 if plain else 1.0

    config.train.batch_size = 16
    config.train.epochs = 36 if multi_scale else 12
    config.train.label_smoothing = 0.0
    config.train.ema_decay = 0.0
    config.train.checkpoint_every_steps = 4_000
    return config
