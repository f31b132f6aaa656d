"""The programs that `benchmarks.scaling` compiles and measures on one, two and more GPUs."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from kernels_pallas.core.accuracy import rms_relative_error
from kernels_pallas.core.timing import candidate
from vig_jax.bench.batches import random_batch, random_pixels, size_of
from vig_jax.bench.latency import measure_latency
from vig_jax.bench.overlap import Timeline, profile
from vig_jax.bench.programs import Training, benchmark_config, model_of, training
from vig_jax.bench.throughput import Program
from vig_jax.config import DetectionConfig, MeshConfig, RunConfig, SegmentationConfig
from vig_jax.inference.predictor import narrow_kernels
from vig_jax.layers.pixels import normalise
from vig_jax.sharding.mesh import (
    batch_sharded,
    images_sharded,
    make_mesh,
    max_in_flight,
    replicated,
)
from vig_jax.sharding.rules import place

ALLOWED_ERRORS = {"loss": 1e-3, "grad_norm": 2e-2, "logits": 2e-2}
"""The largest relative differences of several devices from one, both in bfloat16."""
_INPUTS = 2  # distinct batches
_PROFILED = 3  # calls


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table for each number of GPUs.

    Attributes:
        name: of the row.
        model: one of `vig_jax.list_models()`.
        image_size: side, or height and width, in pixels.
        images: of a GPU; if the axis is "sequence", of all GPUs.
        axis: of the mesh, the one with several GPUs.
        task: see `benchmark_config`.
        train: a training step, or inference.
        base: name of the case whose row of one GPU is the reference; "": this case.
        files: train from JPEG files, with the program of `base`, on the largest number of GPUs.
    """

    name: str
    model: str
    image_size: int | tuple[int, int]
    images: int
    axis: str = "data"
    task: str = "classification"
    train: bool = True
    base: str = ""
    files: bool = False

    @property
    def reference(self) -> str:
        """The name of the case whose row of one GPU is the reference."""
        return self.base or self.name

    def batch_size(self, count: int) -> int:
        """Returns the images of a call on `count` GPUs."""
        return self.images if self.axis == "sequence" else self.images * count


CASES = (
    Case("vig_s training", "vig_s", 224, 256),
    Case("vig_t inference 4096, rows split", "vig_t", 4096, 1, axis="sequence", train=False),
    Case("vig_b training, fsdp", "vig_b", 224, 256, axis="fsdp", base="vig_b training"),
    Case("vig_b training", "vig_b", 224, 256),
    Case("vig_h_t UperNet training", "vig_h_t", 512, 4, task="segmentation"),
    Case("vig_h_t Mask R-CNN training", "vig_h_t", (800, 1344), 2, task="detection"),
    Case("vig_t inference 2048, rows split", "vig_t", 2048, 1, axis="sequence", train=False),
    Case("vig_t training 2048, rows split", "vig_t", 2048, 1, axis="sequence"),
    Case("vig_s training, JPEG", "vig_s", 224, 256, base="vig_s training", files=True),
)
"""The most important first."""


def tiny(case: Case) -> Case:
    """Returns a case of the same kind that a CPU compiles and runs soon, with `tiny_config`."""
    sizes: dict[str, int | tuple[int, int]] = {
        "segmentation": 64,
        "detection": (64, 96),
        "classification": 32,
    }
    size = 256 if case.axis == "sequence" else sizes[case.task]
    return dataclasses.replace(case, image_size=size, images=min(case.images, 2))


def config_of(case: Case, count: int, *, small: bool = False) -> RunConfig:
    """Returns the config of a case on `count` GPUs, without random draws in the model.

    Without drop path and dropout, several GPUs with equal images compute what one computes.

    Args:
        case: the case.
        count: number of GPUs.
        small: a model of few blocks and channels.
    """
    config = benchmark_config(
        case.model,
        image_size=case.image_size,
        batch_size=case.batch_size(count),
        task=case.task,
    )
    model = dataclasses.replace(config.model, drop_path_rate=0.0)
    task = config.task
    if isinstance(task, SegmentationConfig):
        task = dataclasses.replace(task, dropout=0.0)
    if small:
        model, task = _small(model), _small_task(task)
    mesh = MeshConfig() if case.axis == "data" else MeshConfig(**{case.axis: count})
    return dataclasses.replace(config, model=model, task=task, mesh=mesh)


def _small(model: Any) -> Any:
    if model.name.startswith("vig_h"):
        return dataclasses.replace(
            model, embed_dims=(8, 8, 8, 16), depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)
        )
    # The largest arrays are large enough to be split.
    return dataclasses.replace(model, embed_dim=32, depth=1, num_heads=1)


