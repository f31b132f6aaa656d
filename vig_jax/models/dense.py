"""Models for dense tasks: heads on a backbone."""

import dataclasses
from typing import Any, TypeVar

import flax.linen as nn
import jax

from vig_jax.errors import ConfigError
from vig_jax.layers.linear import Dtype
from vig_jax.models.variants import create_model, model_settings
from vig_jax.models.vig import ViG
from vig_jax.models.vig_h import ViGH
from vig_jax.text import did_you_mean


class DenseModel(nn.Module):
    """Base class of models with several heads on a ViG.

    Attributes:
        backbone: a model without head, num_classes=0; hierarchical ones with out_norms=True.
        num_classes: number of classes K.
    """

    backbone: ViG | ViGH
    num_classes: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.backbone, ViG | ViGH) and self.backbone.num_classes:
            raise ConfigError(
                f"the backbone has num_classes={self.backbone.num_classes}; it must be 0: a "
                f"{type(self).__name__.lower()} has other heads"
            )
        super().__post_init__()

    @property
    def dtype(self) -> Dtype:
        """Dtype of the computation, the backbone's; results are float32 or wider."""
        return self.backbone.dtype

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.backbone.in_chans

    @property
    def gla_implementation(self) -> str | None:
        """The backbone's implementation; see `kernels_pallas.vig_mixer`."""
        return self.backbone.gla_implementation

    @property
    def native_size(self) -> int | None:
        """Image side in pixels that the parameters are made for; None if any size is as good."""
        return self.backbone.native_size

    @property
    def pos_embed_grid(self) -> int | None:
        """Side of the square grid of the position embedding; None if there is none."""
        return self.backbone.pos_embed_grid

    @property
    def stage_sizes(self) -> tuple[tuple[int, int], ...]:
        """Width and number of blocks of each stage of the backbone."""
        return self.backbone.stage_sizes

    def layer_ids(self, params: Any) -> tuple[Any, int]:
        """Returns layer numbers; see `vig_jax.models.backbone.ParameterGroups`.

        Neck and heads are in the last layer.
        """
        ids, last = self.backbone.layer_ids(params["backbone"])
        return {
            name: ids if name == "backbone" else jax.tree.map(lambda _: last, tree)
            for name, tree in params.items()
        }, last


Model = TypeVar("Model", bound=DenseModel)


def create_dense_model(
    family: type[Model], name: str, num_classes: int, overrides: dict[str, Any]
) -> Model:
    """Builds a model for a dense task by the name of its backbone.

    Args:
        family: the class of the model.
        name: one of `list_models()`.
        num_classes: number of classes.
        overrides: fields of `family` or of the backbone. Hierarchical backbones have
            out_norms=True if it is not given.

    Raises:
        ConfigError: unknown name or field; the message suggests the nearest ones.
    """
    shared = ("backbone", "num_classes", "parent", "name")
    own = tuple(field.name for field in dataclasses.fields(family) if field.name not in shared)
    fields = tuple(field for field in model_settings(name) if field != "num_classes")
    for key in overrides:
        if key not in own + fields:
            hint = did_you_mean(key, own + fields)
            noun = family.__name__.lower()
            raise ConfigError(f"a {noun} on {name} has no setting {key!r}; {hint}")
    rest = {key: value for key, value in overrides.items() if key not in own}
    if "out_norms" in fields:
        rest.setdefault("out_norms", True)
    given = {key: value for key, value in overrides.items() if key in own}
    backbone = create_model(name, 0, **rest)
    if not isinstance(backbone, ViG | ViGH):
        raise ConfigError(
            f"{name} is a {type(backbone).__name__}; the backbone of a "
            f"{family.__name__.lower()} must be a ViG or a ViGH, or derived from one"
        )
    return family(backbone, num_classes=num_classes, **given)
