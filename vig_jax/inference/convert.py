"""Converts weights between files and checkpoints; the target is written whole or not at all."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from vig_jax.config import DetectionConfig, RunConfig, SegmentationConfig
from vig_jax.errors import ConfigError, WeightsError
from vig_jax.files import write_atomically
from vig_jax.inference.hub import check_target, needs_own_names, write_folder
from vig_jax.inference.loaded_model import LoadedModel, load_for_inference, restore_file
from vig_jax.inference.model_card import UNKNOWN_LICENCE
from vig_jax.models import Detector
from vig_jax.models.from_config import (
    detector_from_config,
    model_from_config,
    segmenter_from_config,
)
from vig_jax.tasks.registry import get_task
from vig_jax.text import first_line
from vig_jax.train.checkpoint import RunInfo
from vig_jax.weights.dense import Variables
from vig_jax.weights.fit import fit_to_config
from vig_jax.weights.fit_dense import fit_dense
from vig_jax.weights.hub_folder import is_hub_folder
from vig_jax.weights.initial import float32
from vig_jax.weights.load import (
    checksum,
    foreign_state_dict,
    read_weight_file,
    save_safetensors,
)
from vig_jax.weights.own_names import own_state_dict
from vig_jax.weights.run_folder import CHECKPOINTS, mutable_item, save_weights

Format = Literal["checkpoint", "safetensors", "hub"]
_VERIFY_IMAGES = 2
_SEGMENTER_SIDE = 128  # pixels, of these images; any side shows a difference
_DETECTOR_SIDE = 64


@dataclasses.dataclass(frozen=True)
class Report:
    """A summary of one converted set of weights.

    Attributes:
        source: the file and the weights in it, and how the result differs from them.
        unused: the other keys of the file.
        config: with the model.
        tensors: number of arrays as written.
        parameters: number of elements, without running statistics.
        source_dtypes: dtypes of the arrays as read.
        dtypes: dtypes of the arrays as written.
        sha256: of names and bytes as written; see `checksum`.
        difference: largest difference before and after of what was compared; None: nothing was.
        compared: the logits of random images, or the weights of a model whose inputs are unknown.
    """

    source: str
    unused: tuple[str, ...]
    config: RunConfig
    tensors: int
    parameters: int
    source_dtypes: tuple[str, ...]
    dtypes: tuple[str, ...]
    sha256: str
    difference: float | None
    compared: str = "logits of random images"

    def __str__(self) -> str:
        """Returns lines for the console."""
        model = self.config.model
        changed = self.dtypes != self.source_dtypes
        was = f" (was {', '.join(self.source_dtypes)})" if changed else ""
        lines = [
            self.source,
            *([f"  not taken   {', '.join(self.unused)}"] if self.unused else []),
            f"  model       {model.name}, {model.num_classes} classes",
            f"  tensors     {self.tensors}, with {self.parameters:,} parameters",
            "  unmatched   none: every name and shape fits",
            f"  dtype       {', '.join(self.dtypes)}{was}",
            f"  sha256      {self.sha256}",
        ]
        if self.difference is not None:
            lines.append(f"  verified    {self.compared} differ by {self.difference:g} at most")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class _Source:
    loaded: LoadedModel
    unused: tuple[str, ...]


def format_of(target: Path) -> Format:
    """Returns the format that the name of a target stands for."""
    return "safetensors" if target.suffix == ".safetensors" else "checkpoint"


def convert(
    source: Path,
    target: Path,
    *,
    to: Format,
    model_name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    ema: bool | None = None,
    verify: bool = False,
    overwrite: bool = False,
    licence: str = UNKNOWN_LICENCE,
) -> list[Report]:
    """Writes the weights of a file or a run as another file or as a checkpoint.

    Args:
        source: a weight file, or a run's workdir or checkpoint.
        target: a `.safetensors` file, which gets the names of upstream, or for a segmenter those of
            mmsegmentation and for a detector those of mmdetection; or a folder, which becomes a
            workdir with one checkpoint, for inference or to start from, or a folder as that of
            `vig_jax.save_pretrained`.
        to: the format of the target.
        model_name: model of a file that does not name it, see `vig_jax.load_weights`.
        settings: settings of a file's model, as for `restore_weights`.
        ema: True takes the EMA weights, False the raw ones. None takes both for a checkpoint, if
            the file has both, and for `.safetensors` the EMA weights if there are any.
        verify: read the written weights and compare the logits of random images before the target
            gets its name.
        overwrite: replace an existing target.
        licence: of the weights, for the card of a hub folder.

    Returns:
        One report for each set of weights written.

    Raises:
        FileNotFoundError: there is no such source.
        FileExistsError: the target exists and may not be replaced.
        ConfigError: the arguments do not fit together.
        WeightsError: the file cannot be read or does not fit the model, or the logits differ.
    """
    _check_target(target, to, overwrite)
    if source.is_dir() and to == "checkpoint" and not is_hub_folder(source):
        raise ConfigError(
            f"{source} is a run already; runs are converted to .safetensors, or with --to hub to a "
            "folder for others"
        )
    sources = _read(source, to, model_name, settings or {}, ema)
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(target, concurrent=True) as draft:
        if to != "checkpoint":
            (one,) = sources.values()
            if to == "hub":
                write_folder(draft, one.loaded, licence)
            else:
                _save_file(one.loaded, draft)
            written = {"params": one.loaded.variables}
        else:
            written = {item: float32(one.loaded.variables) for item, one in sources.items()}
            save_weights(draft, _items(written), _run_item(sources))
        reports = []
        for item, one in sources.items():
            difference = None
            if verify:
                difference = _compare(one.loaded, _read_back(draft, to, item, one.loaded))
            reports.append(_report(one, written[item], difference))
    return reports


def _save_file(loaded: LoadedModel, path: Path) -> None:
    """Writes a .safetensors file; that of a dense model also names its classes and settings."""
    mutable = {key: tree for key, tree in loaded.variables.items() if key != "params"}
    facts, task, data = {}, loaded.config.task, loaded.config.data
    if isinstance(task, SegmentationConfig | DetectionConfig):
        pixels = {"image_size": data.image_size, "mean": data.mean, "std": data.std}
        config = {"task": dataclasses.asdict(task), "data": pixels}
        facts = {"metadata": dict(loaded.metadata), "config": config}
    save_safetensors(
        loaded.variables["params"],
        path,
        model_name=loaded.config.model.name,
        averaged=loaded.ema,
        mutable=mutable,
        facts=facts,
    )


def _items(variables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the items of a checkpoint: parameters, and mutable collections if there are any."""
    items: dict[str, Any] = {}
    for item, trees in variables.items():
        mutable = {key: tree for key, tree in trees.items() if key != "params"}
        items |= {item: trees["params"]} | ({mutable_item(item): mutable} if mutable else {})
    return items


