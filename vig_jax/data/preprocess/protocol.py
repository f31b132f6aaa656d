"""The interface of host preprocessing: one example of a data set becomes arrays for a batch."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int, Int64

from vig_jax.data.dataset import Dataset, Example

DAMAGED = "damaged"
"""The key under which a preprocess reports an example that is damaged, but used."""

Spec = Mapping[str, tuple[tuple[int, ...], np.dtype]]


@runtime_checkable
class Preprocess(Protocol):
    """A picklable function that runs in data workers, which must not import JAX."""

    @property
    def spec(self) -> Spec:
        """Shape and dtype of each array of one example, by name."""

    def __call__(
        self, example: Example, rng: np.random.Generator | None
    ) -> Mapping[str, np.ndarray]:
        """Returns the arrays that `spec` lists, and a true array under `DAMAGED` for damage.

        Args:
            example: from the data set.
            rng: source of random geometry; None in evaluation.

        Raises:
            UndecodableImageError: the example must be replaced or left out.
        """


@runtime_checkable
class BucketedPreprocess(Protocol):
    """A preprocess for evaluation whose arrays depend on the size of the image.

    Images of one bucket become arrays of one shape. A batch holds images of one bucket.
    """

    def bucket(self, width: int, height: int) -> Hashable:
        """Returns the bucket of an image of `width` x `height` pixels."""

    def spec_of(self, bucket: Hashable) -> Spec:
        """Returns the shape and dtype of each array of one example, by name."""

    def __call__(
        self, example: Example, rng: np.random.Generator | None
    ) -> Mapping[str, np.ndarray]:
        """Returns the arrays that `spec_of(bucket of the image)` lists; see `Preprocess`."""


@runtime_checkable
class DrawnBuckets(Protocol):
    """A preprocess for training whose arrays depend on the image's size and on random numbers.

    A batch holds images of one bucket. The loader draws the numbers ahead, so that it knows the
    bucket of every image of an epoch without decoding one.
    """

    @property
    def draws(self) -> int:
        """The number of random numbers that decide the bucket of an image."""

    @property
    def buckets(self) -> Sequence[Hashable]:
        """All buckets."""

    def drawn_buckets(
        self, sizes: Int[np.ndarray, "n 2"], draws: Float64[np.ndarray, "n d"]
    ) -> Int64[np.ndarray, "n"]:
        """Returns the number of each image's bucket in `buckets`.

        Args:
            sizes: width and height of the images, pixels.
            draws: random numbers in [0, 1), `self.draws` for each image.
        """

    def spec_of(self, bucket: Hashable) -> Spec:
        """Returns the shape and dtype of each array of one example, by name."""

    def __call__(
        self, example: Example, rng: np.random.Generator | None
    ) -> Mapping[str, np.ndarray]:
        """Returns the arrays that `spec_of(bucket of the image)` lists; see `Preprocess`.

        Args:
            example: from the data set.
            rng: `rng.random(self.draws)`, called first, gives the image's row of `draws`.
        """


@runtime_checkable
class PackedPreprocess(Protocol):
    """A preprocess that puts several examples into one row of a batch.

    In training every row has `row_examples` of them. In evaluation a row may have fewer.
    """

    @property
    def spec(self) -> Spec:
        """Shape and dtype of each array of a row, by name."""

    @property
    def row_examples(self) -> int:
        """The largest number of examples in a row."""

    @property
    def row_length(self) -> int:
        """The length of a row."""

    @property
    def most_length(self) -> int:
        """The largest length that an example takes of a row."""

    def lengths(self, sizes: Int[np.ndarray, "n 2"]) -> Int64[np.ndarray, "n"]:
        """Returns the lengths that evaluation examples take of a row.

        Args:
            sizes: width and height of the images, pixels.
        """

    def __call__(
        self, example: Example, rng: np.random.Generator | None
    ) -> Mapping[str, np.ndarray]:
        """Returns the arrays of one example for `row`; see `Preprocess`."""

    def row(self, examples: Sequence[Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
        """Returns the arrays that `spec` lists, of up to `row_examples` examples."""


def examples_per_row(preprocess: object) -> int:
    """Returns the number of examples that a row of a training batch holds."""
    return preprocess.row_examples if isinstance(preprocess, PackedPreprocess) else 1


@runtime_checkable
class SizedDataset(Dataset, Protocol):
    """A data set that knows the sizes of its images before they are decoded."""

    def sizes(self) -> Int[np.ndarray, "n 2"]:
        """Returns width and height of every image in pixels, int32."""


def bytes_per_example(spec: Spec) -> int:
    """Returns the size of one example in a batch, in bytes."""
    return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in spec.values())
