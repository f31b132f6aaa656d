"""Files of torch.save: what they hold, what they may not do, and what is said of broken ones."""

import argparse
import collections
import contextlib
import os
import pathlib
import pickle
import random
import struct
import subprocess
import warnings
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights import torch_writer
from tests.weights.torch_writer import Call, Storage, Tensor, named, save, tensor, write_records
from vig_jax.errors import WeightsError
from vig_jax.weights.load import read_weight_file
from vig_jax.weights.pickles import Opaque
from vig_jax.weights.torch_file import TorchFile

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINT = GOLDEN / "plain_fmt_ckpt.pth"
VALUES = np.arange(24).reshape(2, 3, 4)


def root(path):
    with TorchFile(path) as file:
        return file.root


def arrays(path):
    with TorchFile(path) as file:
        return {key: np.array(file.array(value)) for key, value in file.root.items()}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "file.pth"


def test_upstream_checkpoint_has_plain_values_and_an_inert_config():
    found = root(CHECKPOINT)
    assert found["epoch"] == 7
    assert found["max_accuracy"] == 12.5
    assert found["config"] == Opaque("yacs.config.CfgNode")
    assert found["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("name", torch_writer.STORAGES)
@pytest.mark.parametrize("rebuild", ["_rebuild_tensor_v2", "_rebuild_tensor_v3"])
def test_dtypes(file, name, rebuild):
    values = VALUES.astype(jnp.dtype(name))
    save({"x": tensor(values, rebuild)}, file)
    found = arrays(file)["x"]
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(file, protocol):
    values = {1: (2.5, None, True), "s": {1}}
    saved = {"x": tensor(VALUES), "y": values, "c": argparse.Namespace(lr=0.1)}
    save(saved, file, protocol=protocol)
    found = root(file)
    assert found["y"] == {1: (2.5, None, True), "s": [1]}
    assert found["c"] == Opaque("argparse.Namespace")


def test_strided_shared_and_empty_tensors(file):
    values = np.arange(40, dtype=np.float32)
    shared = Storage(values)
    saved = {
        "whole": Tensor(shared, (40,), (1,)),
        "transposed": Tensor(shared, (5, 8), (1, 5)),
        "offset": Tensor(shared, (3, 2), (4, 1), offset=10),
        "every third": Tensor(shared, (5,), (3,)),
        "repeated": Tensor(shared, (3, 4), (0, 1)),
        "scalar": Tensor(shared, (), (), offset=39),
        "empty": Tensor(shared, (0, 3), (3, 1)),
        "channels last": tensor(np.asarray(VALUES[None], np.float32).transpose(0, 3, 1, 2)),
        "parameter": tensor(VALUES, "_rebuild_parameter"),
    }
    save(saved, file)
    found = arrays(file)
    np.testing.assert_array_equal(found["whole"], values)
    np.testing.assert_array_equal(found["transposed"], values.reshape(8, 5).T)
    np.testing.assert_array_equal(found["offset"], [[10, 11], [14, 15], [18, 19]])
    np.testing.assert_array_equal(found["every third"], values[:15:3])
    np.testing.assert_array_equal(found["repeated"], [values[:4]] * 3)
    assert found["scalar"] == 39
    assert found["empty"].shape == (0, 3)
    np.testing.assert_array_equal(found["channels last"], VALUES[None].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(found["parameter"], VALUES)


@pytest.mark.parametrize("order", ["little", "big", None])
def test_byte_orders(file, order):
    saved = {"a": tensor(VALUES.astype(np.float32)), "b": tensor(VALUES.astype(jnp.bfloat16))}
    save(saved, file, byteorder=order)
    for found in arrays(file).values():
        np.testing.assert_array_equal(found.astype(int), VALUES)


def test_unknown_byte_order(file):
    save({"x": tensor(VALUES)}, file, byteorder="middle")
    with pytest.raises(WeightsError, match="byte order"):
        root(file)


def test_objects_are_left_alone(file):
    config = named("yacs.config", "CfgNode", dict)({"LR": 0.1})
    config.__dict__["frozen"] = True
    weights = collections.OrderedDict(x=tensor(VALUES))
    weights._metadata = collections.OrderedDict(version=1)  # as a module's state dict has
    saved = {
        "model": weights,
        "config": config,
        "args": argparse.Namespace(lr=config),
        "best": np.float64(0.5),
        "array": np.arange(3),
        "path": pathlib.PurePosixPath("a/b"),
        "counts": collections.defaultdict(list, {"a": [1]}),
        "class": argparse.Namespace,
    }
    save(saved, file)
    found = root(file)
    assert list(found["model"]) == ["x"]
    kinds = {key: value.kind for key, value in found.items() if isinstance(value, Opaque)}
    assert kinds["config"] == "yacs.config.CfgNode"
    assert kinds["best"].endswith("multiarray.scalar")
    assert kinds["counts"] == "collections.defaultdict"
    assert str(found["class"]) == "argparse.Namespace"
    assert read_weight_file(file).section == "model"


def test_histories_of_mmengine_are_skipped(file):
    """Its message hub stores every logged number, and names methods of a class by `getattr`."""
    buffer = named("mmengine.logging.history_buffer", "HistoryBuffer")
    history = buffer()
    methods = {"mean": Call(getattr, (buffer, "mean"))}
    history.__dict__ = {"_log_history": np.zeros(600_000), "statistics_methods": methods}
    save({"state_dict": {"x": tensor(VALUES)}, "message_hub": {"loss": history}}, file)
    found = root(file)
    assert found["message_hub"]["loss"].kind == "mmengine.logging.history_buffer.HistoryBuffer"
    assert read_weight_file(file).section == "state_dict"


def test_pickles_of_too_many_operations(file, monkeypatch):
    monkeypatch.setattr("vig_jax.weights.pickles.MAX_OPERATIONS", 1000)
    write_records(file, {"data.pkl": b"\x80\x02" + b"N0" * 490 + b"N."})
    assert root(file) is None
    write_records(file, {"data.pkl": b"\x80\x02" + b"N0" * 500 + b"N."})
    with pytest.raises(WeightsError, match="more than 1,000 operations"):
        root(file)


def refused(file, name):
    with pytest.raises(WeightsError, match=rf"asks to run {name}, which is refused"):
        root(file)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("where", ["root", "config", "model"])
def test_calls_are_refused_by_name(file, tmp_path, protocol, where):
    touched = tmp_path / "touched"
    attack = Call(os.system, (f"touch {touched}",))
    harmless = {"model": {"x": tensor(VALUES)}, "config": {"lr": 0.1}}
    save(attack if where == "root" else harmless | {where: {"x": attack}}, file, protocol=protocol)
    refused(file, r"posix\.system")
    with pytest.raises(WeightsError, match=r"file\.pth: it asks to run"):
        read_weight_file(file)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (eval, ("1",), r"(__builtin__|builtins)\.eval"),
        (getattr, ("x", "upper"), r"(__builtin__|builtins)\.getattr"),
        (subprocess.check_output, ("ls",), r"commands\.check_output"),
        (pickle.loads, (b"N.",), r"pickle\.loads"),
        (named("torch.hub", "load"), ("x",), r"torch\.hub\.load"),
        (named("torch._utils", "_rebuild_sparse_tensor"), (1,), r"torch\._utils\._rebuild_sparse"),
    ],
)
def test_other_calls_are_refused_too(file, function, arguments, name):
    save({"model": {"x": Call(function, arguments)}}, file)
    with pytest.raises(WeightsError, match=name):
        root(file)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"(S'touch x'\nios\nsystem\n.", r"asks to run os\.system"),  # INST
        (b"(cos\nsystem\nS'touch x'\no.", r"asks to run os\.system"),  # OBJ
        (b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00x\x85R.", r"asks to run os\.system"),
        # The attribute of a class is named by `getattr`, and never called.
        (b"\x80\x02cbuiltins\ngetattr\ncA\nB\nX\x01\x00\x00\x00x\x86R)R.", r"asks to run A\.B"),
        (b"\x80\x02\x82\x01.", "uses EXT1"),
        (b"\x80\x05\x97.", "uses NEXT_BUFFER"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b".", "damaged"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b".", "damaged"),
        (b"\x80\x02" + b"(" * 9_000 + b"]" + b"t" * 9_000, "damaged"),
        (b"\x80\x02}r\xff\xff\xff\xff", "damaged"),
        (b"\x80\x02K\x01K\x01R.", "damaged"),
        (b"\x80\x02].....", None),
        (b"\x80\x020.", "damaged"),
        (b"\x80\x02t.", "damaged"),
        (b"\x80\x02N", "damaged"),
        (b"", "damaged"),
    ],
)
def test_hostile_and_broken_pickles(file, data, message):
    write_records(file, {"data.pkl": data})
    if message is None:
        assert root(file) == []
        return
    with pytest.raises(WeightsError, match=message):
        root(file)


