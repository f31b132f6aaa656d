"""Tiling of the kernels: plain data, measured winners, and a heuristic for every other call."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax.numpy as jnp

from kernels_pallas.core.device import cuda_device_name
from kernels_pallas.gla.spec import GlaSpec


@dataclasses.dataclass(frozen=True)
class KernelConfig:
    """How one kernel is launched.

    Attributes:
        chunk: Tokens per chunk, a power of two, at least 16.
        num_warps: Warps per program.
        num_stages: Depth of Triton's software pipeline.
        segments: Parts of the tokens with programs of their own.
        split_directions: Runs the two directions in separate programs with separate outputs. Else
            one program walks in both directions, and adds the second result to the first.
        value_block: Most values per program, a power of two.
        exact_num_warps: Warps per program of the pass for strong decays.
    """

    chunk: int = 16
    num_warps: int = 1
    num_stages: int = 3
    segments: int = 1
    split_directions: bool = False
    value_block: int = 64
    exact_num_warps: int = 4


@dataclasses.dataclass(frozen=True)
class Config:
    """Tiling of one call.

    Attributes:
        forward: Of the forward pass where nothing is differentiated.
        training: Of the forward pass that keeps the state before each chunk.
        backward: Of the backward pass; it reads those states, so chunk, segments and value_block
            are those of `training`.
    """

    forward: KernelConfig = KernelConfig()
    training: KernelConfig = KernelConfig()
    backward: KernelConfig = KernelConfig()

    def __post_init__(self):
        for name in ("chunk", "segments", "value_block"):
            if getattr(self.training, name) != getattr(self.backward, name):
                raise ValueError(f"training and backward must have the same {name}")


TUNING_DATA = pathlib.Path(__file__).parents[2] / "autotune" / "data"
"""Measured winners: a folder per device, in it a file per implementation."""


def choose(spec: GlaSpec) -> Config:
    """The stored winner for this call on this device, else the heuristic's choice."""
    device = cuda_device_name()
    stored = _stored(device) if device else {}
    return stored.get(_key(spec)) or heuristic(spec)


def _state_tile(spec: GlaSpec) -> int:
    """Numbers of a state [K, V] that a program holds."""
    keys, values = (
        max(16, 1 << (width - 1).bit_length()) for width in (spec.key_width, spec.value_width)
    )
    return keys * min(values, KernelConfig.value_block)


def default_warps(spec: GlaSpec) -> int:
    """Warps per program for chunks of 16 tokens.

    The state lives in registers: 32 numbers of it per thread leave room for the chunk.
    """
    return min(8, max(1, _state_tile(spec) // 1024))


def heuristic(spec: GlaSpec) -> Config:
    """The tiling for a call that was not measured; a pure function of its static facts."""
    config = _plain_heuristic(spec)
    if spec.gate_normalizer is None:
        return config
    # The mixer adds the directions' outputs in passing, and has one array for all gradients.
    split = functools.partial(dataclasses.replace, split_directions=True)
    together = dataclasses.replace(config.backward, split_directions=False)
    return Config(split(config.forward), split(config.training), together)


def _plain_heuristic(spec: GlaSpec) -> Config:
    num_warps = default_warps(spec)
    # Programs walk through their tokens one after the other, and a GPU of about 100 multiprocessors
    # wants some 400 of them. Segments cost a pass of their own over k and v, which does not pay
    # from 128 programs on; and below 512 tokens their borders cost more than the walk.
    rows = spec.batch * spec.heads
    segments = 1
    while rows < 128 and rows * segments < 384 and spec.tokens >= 1024 * segments:
        segments *= 2
    # Too few programs even so: twice as many, at the price of one more pass to add their outputs.
    split_directions = rows * segments < 384
    # The pipeline keeps states in shared memory, once per stage: large ones leave no room for it.
    fits = _state_tile(spec) * spec.dtype.itemsize <= 16384
    usual = KernelConfig(
        num_warps=num_warps,
        num_stages=3 if fits else 1,
        segments=segments,
        split_directions=split_directions,
        exact_num_warps=max(4, num_warps),
    )
    if spec.dtype == jnp.float32 or not fits:
        return Config(usual, usual, usual)
    if spec.tokens < 1024 and num_warps < 4:
        return Config(dataclasses.replace(usual, num_stages=4), usual, usual)
    # Long walks gain from fewer states: chunks of 32, two warps for their two rows of 16. Backward
    # that takes the registers of four warps, and wide heads leave none for it.
    longer = dataclasses.replace(usual, chunk=32, num_warps=max(2, num_warps))
    if num_warps >= 4:
        return Config(longer, usual, usual)
    training = dataclasses.replace(longer, num_warps=2 * num_warps)
    return Config(longer, training, training)


def as_entry(spec: GlaSpec, config: Config) -> dict[str, Any]:
    """A stored winner."""
    return {"call": list(_key(spec)), "config": dataclasses.asdict(config)}


def _key(spec: GlaSpec) -> tuple[Any, ...]:
    shape = (spec.batch, spec.tokens, spec.heads, spec.key_width, spec.value_width)
    decays = spec.decay_dtype.name if spec.gate_normalizer is None else "gates"
    return (*shape, spec.dtype.name, decays, spec.bidirectional)


@functools.cache
def _stored(device: str) -> dict[tuple[Any, ...], Config]:
    path = TUNING_DATA / device / "pallas_triton.json"
    entries = json.loads(path.read_text()) if path.exists() else []
    return {
        tuple(entry["call"]): Config(
            **{name: KernelConfig(**launch) for name, launch in entry["config"].items()}
        )
        for entry in entries
    }
