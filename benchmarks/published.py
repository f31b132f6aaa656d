"""Published top-1 accuracies on ImageNet-1k at 224 x 224 pixels: ours and timm's models."""

import dataclasses

TIMM = "timm, results/results-imagenet.csv, commit 7479d451a6df"
PAPER = "arXiv:2405.18425"  # of ViG; none of these six models was trained here


@dataclasses.dataclass(frozen=True)
class Weights:
    """Published weights of a model.

    Attributes:
        tag: of timm, or the original's name.
        top1: per cent, one crop of 224 x 224 pixels.
        distilled: a larger model was the teacher.
        more_data: images beyond those of ImageNet-1k, "" if none.
        source: of `top1`.
    """

    tag: str
    top1: float
    distilled: bool = False
    more_data: str = ""
    source: str = TIMM


@dataclasses.dataclass(frozen=True)
class Published:
    """A model with published weights.

    Attributes:
        label: short name for figures.
        weights: weights that a user can have, those without more data first.
    """

    label: str
    weights: tuple[Weights, ...]


def _of(label: str, *weights: Weights) -> Published:
    return Published(label, weights)


def _imagenet_22k(tag: str, top1: float, *, distilled: bool = False) -> Weights:
    return Weights(tag, top1, distilled, "ImageNet-22k")


OURS = {
    "vig_t": _of("ViG-T", Weights("hustvl/ViG", 77.2, source=PAPER)),
    "vig_s": _of("ViG-S", Weights("hustvl/ViG", 81.7, source=PAPER)),
    "vig_b": _of("ViG-B", Weights("hustvl/ViG", 82.6, source=PAPER)),
    "vig_h_t": _of("ViG-H-T", Weights("hustvl/ViG", 82.8, source=PAPER)),
    "vig_h_s": _of("ViG-H-S", Weights("hustvl/ViG", 83.8, source=PAPER)),
    "vig_h_b": _of("ViG-H-B", Weights("hustvl/ViG", 84.2, source=PAPER)),
}

PEERS = {
    "deit_tiny_patch16_224": _of("DeiT-T", Weights("fb_in1k", 72.2, source="arXiv:2012.12877")),
    "deit_small_patch16_224": _of("DeiT-S", Weights("fb_in1k", 79.862)),
    "deit_base_patch16_224": _of("DeiT-B", Weights("fb_in1k", 81.980)),
    "deit3_small_patch16_224": _of(
        "DeiT3-S", Weights("fb_in1k", 81.374), _imagenet_22k("fb_in22k_ft_in1k", 83.082)
    ),
    "deit3_base_patch16_224": _of(
        "DeiT3-B", Weights("fb_in1k", 83.794), _imagenet_22k("fb_in22k_ft_in1k", 85.728)
    ),
    "convnext_tiny": _of(
        "ConvNeXt-T",
        Weights("fb_in1k", 82.066),
        Weights("in12k_ft_in1k", 84.192, more_data="ImageNet-12k"),
    ),
    "convnext_small": _of(
        "ConvNeXt-S",
        Weights("fb_in1k", 83.144),
        Weights("in12k_ft_in1k", 85.164, more_data="ImageNet-12k"),
    ),
    "convnext_base": _of(
        "ConvNeXt-B", Weights("fb_in1k", 83.834), _imagenet_22k("fb_in22k_ft_in1k", 85.816)
    ),
    "swin_tiny_patch4_window7_224": _of("Swin-T", Weights("ms_in1k", 81.388)),
    "swin_small_patch4_window7_224": _of(
        "Swin-S", Weights("ms_in1k", 83.228), _imagenet_22k("ms_in22k_ft_in1k", 83.330)
    ),
    "swin_base_patch4_window7_224": _of(
        "Swin-B", Weights("ms_in1k", 83.610), _imagenet_22k("ms_in22k_ft_in1k", 85.270)
    ),
    "hiera_tiny_224": _of("Hiera-T", Weights("mae_in1k_ft_in1k", 82.824)),
    "hiera_small_224": _of("Hiera-S", Weights("mae_in1k_ft_in1k", 83.886)),
    "efficientvit_l1": _of("EfficientViT-L1", Weights("r224_in1k", 84.448)),
    "efficientvit_l2": _of("EfficientViT-L2", Weights("r224_in1k", 85.044)),
    "hgnetv2_b3": _of("HGNetV2-B3", _imagenet_22k("ssld_stage2_ft_in1k", 82.910, distilled=True)),
    "hgnetv2_b4": _of("HGNetV2-B4", _imagenet_22k("ssld_stage2_ft_in1k", 83.694, distilled=True)),
    "repvit_m1_5": _of("RepViT-M1.5", Weights("dist_450e_in1k", 82.520, distilled=True)),
    "levit_384": _of("LeViT-384", Weights("fb_dist_in1k", 82.598, distilled=True)),
    "caformer_s18": _of(
        "CAFormer-S18", Weights("sail_in1k", 83.668), _imagenet_22k("sail_in22k_ft_in1k", 84.086)
    ),
    "tiny_vit_21m_224": _of(
        "TinyViT-21M",
        Weights("in1k", 83.270),
        _imagenet_22k("dist_in22k_ft_in1k", 85.088, distilled=True),
    ),
    "mambaout_tiny": _of(
        "MambaOut-T", Weights("in1k", 82.7, source="github.com/yuweihao/MambaOut, README")
    ),
    "shvit_s3": _of("SHViT-S3", Weights("in1k", 77.4, source="arXiv:2401.16456")),
}
