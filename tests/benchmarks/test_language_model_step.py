"""The benchmark of a training step measures what it says, and writes what can be read."""

import language_model_step
import pytest
import torch

import rnnfast
from rnnfast.benchmark import measure


@pytest.mark.parametrize("flags", [[], ["--keep-freed-memory"]])
def test_smoke_run(tmp_path, capsys, monkeypatch, flags):
    calls = []  # not made: the process is that of the other tests too
    monkeypatch.setattr(rnnfast, "keep_freed_memory", lambda: not calls.append(()))
    output = tmp_path / "steps.csv"
    language_model_step.main(["--smoke", *flags, "--output", str(output)])
    rows = measure.read_csv(output, language_model_step.StepResult)
    assert len(calls) == len(flags)
    assert [(row.model, row.precision) for row in rows] == [("test", "fp32"), ("test", "bf16")]
    assert all(row.ratio > 0 and row.rounds >= 3 for row in rows)
    assert all(row.words_per_second > 0 for row in rows)
    assert capsys.readouterr().out.count("words per second") == 2
    assert rnnfast.get_precision() == "fp32"


def test_a_wrong_loss_stops_the_run():
    losses = {name: torch.tensor(9.2) for name in ("torch", "fp32", "bf16")}
    language_model_step.check_losses(losses)
    with pytest.raises(AssertionError):
        language_model_step.check_losses(losses | {"fp32": torch.tensor(9.3)})
