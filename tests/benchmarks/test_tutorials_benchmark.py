"""The tutorials' script: a run from data to rows, and how rows of several runs stay together."""

import dataclasses

import pytest
import report
import tables
import tutorials

from rnnfast.benchmark import measure
from rnnfast.language_model import PRESETS


def row(tutorial: str, epoch: int, **changes) -> tutorials.EpochRow:
    values = dict(
        threads=1,
        tutorial=tutorial,
        backend="rnnfast",
        precision="fp32",
        epochs=11,
        epoch=epoch,
        learning_rate=1.0,
        train_perplexity=20.0 / epoch,
        valid_perplexity=30.0 / epoch,
        test_perplexity=None,
    )
    here = dataclasses.asdict(measure.Environment.here())
    return tutorials.EpochRow(**here | values | changes)


def test_every_tutorial_starts_from_a_preset():
    assert {tutorial.preset for tutorial in tutorials.TUTORIALS.values()} == set(PRESETS) - {"test"}


def test_smoke_and_what_is_gone_on_with(tmp_path, capsys):
    data = tutorials.smoke_text(tmp_path)
    for epochs in ("1", "2"):
        options = ["--data", str(data), "--runs", str(tmp_path / "runs"), "--epochs", epochs]
        options += ["--threads", "1", "--output", str(tmp_path / "tutorials.csv")]
        tutorials.main(["quijote-rnn", *options])
    commands = [line for line in capsys.readouterr().out.splitlines() if "rnnfast train" in line]
    assert "--preset quijote-rnn --text" in commands[0] and "--resume" in commands[1]
    rows = measure.read_csv(tmp_path / "tutorials.csv", tutorials.EpochRow)
    assert [(r.epoch, r.epochs) for r in rows] == [(1, 11), (2, 11)]
    assert rows[0].test_perplexity is None and rows[1].test_perplexity < 28
    tutorials.main(["--smoke", "--threads", "1"])


def test_rows_of_other_trainings_stay(tmp_path):
    path = tmp_path / "tutorials.csv"
    measure.write_csv(path, [row("quijote-gru", 1), row("ptb-small", 1), row("ptb-small", 2)])
    rows = tutorials.merged([row("ptb-small", 1), row("ptb-awd", 1)], path)
    assert [(r.tutorial, r.epoch) for r in rows] == [
        ("ptb-small", 1),
        ("ptb-awd", 1),
        ("quijote-gru", 1),
    ]


def test_unknown_tutorials_are_named(capsys):
    with pytest.raises(SystemExit):
        tutorials.main(["ptb-huge"])
    assert "got ptb-huge" in capsys.readouterr().err


def test_table_has_the_last_epoch_beside_what_was_published(tmp_path):
    rows = [row("ptb-small", 1), row("ptb-small", 2, test_perplexity=14.5)]
    rows.append(row("quijote-rnn", 1, backend="torch"))
    measure.write_csv(tmp_path / "tutorials.csv", rows)
    lines = tables.tutorials_table(tmp_path).splitlines()
    small = "| ptb-small | rnnfast | 2 of 11 | 10 | 15 | 14.5 | 37.99 | 121.39 | 115.91 |"
    assert small in lines
    assert "| quijote-rnn | torch | 1 of 11 | 20 | 30 |  | 10.8 |  |  |" in lines
    (chart,) = report.draw_tutorials(tmp_path)
    assert chart == "tutorials"
