"""The comparison of packed, padded and bucketed images."""

import functools
import json

import pytest

from benchmarks import packing
from vig_jax.models import create_model


@pytest.mark.slow
def test_all_ways_return_the_same(tmp_path, capsys, monkeypatch):
    small = functools.partial(create_model, gla_implementation="reference")  # compiles fastest
    monkeypatch.setattr(packing.vig_jax, "create_model", small, raising=False)
    path = tmp_path / "rows.json"
    sizes = ["--images", "6", "--batch-size", "3", "--buckets", "2", "--tokens", "24"]
    sides = ["--smallest", "32", "--largest", "64", "--repeats", "1", "--depth", "1"]
    assert packing.main(["--model", "vig_t", *sizes, *sides, "--json", str(path)]) == 0
    packed, padded, bucketed = json.loads(path.read_text())["rows"]
    assert packed["difference"] < 2e-2  # bfloat16
    assert bucketed["difference"] < 2e-2
    assert 1 <= packed["tokens"] < padded["tokens"]
    assert bucketed["tokens"] < padded["tokens"]
    assert (padded["calls"], bucketed["calls"]) == (2, 2)
    assert "packed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "message"),
    [("--images=100", "--images 100 must be a multiple of"), ("--model=vig_h_t", "use vig_t")],
)
def test_options_that_do_not_fit(option, message, capsys):
    with pytest.raises(SystemExit):
        packing.main([option])
    assert message in capsys.readouterr().err
