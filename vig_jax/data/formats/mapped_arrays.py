"""Arrays in one file that processes share through the page cache."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vig_jax.files import write_atomically

_LOCAL_HEADER = 30  # bytes, before the name of a member of a zip file
_MOST_BYTES = 4096  # of the header of an array


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as an uncompressed .npz file, atomically; several processes may do so."""
    with write_atomically(path, concurrent=True) as draft, draft.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read(path: Path) -> dict[str, np.ndarray]:
    """Maps the arrays of `write` into memory, read-only.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged.
        zipfile.BadZipFile: likewise.
    """
    whole = np.memmap(path, np.uint8, "r")
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    for member in members:
        lengths = whole[member.header_offset + 26 : member.header_offset + 30].view("<u2")
        first = member.header_offset + _LOCAL_HEADER + int(lengths.sum())
        header = io.BytesIO(whole[first : first + _MOST_BYTES].tobytes())
        np.lib.format.read_magic(header)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(header)
        start = first + header.tell()
        size = int(np.prod(shape)) * dtype.itemsize
        if fortran or dtype.hasobject or start + size > len(whole):
            raise ValueError(f"{path} is damaged at {member.filename}")
        name = member.filename.removesuffix(".npy")
        arrays[name] = whole[start : start + size].view(dtype).reshape(shape)
    return arrays
