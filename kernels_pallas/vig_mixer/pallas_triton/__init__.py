"""The mixer on CUDA GPUs: Pallas kernels for the scan and the blend, then a product by XLA.

In a call that is not differentiated, each direction of the scan has its own programs and output,
and the blend adds the outputs. README.md explains what that saves.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...core import triton
from ...core.device import Device
from ...core.products import weight_gradient
from ...gla import pallas_triton as gla
from ...gla.pallas_triton import scan
from ...gla.pallas_triton.config import Config, KernelConfig, choose
from ...gla.sequences import borders
from ..spec import MixerInputs, MixerSpec
from . import backward, forward

PLATFORMS = triton.PLATFORMS
TUNED_AS = gla.TUNED_AS

_MAX_ROWS = 2**30  # B * T * H; the blend numbers rows in 32 bits, and some lie past the last


def supports(spec: MixerSpec, device: Device | None = None) -> str | None:
    """Returns the reason for which a call cannot be served, or None.

    A program of the scan must hold all values of a head.
    """
    if spec.value_width > KernelConfig.value_block:
        return f"value width per head must be at most {KernelConfig.value_block}"
    if spec.rows > _MAX_ROWS:
        return f"B * T * H must be at most {_MAX_ROWS}"
    return gla.supports(spec.scan, device)


def heuristic(spec: MixerSpec, device: Device | None = None) -> Config:
    """Returns the config of the scan for a call that was not measured."""
    return gla.heuristic(spec.scan, device)


def candidates(spec: MixerSpec, device: Device | None = None) -> Iterator[Config]:
    """Returns the configs of the scan that autotuning tries."""
    return gla.candidates(spec.scan, device)


def run(
    spec: MixerSpec,
    inputs: MixerInputs,
    cu_seqlens: Int[Array, " M"] | None = None,
    *,
    config: Config | None = None,
) -> Float[Array, "B T O"]:
    """Computes the mixer; see `kernels_pallas.vig_mixer.api.vig_mixer`."""
    starts = None if cu_seqlens is None else borders(cu_seqlens, spec.tokens)
    return _mix(_Call(spec, config or choose(spec.scan)), inputs, starts)


class _Call(NamedTuple):
    """Static arguments of a call."""

    spec: MixerSpec
    config: Config


class _Residuals(NamedTuple):
    """Arrays that the backward pass reads. It recomputes the blend from the scans' sum.

    Attributes:
        inputs: As given.
        borders: First token of each sequence, and T, or None if rows are sequences.
        total: Sum of the scans [B, T, H, V].
        chunk_states: States of the scan before each chunk.
    """

    inputs: MixerInputs
    borders: Array | None
    total: Array
    chunk_states: Array


def _scan_inputs(spec: MixerSpec, inputs: MixerInputs) -> scan.ScanInputs:
    """Returns the operands of the scan, which are columns of `projected`."""
    q, k, v = (scan.Columns(inputs.projected, spec.starts[name]) for name in ("q", "k", "v"))
    gates = tuple(
        scan.Gates(
            inputs.projected,
            spec.starts["decay"],
            spec.rank,
            inputs.decay_kernel,
            inputs.decay_bias,
            column,
        )
        for column in (0, spec.width // 2)
    )
    return scan.ScanInputs(q, k, v, gates)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(call: _Call, inputs: MixerInputs, borders: Array | None) -> Array:
    spec = call.spec
    scans = _scan(call, call.config.forward, inputs, borders, chunk_states=False)
    blend, _ = forward.forward(spec, scans.out, inputs, total=False)
    return jnp.matmul(blend, inputs.out_kernel, precision=spec.scan.dot_precision)


def _scan(
    call: _Call,
    config: KernelConfig,
    inputs: MixerInputs,
    borders: Array | None,
    *,
    chunk_states: bool,
) -> scan.ScanOutputs:
    spec = call.spec
    operands = _scan_inputs(spec, inputs)
    return scan.forward(spec.scan, config, operands, borders=borders, chunk_states=chunk_states)


def _mix_forward(
    call: _Call, inputs: MixerInputs, borders: Array | None
) -> tuple[Array, _Residuals]:
    spec = call.spec
    scans = _scan(call, call.config.training, inputs, borders, chunk_states=True)
    assert scans.chunk_states is not None
    blend, total = forward.forward(spec, scans.out, inputs, total=True)
    out = jnp.matmul(blend, inputs.out_kernel, precision=spec.scan.dot_precision)
    return out, _Residuals(inputs, borders, total, scans.chunk_states)


def _mix_backward(call: _Call, residuals: _Residuals, grad: Array) -> tuple[MixerInputs, None]:
    spec = call.spec
    inputs, borders, total, chunk_states = residuals
    precision = spec.scan.dot_precision
    grad_blend = jnp.matmul(grad, inputs.out_kernel.T, precision=precision)
    blend, grads = backward.backward(spec, total, inputs, grad_blend)
    grad_projected, grad_logits = scan.backward_in_place(
        spec.scan,
        call.config.backward,
        _scan_inputs(spec, inputs),
        grads.total,
        chunk_states,
        grads.projected,
        borders,
    )

    # The bias is the weight of a feature that is 1, so its gradient needs no separate pass. Enough
    # such features are added to fill vectors of 16 bytes.
    features = inputs.projected[..., spec.starts["decay"] :]
    ones = jnp.ones((*features.shape[:2], 8 - spec.rank % 8), features.dtype)
    grad_weights = weight_gradient(
        jnp.concatenate([features, ones], axis=2), grad_logits, precision, jnp.float32
    )
    grad_features = jnp.matmul(grad_logits, inputs.decay_kernel.T, precision=precision)
    start = (0, 0, spec.starts["decay"])
    grad_inputs = MixerInputs(
        projected=jax.lax.dynamic_update_slice(grad_projected, grad_features, start),
        local=grads.local,
        gate_bias=grads.gate_bias,
        decay_kernel=grad_weights[: spec.rank].astype(inputs.decay_kernel.dtype),
        decay_bias=grad_weights[spec.rank].astype(inputs.decay_bias.dtype),
        scan_scale=grads.scan_scale,
        local_scale=grads.local_scale,
        out_kernel=weight_gradient(blend, grad, precision),
    )
    return grad_inputs, None


_mix.defvjp(_mix_forward, _mix_backward, optimize_remat=True)
