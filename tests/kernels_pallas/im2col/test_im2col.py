"""Pixels under a convolution's kernel: all implementations against loops, and the CUDA kernel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import im2col
from kernels_pallas.im2col import IMPLEMENTATIONS, pallas_triton
from kernels_pallas.im2col.pallas_triton import Config
from kernels_pallas.im2col.spec import Im2colSpec
from kernels_pallas.testing import TOLERANCES, interpret, launches, rms_relative_error

NAME = "pallas_triton"
VIG = [((256, 224, 224, 3), 9, 8), ((256, 224, 224, 3), 3, 2)]
CASES = [
    ((2, 16, 24, 3), 9, 8, None),
    ((2, 9, 14, 3), 3, 2, None),
    ((1, 7, 31, 3), 9, 8, None),
    ((2, 5, 7, 1), 2, 3, 5),
    ((1, 3, 4, 5), 1, 1, 37),
    ((3, 1, 1, 2), 3, 2, None),
    ((1, 6, 9, 4), 4, 1, 64),
]
on_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a CUDA GPU")


def make(shape, dtype):
    return jnp.asarray(np.random.default_rng(shape[1]).standard_normal(shape), dtype)


def expected_from(images, size, stride, columns, ones=False):
    """Every number by itself, and the place it came from."""
    images = np.asarray(images, np.float64)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    least = size**2 * images.shape[3]
    h, w = ((side + 2 - size) // stride + 1 for side in images.shape[1:3])
    out = np.zeros((images.shape[0], h, w, columns or -(-least // 32) * 32))
    for y, x in np.ndindex(h, w):
        patch = padded[:, y * stride : y * stride + size, x * stride : x * stride + size]
        out[:, y, x, :least] = patch.reshape(images.shape[0], -1)
    if ones:
        out[..., least] = 1
    return out


def gradient_from(shape, grad_out, size, stride):
    grad = np.zeros((shape[0], shape[1] + 2, shape[2] + 2, shape[3]))
    for y, x in np.ndindex(*grad_out.shape[1:3]):
        patch = grad_out[:, y, x, : size**2 * shape[3]].reshape(-1, size, size, shape[3])
        grad[:, y * stride : y * stride + size, x * stride : x * stride + size] += patch
    return grad[:, 1:-1, 1:-1]


def check(run, images, size, stride, columns=None, ones=False):
    """Outputs to the bit, gradients within the tolerance."""
    expected = expected_from(images, size, stride, columns, ones)
    out, pullback = jax.vjp(jax.jit(run), images)
    assert out.dtype == images.dtype
    np.testing.assert_array_equal(np.asarray(out, np.float64), expected)
    grad_out = make(expected.shape, images.dtype)
    (grad,) = pullback(grad_out)
    wanted = gradient_from(images.shape, np.asarray(grad_out, np.float64), size, stride)
    assert rms_relative_error(grad, wanted) <= TOLERANCES[images.dtype.name].gradient


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["reference", "xla"])
@pytest.mark.parametrize(("shape", "size", "stride", "columns"), CASES)
def test_formula(name, shape, size, stride, columns, dtype):
    with jax.enable_x64(dtype == "float64"):
        run = functools.partial(
            im2col, kernel_size=size, stride=stride, columns=columns, implementation=name
        )
        check(run, make(shape, dtype), size, stride, columns)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tiling", [None, Config(2, 2, 1), Config(2, 2, 1, True)])
@pytest.mark.parametrize(("shape", "size", "stride", "columns"), CASES)
def test_interpreted_kernel(shape, size, stride, columns, tiling, dtype):
    images = make(shape, dtype)
    numbers = columns or -(-(size**2) * shape[3] // 32) * 32
    spec = Im2colSpec(*shape, size, stride, numbers, images.dtype)
    run = functools.partial(pallas_triton.run, spec, config=tiling)
    with interpret():
        check(run, images, size, stride, columns)


def lowered(run, *arguments):
    return jax.jit(run).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize(("shape", "size", "stride", "columns"), CASES[:-1])
def test_ones(name, shape, size, stride, columns):
    run = functools.partial(
        im2col,
        kernel_size=size,
        stride=stride,
        columns=columns,
        ones=True,
        implementation=name,
    )
    with interpret():
        check(run, make(shape, "bfloat16"), size, stride, columns, ones=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("shape", "size", "stride"), [*VIG, ((3, 7, 31, 5), 4, 3)])
def test_lowers_for_cuda(shape, size, stride, dtype):
    run = functools.partial(im2col, kernel_size=size, stride=stride, implementation=NAME)
    assert len(lowered(run, jax.ShapeDtypeStruct(shape, dtype))) > 0


def test_the_kernel_is_launched_once():
    run = functools.partial(im2col, kernel_size=3, stride=2, implementation=NAME)
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.bfloat16)

    def gradient(images):
        out, pullback = jax.vjp(run, images)
        return out, pullback(out)

    assert launches(run, images) == launches(gradient, images) == {"im2col": 1}


def test_the_default_takes_the_kernel_on_cuda_only():
    run = functools.partial(im2col, kernel_size=3, stride=2)
    traced = jax.jit(run).trace(jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.bfloat16))
    assert "triton" in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "triton" not in traced.lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS[1:], None])
def test_no_images(implementation):
    run = functools.partial(im2col, kernel_size=3, stride=2, implementation=implementation)
    assert run(jnp.ones((0, 5, 5, 3))).shape == (0, 3, 3, 32)


def test_what_the_kernel_does_not_serve():
    for images in (jnp.ones((1, 4, 4, 1), jnp.float16), jnp.ones((0, 4, 4, 1))):
        with pytest.raises(NotImplementedError, match="cannot run this call"):
            im2col(images, kernel_size=3, stride=2, implementation=NAME)


@pytest.mark.parametrize(
    ("images", "options", "error", "told"),
    [
        (np.ones((4, 4, 3), np.float32), {}, ValueError, "four axes"),
        (np.ones((1, 4, 0, 3), np.float32), {}, ValueError, "four axes"),
        (np.ones((1, 4, 4, 3), np.int32), {}, TypeError, "got int32"),
        ([1.0], {}, TypeError, "got list"),
        (np.ones((1, 4, 9, 3), np.float32), {"kernel_size": 7}, ValueError, "from 1 to 6"),
        (np.ones((1, 4, 4, 3), np.float32), {"stride": 0}, ValueError, "at least 1, got 0"),
        (np.ones((1, 4, 4, 3), np.float32), {"columns": 26}, ValueError, "at least 27"),
        (
            np.ones((1, 4, 4, 3), np.float32),
            {"columns": 27, "ones": True},
            ValueError,
            r"at least 28 = kernel_size\*\*2 \* channels \+ 1, got 27",
        ),
    ],
)
def test_errors(unchecked, images, options, error, told):
    with pytest.raises(error, match=told):
        im2col(images, **{"kernel_size": 3, "stride": 2, **options})


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "size", "stride", "columns"), [*CASES, *((*c, None) for c in VIG)]
)
def test_on_a_gpu(shape, size, stride, columns, dtype):
    images = make((min(shape[0], 16), *shape[1:]), dtype)
    options = {"kernel_size": size, "stride": stride, "columns": columns, "implementation": NAME}
    check(functools.partial(im2col, **options), images, size, stride, columns)
    if shape == VIG[0][0]:
        run = functools.partial(im2col, **options, ones=True)
        check(run, images, size, stride, columns, ones=True)