def _check_target(target: Path, to: Format, overwrite: bool) -> None:
    if (target.suffix == ".safetensors") != (to == "safetensors"):
        raise ConfigError(
            f"{target} does not fit the format {to}: the name of a .safetensors file must end in "
            ".safetensors (PyTorch reads it with safetensors.torch.load_file), and the name of a "
            "folder must not"
        )
    if to != "safetensors" and target.suffix in (".pth", ".pt", ".bin", ".ckpt"):
        raise ConfigError(
            f"{target}: PyTorch files are read, not written; write .safetensors, which PyTorch "
            "reads with safetensors.torch.load_file"
        )
    if to == "hub":
        check_target(target, overwrite)
        return
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise FileExistsError(f"{target} exists already: --force replaces it")
    if target.is_dir():
        foreign = {entry.name for entry in target.iterdir()} - {CHECKPOINTS}
        if to == "safetensors" or foreign:
            raise FileExistsError(
                f"{target} is a folder with other contents than a converted checkpoint, which is "
                "never replaced: give another name"
            )
    elif to == "checkpoint":
        raise FileExistsError(
            f"{target} is a file, which a folder cannot replace: give another name"
        )


def _read(
    source: Path,
    to: Format,
    model_name: str | None,
    settings: Mapping[str, Any],
    ema: bool | None,
) -> dict[str, _Source]:
    """Returns the weights to write, by the name of their item in a checkpoint."""
    if source.is_dir():
        loaded = load_for_inference(source, ema=ema)
        own = loaded.config.model.name
        if settings or model_name not in (None, own):
            raise ConfigError(f"{source} holds {own}: --model and --set are for weight files")
        return {"params": _Source(loaded, ())}

    def read(ema: bool | None) -> _Source:
        file = read_weight_file(source, ema=ema)
        loaded = restore_file(file, source, model_name, settings=settings)
        return _Source(loaded, file.others)

    first = read(ema)
    if ema is None and to == "checkpoint" and "model" in first.unused:
        both = {"params": read(False), "ema_params": first}
        taken = {"model", "model_ema"}
        return {
            item: dataclasses.replace(one, unused=tuple(k for k in one.unused if k not in taken))
            for item, one in both.items()
        }
    return {"params": first}


