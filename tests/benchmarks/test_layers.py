"""The layer benchmark: its count of operations, its check of the results, a run of one case."""

import layers
import measure
import pytest
import torch


def test_operations_by_hand():
    shape = layers.Shape(batch=5, seq_len=7, input_size=2, hidden_size=3, num_layers=2)
    # A row of a step: 12 gates on 2 + 3 features, then 12 on 3 + 3.
    forward = 5 * 7 * 2 * (12 * 5 + 12 * 6)
    assert layers.operations("LSTM", shape, "inference") == forward
    assert layers.operations("LSTM", shape, "training") == 3 * forward
    assert layers.operations("RNN", shape, "inference") == forward / 4


def test_a_wrong_gradient_stops_the_benchmark():
    steps = layers.steps("GRU", layers.Shape(2, 3, 4, 5, 1), "training")
    ours, peer = (list(step()) for step in steps.values())
    layers.check_agreement("right", ours, peer)
    ours[-1] = ours[-1] + 1e-3 * peer[-1].abs().max()
    with pytest.raises(AssertionError, match="wrong: rnnfast and torch.nn disagree"):
        layers.check_agreement("wrong", ours, peer)


def test_where_auto_hands_over_both_backends_are_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rnnfast.backend.torch_is_faster", lambda *args: True)
    monkeypatch.setattr(measure, "WARM_UP_SECONDS", 0)
    results = layers.measure_case("odd", "RNN", "inference", 1, seconds=0, min_pairs=2)
    assert [(row.backend, row.auto) for row in results] == [("rnnfast", "torch"), ("auto", "torch")]


def test_smoke(tmp_path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "WARM_UP_SECONDS", 0)
    path = tmp_path / "layers.csv"
    before = torch.get_num_threads()
    arguments = ["--smoke", "--shapes", "odd", "--cells", "LSTM", "--threads", "1"]
    layers.main([*arguments, "--output", str(path)])
    rows = measure.read_csv(path, layers.LayerResult)
    assert [(row.shape, row.cell, row.mode, row.threads) for row in rows] == [
        ("odd", "LSTM", "training", 1),
        ("odd", "LSTM", "inference", 1),
    ]
    for row in rows:
        assert row.ratio_q25 <= row.ratio <= row.ratio_q75
        assert row.gemm_share == pytest.approx(row.gflops / row.gemm_gflops, rel=2e-3)
        assert row.sizes == layers.SHAPES["odd"]
    assert len(capsys.readouterr().out.splitlines()) == len(rows)
    assert torch.get_num_threads() == before


def test_more_threads_than_cpus_are_refused(capsys):
    cpus = measure.available_cpus()
    with pytest.raises(SystemExit):
        layers.main(["--smoke", "--threads", str(cpus + 1)])
    assert f"--threads: expected 1 to {cpus}, the CPUs here" in capsys.readouterr().err
