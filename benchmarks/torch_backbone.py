"""timm's hierarchical backbones for the heads of dense tasks, with random weights.

As in the configs of Swin and ConvNeXt for mmsegmentation and mmdetection, each map has a LayerNorm.
"""

import timm
import torch
from torch import nn

from vig_jax.bench.programs import DROP_PATH

BACKBONES = {
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_small": "swin_small_patch4_window7_224",
    "swin_base": "swin_base_patch4_window7_224",
    "convnext_tiny": "convnext_tiny",
    "convnext_small": "convnext_small",
    "convnext_base": "convnext_base",
}
"""timm's name of each backbone."""


class Backbone(nn.Module):
    """A backbone and a LayerNorm for each of its four maps.

    Args:
        name: a key of `BACKBONES`.
        image_size: height and width of the images, pixels.

    Attributes:
        widths: channels of the maps, finest first.
    """

    def __init__(self, name: str, image_size: tuple[int, int]):
        super().__init__()
        sizes = {"img_size": image_size, "strict_img_size": False} if "swin" in name else {}
        self.body = timm.create_model(
            BACKBONES[name], features_only=True, drop_path_rate=DROP_PATH, **sizes
        )
        self.widths: list[int] = self.body.feature_info.channels()
        self.channels_last_maps = str(self.body.output_fmt).endswith("NHWC")
        self.norms = nn.ModuleList([nn.LayerNorm(width) for width in self.widths])

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Returns the maps, [B, C, H / 4, W / 4] and at strides 8, 16 and 32."""
        maps = []
        for norm, features in zip(self.norms, self.body(images), strict=True):
            last = features if self.channels_last_maps else features.permute(0, 2, 3, 1)
            maps.append(norm(last).permute(0, 3, 1, 2))
        return maps