def _small_task(task: Any) -> Any:
    if isinstance(task, SegmentationConfig):
        return dataclasses.replace(task, channels=8, aux_channels=8)
    if not isinstance(task, DetectionConfig):
        return task
    return dataclasses.replace(
        task, channels=8, box_channels=8, max_boxes=8, mask_side=14, proposals=16,
        train_level_proposals=16, eval_level_proposals=16, rpn_samples=32, roi_samples=16,
        detections=4,
    )  # fmt: skip


@dataclasses.dataclass
class Work:
    """A case on some GPUs, from lowering to the row.

    Attributes:
        case: the case.
        config: of the run.
        mesh: the GPUs.
        lower: traces and lowers the program.
        parts: of a training step; None: inference.
    """

    case: Case
    config: RunConfig
    mesh: Mesh
    lower: Callable[[], Any]
    parts: Training | None
    small: bool = False
    compiled: Any = None


def work_of(case: Case, devices: Sequence[jax.Device], *, small: bool = False) -> Work:
    """Returns the work of a case on some devices; nothing is traced yet.

    Args:
        case: the case.
        devices: all are used.
        small: see `config_of`.
    """
    config = config_of(case, len(devices), small=small)
    mesh = make_mesh(devices, config.mesh)
    if not case.train:
        return Work(case, config, mesh, lambda: _lower_inference(config, mesh), None, small)
    parts = training(config, mesh)

    def lower() -> Any:
        state = jax.tree.map(_placed, jax.eval_shape(parts.initial), parts.split)
        batch = jax.eval_shape(lambda: random_batch(config, parts.task.batch_spec, 0))
        rows = batch_sharded(mesh)
        return parts.step.lower(state, jax.tree.map(lambda x: _placed(x, rows), batch))

    def under_mesh() -> Any:
        with jax.set_mesh(mesh):
            return lower()

    return Work(case, config, mesh, under_mesh, parts, small)


