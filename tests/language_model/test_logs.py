"""Tables and TensorBoard's files: what is written comes back, also over a resumed run."""

import copy
import math
import sys
from dataclasses import asdict

import pytest

from rnnfast.language_model import CsvLog, EpochResult, LanguageModel, TensorBoardLog, fit
from rnnfast.text import InputError


def result(epoch: int, valid_loss: float = 4.7, accuracy: float | None = None) -> EpochResult:
    return EpochResult(
        epoch=epoch,
        learning_rate=0.1 * 0.7**epoch,
        train_perplexity=math.exp(4.5),
        valid_perplexity=math.exp(valid_loss),
        words_per_second=12345.678,
        train_loss=4.5,
        valid_loss=valid_loss,
        seconds=1 / 3,
        valid_accuracy=accuracy,
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "log.csv"


def test_a_table_holds_every_field_with_all_digits(path):
    log = CsvLog(path)
    assert not path.parent.exists()
    epochs = [result(1), result(2, accuracy=0.25), result(3, valid_loss=math.inf)]
    for number, epoch in enumerate(epochs, start=1):
        log.write(epoch)
        assert CsvLog.read(path) == [asdict(epoch) for epoch in epochs[:number]]
    log.close()
    lines = path.read_text().splitlines()
    assert lines[0].startswith("epoch,learning_rate,train_perplexity,valid_perplexity,words_per_")
    assert lines[1].startswith("1,0.") and lines[1].endswith(",")
    assert [entry.name for entry in path.parent.iterdir()] == ["log.csv"]


def test_a_resumed_run_goes_on_with_its_table(path):
    first = CsvLog(path)
    for epoch in (1, 2, 3, 4):
        first.write(result(epoch))
    before = path.read_text().splitlines()
    resumed = CsvLog(path, append=True)
    assert path.read_text().splitlines() == before
    resumed.write(result(3, valid_loss=2.0))
    rows = CsvLog.read(path)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[2]["valid_loss"] == 2.0
    assert path.read_text().splitlines()[:3] == before[:3]
    resumed.write(result(4))
    assert [row["epoch"] for row in CsvLog.read(path)] == [1, 2, 3, 4]


def test_a_new_run_replaces_the_table_at_its_first_epoch(path):
    CsvLog(path).write(result(1))
    CsvLog(path).write(result(1, valid_loss=3.0))
    assert [row["valid_loss"] for row in CsvLog.read(path)] == [3.0]
    # Nothing to append to is no mistake: a run may have been stopped in its first epoch.
    CsvLog(path.with_name("other.csv"), append=True).write(result(1))


class Recorder:
    """Keeps the checkpoint of the second epoch."""

    def begin(self):
        pass

    def save(self, checkpoint, *, is_best):
        if len(checkpoint.results) == 2:
            self.kept = copy.deepcopy(checkpoint)


def test_training_writes_all_epochs_also_of_a_resumed_run(path, config, corpus):
    def train(**options):
        model = LanguageModel(len(corpus.vocabulary), config.model)
        logs = [CsvLog(path)]
        return fit(model, corpus, config.training, logs=logs, show_progress=False, **options)

    recorder = Recorder()
    first = train(recorder=recorder)
    assert len(first.epochs) == 3
    assert CsvLog.read(path) == [asdict(epoch) for epoch in first.epochs]
    resumed = train(start=recorder.kept)
    assert CsvLog.read(path) == [asdict(epoch) for epoch in resumed.epochs]
    assert resumed.epochs[:2] == first.epochs[:2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no field epoch"),
        (b"a,b\n1,2\n", "names no field epoch"),
        (b"epoch,valid_perplexity\n1,9.5\n2\n", "line 3 must hold 2 numbers.*got '2'"),
        (b"epoch,valid_perplexity\n1,good\n", "line 2 must hold 2 numbers.*got '1,good'"),
        (b"epoch,valid_perplexity\n1.5,3\n", "line 2 must"),
        (b"epoch,valid_perplexity\n2,3\n2,4\n", "line 3 must.*rising, got '2,4'"),
        (b"epoch\xff\n", "no table of epochs"),
        (b'epoch,"valid\n', "no table of epochs"),
    ],
)
def test_what_is_no_table_is_refused_and_left_alone(tmp_path, content, message):
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        CsvLog(path, append=True)
    assert path.read_bytes() == content


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot read .*log.csv: No such file"):
        CsvLog.read(tmp_path / "log.csv")


def scalars(folder) -> dict[str, dict[int, float]]:
    """What TensorBoard shows of a folder: by name, then epoch."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed",
    ).EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        name: {event.step: event.value for event in accumulator.Scalars(name)}
        for name in accumulator.Tags()["scalars"]
    }


def test_tensorboard_shows_the_epochs_of_a_resumed_run_once(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    folder = tmp_path / "events"
    log = TensorBoardLog(folder)
    assert not folder.exists()
    for epoch in (1, 2, 3):
        log.write(result(epoch, accuracy=0.5))
    # Safe before it is closed.
    assert list(scalars(folder)["perplexity/valid"]) == [1, 2, 3]
    log.close()
    resumed = TensorBoardLog(folder)
    resumed.write(result(2, valid_loss=2.0))
    resumed.close()
    shown = scalars(folder)
    expected = {
        "loss/train": 4.5,
        "loss/valid": 2.0,
        "bits_per_token/train": 4.5 / math.log(2),
        "bits_per_token/valid": 2.0 / math.log(2),
        "perplexity/train": math.exp(4.5),
        "perplexity/valid": math.exp(2.0),
        "learning_rate": 0.1 * 0.7**2,
        "words_per_second": 12345.678,
    }
    assert {name: values[2] for name, values in shown.items() if 2 in values} == pytest.approx(
        expected
    )
    assert {tuple(values) for values in shown.values()} == {(1, 2), (1,)}
    assert shown["accuracy/valid"] == {1: 0.5}


def test_a_missing_package_is_told_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install rnnfast\[tensorboard\]"):
        TensorBoardLog(tmp_path)
