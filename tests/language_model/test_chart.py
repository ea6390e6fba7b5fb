"""The picture of a training: what stands in it, and from what it can be drawn."""

import dataclasses
import math
import sys

import pytest

from rnnfast.language_model import CsvLog, EpochResult, plot_history
from rnnfast.language_model.chart import _curves, _draw, _named
from rnnfast.text import InputError


def results(*valid_perplexities: float) -> list[EpochResult]:
    return [
        EpochResult(
            epoch=epoch,
            learning_rate=0.5**epoch,
            train_perplexity=300.0 / epoch,
            valid_perplexity=perplexity,
            words_per_second=1000.0,
            train_loss=math.log(300.0 / epoch),
            valid_loss=math.log(perplexity),
            seconds=1.0,
        )
        for epoch, perplexity in enumerate(valid_perplexities, start=1)
    ]


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib", reason="matplotlib is not installed")


def table(path, epochs):
    log = CsvLog(path)
    for epoch in epochs:
        log.write(epoch)
    return path


def test_one_training(matplotlib):
    figure = _draw([_curves("", results(200.0, 120.5, 130.0))], "a title")
    perplexity, rate, bits = figure.axes
    assert perplexity.get_title() == "a title"
    train, valid, ring = (line.get_xydata().tolist() for line in perplexity.lines)
    assert train == [[1, 300], [2, 150], [3, 100]]
    assert valid == [[1, 200], [2, 120.5], [3, 130]]
    assert ring == [[2, 120.5]]
    labels = [text.get_text() for text in perplexity.get_legend().get_texts()]
    assert labels == ["training", "validation, best 120.5 in epoch 2"]
    assert rate.lines[0].get_xydata().tolist() == [[1, 0.5], [2, 0.25], [3, 0.125]]
    assert perplexity.get_yscale() == rate.get_yscale() == "log"
    low, high = perplexity.get_ylim()
    assert low < 100 and high > 300
    assert [float(tick.get_text()) for tick in perplexity.get_yticklabels()] == [
        tick for tick in (80, 100, 150, 200, 300, 400) if low <= tick <= high
    ]
    assert bits.get_ylim() == pytest.approx((math.log2(low), math.log2(high)))


def test_several_trainings(matplotlib):
    runs = {"LSTM": results(90.0, 80.0), "GRU": results(100.0, 70.25, 75.0)}
    figure = _draw([_curves(name, epochs) for name, epochs in _named(runs)], None)
    panel = figure.axes[0]
    labels = [text.get_text() for text in panel.get_legend().get_texts()]
    assert labels[:2] == ["LSTM: 80 in epoch 2", "GRU: 70.25 in epoch 2"]
    colors = [line.get_color() for line in panel.lines if line.get_linestyle() == "-"]
    assert len(set(colors)) == 2


def test_what_is_not_finite_is_left_out(matplotlib):
    epochs = results(math.inf, 90.0, 95.0)
    figure = _draw([_curves("", epochs)], None)
    assert figure.axes[0].get_ylim()[1] < 400
    assert figure.axes[0].get_legend().get_texts()[1].get_text().endswith("best 90 in epoch 2")
    _draw([_curves("", results(math.inf))], None)


def test_learning_rates_of_zero_are_left_out(matplotlib):
    epochs = [dataclasses.replace(epoch, learning_rate=0.0) for epoch in results(90.0, 95.0)]
    _draw([_curves("", epochs)], None)
    ticks = _draw([_curves("", [*results(99.0), *epochs])], None).axes[1].get_yticks()
    assert set(ticks) == {0.5}


def test_the_same_history_gives_the_same_picture(matplotlib, tmp_path):
    epochs = results(200.0, 120.5, 130.0)
    log = table(tmp_path / "small" / "log.csv", epochs)
    drawn = {}
    for name, history, title in (
        ("epochs", epochs, "small"),
        ("again", tuple(epochs), "small"),
        ("file", log, None),
        ("name", {"small": str(log)}, None),
        ("shorter", epochs[:2], "small"),
        ("untitled", epochs, None),
    ):
        plot_history(history, tmp_path / f"{name}.png", title=title)
        drawn[name] = (tmp_path / f"{name}.png").read_bytes()
    assert drawn["epochs"].startswith(b"\x89PNG\r\n")
    assert drawn["epochs"] == drawn["again"] == drawn["file"] == drawn["name"]
    assert len({drawn["epochs"], drawn["shorter"], drawn["untitled"]}) == 3


def test_the_users_style_is_neither_taken_nor_changed(matplotlib, tmp_path):
    plot_history(results(20.0, 10.0), tmp_path / "first.png")
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30}):
        plot_history(results(20.0, 10.0), tmp_path / "second.png")
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_files_are_named_after_what_tells_them_apart(tmp_path):
    def names(*paths):
        return [name for name, _ in _named([tmp_path / path for path in paths])]

    assert names("small/log.csv", "medium/log.csv") == ["small", "medium"]
    assert names("runs/lstm.csv", "runs/gru.csv") == ["lstm", "gru"]
    assert names("small/log.csv") == ["small"]


def test_what_cannot_be_drawn_is_told(matplotlib, tmp_path):
    path = tmp_path / "history.png"
    for history in ([], {}, {"LSTM": []}):
        with pytest.raises(InputError, match="there is no epoch to draw"):
            plot_history(history, path)
    with pytest.raises(InputError, match="cannot read .*nowhere.csv"):
        plot_history(tmp_path / "nowhere.csv", path)
    (tmp_path / "other.csv").write_text("epoch,train_perplexity\n1,3.0\n")
    with pytest.raises(InputError, match="other.csv lacks the field learning_rate, valid_perp"):
        plot_history([tmp_path / "other.csv"], path)
    assert not path.exists()
    with pytest.raises(InputError, match="path must end in .png, got .*other.csv"):
        plot_history(results(20.0), tmp_path / "other.csv")
    assert (tmp_path / "other.csv").read_text() == "epoch,train_perplexity\n1,3.0\n"


def test_a_missing_package_is_told_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install rnnfast\[plot\]"):
        plot_history(results(20.0), tmp_path / "history.png")