def _run_item(sources: Mapping[str, _Source]) -> dict[str, Any]:
    """Returns the `run` item of a checkpoint with these weights."""
    first = sources["params"].loaded
    metadata, dense = dict(first.metadata), SegmentationConfig | DetectionConfig
    if not metadata.get("class_names") and not isinstance(first.config.task, dense):
        classes = range(first.config.model.num_classes or 0)
        metadata["class_names"] = tuple(f"class {label}" for label in classes)
    info = RunInfo(
        config=first.config,
        metadata=metadata,
        data_fingerprint="",
        eval_fingerprint="",
        primary_metric=get_task(first.config.task.name).report.primary_metric,
    )
    origin = {item: one.loaded.description for item, one in sources.items()}
    return info.to_json(0, {}) | {"origin": origin}


def _read_back(draft: Path, to: Format, item: str, before: LoadedModel) -> Variables:
    if to == "hub":
        return load_for_inference(draft).variables
    if to == "checkpoint":
        return load_for_inference(draft, ema=item == "ema_params").variables
    file, config = read_weight_file(draft), before.config
    if isinstance(config.task, SegmentationConfig):
        return fit_dense(file, config.model.name, segmenter_from_config(config))[0]
    if isinstance(config.task, DetectionConfig):
        return fit_dense(file, config.model.name, detector_from_config(config))[0]
    return {"params": fit_to_config(file, draft, config.model).params}


def _compare(before: LoadedModel, after: Variables) -> float:
    """Returns the largest difference of the logits of random images, or else of the weights."""
    config = before.config
    if needs_own_names(before):
        return _compare_weights(before.variables, after)
    if isinstance(config.task, SegmentationConfig):
        segmenter = segmenter_from_config(config)
        apply = jax.jit(segmenter.apply)
        side = max(_SEGMENTER_SIDE, segmenter.smallest_size)
    elif isinstance(config.task, DetectionConfig):
        apply = jax.jit(functools.partial(_head_outputs, detector_from_config(config)))
        side = _DETECTOR_SIDE
    else:
        apply, side = jax.jit(model_from_config(config.model).apply), config.data.image_size
    images = np.random.default_rng(0).standard_normal((_VERIFY_IMAGES, side, side, 3))
    old, new = (
        np.asarray(apply(float32(variables), images.astype(np.float32)))
        for variables in (before.variables, after)
    )
    if not np.isfinite(old).all():
        raise WeightsError("the logits of random images are not finite: the weights are broken")
    difference = float(np.abs(old - new).max())
    if not difference <= 1e-6 * float(np.abs(old).max()):  # NaN as well
        raise WeightsError(
            f"the logits of random images differ by {difference}: nothing is written"
        )
    return difference


def _compare_weights(before: Variables, after: Variables) -> float:
    """Checks that weights are equal; returns their largest difference, 0."""
    try:
        jax.tree.map(np.testing.assert_array_equal, dict(after), dict(before))
    except (AssertionError, ValueError) as error:
        raise WeightsError(
            f"the weights differ: nothing is written ({first_line(error)})"
        ) from error
    return 0.0


def _head_outputs(model: Detector, variables: Variables, images: jax.Array) -> jax.Array:
    """Returns all that the heads of a detector give for the anchors and for whole images."""
    size = images.shape[1:3]
    sizes = jnp.full((len(images), 2), jnp.array(size))
    regions = jnp.tile(jnp.array([0.0, 0.0, size[1], size[0]]), (len(images), 1, 1))
    maps = model.apply(variables, images, method="features")
    found = [model.apply(variables, maps, method="anchor_predictions")]
    found.append(model.apply(variables, maps, regions, sizes, method="region_predictions"))
    if model.masks:
        found.append(model.apply(variables, maps, regions, sizes, method="region_masks"))
    return jnp.concatenate([x.ravel() for x in jax.tree.leaves(found)])


def _report(source: _Source, variables: Variables, difference: float | None) -> Report:
    arrays = jax.tree.leaves(variables["params"])
    own_names = needs_own_names(source.loaded)
    state_dict = (own_state_dict if own_names else foreign_state_dict)(variables)
    return Report(
        source=source.loaded.description,
        unused=source.unused,
        config=source.loaded.config,
        tensors=len(state_dict),
        parameters=sum(array.size for array in arrays),
        source_dtypes=_dtypes(source.loaded.variables),
        dtypes=_dtypes(variables),
        sha256=checksum(state_dict),
        difference=difference,
        compared="the weights" if own_names else Report.compared,
    )


def _dtypes(variables: Variables) -> tuple[str, ...]:
    return tuple(sorted({leaf.dtype.name for leaf in jax.tree.leaves(variables)}))