def _placed(shape: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _lower_inference(config: RunConfig, mesh: Mesh) -> Any:
    model = model_of(config)

    def logits(variables: Any, images: jax.Array) -> Any:
        return model.apply(variables, normalise(images, config.data.mean, config.data.std))

    with jax.set_mesh(mesh):
        pixels = jax.ShapeDtypeStruct(
            (config.train.batch_size, *size_of(config), 3), np.uint8, sharding=images_sharded(mesh)
        )
        variables = jax.tree.map(
            lambda x: _placed(x, replicated(mesh)), jax.eval_shape(lambda: _variables(config))
        )
        run = jax.jit(logits, out_shardings=replicated(mesh))
        return run.lower(variables, pixels)


def _variables(config: RunConfig) -> Any:
    from vig_jax.tasks.registry import make_task

    task = make_task(config, {}).task
    return narrow_kernels(task.init(jax.random.key(config.seed)), model_of(config))


class Inputs:
    """Makes states and batches; a state is drawn once for all numbers of GPUs.

    Args:
        device: that draws them.
    """

    def __init__(self, device: jax.Device):
        self.mesh = make_mesh([device])
        self.drawn: dict[Any, Any] = {}

    def program(self, work: Work) -> Program:
        """Returns the program with its inputs on the GPUs. All GPUs get equal images."""
        case, config, mesh = work.case, work.config, work.mesh
        if work.parts is None:
            everywhere, split = replicated(mesh), images_sharded(mesh)
            variables = jax.tree.map(lambda x: place(x, everywhere), self._draw(work))
            pixels = [place(random_pixels(config, seed), split) for seed in range(_INPUTS)]
            return Program(work.compiled, [(variables, images) for images in pixels])
        count = 1 if case.axis == "sequence" else mesh.size
        alone = config_of(case, 1, small=work.small)
        inputs = []
        for seed in range(_INPUTS):
            one = jax.device_get(random_batch(alone, work.parts.task.batch_spec, seed))
            tiled = {k: np.tile(x, (count, *[1] * (x.ndim - 1))) for k, x in one.items()}
            rows = batch_sharded(mesh)
            inputs.append(({name: place(x, rows) for name, x in tiled.items()},))
        # Copies, because a step donates its state.
        state = jax.tree.map(place, self._draw(work), work.parts.split)
        return Program(work.compiled, inputs, state)

    def _draw(self, work: Work) -> Any:
        """Returns the initial state, or the variables, in the host's memory."""
        case = work.case
        key = (case.model, case.image_size, case.task, case.train)
        if key not in self.drawn:
            alone = config_of(case, 1, small=work.small)
            with jax.set_mesh(self.mesh):
                if case.train:
                    make = training(alone, self.mesh).initial
                else:
                    make = lambda: _variables(alone)  # noqa: E731
                options = {"xla_backend_optimization_level": 0}  # it runs once
                self.drawn[key] = jax.device_get(jax.jit(make, compiler_options=options)())
        return self.drawn[key]


@dataclasses.dataclass(frozen=True)
class Measured:
    """The measurements of a case on some GPUs.

    Attributes:
        row: columns of the table.
        outputs: of the first call: loss and gradient norm, or the logits.
        timelines: of the GPUs.
    """

    row: dict[str, Any]
    outputs: dict[str, np.ndarray]
    timelines: list[Timeline]


def measure(work: Work, inputs: Inputs, *, seconds: float) -> Measured:
    """Runs a compiled program.

    Args:
        work: compiled.
        inputs: makes what it needs.
        seconds: of a sample; there are three.
    """
    program = inputs.program(work)
    call = _alone(program.calls())
    first = call()
    if work.parts is None:
        outputs, state_bytes = {"logits": np.asarray(first, np.float32)}, None
    else:
        state, (metrics,) = first
        outputs = {name: np.asarray(metrics[name], np.float32) for name in ("loss", "grad_norm")}
        state_bytes = _bytes_of_a_device((state.params, state.opt_state, state.ema_params))
        del state
    del first  # the next call donates it
    run = candidate(call)
    found = measure_latency(run, None, repeats=3, sample_seconds=seconds, agree=agreed)
    timelines = profile(run, _PROFILED)
    row = row_of(
        work,
        program,
        milliseconds=found.queued_ms,
        waited=found.waited_ms,
        timelines=timelines,
    )
    return Measured(row | {"state_bytes": state_bytes}, outputs, timelines)


def row_of(
    work: Work,
    program: Program,
    *,
    milliseconds: float,
    waited: float | None,
    timelines: Sequence[Timeline],
) -> dict[str, Any]:
    """Returns the columns of a row.

    Args:
        work: the case.
        program: that was measured.
        milliseconds: of a call.
        waited: of a call that the host waits for.
        timelines: of the GPUs, if they were profiled.
    """
    case, count = work.case, work.mesh.size
    images = case.batch_size(count)
    row: dict[str, Any] = {"case": case.name, "gpus": count, "images": images}
    row |= {"img_per_s": images / milliseconds * 1e3, "ms": milliseconds, "waited_ms": waited}
    row |= {"state_bytes": None, "program_bytes": program.bytes}
    row["temporary_bytes"] = work.compiled.memory_analysis().temp_size_in_bytes
    row["peak_bytes"] = _peak_bytes(work.mesh)
    worst = max(timelines, key=lambda one: one.exposed_ms, default=None)
    row["exposed_share"] = worst.exposed_ms / worst.span_ms if worst else None
    row["communication_ms"] = worst.communication_ms if worst else None
    row["exposed_ms"] = worst.exposed_ms if worst else None
    row["idle_ms"] = worst.idle_ms if worst else None
    return row


def agreed(number: int) -> int:
    """Returns the number of process 0, in every process."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def agreed_by_all(flags: Sequence[bool]) -> list[bool]:
    """Returns which flags are set in every process."""
    if jax.process_count() == 1:
        return list(flags)
    return list(multihost_utils.process_allgather(np.array(flags, bool)).all(0))


def _alone(call: Callable[[], Any]) -> Callable[[], Any]:
    """Returns a function that waits for each call where several must not be queued."""
    return call if max_in_flight() else lambda: jax.block_until_ready(call())


def _bytes_of_a_device(tree: Any) -> int:
    """Returns the bytes of arrays on the device that has most of them."""
    total: dict[Any, int] = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            total[shard.device] = total.get(shard.device, 0) + shard.data.nbytes
    return max(total.values())


def _peak_bytes(mesh: Mesh) -> int | None:
    """Returns the most bytes that a GPU has held since the process began; None on a CPU."""
    peaks = [(one.memory_stats() or {}).get("peak_bytes_in_use") for one in mesh.local_devices]
    return max((peak for peak in peaks if peak is not None), default=None)


def differences(several: Measured, one: Measured) -> dict[str, float]:
    """Returns the relative differences of the first outputs of several GPUs from those of one."""
    return {
        name: rms_relative_error(values, one.outputs[name])
        for name, values in several.outputs.items()
    }
