"""The benchmark of sampling measures what it says, and writes what can be read."""

import pytest
import sampling

from rnnfast.benchmark import measure


def test_smoke_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measure, "WARM_UP_SECONDS", 0)
    output = tmp_path / "sampling.csv"
    sampling.main(["--smoke", "--output", str(output)])
    rows = measure.read_csv(output, sampling.SamplingResult)
    assert [(row.hidden_size, row.num_samples, row.length) for row in rows] == [
        (2, 1, 5),
        (2, 3, 5),
    ]
    for row in rows:
        assert row.rounds >= 3
        # Medians of the same rounds: near each other, and equal where all rounds are alike.
        quotient = row.characters_per_second / row.torch_characters_per_second
        assert 0.5 < quotient / row.ratio < 2
    assert capsys.readouterr().out.count("characters per second") == 2


def test_another_text_stops_the_run():
    steps = [[1, 2]] * 100
    sampling.check_agreement(steps, [*steps[:-1], [1, 3]])
    with pytest.raises(AssertionError, match=r"only 98.5% of the characters agree"):
        sampling.check_agreement(steps, [*steps[:-3], *[[1, 3]] * 3])