def test_deep_nesting_and_strange_keys(file):
    depth = 30_000
    write_records(file, {"data.pkl": b"\x80\x02}" + b"N" + b"\x85" * depth + b"Ns."})
    assert root(file) == {}  # such a key could not be hashed without recursion
    write_records(file, {"data.pkl": b"\x80\x02" + b"N" + b"\x85" * depth + b"."})
    assert isinstance(root(file), tuple)


@pytest.mark.parametrize(
    "rest",
    [
        b"\x85R.",  # a call of _reconstructor
        b".",
        b"ctorch._utils\n_rebuild_tensor\n(h\x00K\x00h\x01h\x01tR.",
        b"ctorch._utils\n_rebuild_tensor_v3\n(h\x00K\x00h\x01h\x01NNh\x01tR.",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(h\x01h\x01h\x01h\x01tR.",
        b"h\x01h\x01R.",
        b"h\x01h\x01\x81.",
        b"h\x01Q.",
        b"}X\x05\x00\x00\x00modelh\x01s.",
        b"}X\x05\x00\x00\x00model}X\x01\x00\x00\x00xh\x01ss.",
        b"}h\x01Ns.",
    ],
)
def test_values_whose_text_would_fill_any_memory(file, rest):
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000NK\x01tQq\x000"
    if rest == b"\x85R.":
        storage += b"ccopyreg\n_reconstructor\n"
    # A pair of twice the same pair, a hundred times over: 2 ** 100 words.
    pairs = b"N" + b"q\x01h\x01\x86" * 100 + b"q\x01"
    if rest not in (b"\x85R.", b"."):
        pairs += b"0"
    write_records(file, {"data.pkl": b"\x80\x02" + storage + pairs + rest, "data/0": bytes(4)})
    with pytest.raises(WeightsError) as error:
        read_weight_file(file)
    assert len(str(error.value)) < 1000


def test_large_pickles_are_refused(file, monkeypatch):
    monkeypatch.setattr("vig_jax.weights.pickles.MAX_BYTES", 1000)
    write_records(file, {"data.pkl": b"\x80\x02" + b"N0" * 500 + b"N."})
    with pytest.raises(WeightsError, match=r"has 1,004 bytes, more than 1,000"):
        root(file)


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((25,), (1,), 0),
        ((24,), (1,), 1),
        ((2, 3), (20, 2), 1),
        ((-1,), (1,), 0),
        ((2,), (-1,), 1),
        ((2,), (1,), -1),
        ((2, 2), (1,), 0),
        ((2**62,), (0,), 0),
        ((2**40,), (0,), 0),
        ((2**31, 2**31, 2**31), (0, 0, 0), 0),
        ((1,) * 40, (1,) * 40, 0),
        ((2.0,), (1,), 0),
        ("ab", (1, 1), 0),
        (None, (1,), 0),
    ],
)
def test_tensors_outside_their_storage(file, shape, strides, offset):
    save({"x": Tensor(Storage(VALUES.ravel()), shape, strides, offset)}, file)
    with pytest.raises(WeightsError, match=r"file\.pth is damaged"):
        arrays(file)


