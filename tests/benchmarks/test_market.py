"""The market of models, with made-up models in real processes."""

import json
from pathlib import Path

import pytest

from benchmarks import market
from benchmarks.published import OURS, PEERS

QUICK = ("--repeats", "2", "--sample-seconds", "0.002")


@pytest.fixture
def toys(monkeypatch):
    """Runs made-up models; a process can import them by their module's name."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import market_toy

    monkeypatch.setattr(market, "_serve", market_toy.run_toy)
    monkeypatch.setattr(market, "_check_installed", lambda peers: None)


@pytest.mark.slow
def test_failures_and_resuming(toys, tmp_path, capsys):
    file = tmp_path / "new" / "rows.json"
    names = ["picky", "dies", "breaks", "large"]
    options = ["--models", "vig_t", "--peers", *names, "--json", str(file), *QUICK]
    assert market.main([*options, "--shapes", "64x16,1", "--parallel", "6"]) == 0
    written = json.loads(file.read_text())
    assert written["device"] == "a toy"
    rows = {(row["model"], row["asked_batch_size"]): row for row in written["rows"]}
    assert set(rows) == {("vig_t", 16), ("vig_t", 1), ("picky", 1), ("large", 16), ("large", 1)}
    ours, picky = rows["vig_t", 16], rows["picky", 1]
    assert ours["img_per_s"] == pytest.approx(16e3 / ours["ms"])
    for name in ("ms", "waited_ms", "answer_ms"):
        assert ours[name] >= 2
        assert picky[name] >= 0.5
    assert rows["large", 16]["batch_size"] == 4  # halved until it fits
    assert rows["large", 1]["batch_size"] == 1
    reasons = {(row["model"], row["asked_batch_size"]): row["reason"] for row in written["failed"]}
    assert set(reasons) == {("picky", 16), *((n, b) for n in ("dies", "breaks") for b in (16, 1))}
    assert reasons["picky", 16] == "TypeError: no other batch than 1"
    assert reasons["dies", 16] == "ended with status 3"
    assert "illegal memory access" in reasons["breaks", 16]
    printed = capsys.readouterr().out
    assert "not measured: dies at 64 pixels, batch 16: ended with status 3" in printed

    options[options.index("--peers") + 1 : options.index("--json")] = ["picky", "endless"]
    again = ["--shapes", "64x16,1,2", "--resume", str(file), "--minutes", "0.4"]
    assert market.main([*options, *again]) == 0
    resumed = json.loads(file.read_text())
    assert resumed["rows"][: len(rows)] == written["rows"]
    added = [(row["model"], row["batch_size"]) for row in resumed["rows"][len(rows) :]]
    assert added == [("vig_t", 2)]
    assert len(resumed["failed"]) == len(reasons) + 1  # picky, 2
    assert "left for --resume: endless at 64 pixels" in capsys.readouterr().out


def test_what_cannot_be_run(toys, tmp_path, capsys):
    assert market.main(["--json", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
    for options in (["--shapes", "224"], ["--parallel", "0"], ["--models", "vig_z"]):
        with pytest.raises(SystemExit):
            market.main([*options, "--json", str(tmp_path / "x.json")])
    assert "'224' is not PIXELSxBATCH,BATCH" in capsys.readouterr().err


def test_without_torch_the_command_to_install_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(market.importlib.util, "find_spec", lambda name: None)
    file = tmp_path / "rows.json"
    assert market.main(["--json", str(file)]) == 1
    assert "pip install torch timm" in capsys.readouterr().err
    assert not file.exists()


def test_facts_of_the_models():
    labels = [model.label for model in (*OURS.values(), *PEERS.values())]
    assert len(set(labels)) == len(labels)
    for model in (*OURS.values(), *PEERS.values()):
        for weights in model.weights:
            assert 70 < weights.top1 < 90
            assert weights.source
        assert [bool(weights.more_data) for weights in model.weights] in (
            [False],
            [True],
            [False, True],
        )
