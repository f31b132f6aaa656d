"""What the forward and the backward kernels share: a chunk's rows, its decays and its scores.

A program owns one head of one image (or a segment of its tokens) and walks over chunks of C tokens.
Shapes inside a kernel are powers of two: K and V are padded to `key_block` and `value_block`, and
what is read beyond them is zero. README.md derives the formulas.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas.core import pallas_compat
from kernels_pallas.core.pallas_compat import LOG2_E, both, power_of_two
from kernels_pallas.gla.pallas_triton.config import KernelConfig
from kernels_pallas.gla.spec import GlaSpec

# Stands for -inf: its exponential is zero all the same, but sums and products of it are finite.
LOWEST_LOG_DECAY = -9984.0
# The same for gates: divided by their normalizer, at most MAX_GATE_NORMALIZER, still zero as exp2.
LOWEST_LOG2_SIGMOID = -60000.0
MAX_GATE_NORMALIZER = 256.0


class Columns(NamedTuple):
    """Columns of an array, or of a reference to one, [B, T, E]: head by head, from `start` on.

    Stands for an array [B, T, H, K or V]; kernels read and write such columns in place.
    """

    array: Any
    start: int


class Gates(NamedTuple):
    """Logits of decay gates [B, T, H, K], made where they are read: features times kernel + bias.

    Attributes:
        array: [B, T, E]; `rank` columns of it, from `start` on, are the features.
        start: See there.
        rank: See there.
        kernel: [rank, F], of which the gates take the columns from `column` on, head by head.
        bias: [F], the same.
        column: See there.
    """

    array: Any
    start: int
    rank: int
    kernel: Any
    bias: Any
    column: int


Operand = Any  # an array [B, T, H, K or V], Columns, or Gates for log-decays
View = Any  # an operand with numbers in the place of its arrays
_ARRAYS = {Columns: ("array",), Gates: ("array", "kernel", "bias")}


def arrays_of(operands: Sequence[Operand]) -> tuple[list[Any], tuple[View, ...]]:
    """The distinct arrays behind some operands, and how to find the operands in them."""
    arrays: list[Any] = []

    def number(array: Any) -> int:
        if all(array is not known for known in arrays):
            arrays.append(array)
        return next(i for i, known in enumerate(arrays) if known is array)

    return arrays, tuple(_with_arrays(number, operand) for operand in operands)


def operands_of(refs: Sequence[Any], views: Sequence[View]) -> list[Operand]:
    """The operands that `arrays_of` took apart, in terms of references to the arrays."""
    return [_with_arrays(lambda number: refs[number], view) for view in views]


def count_arrays(views: Sequence[View]) -> int:
    """How many arrays some operands have."""
    numbers: list[int] = []
    for view in views:
        _with_arrays(numbers.append, view)
    return 1 + max(numbers)


def _with_arrays(change: Callable[[Any], Any], operand: Operand) -> Operand:
    if type(operand) not in _ARRAYS:
        return change(operand)
    return operand._replace(**{x: change(getattr(operand, x)) for x in _ARRAYS[type(operand)]})


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Static facts of a launch.

    Attributes:
        tokens: T.
        heads: H.
        key_width: K.
        value_width: V.
        chunk: Tokens per chunk C.
        key_block: K padded to a power of two.
        value_block: Values per program, a power of two; V is split among programs if it is more.
        segments: Parts that the tokens are split into, each walked by programs of its own.
        scale: Factor on the queries.
        gate_normalizer: Log-decays are given as x, for log_sigmoid(x) / gate_normalizer; None if
            they are given as they are.
        strong_decays: A chunk may decay by more than the fast form of the scores is right for.
        exact_dtype: The inputs are float32: nothing may be rounded to less.
    """

    tokens: int
    heads: int
    key_width: int
    value_width: int
    chunk: int
    key_block: int
    value_block: int
    segments: int
    scale: float
    gate_normalizer: float | None
    strong_decays: bool
    exact_dtype: bool

    @property
    def value_blocks(self) -> int:
        return -(-self.value_width // self.value_block)

    @property
    def chunks(self) -> int:
        """Chunks per segment."""
        return -(-self.tokens // (self.chunk * self.segments))

    @property
    def operand(self) -> Any:
        """Type of the operands of matrix products."""
        return jnp.float32 if self.exact_dtype else jnp.bfloat16

    @property
    def mildest_total(self) -> float:
        """See `_mildest_total`."""
        return _mildest_total(self.exact_dtype)


def _mildest_total(exact_dtype: bool) -> float:
    """The least sum of log-decays over a chunk for which exp(-sum) may be a factor.

    The exponents of bfloat16 and float32 leave room for keys, values and sums of them beside
    exp(60); for float32 results the error of exp, which grows with its argument, decides.
    """
    return -20.0 if exact_dtype else -60.0


def geometry_of(spec: GlaSpec, launch: KernelConfig) -> Geometry:
    """Static facts of a launch for a call."""
    exact_dtype = spec.dtype == jnp.float32
    promised = -math.inf if spec.min_log_decay is None else spec.min_log_decay * launch.chunk
    return Geometry(
        tokens=spec.tokens,
        heads=spec.heads,
        key_width=spec.key_width,
        value_width=spec.value_width,
        chunk=launch.chunk,
        key_block=max(16, power_of_two(spec.key_width)),
        value_block=max(16, min(launch.value_block, power_of_two(spec.value_width))),
        segments=launch.segments,
        scale=spec.scale,
        gate_normalizer=spec.gate_normalizer,
        strong_decays=promised < _mildest_total(exact_dtype),
        exact_dtype=exact_dtype,
    )


def too_strong(geometry: Geometry, least: Any) -> Any:
    """Whether a program that met the chunk decay `least`, perhaps NaN, has to run again exactly."""
    return jnp.logical_not(least >= math.exp(geometry.mildest_total))


@dataclasses.dataclass(frozen=True)
class Place:
    """What a program works on; traced indices."""

    image: Any
    segment: Any
    value_block: Any
    head: Any

    def row(self, geometry: Geometry) -> Any:
        """Index into arrays with an entry per image, head and segment."""
        return (self.image * geometry.heads + self.head) * geometry.segments + self.segment


def locate(geometry: Geometry, program: Any) -> Place:
    """Neighbouring programs share an image, whose rows of all heads lie side by side."""
    head = program % geometry.heads
    rest = program // geometry.heads
    value_block = rest % geometry.value_blocks
    rest = rest // geometry.value_blocks
    return Place(rest // geometry.segments, rest % geometry.segments, value_block, head)


def dot(geometry: Geometry, a: Any, b: Any) -> Any:
    """Matrix product accumulated in float32; float32 operands are not rounded."""
    precision = jax.lax.Precision.HIGHEST if geometry.exact_dtype else None
    return jax.lax.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def scanned_before(chunk: int, reverse: bool, *, itself: bool) -> Any:
    """[i, j]: token j is scanned before token i, or is token i and `itself`."""
    i = jax.lax.broadcasted_iota(jnp.int32, (chunk, chunk), 0)
    j = jax.lax.broadcasted_iota(jnp.int32, (chunk, chunk), 1)
    if reverse:
        i, j = j, i
    return i >= j if itself else i > j


def row_sums(geometry: Geometry, picked: Any, x: Any, parts: int) -> Any:
    """Sums of those rows of x [C, K] that `picked` [C, C] says, as matrix products.

    A bfloat16 product keeps 8 bits of x, so x goes in as `parts` addends of 8 bits each.
    """
    x = x.astype(jnp.float32) if geometry.exact_dtype or parts > 1 else x
    ones = picked.astype(geometry.operand)
    if geometry.exact_dtype:
        return dot(geometry, ones, x)
    part = x.astype(jnp.bfloat16)
    total = dot(geometry, ones, part)
    for _ in range(parts - 1):
        x = x - part.astype(jnp.float32)
        part = x.astype(jnp.bfloat16)
        total = total + dot(geometry, ones, part)
    return total


class LogDecays(NamedTuple):
    """Log-decays of a chunk [C, K], finite, as `values` times `unit` in powers of two."""

    values: Any
    unit: float

    def steps(self) -> Any:
        """The decay of each token [C, K], float32."""
        return jnp.exp2(self.values.astype(jnp.float32) * self.unit)


def log_decay_sums(geometry: Geometry, picked: Any, log_decays: LogDecays) -> Any:
    """Sums of log-decays [C, K] as powers of two, so that exp2 of them are decays.

    Beside bfloat16 keys and queries, float16 keeps as much of a log-decay as matters, 11 bits.
    """
    values = log_decays.values
    if not geometry.exact_dtype and values.dtype == jnp.float32:
        ones, values = picked.astype(jnp.float16), values.astype(jnp.float16)
        sums = jax.lax.dot(ones, values, preferred_element_type=jnp.float32)
    else:
        sums = row_sums(geometry, picked, values, 1)
    return sums * log_decays.unit


def exact_scores(geometry: Geometry, reverse: bool, q: Any, k: Any, decays: Any) -> Any:
    """Scores [C, C] = sum_k q_ik k_jk prod_{s in (j, i]} decays_sk, for any decays [C, K].

    Decays are only multiplied, never divided: column by column, from the last scanned token to the
    first, `between` [C, K] holds the products between the column's token and every later one.
    """
    rows = jax.lax.broadcasted_iota(jnp.int32, (geometry.chunk, 1), 0)
    columns = jax.lax.broadcasted_iota(jnp.int32, (1, geometry.chunk), 1)

    def column(step, carry):
        between, next_decay, scores = carry
        j = step if reverse else geometry.chunk - 1 - step
        here = rows == j
        between = jnp.where(here, 1.0, between * next_decay)
        k_row = jnp.sum(jnp.where(here, k, 0.0), axis=0)[None, :]
        column_j = jnp.sum(q * between * k_row, axis=1)[:, None]
        next_decay = jnp.sum(jnp.where(here, decays, 0.0), axis=0)[None, :]
        return between, next_decay, jnp.where(columns == j, column_j, scores)

    zeros = jnp.zeros((geometry.chunk, geometry.key_block), jnp.float32)
    init = (zeros, jnp.ones((1, geometry.key_block), jnp.float32))
    scores = jnp.zeros((geometry.chunk, geometry.chunk), jnp.float32)
    return jax.lax.fori_loop(0, geometry.chunk, column, (*init, scores))[2]


class Chunk:
    """The rows of one chunk of operands [B, T, H, K or V]; rows past T are never touched."""

    def __init__(self, geometry: Geometry, place: Place, number: Any, interpreting: bool):
        self._interpreting = interpreting
        self._geometry = geometry
        self._place = place
        self._rows = number * geometry.chunk + jnp.arange(geometry.chunk)[:, None]
        keys = jnp.arange(geometry.key_block)[None, :]
        values = place.value_block * geometry.value_block + jnp.arange(geometry.value_block)[None]
        inside = None
        if geometry.tokens % (geometry.chunk * geometry.segments):
            inside = self._rows < geometry.tokens
        self._inside = inside
        self._columns = {"K": (keys, geometry.key_width), "V": (values, geometry.value_width)}
        self._mask = {}
        for axis, (columns, width) in self._columns.items():
            padded = width % columns.shape[1] != 0
            mask = both(inside, columns < width if padded else None)
            if mask is not None:
                mask = jnp.broadcast_to(mask, (geometry.chunk, columns.shape[1]))
            self._mask[axis] = mask

    def _at(self, operand: Operand, axis: str) -> tuple[Any, tuple[Any, ...], Any]:
        """The operand's reference, and index and mask of the chunk's rows in it."""
        columns, width = self._columns[axis]
        image, head = self._place.image, self._place.head
        if isinstance(operand, Columns):
            index = (image, self._rows, operand.start + head * width + columns)
            return operand.array, index, self._mask[axis]
        return operand, (image, self._rows, head, columns), self._mask[axis]

    def read(self, operand: Operand, axis: str) -> Any:
        """[C, K] or [C, V]; zero outside the array."""
        return pallas_compat.load(*self._at(operand, axis), interpreting=self._interpreting)

    def write(self, operand: Operand, axis: str, value: Any) -> None:
        """Stores [C, K] or [C, V]."""
        ref, index, mask = self._at(operand, axis)
        pallas_compat.store(ref, index, value, mask, interpreting=self._interpreting)

    def read_log_decays(self, operand: Operand, weights: Any) -> LogDecays:
        """The log-decays, or what the gates, with `gate_weights`, make of them.

        Outside the array there is no decay, or that of the gates' bias: as keys and values are zero
        there and no token's state is asked for, it makes no difference.
        """
        if not isinstance(operand, Gates):
            values = self.read(operand, "K")
            lowest = jnp.array(LOWEST_LOG_DECAY, values.dtype)
            return LogDecays(jnp.maximum(values, lowest), LOG2_E)
        features = jnp.arange(weights.kernel.shape[0])[None, :]
        mask = self._inside
        if operand.rank != features.shape[1]:
            mask = both(mask, features < operand.rank)
        if mask is not None:
            mask = jnp.broadcast_to(mask, (self._geometry.chunk, features.shape[1]))
        index = (self._place.image, self._rows, operand.start + features)
        x = pallas_compat.load(operand.array, index, mask, interpreting=self._interpreting)
        # log2(sigmoid(x)), without overflow
        gates = dot(self._geometry, x, weights.kernel) * LOG2_E + weights.bias
        small = pallas_compat.exp2(-jnp.abs(gates), interpreting=self._interpreting)
        values = jnp.minimum(gates, 0.0) - pallas_compat.log2(
            1.0 + small, interpreting=self._interpreting
        )
        normalizer = self._geometry.gate_normalizer
        assert normalizer is not None, "gates come with it"
        return LogDecays(jnp.maximum(values, LOWEST_LOG2_SIGMOID), 1 / normalizer)

    def gate_gradient(self, log_decays: LogDecays, grad: Any) -> Any:
        """The gradient [C, K] of what is stored, from that of the log-decays."""
        if self._geometry.gate_normalizer is None:
            return grad
        sigmoid = pallas_compat.exp2(log_decays.values, interpreting=self._interpreting)
        return grad * ((1.0 - sigmoid) * log_decays.unit)


class GateWeights(NamedTuple):
    """What makes a head's gates of features: kernel [rank, K], and bias [1, K] times log2(e)."""

    kernel: Any
    bias: Any


def gate_weights(
    geometry: Geometry, place: Place, operand: Operand, *, interpreting: bool
) -> GateWeights | None:
    """A head's weights, read once for all chunks; None for log-decays as they are."""
    if not isinstance(operand, Gates):
        return None
    load = functools.partial(pallas_compat.load, interpreting=interpreting)
    rank = max(16, power_of_two(operand.rank))
    features = jnp.arange(rank)[:, None]
    keys = jnp.arange(geometry.key_block)[None, :]
    columns = operand.column + place.head * geometry.key_width + keys
    padded = geometry.key_width != geometry.key_block
    mask = None
    if padded or rank != operand.rank:
        mask = (features < operand.rank) & (keys < geometry.key_width)
    kernel = load(operand.kernel, (features, columns), mask)
    bias = load(operand.bias, (columns,), keys < geometry.key_width if padded else None)
    return GateWeights(kernel, bias.astype(jnp.float32) * LOG2_E)


def chunk_number(geometry: Geometry, place: Place, step: Any, reverse: bool) -> Any:
    """Of the `step`th chunk that a scan of the program's segment meets."""
    if reverse:
        step = geometry.chunks - 1 - step
    return place.segment * geometry.chunks + step


def state_index(geometry: Geometry, place: Place, *leading: Any) -> tuple[Any, ...]:
    """Index of a program's part [K, V] of a padded array of states [..., K, V]."""
    values = place.value_block * geometry.value_block + jnp.arange(geometry.value_block)[None, :]
    return *leading, jnp.arange(geometry.key_block)[:, None], values


def chunk_state_index(geometry: Geometry, place: Place, direction: int, chunk: Any) -> Any:
    """Index of a program's part [K, V] of states [directions, rows, chunks per segment, K, V]."""
    within = chunk - place.segment * geometry.chunks
    return state_index(geometry, place, direction, place.row(geometry), within)


def padded_state_shape(geometry: Geometry) -> tuple[int, int]:
    """Widths (K, V) of padded arrays of states."""
    return geometry.key_block, geometry.value_blocks * geometry.value_block


def pad_state(geometry: Geometry, state: Any) -> Any:
    """[B, H, K, V] as the kernels take it: [1, B * H, K, V], float32, widths padded by zeros."""
    batch, heads, key_width, value_width = state.shape
    state = state.astype(jnp.float32).reshape(1, batch * heads, key_width, value_width)
    keys, values = padded_state_shape(geometry)
    return jnp.pad(state, ((0, 0), (0, 0), (0, keys - key_width), (0, values - value_width)))


def unpad_state(spec: GlaSpec, state: Any) -> Any:
    """[B * H, K, V] as the kernels return it to [B, H, K, V]."""
    state = state[:, : spec.key_width, : spec.value_width]
    return state.reshape(spec.batch, spec.heads, spec.key_width, spec.value_width)


def state_step(
    geometry: Geometry,
    chunk: Chunk,
    refs: tuple[Any, Any, Any],
    weights: GateWeights | None,
    state: Any,
    *,
    reverse: bool,
    gradient: bool,
    interpreting: bool,
) -> tuple[Any, Any]:
    """The state [K, V] past one chunk, and the chunk's decay [K]; exact for any log-decay.

    A token's key and value get the decays of the tokens scanned after it. With `gradient`, refs are
    of queries and output gradients, the state is the gradient of a state and moves against the
    scan: a token gets its own decay and those before it.
    """
    exp2 = functools.partial(pallas_compat.exp2, interpreting=interpreting)
    k_ref, v_ref, log_decay_ref = refs
    k = chunk.read(k_ref, "K").astype(jnp.float32)
    v = chunk.read(v_ref, "V")
    log_decays = chunk.read_log_decays(log_decay_ref, weights)
    if gradient:
        picked = scanned_before(geometry.chunk, reverse, itself=True)
        k = k * geometry.scale
    else:
        picked = scanned_before(geometry.chunk, not reverse, itself=False)
    decay = exp2(log_decay_sums(geometry, picked, log_decays))
    k = (k * decay).astype(geometry.operand)
    end = exp2(jnp.sum(log_decays.values.astype(jnp.float32), axis=0) * log_decays.unit)
    return state * end[:, None] + dot(geometry, k.T, v), end


def exact_gradients(
    geometry: Geometry,
    reverse: bool,
    q: Any,
    k: Any,
    decays: Any,
    grad_scores: Any,
) -> tuple[Any, Any, Any]:
    """What `exact_scores` passes on to q, k and, by q dq - k dk, to the sums of log-decays.

    In the third a token paired with itself is left out: there both terms are equal, and no decay
    lies between.
    """
    rows = jax.lax.broadcasted_iota(jnp.int32, (geometry.chunk, 1), 0)
    columns = jax.lax.broadcasted_iota(jnp.int32, (1, geometry.chunk), 1)
    itself = jnp.sum(jnp.where(rows == columns, grad_scores, 0.0), axis=1)[:, None]

    def column(step, carry):
        between, next_decay, grad_q, grad_k = carry
        j = step if reverse else geometry.chunk - 1 - step
        here = rows == j
        between = jnp.where(here, 1.0, between * next_decay)
        column_j = jnp.sum(jnp.where(columns == j, grad_scores, 0.0), axis=1)[:, None]
        weights = jnp.where(here, 0.0, between * column_j)
        k_row = jnp.sum(jnp.where(here, k, 0.0), axis=0)[None, :]
        grad_q = grad_q + weights * k_row
        grad_k = jnp.where(here, jnp.sum(weights * q, axis=0)[None, :], grad_k)
        next_decay = jnp.sum(jnp.where(here, decays, 0.0), axis=0)[None, :]
        return between, next_decay, grad_q, grad_k

    zeros = jnp.zeros((geometry.chunk, geometry.key_block), jnp.float32)
    one = jnp.ones((1, geometry.key_block), jnp.float32)
    _, _, grad_q, grad_k = jax.lax.fori_loop(0, geometry.chunk, column, (zeros, one, zeros, zeros))
    grad_sums = q * grad_q - k * grad_k
    return grad_q + itself * k, grad_k + itself * q, grad_sums


def run_both_passes(
    kernel: Callable[..., None],
    name: str,
    geometry: Geometry,
    launch: KernelConfig,
    programs: int,
    inputs: Sequence[Any],
    outs: Sequence[jax.ShapeDtypeStruct],
    into: Sequence[Any] = (),
) -> list[Any]:
    """Launches a kernel, then once more for the programs that met decays too strong for it.

    Not a second time if it is promised that there are none.

    Args:
        kernel: Takes `exact`; its last output is the least chunk decay that each program met,
            which the exact pass reads after its inputs, before the outputs it may overwrite.
        name: Of the first launch; the second is `<name>_strong_decays`.
        geometry: Of the call.
        launch: Tiling of both.
        programs: Size of the grid.
        inputs: Arrays of the first pass.
        outs: Shapes of the outputs, without the least decays.
        into: Arrays that the first outputs start from; consumed. The kernel finds their references
            after the inputs and need not look at them.

    Returns:
        The outputs.
    """
    *results, least = pallas_compat.triton_call(
        functools.partial(kernel, exact=False),
        name=name,
        programs=programs,
        out_shape=[*outs, jax.ShapeDtypeStruct((programs,), jnp.float32)],
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        aliases={len(inputs) + i: i for i in range(len(into))},
    )(*inputs, *into)
    if not geometry.strong_decays:
        return list(results)
    results = pallas_compat.triton_call(
        functools.partial(kernel, exact=True),
        name=f"{name}_strong_decays",
        programs=programs,
        out_shape=outs,
        num_warps=launch.exact_num_warps,
        num_stages=1,
        aliases={len(inputs) + 1 + i: i for i in range(len(outs))},
    )(*inputs, least, *results)
    return list(results)
