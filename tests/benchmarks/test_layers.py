"""The layer benchmark: its count of operations, its check of the results, its peers, a run."""

import layers
import peers
import pytest
import torch

from rnnfast.benchmark import measure
from rnnfast.benchmark.layers import (
    CELLS,
    SHAPES,
    LayerResult,
    Shape,
    check_agreement,
    operations,
    steps,
)


@pytest.fixture(autouse=True)
def no_warm_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "WARM_UP_SECONDS", 0)


def test_operations_by_hand():
    shape = Shape(batch=5, seq_len=7, input_size=2, hidden_size=3, num_layers=2)
    # A row of a step: 12 gates on 2 + 3 features, then 12 on 3 + 3.
    forward = 5 * 7 * 2 * (12 * 5 + 12 * 6)
    assert operations("LSTM", shape, "inference") == forward
    assert operations("LSTM", shape, "training") == 3 * forward
    assert operations("RNN", shape, "inference") == forward / 4


def test_a_wrong_gradient_stops_the_benchmark():
    calls = steps("GRU", Shape(2, 3, 4, 5, 1), "training")
    ours, peer = (list(calls[name]()) for name in ("rnnfast", "torch"))
    check_agreement("right", ours, peer)
    ours[-1] = ours[-1] + 1e-3 * peer[-1].abs().max()
    with pytest.raises(AssertionError, match=r"wrong: rnnfast and torch.nn disagree"):
        check_agreement("wrong", ours, peer)


@pytest.mark.parametrize("cell", CELLS)
def test_onnxruntime_computes_the_same(cell):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    among = {"onnxruntime": peers.available()["onnxruntime"]}
    with torch.inference_mode():
        calls = steps(cell, Shape(2, 7, 4, 5, 3), "inference", among)
        theirs = [torch.as_tensor(result) for result in calls["onnxruntime"]()]
        check_agreement(cell, calls["rnnfast"](), theirs, "onnxruntime")


def test_smoke(tmp_path, capsys):
    path = tmp_path / "layers.csv"
    before = torch.get_num_threads()
    arguments = ["--smoke", "--shapes", "odd", "--cells", "LSTM", "--threads", "1"]
    layers.main([*arguments, "--peers", "torch", "--output", str(path)])
    rows = measure.read_csv(path, LayerResult)
    assert [(row.shape, row.cell, row.mode, row.threads, row.peer) for row in rows] == [
        ("odd", "LSTM", "training", 1, "torch"),
        ("odd", "LSTM", "inference", 1, "torch"),
    ]
    for row in rows:
        assert row.ratio_q25 <= row.ratio <= row.ratio_q75
        assert row.gemm_share == pytest.approx(row.gflops / row.gemm_gflops, rel=2e-3)
        assert row.sizes == SHAPES["odd"]
    assert len(capsys.readouterr().out.splitlines()) == len(rows)
    assert torch.get_num_threads() == before


def test_a_compilation_that_takes_too_long_is_given_up(tmp_path):
    path = tmp_path / "layers.csv"
    case = ["--shapes", "step", "--cells", "RNN", "--modes", "inference", "--threads", "1"]
    case += ["--peers", "torch.compile", "--compile-limit", "0.1"]
    layers.main([*case, "--smoke", "--output", str(path)])
    (row,) = measure.read_csv(path, LayerResult)
    assert (row.peer, row.outcome) == ("torch.compile", "no result within 0.1 s")
    assert (row.rounds, row.ratio) == (0, None)


def test_more_threads_than_cpus_are_refused(capsys):
    cpus = measure.available_cpus()
    with pytest.raises(SystemExit):
        layers.main(["--smoke", "--threads", str(cpus + 1)])
    assert f"--threads: expected 1 to {cpus}, the CPUs here" in capsys.readouterr().err
