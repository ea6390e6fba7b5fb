"""Several processes train what one process trains."""

import itertools
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from rnnfast.language_model import Checkpoint, Config, LanguageModel, Run, TrainingResult, fit
from rnnfast.text import Corpus

pytestmark = pytest.mark.slow


def train(config: Config, corpus: Corpus, **options) -> TrainingResult:
    """In double precision, so that rounding stays far below what a wrong gradient would do."""
    model = LanguageModel(len(corpus.vocabulary), config.model, seed=config.training.seed).double()
    return fit(model, corpus, config.training, accuracy=True, show_progress=False, **options)


def assert_close(run: Run, config: Config, corpus: Corpus) -> None:
    """What processes trained is, up to rounding, what one process trains."""
    expected = train(config, corpus)
    results = run.checkpoint().results
    assert len(results) == len(expected.epochs)
    for result, epoch in zip(results, expected.epochs, strict=True):
        for name in ("train_perplexity", "valid_perplexity", "valid_accuracy"):
            assert getattr(result, name) == pytest.approx(getattr(epoch, name), rel=1e-9)


class Stopping(Run):
    """Ends its process once it has saved a few checkpoints."""

    left = 7

    def save(self, checkpoint: Checkpoint, *, is_best: bool) -> None:
        super().save(checkpoint, is_best=is_best)
        self.left -= 1
        if self.left == 0:
            os._exit(1)


def work(rank: int, meeting: Path, folder: Path, config: Config, stops: bool) -> None:
    """What a process does that torchrun started, but for how the processes find each other."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ["TORCHELASTIC_RUN_ID"] = "test"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    corpus = config.data.load()
    if (folder / "config.toml").exists():
        run = Run.open(folder)
        start = run.checkpoint()
    else:
        run = (Stopping if stops else Run).create(folder, config, corpus.vocabulary, overwrite=True)
        start = None
    train(config, corpus, start=start, recorder=run, checkpoint_seconds=0)
    dist.destroy_process_group()


@pytest.fixture
def train_together(monkeypatch, tmp_path):
    # Children are forks of a process that has imported all this; torch imports the second at the
    # first update, for seconds.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])

    meetings = itertools.count()

    def start(folder: Path, config: Config, *, stops: bool = False) -> list[int]:
        arguments = (tmp_path / f"meeting-{next(meetings)}", folder, config, stops)
        processes = [context.Process(target=work, args=(rank, *arguments)) for rank in (0, 1)]
        for process in processes:
            process.start()
        processes[0].join(60)
        if stops:  # as torchrun does
            processes[1].kill()
        processes[1].join(60)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        return codes

    return start


@pytest.mark.parametrize(
    "changes",
    [
        {"truncation": 0.5, "random_offset": True, "backend": "rnnfast"},
        {"batching": "random", "optimizer": "adam", "learning_rate": 0.01, "tied": True},
        {"softmax": "adaptive", "cutoffs": (12,), "hidden_size": 8, "optimizer": "asgd"},
    ],
)
def test_processes_train_as_one(tmp_path, config, corpus, train_together, changes):
    config = config.replace(epochs=2, **changes)
    assert train_together(tmp_path / "run", config) == [0, 0]
    assert_close(Run.open(tmp_path / "run"), config, corpus)


def test_processes_go_on_bit_for_bit(tmp_path, config, train_together):
    config = config.replace(epochs=1, dropout=0.3)
    train_together(tmp_path / "whole", config)
    assert train_together(tmp_path / "pieces", config, stops=True)[0] == 1
    assert Run.open(tmp_path / "pieces").checkpoint().window == 6
    assert train_together(tmp_path / "pieces", config) == [0, 0]
    one, other = (Run.open(tmp_path / name).checkpoint() for name in ("pieces", "whole"))
    assert one.results[0].train_loss == other.results[0].train_loss
    assert one.results[0].valid_loss == other.results[0].valid_loss
    for values, others in ((one.weights, other.weights), (one.generators, other.generators)):
        assert all(value.equal(others[name]) for name, value in values.items())
    # Processes draw their own dropout.
    assert not one.generators["cpu"][0].equal(one.generators["cpu"][1])


SCRIPT = """
import sys
from rnnfast.language_model import Config, LanguageModel, Run, fit

config = Config.from_toml(open(sys.argv[1]).read())
corpus = config.data.load()
model = LanguageModel(len(corpus.vocabulary), config.model, seed=config.training.seed).double()
run = Run.create(sys.argv[2], config, corpus.vocabulary, overwrite=True)
fit(model, corpus, config.training, recorder=run, accuracy=True, show_progress=False)
"""


def test_torchrun_starts_processes_that_train_as_one(tmp_path, config, corpus):
    config = config.replace(epochs=1)
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "settings.toml").write_text(config.to_toml())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    files = (str(tmp_path / name) for name in ("train.py", "settings.toml", "run"))
    done = subprocess.run(
        [*command, *files],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert_close(Run.open(tmp_path / "run"), config, corpus)
