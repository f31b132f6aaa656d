"""Images of different sizes side by side in rows of tokens: where each token's neighbours are."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from kernels_pallas.core.types import float32_or_wider
from vig_jax.layers.padding import take_tokens


class Packing(flax.struct.PyTreeNode):
    """The images of rows of T tokens, each image row by row, and then tokens without an image.

    Attributes:
        cu_seqlens: first token of each image, and the first token without one [R, N + 1].
        image: number of each token's image, or N [R, T].
        row: row of each token in its image [R, T].
        column: likewise.
        height: rows of each token's image; 0 for a token without one [R, T].
        width: columns, likewise.
    """

    cu_seqlens: Int[Array, "R M"]
    image: Int[Array, "R T"]
    row: Int[Array, "R T"]
    column: Int[Array, "R T"]
    height: Int[Array, "R T"]
    width: Int[Array, "R T"]

    @classmethod
    def from_sizes(cls, sizes: Int[Array, "R N 2"], tokens: int) -> "Packing":
        """Returns the packing of images in their order.

        Args:
            sizes: rows and columns of each image in tokens; 0 for no image.
            tokens: T, at least the tokens of all images of a row.
        """
        sizes = sizes.astype(jnp.int32)
        ends = jnp.cumsum(sizes[..., 0] * sizes[..., 1], axis=1, dtype=jnp.int32)
        starts = jnp.pad(ends, ((0, 0), (1, 0)))
        number = jnp.arange(tokens, dtype=jnp.int32)
        image = jnp.sum(ends[:, None] <= number[None, :, None], axis=2, dtype=jnp.int32)
        padded = jnp.pad(sizes, ((0, 0), (0, 1), (0, 0)))
        height, width = (jnp.take_along_axis(x, image, axis=1) for x in jnp.moveaxis(padded, 2, 0))
        within = number - jnp.take_along_axis(starts, image, axis=1)
        some = jnp.maximum(width, 1)
        return cls(starts, image, within // some, within % some, height, width)

    def at_tokens(self, of_images: Shaped[Array, "R N"]) -> Shaped[Array, "R T"]:
        """Returns the number of each token's image; 1 for a token without one."""
        padded = jnp.pad(of_images, ((0, 0), (0, 1)), constant_values=1)
        return jnp.take_along_axis(padded, self.image, axis=1)

    def zero_rest(self, patches: Float[Array, "R T P P C"]) -> Float[Array, "R T P P C"]:
        """Returns the patches with zeros behind the images, also where they are NaN."""
        inside = (self.height > 0)[..., None, None, None]
        return jnp.where(inside, patches, jnp.zeros((), patches.dtype))

    def neighbours(self, x: Float[Array, "R T D"], down: int, right: int) -> Float[Array, "R T D"]:
        """Returns for each token the one `down` rows below and `right` columns to the right.

        It is zero outside of the image, as in a convolution with zero padding.
        """
        there, back = (self._numbers(sign * down, sign * right) for sign in (1, -1))
        return take_tokens(x, there, back)

    def _numbers(self, down: int, right: int) -> Int[Array, "R T"]:
        row, column, tokens = self.row + down, self.column + right, self.row.shape[1]
        inside = (row >= 0) & (row < self.height) & (column >= 0) & (column < self.width)
        number = jnp.arange(tokens, dtype=jnp.int32) + down * self.width + right
        return jnp.where(inside, number, tokens)

    def mean(self, x: Float[Array, "R T D"]) -> Float[Array, "R N D"]:
        """Returns the mean over the tokens of each image, in float32 or wider; 0 for no image.

        It is a product, whose order of additions does not change from run to run.
        """
        wide = float32_or_wider(x.dtype)
        lengths = jnp.maximum(jnp.diff(self.cu_seqlens, axis=1), 1)
        belongs = self.image[:, None] == jnp.arange(lengths.shape[1], dtype=jnp.int32)[:, None]
        highest = jax.lax.Precision.HIGHEST
        sums = jnp.einsum("rnt,rtd->rnd", belongs.astype(wide), x.astype(wide), precision=highest)
        return sums / lengths[..., None].astype(wide)
