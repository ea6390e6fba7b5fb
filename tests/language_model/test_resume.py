"""A training that is killed goes on as if it had not been, bit for bit."""

import dataclasses
import itertools
import logging
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from rnnfast.language_model import (
    Checkpoint,
    Config,
    CsvLog,
    LanguageModel,
    Run,
    TrainingResult,
    evaluate_text,
    fit,
)
from rnnfast.text import Corpus, InputError

pytestmark = pytest.mark.slow


@pytest.fixture
def corpus(config) -> Corpus:
    """Six windows an epoch: each test trains a few times."""
    corpus = config.data.load()
    return dataclasses.replace(corpus, train=corpus.train[:132])


def new_model(corpus: Corpus, config: Config) -> LanguageModel:
    return LanguageModel(len(corpus.vocabulary), config.model, seed=config.training.seed)


def train(folder: Path, config: Config, corpus: Corpus, **options) -> TrainingResult:
    """Trains in a folder, from where its run stands if there is one."""
    if (folder / "config.toml").exists():
        run = Run.open(folder, epochs=config.training.epochs)
        start = run.checkpoint()
    else:
        run, start = Run.create(folder, config, corpus.vocabulary, overwrite=True), None
    return fit(
        new_model(corpus, config),
        corpus,
        config.training,
        start=start,
        recorder=run,
        checkpoint_seconds=0,
        show_progress=False,
        **options,
    )


def timeless(results) -> list[dict]:
    """Results without what depends on the clock."""
    clocks = ("words_per_second", "seconds")
    return [
        {name: value for name, value in dataclasses.asdict(result).items() if name not in clocks}
        for result in results
    ]


def assert_same_run(folder: Path, expected: Path) -> None:
    """Results, weights, optimizer and generators are equal, bit for bit."""
    runs = [Run.open(path) for path in (folder, expected)]
    one, other = (run.checkpoint() for run in runs)
    assert timeless(one.results) == timeless(other.results)
    assert (one.window, one.num_tokens) == (other.window, other.num_tokens)
    for field in ("weights", "best_weights", "state", "generators"):
        values, others = getattr(one, field), getattr(other, field)
        assert values.keys() == others.keys()
        assert all(value.equal(others[name]) for name, value in values.items()), field
    assert one.optimizer["param_groups"] == other.optimizer["param_groups"]
    kept, others = one.optimizer["state"], other.optimizer["state"]
    assert kept.keys() == others.keys()
    for index, values in kept.items():
        assert values.keys() == others[index].keys()
        for name, value in values.items():
            assert value.equal(others[index][name])
    models = [run.load_model().state_dict() for run in runs]
    assert all(value.equal(models[1][name]) for name, value in models[0].items())


SETTINGS = {
    "sgd": {"dropout": 0.3, "random_offset": True, "backend": "rnnfast"},
    "adam": {
        "optimizer": "adam",
        "learning_rate": 0.01,
        "dropout": 0.3,
        "variable_length": True,
        "backend": "rnnfast",
        "cell": "gru",
    },
    "asgd": {
        "optimizer": "asgd",
        "learning_rate": 4.0,
        "schedule": "constant",
        "non_monotone": 1,
        "epochs": 6,
        "locked_dropout": True,
        "weight_dropout": 0.3,
        "output_dropout": 0.3,
        "tied": True,
    },
    "truncation": {"truncation": 0.4, "schedule": "plateau", "learning_rate": 5.0},
    "windows": {"batching": "random", "optimizer": "adadelta", "teacher_forcing": 0.7},
}


class Stopped(BaseException):
    """As if the process had been killed."""


@pytest.mark.parametrize("name", SETTINGS)
def test_training_goes_on_bit_for_bit(tmp_path, config, corpus, name):
    """Left after some updates again and again, and at last run to its end."""
    config = config.replace(**SETTINGS[name])
    expected = train(tmp_path / "whole", config, corpus)
    folder = tmp_path / "pieces"
    saves = random.Random(1)
    windows = set()

    class Stop(Run):
        left = 0

        def save(self, checkpoint: Checkpoint, *, is_best: bool) -> None:
            super().save(checkpoint, is_best=is_best)
            windows.add(checkpoint.window)
            Stop.left -= 1
            if Stop.left == 0:
                raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.Run", Stop)
        for _ in range(4):
            Stop.left = saves.randint(2, 6)
            # Whatever the process drew before it is killed is no part of what goes on.
            torch.manual_seed(saves.randint(0, 1000))
            with pytest.raises(Stopped):
                train(folder, config, corpus)
    assert len(windows) > 3
    result = train(folder, config, corpus)
    assert timeless(result.epochs) == timeless(expected.epochs)
    assert result.test == expected.test
    assert_same_run(folder, tmp_path / "whole")
    if name == "asgd":
        averaged = Run.open(folder).checkpoint().optimizer["param_groups"][0]["num_averaged"]
        assert averaged > 1


def test_a_crash_between_any_two_writes_loses_nothing(tmp_path, config, corpus):
    """Stops a short training at each moment at which a name or a file's content is made sure."""
    corpus = dataclasses.replace(corpus, train=corpus.train[:64])  # three windows
    config = config.replace(epochs=1, dropout=0.3)
    train(tmp_path / "whole", config, corpus)
    crashes = 0
    for moment in itertools.count():
        folder = tmp_path / str(moment)
        countdown = itertools.count(moment, -1)

        def dying(function, countdown=countdown):
            def call(*arguments, **options):
                if next(countdown) == 0:
                    raise Stopped
                return function(*arguments, **options)

            return call

        with pytest.MonkeyPatch.context() as patch:
            for name in ("fsync", "replace"):
                patch.setattr(os, name, dying(getattr(os, name)))
            try:
                train(folder, config, corpus)
            except Stopped:
                crashes += 1
            else:
                break
        train(folder, config, corpus)
        assert_same_run(folder, tmp_path / "whole")
    assert crashes > 20


