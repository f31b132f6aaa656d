"""timm's models as ONNX files of uint8 pixels."""

from pathlib import Path
from typing import Any

import timm
import torch

from vig_jax.errors import ConfigError


class _OfPixels(torch.nn.Module):
    """A model with the normalisation of pixels.

    Attributes:
        model: takes normalised images in channels-first layout.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        for name in ("mean", "std"):
            values = torch.tensor(model.default_cfg[name]).reshape(1, 3, 1, 1)
            self.register_buffer(name, values)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.permute(0, 3, 1, 2).float() / 255
        logits: torch.Tensor = self.model((pixels - self.mean) / self.std)
        return logits


def write(name: str, image_size: int, path: Path) -> None:
    """Writes a model of random weights, for a batch of any size.

    Args:
        name: timm's name.
        image_size: side in pixels.
        path: of the file.

    Raises:
        ConfigError: the name is unknown.
    """
    if not timm.is_model(name):
        raise ConfigError(f"timm {timm.__version__} has no model {name}")
    size = {"img_size": image_size} if name.startswith(("deit", "vit_", "swin_")) else {}
    model = _OfPixels(timm.create_model(name, **size)).eval()
    images = torch.zeros((2, image_size, image_size, 3), dtype=torch.uint8)
    torch.onnx.export(
        model,
        (images,),
        str(path),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes={"images": {0: torch.export.Dim("b")}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
