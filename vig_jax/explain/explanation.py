"""All that explains the results of a trained model for images."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float32, Int, UInt8

from vig_jax.config import DetectionConfig, SegmentationConfig
from vig_jax.errors import ConfigError
from vig_jax.explain.gates import BlockGates, block_gates
from vig_jax.explain.receptive_field import receptive_fields
from vig_jax.explain.saliency import check_class, class_saliency
from vig_jax.files import write_atomically
from vig_jax.inference.loaded_model import LoadedModel
from vig_jax.layers.pixels import normalise
from vig_jax.models import Backbone


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The result of `explain` for B images of one size.

    Attributes:
        images: pixels.
        receptive_fields: of the centre token of maps, by the name of the block or stage; mean over
            the images; see `vig_jax.explain.receptive_fields`.
        gates: by the path of the block; see `vig_jax.explain.block_gates`.
        saliency: see `vig_jax.explain.class_saliency`; None without a classification head.
        classes: the explained labels; empty without a head.
        probabilities: of the explained labels; empty without a head.
        class_names: by label; empty if they are unknown.
    """

    images: UInt8[np.ndarray, "B H W 3"]
    receptive_fields: Mapping[str, Float32[np.ndarray, "H W"]]
    gates: Mapping[str, BlockGates]
    saliency: Float32[np.ndarray, "B H W"] | None
    classes: Int[np.ndarray, " _"]
    probabilities: Float32[np.ndarray, " _"]
    class_names: tuple[str, ...]

    def name_of(self, row: int) -> str:
        """Returns the name of the explained class of an image."""
        label = int(self.classes[row])
        return self.class_names[label] if label < len(self.class_names) else f"class {label}"

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays that `save` writes, by name.

        Returns:
            `images` uint8 [B, H, W, 3]; `receptive_field.NAME` float32 [H, W] for each map;
            `memory_fwd.BLOCK`, `memory_bwd.BLOCK` and `local_weight.BLOCK` float32 [B, heads, h, w]
            for each block; and of a classifier `saliency` float32 [B, H, W], `classes` int [B] and
            `probabilities` float32 [B].
        """
        found: dict[str, np.ndarray] = {"images": self.images}
        found |= {f"receptive_field.{name}": x for name, x in self.receptive_fields.items()}
        for block, gates in self.gates.items():
            found |= {f"{name}.{block}": x for name, x in gates._asdict().items()}
        if self.saliency is not None:
            found |= {"saliency": self.saliency, "classes": self.classes}
            found |= {"probabilities": self.probabilities}
        return found

    def save(self, path: str | Path, **more: np.ndarray) -> None:
        """Writes the arrays as a compressed NPZ, whole or not at all; replaces the file.

        Args:
            path: of the file.
            **more: further arrays.
        """
        arrays: dict[str, Any] = self.arrays() | more
        with write_atomically(Path(path), concurrent=True) as draft, draft.open("wb") as file:
            np.savez_compressed(file, **arrays)


def explain(
    loaded: LoadedModel,
    images: UInt8[Array | np.ndarray, "B H W 3"],
    *,
    class_index: int | None = None,
    steps: int = 32,
) -> Explanation:
    """Explains a trained model on images: receptive fields, memory, gates, and saliency of a class.

    It computes in float32. Of a segmenter or a detector, the backbone is explained, without
    saliency. The receptive fields are those of the stages, or in a plain model of the first, the
    middle and the last block.

    Args:
        loaded: from `vig_jax.from_pretrained`.
        images: RGB pixels of one size, as `vig_jax.create_transform(data, normalised=False)` makes
            them.
        class_index: the class whose saliency is computed; None means the most probable of each
            image.
        steps: see `vig_jax.explain.class_saliency`.

    Raises:
        ConfigError: the class is out of range, there is no head for it, the model stores no gates,
            or the images are too small.
    """
    model, variables = _backbone(loaded)
    if class_index is not None:
        if not model.num_classes:
            raise ConfigError(
                f"class {class_index} cannot be explained: the model has no classification head; "
                "leave the class out"
            )
        check_class(class_index, model.num_classes)
    data = loaded.config.data
    pixels = np.asarray(images)
    normalised = np.asarray(jax.jit(normalise, static_argnums=(1, 2))(pixels, data.mean, data.std))
    gates = block_gates(model, variables, normalised)
    names, indices = _maps(model)
    fields = receptive_fields(model, variables, normalised, indices)
    saliency, classes, probabilities = None, np.zeros(0, np.int32), np.zeros(0, np.float32)
    if model.num_classes:
        run = jax.jit(lambda variables, image: jax.nn.softmax(model.apply(variables, image)[0]))
        rows = np.stack([run(variables, normalised[i : i + 1]) for i in range(len(pixels))])
        classes = rows.argmax(-1) if class_index is None else np.full(len(rows), class_index)
        probabilities = np.take_along_axis(rows, classes[:, None], axis=1)[:, 0]
        saliency = class_saliency(model, variables, normalised, classes.tolist(), steps=steps)
    return Explanation(
        images=pixels,
        receptive_fields=dict(zip(names, fields, strict=True)),
        gates=gates,
        saliency=saliency,
        classes=classes,
        probabilities=probabilities,
        class_names=tuple(loaded.metadata.get("class_names", ())),
    )


def _backbone(loaded: LoadedModel) -> tuple[Backbone, Mapping[str, Any]]:
    """Returns the model that is explained, in float32, and its variables."""
    settings = dataclasses.replace(
        loaded.config.model, dtype="float32", remat=False, gla_implementation=None
    )
    config = dataclasses.replace(loaded.config, model=settings)
    module: Any = dataclasses.replace(loaded, config=config).model
    if isinstance(config.task, SegmentationConfig | DetectionConfig):
        return module.backbone, {"params": loaded.variables["params"]["backbone"]}
    if not isinstance(module, Backbone):
        raise ConfigError(
            f"{type(module).__name__} stores no gates: the model must be a "
            "vig_jax.models.backbone.Backbone"
        )
    return module, loaded.variables


def _maps(model: Backbone) -> tuple[list[str], Sequence[int]]:
    """Returns the names and the indices of the maps whose receptive fields are computed."""
    stages = len(model.stage_sizes)
    if stages > 1:
        return [f"stages_{i}" for i in range(stages)], range(stages)
    last = model.stage_sizes[0][1] - 1
    indices = sorted({0, last // 2, last})
    return [f"blocks_{i}" for i in indices], indices
