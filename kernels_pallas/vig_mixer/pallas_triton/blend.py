"""The blend: two norms over the channels of a head, and the gate between them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...core import triton
from ...core.named_refs import Refs
from ...core.types import Block, Tree
from ..spec import MixerInputs, MixerSpec
from .rows import Rows


class Normed(NamedTuple):
    """A norm of some rows.

    Attributes:
        value: Input of the norm [rows, V].
        factor: 1 / root mean square [rows, 1].
        normed: Output of the norm [rows, V].
    """

    value: Block
    factor: Block
    normed: Block


class Blend(NamedTuple):
    """Intermediate values of the blend of some rows.

    Attributes:
        scan: Norm of the scans' sum.
        local: Norm of the local map.
        gate: Weight of `scan` [rows, V].
        blended: Result before the activation [rows, V].
    """

    scan: Normed
    local: Normed
    gate: Block
    blended: Block


def blend_inputs(spec: MixerSpec, scans: list[jax.Array], inputs: MixerInputs) -> dict[str, Tree]:
    """Returns the blend's arrays as its kernels take them, by name."""
    rows = functools.partial(jnp.reshape, shape=(spec.rows, spec.value_width))
    return {
        "scans": [rows(x) for x in scans],
        "local": rows(inputs.local),
        "projected": inputs.projected.reshape(-1, inputs.projected.shape[2]),
        "gate_bias": inputs.gate_bias,
        "scan_scale": inputs.scan_scale,
        "local_scale": inputs.local_scale,
    }


def blend(spec: MixerSpec, rows: Rows, ref: Refs) -> Blend:
    """Reads the blend's arrays and computes the blend of some rows."""

    def norm(x, scale_ref):
        scale = rows.read_scale(scale_ref)
        mean = jnp.sum(x * x, axis=1)[:, None] / spec.value_width
        factor = jax.lax.rsqrt(mean + spec.epsilon)
        return Normed(x, factor, x * factor * scale)

    parts = [rows.read(part) for part in ref["scans"]]
    local = rows.read(ref["local"])
    logits = rows.read_gate(ref["projected"]) + rows.read_bias(ref["gate_bias"])
    gate = triton.sigmoid(logits)
    total = parts[0] + parts[1] if len(parts) > 1 else parts[0]
    scan = norm(total, ref["scan_scale"])
    local = norm(local, ref["local_scale"])
    return Blend(scan, local, gate, local.normed + gate * (scan.normed - local.normed))
