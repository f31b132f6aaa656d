"""The mixer in Pallas kernels for CUDA GPUs: the scan's own, then the blend's.

Each direction of the scan has programs and an output of its own where nothing is differentiated;
the blend adds them. README.md tells what is saved.
"""

import functools
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from kernels_pallas.gla import pallas_triton as gla
from kernels_pallas.gla import pallas_triton_bwd, pallas_triton_fwd
from kernels_pallas.gla.pallas_triton_chunk import Columns
from kernels_pallas.gla.pallas_triton_config import Config, Launch, choose
from kernels_pallas.vig_mixer import pallas_triton_blend
from kernels_pallas.vig_mixer.spec import MixerSpec

_DIRECTIONS = (False, True)


def supports(spec: MixerSpec) -> str | None:
    """Serves bfloat16 and float32, heads whose values fit in one program of the scan."""
    if spec.value_width > Launch.value_block:
        return f"value width per head must be at most {Launch.value_block}"
    return gla.supports(spec.scan)


def vig_mixer(
    spec: MixerSpec,
    projected: Float[Array, "B T 4*D"],
    local: Float[Array, "B T D"],
    scan_scale: Float[Array, " V"],
    local_scale: Float[Array, " V"],
    *,
    config: Config | None = None,
) -> Float[Array, "B T D"]:
    """See `kernels_pallas.vig_mixer.api.vig_mixer`."""
    gla.check_device()
    return _mix(_Call(spec, config or choose(spec.scan)), projected, local, scan_scale, local_scale)


class _Call(NamedTuple):
    """What is static."""

    spec: MixerSpec
    config: Config


class _Residuals(NamedTuple):
    """What the backward pass needs: the inputs, the scans' outputs, states before each chunk."""

    projected: Any
    local: Any
    scan_scale: Any
    local_scale: Any
    scans: list[Any]
    states: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(call: _Call, projected: Any, local: Any, scan_scale: Any, local_scale: Any) -> Any:
    scans, _ = _scan(call.spec, call.config.forward, projected, keeps_states=False)
    return pallas_triton_blend.forward(call.spec, scans, projected, local, scan_scale, local_scale)


def _columns(spec: MixerSpec, projected: Any) -> dict[str, Columns]:
    return {name: Columns(projected, start) for name, start in spec.starts.items()}


def _scan(
    spec: MixerSpec, launch: Launch, projected: Any, *, keeps_states: bool
) -> tuple[list[Any], Any]:
    """Outputs [B, T, H, V], one or one per direction, and the states before each chunk."""
    parts = _columns(spec, projected)
    k, v = parts["k"], parts["v"]
    decays = (parts["decay_fwd"], parts["decay_bwd"])
    initial = None
    if launch.segments > 1:
        initial, _ = pallas_triton_fwd.border_states(
            spec.scan, launch, _DIRECTIONS, k, v, decays, None, gradient=False
        )
    outs, _, states = pallas_triton_fwd.forward(
        spec.scan,
        launch,
        _DIRECTIONS,
        parts["q"],
        k,
        v,
        decays,
        initial,
        wants_final=False,
        keeps_states=keeps_states,
    )
    return outs, states


def _mix_forward(
    call: _Call, projected: Any, local: Any, scan_scale: Any, local_scale: Any
) -> tuple[Any, _Residuals]:
    scans, states = _scan(call.spec, call.config.training, projected, keeps_states=True)
    out = pallas_triton_blend.forward(call.spec, scans, projected, local, scan_scale, local_scale)
    return out, _Residuals(projected, local, scan_scale, local_scale, scans, states)


def _mix_backward(call: _Call, residuals: _Residuals, grad: Any) -> tuple[Any, Any, Any, Any]:
    spec, launch = call.spec, call.config.backward
    projected, local, scan_scale, local_scale, scans, states = residuals
    grad_scan, grad_local, grad_projected, grad_scan_scale, grad_local_scale = (
        pallas_triton_blend.backward(spec, scans, projected, local, scan_scale, local_scale, grad)
    )
    parts = _columns(spec, projected)
    decays = (parts["decay_fwd"], parts["decay_bwd"])
    final = None
    if launch.segments > 1:
        final, _ = pallas_triton_fwd.border_states(
            spec.scan, launch, _DIRECTIONS, parts["q"], grad_scan, decays, None, gradient=True
        )
    grad_projected = pallas_triton_bwd.backward_into(
        spec.scan,
        launch,
        parts["q"],
        parts["k"],
        parts["v"],
        decays,
        grad_scan,
        states,
        final,
        grad_projected,
    )
    return grad_projected, grad_local, grad_scan_scale, grad_local_scale


_mix.defvjp(_mix_forward, _mix_backward)
