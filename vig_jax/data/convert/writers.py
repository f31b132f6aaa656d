"""Writers of the output formats; each writes one shard."""

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from array_record.python import array_record_module

from vig_jax.data.formats import array_record, parquet, tar
from vig_jax.errors import DataSetError
from vig_jax.files import write_atomically

RAW = "raw"  # the extension of pixels
_ROWS_PER_GROUP = 32  # of a parquet file: reading one image reads all of its group


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """An image that is ready to be written to a shard."""

    contents: bytes  # of an image file, or pixels (extension "raw", ArrayRecord only)
    label: int
    number: int  # position in the source
    key: str  # name in the source
    extension: str  # e.g. "jpg"
    width: int
    height: int
    damage: str | None = None  # that the decoder found


class ArrayRecordWriter:
    """A writer of records as `vig_jax.data.formats.array_record` reads them.

    They are not compressed: JPEGs would not become smaller, and for raw pixels decompression would
    cost more than the copy.
    """

    def __init__(self, path: Path, class_names: Sequence[str], folder: Path):
        del class_names, folder
        self._writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")

    def add(self, image: EncodedImage) -> None:
        size = image.width, image.height
        raw = image.extension == RAW
        self._writer.write(array_record.pack(image.contents, image.label, image.key, size, raw))

    def close(self) -> None:
        self._writer.close()


class TarWriter:
    """A writer of NUMBER.jpg and NUMBER.cls, the layout of WebDataset. It is deterministic."""

    def __init__(self, path: Path, class_names: Sequence[str], folder: Path):
        del class_names, folder
        self._archive = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def add(self, image: EncodedImage) -> None:
        name = f"{image.number:08d}"
        self._member(f"{name}.{image.extension}", image.contents)
        self._member(f"{name}.cls", str(image.label).encode())

    def _member(self, name: str, contents: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(contents)
        self._archive.addfile(member, io.BytesIO(contents))

    def close(self) -> None:
        self._archive.close()


class ParquetWriter:
    """A writer of columns image {bytes, path} and label, with metadata that `datasets` reads."""

    def __init__(self, path: Path, class_names: Sequence[str], folder: Path):
        del folder
        self._pyarrow = parquet.import_pyarrow()
        pa = self._pyarrow
        features = {
            "image": {"_type": "Image"},
            "label": {"names": list(class_names), "_type": "ClassLabel"},
        }
        self._schema = pa.schema(
            [
                ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                ("label", pa.int64()),
            ],
            metadata={"huggingface": json.dumps({"info": {"features": features}})},
        )
        self._writer = pa.parquet.ParquetWriter(
            path, self._schema, compression="none", use_dictionary=False, write_statistics=["label"]
        )
        self._rows: list[dict[str, Any]] = []

    def add(self, image: EncodedImage) -> None:
        column = {"bytes": image.contents, "path": image.key}
        self._rows.append({"image": column, "label": image.label})
        if len(self._rows) == _ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(
                self._pyarrow.Table.from_pylist(self._rows, schema=self._schema)
            )
        self._rows = []

    def close(self) -> None:
        self._flush()
        self._writer.close()


class FolderWriter:
    """A writer of CLASS/NUMBER.jpg in the folder of a split.

    The file at `path` lists the images and their digests. Numbers are positions in the source, so
    the files of a class keep its order.
    """

    def __init__(self, path: Path, class_names: Sequence[str], folder: Path):
        self._base = folder
        self._folders = class_folders(class_names)
        self._list = path.open("w", encoding="utf-8", errors="surrogateescape")

    def add(self, image: EncodedImage) -> None:
        name = f"{self._folders[image.label]}/{image.number:08d}.{image.extension}"
        file = self._base / name
        with write_atomically(file) as draft:
            draft.write_bytes(image.contents)
        self._list.write(f"{hashlib.sha256(image.contents).hexdigest()}  {name}\n")

    def close(self) -> None:
        self._list.close()


def class_folders(class_names: Sequence[str]) -> list[str]:
    """Returns class names as names of folders.

    Raises:
        DataSetError: two names would share a folder, or one cannot be the name of a folder.
    """
    folders = [name.replace("/", "-").replace("\0", "-") for name in class_names]
    if len(set(folders)) < len(folders):
        raise DataSetError("some class names differ only in a /: their folders would be the same")
    for name in folders:
        if not name or name.startswith("."):
            raise DataSetError(f"the class name {name!r} cannot be the name of a folder")
    return folders


WRITERS: dict[str, type[Any]] = {
    "array_record": ArrayRecordWriter,
    "image_folder": FolderWriter,
    "parquet": ParquetWriter,
    "tar": TarWriter,
}

LIBRARIES = {"array_record": "ArrayRecord", "parquet": "PyArrow"}
"""Those that write files themselves; they take paths in UTF-8 only."""
SUFFIXES = {
    "array_record": array_record.SUFFIX,
    "image_folder": ".sha256",
    "parquet": parquet.SUFFIX,
    "tar": tar.SUFFIX,
}
