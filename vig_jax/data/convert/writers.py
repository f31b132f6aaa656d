"""Files that `vig_jax.data.convert.conversion` writes: one shard of each format."""

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from array_record.python import array_record_module

from vig_jax.data.formats import array_record, parquet, tar
from vig_jax.errors import DataSetError

RAW = "raw"  # the extension of pixels
_ROWS_PER_GROUP = 32  # of a parquet file: reading one image reads so many


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image on its way to a shard."""

    image: bytes  # contents of an image file, or pixels (extension "raw", ArrayRecord only)
    label: int
    number: int  # its position in the source
    key: str  # its name in the source
    extension: str  # e.g. "jpg"
    width: int
    height: int


class ShardWriter(Protocol):
    """Takes pictures, one after the other."""

    def add(self, picture: Picture) -> None:
        """Appends one."""

    def close(self) -> None:
        """Completes the file."""


class ArrayRecordWriter:
    """Records as `vig_jax.data.formats.array_record` reads them; JPEGs would not compress further.

    Pixels would, but reading them is to cost no more than copying.
    """

    def __init__(self, path: Path, class_names: Sequence[str]):
        del class_names
        self._writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")

    def add(self, picture: Picture) -> None:
        size = picture.width, picture.height
        raw = picture.extension == RAW
        self._writer.write(array_record.pack(picture.image, picture.label, picture.key, size, raw))

    def close(self) -> None:
        self._writer.close()


class TarWriter:
    """NUMBER.jpg and NUMBER.cls, as WebDataset has it. The same pictures give the same bytes."""

    def __init__(self, path: Path, class_names: Sequence[str]):
        del class_names
        self._archive = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def add(self, picture: Picture) -> None:
        name = f"{picture.number:08d}"
        self._member(f"{name}.{picture.extension}", picture.image)
        self._member(f"{name}.cls", str(picture.label).encode())

    def _member(self, name: str, contents: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(contents)
        self._archive.addfile(member, io.BytesIO(contents))

    def close(self) -> None:
        self._archive.close()


class ParquetWriter:
    """Columns image {bytes, path} and label, with the metadata by which `datasets` knows them."""

    def __init__(self, path: Path, class_names: Sequence[str]):
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

    def add(self, picture: Picture) -> None:
        image = {"bytes": picture.image, "path": picture.key}
        self._rows.append({"image": image, "label": picture.label})
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
    """CLASS/NUMBER.jpg in the folder of a split; `path` itself lists the files and their digests.

    The numbers are the positions in the source, so the files of a class stand in its order.
    """

    def __init__(self, path: Path, class_names: Sequence[str]):
        self._base = path.parent
        self._folders = class_folders(class_names)
        self._list = path.open("w", encoding="utf-8")

    def add(self, picture: Picture) -> None:
        name = f"{self._folders[picture.label]}/{picture.number:08d}.{picture.extension}"
        file = self._base / name
        draft = file.with_name(f".{file.name}.tmp")
        draft.write_bytes(picture.image)
        draft.replace(file)
        self._list.write(f"{hashlib.sha256(picture.image).hexdigest()}  {name}\n")

    def close(self) -> None:
        self._list.close()


def class_folders(class_names: Sequence[str]) -> list[str]:
    """Class names as names of folders.

    Raises:
        DataSetError: two names would share a folder, or one has nothing to be called by.
    """
    folders = [name.replace("/", "-").replace("\0", "-") for name in class_names]
    if len(set(folders)) < len(folders):
        raise DataSetError("some class names differ in a / only: their folders would be the same")
    for name in folders:
        if not name or name.startswith("."):
            raise DataSetError(f"the class name {name!r} cannot be that of a folder")
    return folders


WRITERS: dict[str, type[Any]] = {
    "array_record": ArrayRecordWriter,
    "image_folder": FolderWriter,
    "parquet": ParquetWriter,
    "tar": TarWriter,
}

SUFFIXES = {
    "array_record": array_record.SUFFIX,
    "image_folder": ".sha256",
    "parquet": parquet.SUFFIX,
    "tar": tar.SUFFIX,
}
