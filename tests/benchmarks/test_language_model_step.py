"""The benchmark of a training step measures what it says, and writes what can be read."""

import subprocess
import sys
from pathlib import Path

import language_model_step
import pytest
import torch

import rnnfast
from rnnfast.benchmark import measure

FOLDER = Path(language_model_step.__file__).parent


@pytest.mark.parametrize("freed_memory", ["returned", "kept"])
def test_smoke_run(tmp_path, capsys, monkeypatch, freed_memory):
    calls = []  # not made: the process is that of the other tests too
    monkeypatch.setattr(language_model_step, "keep_freed_memory", lambda: calls.append(()))
    output = tmp_path / "steps.csv"
    flags = ["--keep-freed-memory"] if freed_memory == "kept" else []
    language_model_step.main(["--smoke", *flags, "--output", str(output)])
    rows = measure.read_csv(output, language_model_step.StepResult)
    assert len(calls) == len(flags)
    assert all(row.freed_memory == freed_memory for row in rows)
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


def test_memory_that_is_kept_costs_no_page_faults():
    """In a process of its own: faults of a block that is freed and asked for again."""
    code = """
import resource, language_model_step, torch

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(10_000_000).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

returned = min(faults() for _ in range(3))
language_model_step.keep_freed_memory()
print(returned, [faults() for _ in range(3)][-1])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, check=True
    )
    returned, kept = map(int, done.stdout.split())
    assert kept < 10 < returned
