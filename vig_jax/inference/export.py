"""Exports trained models to files that run without this package."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from vig_jax.errors import ConfigError, ExportError
from vig_jax.files import to_json, write_atomically, write_text
from vig_jax.inference.export_formats import (
    PLATFORMS,
    Format,
    check_packages,
    format_of,
    run_onnx,
    run_stablehlo,
    write_onnx,
    write_stablehlo,
)
from vig_jax.inference.export_program import Outputs, Program, program_of
from vig_jax.inference.loaded_model import LoadedModel
from vig_jax.text import did_you_mean

_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}  # of the largest difference to the largest value
_EQUAL_INTEGERS = 0.999  # share that must be equal: a tie may fall either way


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """A summary of an exported file.

    Attributes:
        path: the file.
        to: its format.
        inputs: shapes and dtypes by name; a batch of any size is "b".
        outputs: likewise.
        differences: of each output from the model's on random images, relative to its largest
            value; None if they were not compared.
    """

    path: Path
    to: Format
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    differences: Mapping[str, float] | None = None

    def __str__(self) -> str:
        """Returns lines for the console."""
        lines = [f"{self.to}: {self.path}, {self.path.stat().st_size / 1e6:.1f} MB"]
        lines += [f"  in   {name} {shape}" for name, shape in self.inputs.items()]
        lines += [f"  out  {name} {shape}" for name, shape in self.outputs.items()]
        if self.differences is not None:
            worst = max(self.differences.values())
            lines.append(f"  verified: outputs of random images differ by {worst:.1e} at most")
        return "\n".join(lines)


def export(
    model: LoadedModel,
    target: str | Path,
    *,
    to: Format | None = None,
    outputs: Outputs | None = None,
    batch_size: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    platforms: Sequence[str] | None = None,
    opset: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    verify: bool = False,
    overwrite: bool = False,
) -> ExportReport:
    """Writes a model with its weights as a program of uint8 images, which runs without vig_jax.

    A StableHLO file is what `jax.export` serialises: `jax.export.deserialize(data).call(images)`
    returns a dictionary. An ONNX file has no loops and branches. A file NAME.json beside it has the
    names of the classes, the shapes, and how the images are prepared. No kernels of this package
    are in the files.

    Args:
        model: from `from_pretrained`.
        target: the file; it is written whole or not at all.
        to: "stablehlo" or "onnx"; None means by the file's name, "onnx" for .onnx.
        outputs: "logits" or "features" of a classifier; "logits" (of stride 4), "labels" (classes
            of pixels) or "features" of a segmenter; "objects" or "features" of a detector. None
            means the first.
        batch_size: images per call; None for any number, which a detector's objects do not allow.
        image_size: side of the images in pixels, or height and width; None means that of the
            evaluation, for a segmenter that of a window, for a detector the first of its buckets.
        platforms: of a StableHLO program, some of "cpu", "cuda", "rocm", "tpu"; None means cpu,
            cuda and tpu.
        opset: of an ONNX model, at least 18; None means 18.
        dtype: of the computation; ONNX files compute in float32.
        verify: run the file on random images and compare with the model before it gets its name.
        overwrite: replace an existing file.

    Raises:
        ConfigError: arguments that do not fit together or to the model, or a package is missing.
        FileExistsError: the file exists and may not be replaced.
        ExportError: the model cannot be translated, or the results differ.
    """
    path = Path(target).expanduser()
    chosen = to or format_of(path)
    places = _checked(path, chosen, batch_size, platforms, opset, dtype, verify, overwrite)
    check_packages(chosen, verify)
    program = program_of(model, outputs, image_size, dtype)
    if program.has_loops and (batch_size is None or chosen == "onnx"):
        raise ConfigError(
            "the objects of a detector come from loops over candidates: "
            + (
                "ONNX files have no loops; write StableHLO, or outputs=features"
                if chosen == "onnx"
                else "give the number of images a call, such as --batch 1 (batch_size=1)"
            )
        )
    facts = _facts(model, program, batch_size)
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path, concurrent=True) as draft:
        if chosen == "onnx":
            properties = {"vig_jax": to_json(facts, indent=None)}
            write_onnx(program, batch_size, opset or 18, properties, draft)
        else:
            write_stablehlo(program, batch_size, places, draft)
        differences = None
        if verify:
            differences = _differences(program, batch_size, chosen, draft, _TOLERANCE[dtype])
    write_text(path.with_name(f"{path.name}.json"), to_json(facts, indent=1))
    return ExportReport(path, chosen, facts["inputs"], facts["outputs"], differences)


def _checked(
    path: Path,
    to: Format,
    batch_size: int | None,
    platforms: Sequence[str] | None,
    opset: int | None,
    dtype: str,
    verify: bool,
    overwrite: bool,
) -> tuple[str, ...]:
    """Returns the platforms after checks of what needs no model."""
    if to not in ("stablehlo", "onnx"):
        raise ConfigError(f"to={to!r} must be 'stablehlo' or 'onnx'")
    if (path.suffix == ".onnx") != (to == "onnx"):
        raise ConfigError(f"{path} does not fit the format {to}: ONNX files end in .onnx")
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} must be at least 1, or None for any")
    if to == "onnx" and platforms is not None:
        raise ConfigError("platforms are for StableHLO: an ONNX file runs where its runtime does")
    if to == "onnx" and dtype != "float32":
        raise ConfigError(f"dtype={dtype!r}: ONNX files compute in float32")
    if to == "stablehlo" and opset is not None:
        raise ConfigError("an opset is for ONNX: leave it out, or write a file named .onnx")
    chosen = ("cpu", "cuda", "tpu") if platforms is None else tuple(platforms)
    for name in chosen:
        if name not in PLATFORMS:
            raise ConfigError(f"unknown platform {name!r}; {did_you_mean(name, PLATFORMS)}")
    if not chosen:
        raise ConfigError(f"platforms are empty: name some of {', '.join(PLATFORMS)}")
    here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if verify and to == "stablehlo" and here not in chosen:
        raise ConfigError(f"verify runs the program here, on {here}: add {here} to the platforms")
    if os.path.lexists(path) and (path.is_dir() or not overwrite):
        cure = "name a file" if path.is_dir() else "--force (overwrite=True) replaces it"
        raise FileExistsError(f"{path} exists already: {cure}")
    return chosen


def _facts(model: LoadedModel, program: Program, batch_size: int | None) -> dict[str, Any]:
    """Returns what the user of a file needs to know, as JSON values."""
    size = batch_size or 1
    shapes = jax.eval_shape(program.run, *program.batched(size))
    shown = "b" if batch_size is None else str(batch_size)

    def text(x: Any) -> str:
        return f"{np.dtype(x.dtype).name}[{', '.join([shown, *map(str, x.shape[1:])])}]"

    data = model.config.data
    return {
        "model": model.config.model.name,
        "task": model.config.task.name,
        "weights": model.description,
        "inputs": dict(zip(program.inputs, map(text, program.batched(size)), strict=True)),
        "outputs": {name: text(x) for name, x in shapes.items()},
        "crop_pct": data.crop_pct,
        "class_names": list(model.metadata.get("class_names", ())),
    }


def _differences(
    program: Program, batch_size: int | None, to: Format, path: Path, allowed: float
) -> dict[str, float]:
    """Returns how far the outputs of a file are from those of the model, by name.

    Raises:
        ExportError: one is too far, or not finite.
    """
    inputs = program.random_inputs(batch_size or 2)
    expected = jax.device_get(jax.jit(program.run)(*inputs))
    if to == "onnx":
        actual = run_onnx(path, dict(zip(program.inputs, inputs, strict=True)))
    else:
        actual = run_stablehlo(path, inputs)
    found = {}
    for name, right in expected.items():
        mine = actual[name]
        if mine.shape != right.shape:
            raise ExportError(
                f"{name} has shape {mine.shape} in the file and {right.shape} in the model: "
                "nothing is written"
            )
        if np.issubdtype(right.dtype, np.integer):
            found[name] = 1 - float(np.mean(mine == right))
            limit = 1 - _EQUAL_INTEGERS
        else:
            mine, right = (np.asarray(x, np.float64) for x in (mine, right))
            if not np.isfinite(right).all():
                raise ExportError(
                    f"{name} of random images is not finite: the weights are broken, or the model "
                    "overflows"
                )
            found[name] = float(np.abs(mine - right).max() / max(np.abs(right).max(), 1e-30))
            limit = allowed
        if not found[name] <= limit:  # NaN as well
            raise ExportError(
                f"{name} of random images differs by {found[name]:.1e} from the model's, more than "
                f"{limit:.0e}: nothing is written"
            )
    return found
