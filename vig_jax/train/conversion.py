"""Weights from one kind of file to another, whole or not at all."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from vig_jax.config import RunConfig
from vig_jax.errors import ConfigError, WeightsError
from vig_jax.models.from_config import model_from_config
from vig_jax.tasks.protocol import Params
from vig_jax.tasks.registry import get_task
from vig_jax.train.checkpoint import (
    CHECKPOINTS,
    Checkpoints,
    Restored,
    RunInfo,
    load_for_inference,
)
from vig_jax.train.imported import fit_file, float32, restore_file
from vig_jax.weights import upstream
from vig_jax.weights.load import checksum, read_weight_file, save_safetensors

Format = Literal["checkpoint", "safetensors"]
_VERIFY_IMAGES = 2


@dataclasses.dataclass(frozen=True)
class Report:
    """What one set of weights was and became.

    Attributes:
        source: which weights of which file, and how they differ from it.
        left: what else the file has.
        config: the model's.
        tensors: how many.
        parameters: how many.
        read: dtypes of the arrays as read.
        dtypes: of the arrays as written.
        sha256: of names and bytes as written, under upstream's names; see `checksum`.
        difference: largest of the logits of random images before and after; None: not looked at.
    """

    source: str
    left: tuple[str, ...]
    config: RunConfig
    tensors: int
    parameters: int
    read: tuple[str, ...]
    dtypes: tuple[str, ...]
    sha256: str
    difference: float | None


@dataclasses.dataclass(frozen=True)
class _Source:
    restored: Restored
    left: tuple[str, ...]


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
        to: which of the two.
        model_name: of a file's model; a run knows its own.
        settings: of a file's model, as for `restore_weights`.
        ema: averaged weights or not; None: those that are there for a checkpoint (both, if the
            file has both), and for `.safetensors` the averaged ones if there are any.
        verify: read what was written and compare the logits of random images before it gets its
            name.
        overwrite: whether `target` may be there already.

    Returns:
        One report for each set of weights written.

    Raises:
        FileNotFoundError: there is no such source.
        FileExistsError: there is a target, and `overwrite` is not set.
        ConfigError: what was asked for cannot be, the file cannot be read or does not fit the
            model, or the logits differ.
    """
    _check_target(target, to, overwrite)
    if source.is_dir() and to == "checkpoint":
        raise ConfigError(f"{source} is a run already; what runs become is .safetensors")
    sources = _read(source, to, model_name, settings or {}, ema)
    with _draft(target) as draft:
        if to == "safetensors":
            (one,) = sources.values()
            params = {"params": jax.tree.map(np.asarray, one.restored.variables["params"])}
            save_safetensors(
                params["params"],
                draft,
                model_name=one.restored.config.model.name,
                averaged=one.restored.ema,
            )
        else:
            params = {
                item: float32(one.restored.variables["params"]) for item, one in sources.items()
            }
            _save_checkpoint(draft, params, sources)
        reports = []
        for item, one in sources.items():
            difference = None
            if verify:
                written = _read_back(draft, to, item, one.restored.config)
                difference = _compare(one.restored, written)
            reports.append(_report(one, params[item], difference))
    return reports


def _check_target(target: Path, to: Format, overwrite: bool) -> None:
    if (target.suffix == ".safetensors") != (to == "safetensors"):
        raise ConfigError(
            f"{target}: what is written is a .safetensors file (PyTorch reads it with "
            "safetensors.torch.load_file) or a folder with a checkpoint; give a name that ends in "
            ".safetensors for the one, and for the other one that does not"
        )
    if to == "checkpoint" and target.suffix in (".pth", ".pt", ".bin", ".ckpt"):
        raise ConfigError(
            f"{target}: PyTorch's files are read, not written; write .safetensors, which PyTorch "
            "reads with safetensors.torch.load_file"
        )
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise FileExistsError(f"{target} is there already: --force replaces it")
    if target.is_dir():
        foreign = {entry.name for entry in target.iterdir()} - {CHECKPOINTS}
        if to == "safetensors" or foreign:
            raise FileExistsError(
                f"{target} is a folder that holds other things than a converted checkpoint; it is "
                "not replaced"
            )
    elif to == "checkpoint":
        raise FileExistsError(f"{target} is a file; a folder with a checkpoint does not replace it")


def _read(
    source: Path,
    to: Format,
    model_name: str | None,
    settings: Mapping[str, Any],
    ema: bool | None,
) -> dict[str, _Source]:
    """The weights to write, by the name of their item in a checkpoint."""
    if source.is_dir():
        restored = load_for_inference(source, ema=ema)
        own = restored.config.model.name
        if settings or model_name not in (None, own):
            raise ConfigError(f"{source} is a run of {own}: --model and --set are for weight files")
        return {"params": _Source(restored, ())}
    if model_name is None:
        raise ConfigError(f"which model is {source} of? --model NAME is missing")

    def read(ema: bool | None) -> _Source:
        file = read_weight_file(source, ema=ema)
        restored = restore_file(file, source, model_name, settings=settings)
        return _Source(restored, file.others)

    first = read(ema)
    if ema is None and to == "checkpoint" and "model" in first.left:
        both = {"params": read(False), "ema_params": first}
        taken = {"model", "model_ema"}
        return {
            item: dataclasses.replace(one, left=tuple(k for k in one.left if k not in taken))
            for item, one in both.items()
        }
    return {"params": first}


def _save_checkpoint(
    workdir: Path, params: Mapping[str, Params], sources: Mapping[str, _Source]
) -> None:
    some = sources["params"].restored
    names = some.metadata.get("class_names") or tuple(
        f"class {label}" for label in range(some.config.model.num_classes or 0)
    )
    info = RunInfo(
        config=some.config,
        metadata={"class_names": names},
        data_fingerprint="",
        eval_fingerprint="",
        primary_metric=get_task(some.config.task.name).report.primary_metric,
    )
    origin = {item: one.restored.description for item, one in sources.items()}
    with Checkpoints(workdir, keep=1) as checkpoints:
        checkpoints.save_weights(params, info, origin)


def _read_back(draft: Path, to: Format, item: str, config: RunConfig) -> Params:
    if to == "checkpoint":
        return load_for_inference(draft, ema=item == "ema_params").variables["params"]
    return fit_file(read_weight_file(draft), draft, config.model).params


def _compare(before: Restored, after: Params) -> float:
    """The largest difference of the logits of random images."""
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
    if difference > 1e-6 * float(np.abs(old).max()):
        raise WeightsError(f"the logits of random images differ by {difference}: nothing is kept")
    return difference


def _report(source: _Source, params: Params, difference: float | None) -> Report:
    arrays = jax.tree.leaves(params)
    return Report(
        source=source.restored.description,
        left=source.left,
        config=source.restored.config,
        tensors=len(arrays),
        parameters=sum(array.size for array in arrays),
        read=_dtypes(source.restored.variables["params"]),
        dtypes=_dtypes(params),
        sha256=checksum(upstream.from_params(params)),
        difference=difference,
    )


def _dtypes(params: Params) -> tuple[str, ...]:
    return tuple(sorted({leaf.dtype.name for leaf in jax.tree.leaves(params)}))


@contextlib.contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A name to write to, which becomes `target` if all goes well and nothing if it does not."""
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    old = target.with_name(f".{target.stem}.{os.getpid()}.old{target.suffix}")
    try:
        yield draft
        if target.is_dir():  # no folder can be replaced in one step
            target.rename(old)
        draft.replace(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for leftover in (draft, old):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)