def records(saved):
    data, storages = torch_writer.dumps(saved)
    return {"data.pkl": data} | {f"data/{k}": v.tobytes() for k, v in storages.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data/0": None}, r"'data/0' is missing"),
        ({"data/0": b"short"}, "has 5 bytes, not 192"),
        ({"data/0": b"x" * 193}, "193 bytes, more than 192"),
        ({"data.pkl": None}, "not one of torch.save"),
        ({"constants.pkl": b""}, "TorchScript program"),
    ],
)
def test_archives_that_are_not_whole(file, change, message):
    changed = {k: v for k, v in (records({"x": tensor(VALUES)}) | change).items() if v is not None}
    write_records(file, changed)
    with pytest.raises(WeightsError, match=message):
        arrays(file)


def test_compressed_and_double_records(file):
    parts = records({"x": tensor(VALUES)})
    write_records(file, parts, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="compressed"):
        root(file)
    write_records(file, parts)
    with zipfile.ZipFile(file, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("archive/data/0", parts["data/0"])
    with pytest.raises(WeightsError, match="same name"):
        root(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (CHECKPOINT.read_bytes()[:-100], "its end is missing"),
        (CHECKPOINT.read_bytes()[:1000], "its end is missing"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "save its weights again"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        ((GOLDEN / "plain_fmt.safetensors").read_bytes(), r"ending \.safetensors"),
        (b"hello" * 100, "is not a zip file"),
    ],
    ids=range(8),
)
def test_other_files_are_recognised(file, content, message):
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_weight_file(file)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({}, "neither 'model' nor 'model_ema' nor 'state_dict'; it has nothing"),
        ({"net": {"x": tensor(VALUES)}, "epoch": 3}, "it has net, epoch"),
        ({1: tensor(VALUES)}, "it has 1"),
        ({"model": {}}, "'model' is a dict, not a state dict"),
        ({"model": {"x": 3}}, r"model\['x'\] is a int, not a tensor"),
        ({"model": argparse.Namespace()}, "'model' is an object of argparse.Namespace"),
        (argparse.Namespace(x=1), "holds an object of argparse.Namespace"),
        ({"model": {"x": tensor(VALUES.astype(complex))}}, "ComplexDoubleStorage"),
    ],
)
def test_other_contents(file, saved, message, monkeypatch):
    monkeypatch.setitem(torch_writer.STORAGES, "complex128", "ComplexDoubleStorage")
    save(saved, file)
    with pytest.raises(WeightsError, match=message):
        read_weight_file(file)


