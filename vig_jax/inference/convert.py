"""Converts weights between files and checkpoints; the target is written whole or not at all."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from vig_jax.config import RunConfig
from vig_jax.errors import ConfigError, WeightsError
from vig_jax.files import write_atomically
from vig_jax.inference.loaded_model import LoadedModel, load_for_inference, restore_file
from vig_jax.models.from_config import model_from_config
from vig_jax.tasks.registry import get_task
from vig_jax.train.checkpoint import RunInfo
from vig_jax.weights import upstream
from vig_jax.weights.fit import fit_to_config
from vig_jax.weights.initial import float32
from vig_jax.weights.load import checksum, read_weight_file, save_safetensors
from vig_jax.weights.run_folder import CHECKPOINTS, save_weights
from vig_jax.weights.upstream import Params

Format = Literal["checkpoint", "safetensors"]
_VERIFY_IMAGES = 2


@dataclasses.dataclass(frozen=True)
class Report:
    """A summary of one converted set of weights.

    Attributes:
        source: the file and the weights in it, and how the result differs from them.
        unused: the other keys of the file.
        config: with the model.
        tensors: number of arrays.
        parameters: number of elements.
        source_dtypes: dtypes of the arrays as read.
        dtypes: dtypes of the arrays as written.
        sha256: of names and bytes as written, under upstream's names; see `checksum`.
        difference: largest difference of the logits of random images before and after; None if they
            were not compared.
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
            lines.append(
                f"  verified    logits of random images differ by {self.difference:g} at most"
            )
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
) -> list[Report]:
    """Writes the weights of a file or a run as another file or as a checkpoint.

    Args:
        source: a weight file, or a run's workdir or checkpoint.
        target: a `.safetensors` file, which gets upstream's names; or a folder, which becomes a
            workdir with one checkpoint, for inference or to start from.
        to: the format of the target.
        model_name: model of a file; runs store theirs.
        settings: settings of a file's model, as for `restore_weights`.
        ema: True takes the EMA weights, False the raw ones. None takes both for a checkpoint, if
            the file has both, and for `.safetensors` the EMA weights if there are any.
        verify: read the written weights and compare the logits of random images before the target
            gets its name.
        overwrite: replace an existing target.

    Returns:
        One report for each set of weights written.

    Raises:
        FileNotFoundError: there is no such source.
        FileExistsError: the target exists and may not be replaced.
        ConfigError: the arguments do not fit together.
        WeightsError: the file cannot be read or does not fit the model, or the logits differ.
    """
    _check_target(target, to, overwrite)
    if source.is_dir() and to == "checkpoint":
        raise ConfigError(f"{source} is a run already; runs are converted to .safetensors")
    sources = _read(source, to, model_name, settings or {}, ema)
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(target, concurrent=True) as draft:
        if to == "safetensors":
            (one,) = sources.values()
            params = {"params": jax.tree.map(np.asarray, one.loaded.variables["params"])}
            save_safetensors(
                params["params"],
                draft,
                model_name=one.loaded.config.model.name,
                averaged=one.loaded.ema,
            )
        else:
            params = {
                item: float32(one.loaded.variables["params"]) for item, one in sources.items()
            }
            save_weights(draft, params, _run_item(sources))
        reports = []
        for item, one in sources.items():
            difference = None
            if verify:
                written = _read_back(draft, to, item, one.loaded.config)
                difference = _compare(one.loaded, written)
            reports.append(_report(one, params[item], difference))
    return reports


def _check_target(target: Path, to: Format, overwrite: bool) -> None:
    if (target.suffix == ".safetensors") != (to == "safetensors"):
        raise ConfigError(
            f"{target} does not fit the format {to}: the name of a .safetensors file must end in "
            ".safetensors (PyTorch reads it with safetensors.torch.load_file), and the name of a "
            "folder with a checkpoint must not"
        )
    if to == "checkpoint" and target.suffix in (".pth", ".pt", ".bin", ".ckpt"):
        raise ConfigError(
            f"{target}: PyTorch files are read, not written; write .safetensors, which PyTorch "
            "reads with safetensors.torch.load_file"
        )
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
            raise ConfigError(f"{source} is a run of {own}: --model and --set are for weight files")
        return {"params": _Source(loaded, ())}
    if model_name is None:
        raise ConfigError(f"{source} does not name its model: add --model NAME")

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
    names = first.metadata.get("class_names") or tuple(
        f"class {label}" for label in range(first.config.model.num_classes or 0)
    )
    info = RunInfo(
        config=first.config,
        metadata={"class_names": names},
        data_fingerprint="",
        eval_fingerprint="",
        primary_metric=get_task(first.config.task.name).report.primary_metric,
    )
    origin = {item: one.loaded.description for item, one in sources.items()}
    return info.to_json(0, {}) | {"origin": origin}


def _read_back(draft: Path, to: Format, item: str, config: RunConfig) -> Params:
    if to == "checkpoint":
        return load_for_inference(draft, ema=item == "ema_params").variables["params"]
    return fit_to_config(read_weight_file(draft), draft, config.model).params


def _compare(before: LoadedModel, after: Params) -> float:
    """Returns the largest difference of the logits of random images."""
    side = before.config.data.image_size
    images = np.random.default_rng(0).standard_normal((_VERIFY_IMAGES, side, side, 3))
    apply = jax.jit(model_from_config(before.config.model).apply)
    old, new = (
        np.asarray(apply({"params": float32(params)}, images.astype(np.float32)))
        for params in (before.variables["params"], after)
    )
    if not np.isfinite(old).all():
        raise WeightsError("the logits of random images are not finite: the weights are broken")
    difference = float(np.abs(old - new).max())
    if not difference <= 1e-6 * float(np.abs(old).max()):  # NaN as well
        raise WeightsError(
            f"the logits of random images differ by {difference}: nothing is written"
        )
    return difference


def _report(source: _Source, params: Params, difference: float | None) -> Report:
    arrays = jax.tree.leaves(params)
    return Report(
        source=source.loaded.description,
        unused=source.unused,
        config=source.loaded.config,
        tensors=len(arrays),
        parameters=sum(array.size for array in arrays),
        source_dtypes=_dtypes(source.loaded.variables["params"]),
        dtypes=_dtypes(params),
        sha256=checksum(upstream.from_params(params)),
        difference=difference,
    )


def _dtypes(params: Params) -> tuple[str, ...]:
    return tuple(sorted({leaf.dtype.name for leaf in jax.tree.leaves(params)}))
