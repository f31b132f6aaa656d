"""Tilings of the kernels, the heuristic that chooses them, and the candidates for autotuning."""

import dataclasses
import functools
from collections.abc import Iterator

import jax.numpy as jnp

from ...core import config as core_config
from ...core.device import Device
from ...core.integers import cdiv, next_power_of_two
from ..spec import GlaSpec


@dataclasses.dataclass(frozen=True)
class KernelConfig:
    """Tiling of one kernel.

    Attributes:
        chunk: Tokens per chunk, a power of two, at least 16.
        num_warps: Warps per program.
        num_stages: Depth of Triton's software pipeline.
        segments: Number of parts that the tokens are split into; each has separate programs.
        split_directions: Runs the two directions in separate programs with separate outputs. Else
            one program walks in both directions, and adds the second result to the first.
        value_block: Upper bound on the values per program, a power of two.
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
    """Tilings of a call.

    Attributes:
        forward: Of the forward kernel in a call that is not differentiated.
        training: Of the forward kernel that stores the state before each chunk.
        backward: Of the backward kernel. It reads these states, so chunk, segments and value_block
            must be those of `training`.
    """

    forward: KernelConfig = KernelConfig()
    training: KernelConfig = KernelConfig()
    backward: KernelConfig = KernelConfig()

    def __post_init__(self):
        for name in ("chunk", "segments", "value_block"):
            if getattr(self.training, name) != getattr(self.backward, name):
                raise ValueError(f"training and backward must have the same {name}")


TUNED_AS = "gla.pallas_triton"
"""Name of the stored winners; those of `vig_mixer`'s scan are among them."""


def choose(spec: GlaSpec) -> Config:
    """Returns the stored winner for this call on this device, else the heuristic's choice."""
    return core_config.choose(TUNED_AS, Config, heuristic, spec)


def _state_tile(spec: GlaSpec) -> int:
    """Returns the number of elements of a state [K, V] that a program holds."""
    keys, values = (
        max(16, next_power_of_two(width)) for width in (spec.key_width, spec.value_width)
    )
    return keys * min(values, KernelConfig.value_block)


def default_warps(spec: GlaSpec) -> int:
    """Returns the warps per program for chunks of 16 tokens.

    The state is in registers: 32 elements of it per thread leave room for the chunk.
    """
    return min(8, max(1, _state_tile(spec) // 1024))


def heuristic(spec: GlaSpec, device: Device | None = None) -> Config:
    """Returns the tilings for a call that was not measured."""
    if spec.sequences is not None:  # as for images of their mean size, in one segment
        count = max(1, spec.sequences)
        alike = dataclasses.replace(
            spec, batch=count, tokens=cdiv(spec.tokens, count), sequences=None
        )
        kernels = heuristic(alike, device)
        whole = functools.partial(dataclasses.replace, segments=1)
        return Config(whole(kernels.forward), whole(kernels.training), whole(kernels.backward))
    config = _plain_heuristic(spec)
    if spec.gate_normalizer is None:
        return config
    # The mixer's blend adds the outputs of both directions, and all gradients share one array.
    split = functools.partial(dataclasses.replace, split_directions=True)
    together = dataclasses.replace(config.backward, split_directions=False)
    return Config(split(config.forward), split(config.training), together)


def _plain_heuristic(spec: GlaSpec) -> Config:
    num_warps = default_warps(spec)
    # Programs process their tokens one after the other, and a GPU with about 100 multiprocessors
    # needs some 400 programs. Segments cost a separate pass over k and v, which does not pay from
    # 128 programs on. Below 512 tokens per segment their borders cost more than the walk. An
    # exchange of states needs that pass anyway, so its segments may be shorter.
    rows = spec.batch * spec.heads
    segments = 1
    least = 1024 if spec.exchange is None else 512
    while rows < 128 and rows * segments < 384 and spec.tokens >= least * segments:
        segments *= 2
    # If these are still too few, split directions double them, for one more pass to add outputs.
    split_directions = rows * segments < 384
    # The pipeline keeps a state in shared memory for each stage: one stage if states are large.
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
        forward = dataclasses.replace(usual, num_stages=4)
        if rows <= 64 and num_warps == 2 and spec.gate_normalizer is not None:
            # A few programs leave most of the GPU idle, and their longest chain of steps counts:
            # half the steps, each by twice the warps. Measured for the mixer.
            forward = dataclasses.replace(usual, chunk=32, num_warps=4)
        return Config(forward, usual, usual)
    # Long walks gain from fewer states: chunks of 32, with two warps for their two rows of 16.
    # Backward that takes the registers of four warps, and wide heads leave none for it.
    longer = dataclasses.replace(usual, chunk=32, num_warps=max(2, num_warps))
    if num_warps >= 4:
        return Config(longer, usual, usual)
    training = dataclasses.replace(longer, num_warps=2 * num_warps)
    return Config(longer, training, training)


def candidates(spec: GlaSpec, device: Device | None = None) -> Iterator[Config]:
    """Returns the configs that autotuning tries.

    The first ones differ in `forward`, the others in `training` and `backward`.
    """
    usual = heuristic(spec)
    for kernel in _candidate_kernels(spec):
        for split in (False, True) if spec.bidirectional else (False,):
            forward = dataclasses.replace(kernel, split_directions=split)
            yield dataclasses.replace(usual, forward=forward)
    splits: tuple[tuple[bool, bool], ...] = ((False, False),)
    if spec.bidirectional:
        splits = ((False, False), (False, True), (True, True))
    if spec.gate_normalizer is not None:  # it has one array for both directions' gradients
        splits = ((False, False), (True, False))
    for kernel in _candidate_kernels(spec):
        if kernel.chunk <= 32 and kernel.num_stages == 3:
            for training, backward in splits:
                yield Config(
                    usual.forward,
                    dataclasses.replace(kernel, split_directions=training),
                    dataclasses.replace(kernel, split_directions=backward),
                )


def _candidate_kernels(spec: GlaSpec) -> Iterator[KernelConfig]:
    usual = heuristic(spec).forward
    warps = default_warps(spec)
    # 11 eighths of the usual 192 programs make two for each of an H200's multiprocessors.
    segments = {usual.segments, max(1, usual.segments // 2), usual.segments * 11 // 8}
    # More warps than a chunk has rows of 16 compute the same twice.
    for chunk, num_warps, num_stages in (
        (16, warps, 3),
        (16, warps, 4),
        (32, 2, 3),
        (32, 4, 3),
        (64, 4, 3),
    ):
        for count in sorted(segments):
            yield KernelConfig(chunk, num_warps, num_stages, count, exact_num_warps=max(4, warps))