def corruptions(data, count, seed):
    """Copies of `data`: bytes changed, removed, inserted, zeroed or cut off."""
    generator = random.Random(seed)
    # Most of a file is values; half of the damage goes where the structure is.
    structure = [
        range(position, position + 120)
        for position in range(len(data))
        if data[position : position + 4] in (b"PK\1\2", b"PK\3\4", b"PK\5\6")
    ]
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(generator.choice((1, 1, 2, 5))):
            anywhere = range(len(data))
            start = generator.choice(generator.choice((anywhere, generator.choice(structure))))
            start = min(start, len(changed) - 1)
            length = generator.choice((1, 1, 8, 100))
            kind = generator.choice(("flip", "set", "remove", "insert", "zero", "cut"))
            if kind == "flip":
                changed[start] ^= 1 << generator.randrange(8)
            elif kind == "set":
                changed[start] = generator.randrange(256)
            elif kind == "remove":
                del changed[start : start + length]
            elif kind == "insert":
                changed[start:start] = generator.randbytes(length)
            elif kind == "zero":
                changed[start : start + length] = bytes(len(changed[start : start + length]))
            elif generator.random() < 0.2:
                del changed[start:]
        yield bytes(changed)


def test_corrupted_bytes_give_an_error_or_the_same_weights(tmp_path):
    original = GOLDEN / "plain_fmt_best_acc_ema_ckpt.pth"
    expected = read_weight_file(original).state_dict
    outcomes = collections.Counter()
    for i, data in enumerate(corruptions(original.read_bytes(), 200, seed=0)):
        file = tmp_path / f"{i}.pth"
        file.write_bytes(data)
        try:
            found = read_weight_file(file).state_dict
        except WeightsError:
            outcomes["error"] += 1
            continue
        outcomes["same"] += 1
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value, strict=True)
    assert outcomes["error"] > 100, outcomes


def test_corrupted_pickles_under_a_right_checksum(tmp_path):
    """A pickle has no checksum, so bad bytes reach the reader: no crash, only our error."""
    with zipfile.ZipFile(GOLDEN / "plain_fmt_best_acc_ema_ckpt.pth") as archive:
        parts = {n.partition("/")[2]: archive.read(n) for n in archive.namelist()}
    generator = random.Random(1)
    file = tmp_path / "file.pth"
    for _ in range(100):
        data = bytearray(parts["data.pkl"])
        for _ in range(generator.choice((1, 3))):
            data[generator.randrange(len(data))] = generator.randrange(256)
        write_records(file, parts | {"data.pkl": bytes(data)})
        with contextlib.suppress(WeightsError):
            read_weight_file(file)
