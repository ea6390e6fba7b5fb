"""The latency benchmark measures what it says, and writes what can be read."""

import importlib.util

import latency
import pytest
import torch

from rnnfast.benchmark import measure

CONTENDERS = ["stream", "module", "torch.nn", "torch.nn cell"]
if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
    CONTENDERS.append("onnxruntime")


def test_smoke(tmp_path, capsys):
    output = tmp_path / "latency.csv"
    latency.main(["--smoke", "--sizes", "9", "--threads", "1", "--output", str(output)])
    rows = measure.read_csv(output, latency.LatencyResult)
    cases = [(row.cell, row.pace, row.contender) for row in rows]
    assert cases == [
        (cell, pace, name)
        for cell in ("LSTM", "GRU")
        for pace in ("hot", "paced")
        for name in CONTENDERS
    ]
    bins = measure.read_csv(tmp_path / "latency_histogram.csv", latency.HistogramBin)
    for row in rows:
        assert 0 < row.p50 <= row.p90 <= row.p99 <= row.p999
        assert row.ratio_q25 <= row.ratio <= row.ratio_q75
        own = [
            bin
            for bin in bins
            if (bin.cell, bin.pace, bin.contender) == (row.cell, row.pace, row.contender)
        ]
        assert sum(bin.count for bin in own) == row.samples == 2 * latency.SMOKE[row.pace]
        assert own[0].lower <= row.p50 < own[-1].upper
    assert capsys.readouterr().out.count("µs") == len(rows)


def test_percentiles_and_bins_by_hand():
    ordered = [float(value) for value in range(1, 1001)]
    shares = (0.5, 0.9, 0.99, 0.999)
    assert [latency.percentile(ordered, share) for share in shares] == [500, 900, 990, 999]
    assert latency.percentile([3.0], 0.5) == 3
    # A tenth of a power of ten is two bins: 10^0.05 = 1.122, 10^0.1 = 1.259.
    assert latency.histogram([1.0, 1.1, 1.13, 100.0]) == [
        (1.0, 1.122, 2),
        (1.122, 1.259, 1),
        (100.0, 112.2, 1),
    ]


def test_a_wrong_result_stops_the_benchmark():
    peer = torch.nn.GRU(4, 4)
    with torch.inference_mode():
        steps = latency.torch_steps("GRU", peer, torch.randn(1, 4))
        latency.check_agreement("right", steps)
        right = steps["stream"]
        steps["stream"] = lambda: right() + 1e-3
        with pytest.raises(AssertionError, match="wrong: "):
            latency.check_agreement("wrong", steps)