def train_alone(folder: Path, config: Config) -> None:
    """What a process of its own does."""
    torch.set_num_threads(1)
    os.fsync = lambda file: None  # is for a loss of power, and slow
    train(folder, config, config.data.load())


@pytest.mark.parametrize("name", ["sgd", "adam", "asgd"])
def test_kill_at_any_moment(tmp_path, config, name, monkeypatch):
    config = config.replace(**SETTINGS[name])
    # Children are forks of a process that has imported all this.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    context = multiprocessing.get_context("forkserver")
    # torch imports the second at the first update, for seconds.
    context.set_forkserver_preload([__name__, "torch._dynamo"])

    def start(folder: Path) -> multiprocessing.Process:
        process = context.Process(target=train_alone, args=(tmp_path / folder, config))
        process.start()
        return process

    server = context.Process(target=time.time)
    server.start()
    server.join()
    began = time.perf_counter()
    whole = start("whole")
    whole.join()
    assert whole.exitcode == 0
    duration = time.perf_counter() - began

    moments = random.Random(name)
    kills = 0
    for _ in range(4):
        process = start("killed")
        process.join(moments.uniform(0.1, 0.6) * duration)
        if process.exitcode is None:
            process.kill()
            process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills > 0
    leftovers = {path.name for path in (tmp_path / "killed").glob(".*.safetensors*")}
    assert leftovers <= {".last.safetensors.tmp", ".best.safetensors.tmp"}
    last = start("killed")
    last.join()
    assert last.exitcode == 0
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_a_finished_training_says_so_and_changes_nothing(tmp_path, config, corpus, caplog):
    expected = train(tmp_path / "run", config, corpus)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with caplog.at_level(logging.WARNING):
        result = train(tmp_path / "run", config, corpus)
    assert caplog.messages == ["nothing is left to train: 3 of 3 epochs are done"]
    assert result == expected
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_finished_training_may_have_more_epochs(tmp_path, config, corpus):
    train(tmp_path / "run", config.replace(epochs=1), corpus)
    train(tmp_path / "run", config, corpus)
    train(tmp_path / "whole", config, corpus)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert Run.open(tmp_path / "run").config == config
    with pytest.raises(InputError, match="epochs must be at least 3.*got 2"):
        train(tmp_path / "run", config.replace(epochs=2), corpus)


def test_logs_are_told_the_epochs_before_a_resume(tmp_path, config, corpus):
    class Log(list):
        write = list.append

        def close(self):
            pass

    train(tmp_path / "run", config.replace(epochs=2), corpus)
    log = Log()
    result = train(tmp_path / "run", config, corpus, logs=[log])
    assert tuple(log) == result.epochs


def test_a_kill_after_the_last_checkpoint_leaves_no_epoch_out_of_the_log(tmp_path, config, corpus):
    class Killed(Exception):
        pass

    class KilledLog(CsvLog):
        def write(self, result):
            if result.epoch == config.training.epochs:
                raise Killed
            super().write(result)

    path = tmp_path / "run" / "log.csv"
    with pytest.raises(Killed):
        train(tmp_path / "run", config, corpus, logs=[KilledLog(path)])
    result = train(tmp_path / "run", config, corpus, logs=[CsvLog(path)])
    assert CsvLog.read(path) == [dataclasses.asdict(epoch) for epoch in result.epochs]


def test_a_text_that_has_changed_is_refused(tmp_path, config, corpus):
    """Where its vocabulary is the same; a checkpoint that does not tell its text is taken."""
    train(tmp_path, config, corpus)
    changed = dataclasses.replace(corpus, valid=corpus.valid.flip(0))
    more = config.replace(epochs=config.training.epochs + 1)
    with pytest.raises(InputError, match="another text than .* has changed since"):
        train(tmp_path, more, changed)
    start = Run.open(tmp_path).checkpoint()
    assert start.corpus == corpus.fingerprint
    untold = dataclasses.replace(start, corpus=None)
    result = fit(new_model(corpus, more), changed, more.training, start=untold, show_progress=False)
    assert len(result.epochs) == more.training.epochs


def test_a_checkpoint_may_be_gone_on_from_twice(tmp_path, config, corpus):
    config = config.replace(optimizer="adam", learning_rate=0.01, epochs=2)
    train(tmp_path / "run", config.replace(epochs=1), corpus)
    start = Run.open(tmp_path / "run").checkpoint()
    first, second = (
        fit(new_model(corpus, config), corpus, config.training, start=start, show_progress=False)
        for _ in range(2)
    )
    assert timeless(first.epochs) == timeless(second.epochs)


def test_best_weights_survive_a_resume(tmp_path, config, corpus):
    # The learning rate grows until training does harm.
    config = config.replace(epochs=2, decay_after=2, lr_decay=5.0)
    train(tmp_path / "run", config, corpus)
    config = config.replace(epochs=4)
    result = train(tmp_path / "run", config, corpus)
    assert result.best.epoch < 4
    model = Run.open(tmp_path / "run").load_model()
    assert evaluate_text(model, corpus.test) == result.test
