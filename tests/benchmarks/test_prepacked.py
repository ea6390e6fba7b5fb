"""The benchmark of weights that stay packed measures what it says, and writes what can be read."""

import peers
import prepacked

from rnnfast.benchmark import measure


def test_small_run(tmp_path, capsys):
    output = tmp_path / "prepacked.csv"
    prepacked.main(["--smoke", "--cells", "GRU", "RNN", "--threads", "1", "--output", str(output)])
    rows = measure.read_csv(output, prepacked.PrepackedResult)
    expected = {"rnnfast", *peers.available()} - {"torch.compile"}
    for cell in ("GRU", "RNN"):
        of_cell = [row for row in rows if row.cell == cell]
        assert {row.peer for row in of_cell} == expected and len(of_cell) == len(expected)
        assert all(row.shape == "odd" and row.rounds >= 3 and row.ratio > 0 for row in of_cell)
    assert capsys.readouterr().out.count("over") == len(rows)
