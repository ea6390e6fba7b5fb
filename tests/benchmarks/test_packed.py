"""The packed benchmark measures what it says, and writes what can be read."""

import packed

from rnnfast.benchmark import measure


def test_small_run(tmp_path, capsys):
    output = tmp_path / "packed.csv"
    packed.main(
        ["--cells", "GRU", "--seq-lens", "5", "--threads", "1", "--seconds", "0.02"]
        + ["--output", str(output)]
    )
    rows = measure.read_csv(output, packed.PackedResult)
    assert [row.lengths for row in rows] == ["equal", "uniform"]
    assert all(row.padded > 0 and row.torch_packed > 0 and row.rounds >= 5 for row in rows)
    assert capsys.readouterr().out.count("GRU") == 2
