"""The mixer in Pallas kernels for CUDA GPUs: the scan's own, the blend's, then XLA's product.

Each direction of the scan has programs and an output of its own where nothing is differentiated;
the blend adds them. README.md tells what is saved.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.core.products import weight_gradient
from kernels_pallas.gla import pallas_triton as gla
from kernels_pallas.gla.pallas_triton import scan
from kernels_pallas.gla.pallas_triton.config import Config, KernelConfig, choose
from kernels_pallas.vig_mixer.pallas_triton import blend as pallas_triton_blend
from kernels_pallas.vig_mixer.spec import MixerSpec

_MAX_ROWS = 2**30  # of B * T * H: the blend numbers rows in 32 bits, some past the last too


def supports(spec: MixerSpec) -> str | None:
    """Serves bfloat16 and float32, heads whose values fit in one program of the scan."""
    if spec.value_width > KernelConfig.value_block:
        return f"value width per head must be at most {KernelConfig.value_block}"
    if spec.batch * spec.tokens * spec.heads > _MAX_ROWS:
        return f"B * T * H must be at most {_MAX_ROWS}"
    return gla.supports(spec.scan)


def vig_mixer(
    spec: MixerSpec,
    projected: Float[Array, "B T E"],
    local: Float[Array, "B T D"],
    gate_bias: Float[Array, " D"],
    decay_kernel: Float[Array, "R D"],
    decay_bias: Float[Array, " D"],
    scan_scale: Float[Array, " V"],
    local_scale: Float[Array, " V"],
    out_kernel: Float[Array, "D O"],
    *,
    config: Config | None = None,
) -> Float[Array, "B T O"]:
    """See `kernels_pallas.vig_mixer.api.vig_mixer`."""
    call = _Call(spec, config or choose(spec.scan))
    weights = (gate_bias, decay_kernel, decay_bias, scan_scale, local_scale, out_kernel)
    return _mix(call, _Inputs(projected, local, *weights))


class _Call(NamedTuple):
    """What is static."""

    spec: MixerSpec
    config: Config


class _Inputs(NamedTuple):
    """The operator's arrays."""

    projected: Any
    local: Any
    gate_bias: Any
    decay_kernel: Any
    decay_bias: Any
    scan_scale: Any
    local_scale: Any
    out_kernel: Any


class _Residuals(NamedTuple):
    """What the backward pass is given: the blend is not among it, it is made of the scans' sum."""

    inputs: _Inputs
    scan: Any
    states: Any


def _scan_inputs(spec: MixerSpec, inputs: _Inputs) -> scan.ScanInputs:
    """Returns the scan's operands, which are columns of `projected`."""
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
def _mix(call: _Call, inputs: _Inputs) -> Any:
    parts = _scan_inputs(call.spec, inputs)
    scans = scan.forward(call.spec.scan, call.config.forward, parts, chunk_states=False)
    return _output(call.spec, scans.out, inputs, keeps_sum=False)[0]


def _output(
    spec: MixerSpec, scans: list[Any], inputs: _Inputs, *, keeps_sum: bool
) -> tuple[Any, Any]:
    """The result [B, T, O] and the scans' sum [B, T, H, V]."""
    blend, total = pallas_triton_blend.forward(
        spec,
        scans,
        inputs.projected,
        inputs.local,
        inputs.gate_bias,
        inputs.scan_scale,
        inputs.local_scale,
        keeps_sum=keeps_sum,
    )
    return jnp.matmul(blend, inputs.out_kernel, precision=spec.scan.dot_precision), total


def _mix_forward(call: _Call, inputs: _Inputs) -> tuple[Any, _Residuals]:
    parts = _scan_inputs(call.spec, inputs)
    scans = scan.forward(call.spec.scan, call.config.training, parts, chunk_states=True)
    out, total = _output(call.spec, scans.out, inputs, keeps_sum=True)
    return out, _Residuals(inputs, total, scans.chunk_states)


def _mix_backward(call: _Call, residuals: _Residuals, grad: Any) -> tuple[_Inputs]:
    spec, launch = call.spec, call.config.backward
    inputs, total, states = residuals
    precision = spec.scan.dot_precision
    grad_blend = jnp.matmul(grad, inputs.out_kernel.T, precision=precision)
    blend, grad_scan, grad_local, grad_projected, *grad_vectors = pallas_triton_blend.backward(
        spec,
        total,
        inputs.projected,
        inputs.local,
        inputs.gate_bias,
        inputs.scan_scale,
        inputs.local_scale,
        grad_blend,
    )
    parts = _scan_inputs(spec, inputs)
    grad_projected, grad_logits = scan.backward_in_place(
        spec.scan, launch, parts, grad_scan, states, grad_projected
    )

    # The bias is the weight of a feature that is 1: its gradient needs no pass of its own. As many
    # of them as make whole vectors of 16 bytes.
    features = inputs.projected[..., spec.starts["decay"] :]
    ones = jnp.ones((*features.shape[:2], 8 - spec.rank % 8), features.dtype)
    grad_weights = weight_gradient(
        jnp.concatenate([features, ones], axis=2), grad_logits, precision, jnp.float32
    )
    grad_features = jnp.matmul(grad_logits, inputs.decay_kernel.T, precision=precision)
    grad_gate_bias, grad_scan_scale, grad_local_scale = grad_vectors
    return (
        _Inputs(
            jax.lax.dynamic_update_slice(
                grad_projected, grad_features, (0, 0, spec.starts["decay"])
            ),
            grad_local,
            grad_gate_bias,
            grad_weights[: spec.rank].astype(inputs.decay_kernel.dtype),
            grad_weights[spec.rank].astype(inputs.decay_bias.dtype),
            grad_scan_scale,
            grad_local_scale,
            weight_gradient(blend, grad, precision),
        ),
    )


_mix.defvjp(_mix_forward, _mix_backward, optimize_remat=True)
