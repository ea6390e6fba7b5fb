"""The benchmark of int8 weights measures what it says, and writes what can be read."""

import quantized

from rnnfast.benchmark import measure


def test_small_run(tmp_path, capsys):
    output = tmp_path / "quantized.csv"
    quantized.main(["--smoke", "--cells", "GRU", "RNN", "--threads", "1", "--output", str(output)])
    rows = measure.read_csv(output, quantized.QuantizedResult)
    assert [(row.cell, row.shape) for row in rows] == [("GRU", "stream128"), ("RNN", "stream128")]
    assert all(row.fp32 > 0 and row.torch_fp32 > 0 and row.rounds >= 5 for row in rows)
    gru, rnn = rows
    assert 0 < gru.error < gru.torch_int8_error and gru.torch_int8 > 0
    assert rnn.torch_int8 == rnn.torch_int8_error == 0
    assert capsys.readouterr().out.count("stream128") == 2
