"""The SwiGLU MLP on CUDA GPUs: XLA's matrix products around Pallas kernels of the gate.

For the backward pass the gate's input is kept and not its output, which the kernel that computes
the gate's gradient writes again.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.core.products import weight_gradient
from kernels_pallas.linear_swiglu import pallas_triton as linear_swiglu_kernels
from kernels_pallas.swiglu import pallas_triton as swiglu_kernels
from kernels_pallas.swiglu_mlp.spec import SwigluMlpSpec


def supports(spec: SwigluMlpSpec) -> str | None:
    """Serves what the kernels do: bfloat16 with widths that allow 16-byte accesses."""
    return linear_swiglu_kernels.supports(spec.linear_swiglu) or swiglu_kernels.supports(
        spec.swiglu
    )


def swiglu_mlp(
    spec: SwigluMlpSpec,
    x: Float[Array, "... D"],
    kernel: Float[Array, "D X"],
    down_kernel: Float[Array, "I O"],
) -> Float[Array, "... O"]:
    """See `kernels_pallas.swiglu_mlp.api.swiglu_mlp`."""
    out = _mlp(spec, x.reshape(spec.rows, spec.features), kernel, down_kernel)
    return out.reshape(*x.shape[:-1], spec.out_features)


class _Residuals(NamedTuple):
    """What the backward pass is given: the gate's output is not among it."""

    x: Any
    product: Any
    kernel: Any
    down_kernel: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mlp(spec: SwigluMlpSpec, x: Any, kernel: Any, down_kernel: Any) -> Any:
    hidden = linear_swiglu_kernels.linear_swiglu(spec.linear_swiglu, x, kernel)
    return jnp.matmul(hidden, down_kernel)


def _mlp_forward(
    spec: SwigluMlpSpec, x: Any, kernel: Any, down_kernel: Any
) -> tuple[Any, _Residuals]:
    product = jnp.matmul(x, kernel)
    hidden = swiglu_kernels.forward(spec.swiglu, product)
    return jnp.matmul(hidden, down_kernel), _Residuals(x, product, kernel, down_kernel)


def _mlp_backward(
    spec: SwigluMlpSpec, residuals: _Residuals, grad_out: Any
) -> tuple[Any, Any, Any]:
    x, product, kernel, down_kernel = residuals
    grad_hidden = jnp.matmul(grad_out, down_kernel.T)
    grad_product, hidden = swiglu_kernels.backward_and_output(spec.swiglu, product, grad_hidden)
    grad_x = jnp.matmul(grad_product, kernel.T)
    return grad_x, weight_gradient(x, grad_product), weight_gradient(hidden, grad_out)


_mlp.defvjp(_mlp_forward, _mlp_backward, optimize_remat=True)
