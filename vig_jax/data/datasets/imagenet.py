"""Names of the ImageNet-1k classes; their origin is in `imagenet/ORIGIN.md`."""

import collections
import functools
from importlib import resources


@functools.cache
def class_ids() -> tuple[str, ...]:
    """Returns the WordNet identifiers, e.g. "n01440764", by label."""
    return tuple(identifier for identifier, _ in _classes())


@functools.cache
def class_names() -> tuple[str, ...]:
    """Returns one name per label: its first word, with the identifier where two are equal."""
    first = [words.split(", ")[0] for _, words in _classes()]
    count = collections.Counter(first)
    return tuple(
        name if count[name] == 1 else f"{name} ({identifier})"
        for name, identifier in zip(first, class_ids(), strict=True)
    )


@functools.cache
def _classes() -> tuple[tuple[str, str], ...]:
    file = resources.files("vig_jax.data.datasets").joinpath("imagenet", "classes.tsv")
    lines = file.read_text(encoding="utf-8").splitlines()
    return tuple((line.partition("\t")[0], line.partition("\t")[2]) for line in lines)
