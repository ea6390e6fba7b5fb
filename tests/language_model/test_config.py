"""The presets, the schedule, and the way to TOML and back."""

import dataclasses
import math
import re
from pathlib import Path

import pytest

from rnnfast.language_model import (
    PRESETS,
    Config,
    DataConfig,
    ModelConfig,
    TrainingConfig,
    preset,
)
from rnnfast.language_model.config import parse_toml
from rnnfast.text import InputError

# Typed from the tutorial, with its own names.
TUTORIAL = """
                test    small   medium  large
init_scale      0.1     0.1     0.05    0.04
learning_rate   1.0     1.0     1.0     1.0
max_grad_norm   1       5       5       10
num_layers      1       2       2       2
num_steps       2       20      35      35
hidden_size     2       200     650     1500
max_epoch       1       4       6       14
max_max_epoch   1       13      39      55
keep_prob       1.0     1.0     0.5     0.35
lr_decay        0.5     0.5     0.8     1/1.15
batch_size      20      20      20      20
"""


def test_presets_are_the_tutorials():
    (names, *rows) = (line.split() for line in TUTORIAL.strip().splitlines())
    assert set(names) <= set(PRESETS)
    for index, name in enumerate(names):
        model, training = PRESETS[name].model, PRESETS[name].training
        assert model.single_bias and model.forget_bias == 0
        ours = {
            "init_scale": model.init_scale,
            "learning_rate": training.learning_rate,
            "max_grad_norm": training.max_grad_norm,
            "num_layers": model.num_layers,
            "num_steps": training.num_steps,
            "hidden_size": model.hidden_size,
            "max_epoch": training.decay_after,
            "max_max_epoch": training.epochs,
            "keep_prob": 1 - model.dropout,
            "lr_decay": training.lr_decay,
            "batch_size": training.batch_size,
        }
        theirs = {}
        for key, *values in rows:
            numerator, _, denominator = values[index].partition("/")
            theirs[key] = float(numerator) / float(denominator or 1)
        assert ours == theirs


def test_learning_rate_falls_after_the_first_epochs():
    training = TrainingConfig(learning_rate=2.0, decay_after=3, lr_decay=0.5, epochs=6)
    rates = [training.learning_rate_at(epoch) for epoch in range(6)]
    assert rates == [2.0, 2.0, 2.0, 1.0, 0.5, 0.25]


def test_single_values_replace_those_of_a_preset():
    config = preset("medium").replace(hidden_size=100, batch_size=7, backend="torch", seed=3)
    expected = ModelConfig(100, 2, single_bias=True, dropout=0.5, init_scale=0.05, backend="torch")
    assert config.model == expected
    assert (config.training.batch_size, config.training.seed, config.training.epochs) == (7, 3, 39)
    assert PRESETS["medium"].model.hidden_size == 650


def test_presets_beyond_tensorflows():
    """Typed from the notebook, from pytorch/examples' defaults, AWD-LSTM's, d2l's and Keras'."""
    stacked = preset("stacked")
    assert stacked.model.hidden_sizes == (256, 128) and stacked.model.embedding_size == 200
    assert (stacked.training.batch_size, stacked.training.epochs) == (60, 15)
    for name, tied in (("examples", False), ("examples-tied", True)):
        config = preset(name)
        assert (config.model.tied, config.model.dropout) == (tied, 0.2)
        training = config.training
        assert (training.learning_rate, training.lr_decay, training.max_grad_norm) == (
            20,
            1 / 4,
            0.25,
        )
        assert (training.schedule, training.num_steps) == ("plateau", 35)
    awd = preset("awd")
    assert awd.model.hidden_sizes == (1150, 1150, 400)
    assert awd.training.optimizer == "asgd" and awd.training.variable_length
    for cell, rate in (("rnn", 1.0), ("lstm", 4.0), ("gru", 4.0)):
        config = preset(f"quijote-{cell}")
        assert (config.model.cell, config.training.learning_rate) == (cell, rate)
        (start, end), held_out, _ = config.data.splits
        assert end - start - config.training.num_steps == 20_480
        assert held_out[1] - held_out[0] - config.training.num_steps == 5_120
    assert not preset("quijote-gru-original").model.reset_after
    keras = preset("keras")
    assert (keras.model.hidden_size, keras.model.embedding_size) == (1024, 256)
    assert keras.model.single_bias and keras.training.optimizer == "adam"


@pytest.mark.parametrize("name", PRESETS)
def test_toml_round_trip(name):
    config = preset(name)
    loaded = Config.from_toml(config.to_toml())
    assert loaded == config
    assert loaded.fingerprint == config.fingerprint
    assert loaded.fingerprint != config.replace(seed=1).fingerprint


def test_toml_round_trip_of_any_path():
    config = preset("large").replace(data=DataConfig("text", 'Ein "Süßes".txt', "char"))
    assert Config.from_toml(config.to_toml()) == config


def test_toml_by_hand_has_defaults_for_the_rest():
    config = Config.from_toml("[model]\nhidden_size = [8, 4]\n[training]\nmax_grad_norm = inf\n")
    assert config.model == ModelConfig(hidden_size=(8, 4))
    assert config.training == TrainingConfig(max_grad_norm=math.inf)
    assert config.data == DataConfig()


def test_none_is_the_default_of_whatever_may_be_none():
    """What is None is left out of the TOML, so reading must give None back."""
    for section in (DataConfig, ModelConfig, TrainingConfig):
        for field in dataclasses.fields(section):
            assert ("None" in str(field.type)) <= (field.default is None)


def test_toml_that_is_no_configuration_is_refused():
    for content, message in (
        ("{", "settings are TOML"),
        ("a = " + "9" * 5000, "settings are TOML"),
        ("speed = 1", "unknown table speed: expected data, model, training"),
        ("model = 3", "model must be a table, got 3"),
        ("[training]\nspeed = 1", "unknown setting speed in training"),
        ('[model]\nhidden_size = "9"', "hidden_size must"),
    ):
        with pytest.raises(InputError, match=message):
            Config.from_toml(content)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"model": {"hidden_size": [8, 0]}}, r"hidden_size must be integers of at least 1, got"),
        ({"model": {"hidden_size": [8, 4], "num_layers": 3}}, "num_layers must be left out or 2"),
        ({"model": {"tied": True, "hidden_size": [8, 4]}}, "embedding_size must be 4"),
        ({"model": {"embedding": "one_hot", "tied": True}}, "tied must be left out"),
        ({"model": {"softmax": "adaptive"}}, "cutoffs must be given"),
        ({"model": {"softmax": "adaptive", "cutoffs": [9, 3]}}, "cutoffs must be .* rising"),
        ({"model": {"cutoffs": [3]}}, "cutoffs must be left out"),
        ({"model": {"cell": "gru", "forget_bias": 1.0}}, "forget_bias must be 0"),
        ({"model": {"backend": "torch", "precision": "bf16"}}, "precision must be fp32"),
        (
            {"model": {"backend": "torch", "cell": "gru", "reset_after": False}},
            "reset_after must be true",
        ),
        ({"training": {"batching": "random", "truncation": 0.5}}, "truncation must be left out"),
        ({"training": {"stride": 2}}, "stride must be left out with continuous batches"),
        ({"training": {"truncation": 0}}, "truncation must be above 0"),
        ({"training": {"boundary": ""}}, "boundary must be a token"),
        ({"data": {"corpus": "text", "splits": [[0, 1], [1, 2]]}}, "splits must be three pairs"),
        ({"data": {"lower": 1}}, "lower must be true or false, got 1"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(tables, message):
    with pytest.raises(InputError, match=message):
        Config().updated(tables)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", 0),
        ("num_layers", -1),
        ("num_layers", 1.5),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("init_scale", 0.0),
        ("backend", "tensorflow"),
        ("batch_size", 0),
        ("num_steps", 0),
        ("epochs", 0),
        ("decay_after", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("lr_decay", float("inf")),
        ("max_grad_norm", -1.0),
        ("max_grad_norm", float("nan")),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=f"{name} must be .*, got {value!r}"):
        preset("small").replace(**{name: value})


def test_unknown_preset_and_setting_are_refused():
    with pytest.raises(InputError, match="unknown preset 'huge': expected one of small, medium"):
        preset("huge")
    with pytest.raises(InputError, match="unknown setting units"):
        preset("small").replace(units=3)


@pytest.mark.parametrize(
    "values",
    [
        {"corpus": "wikipedia"},
        {"corpus": "pydoc", "path": "x"},
        {"corpus": "pydoc", "level": "char"},
        {"corpus": "ptb", "path": "x", "level": "subword"},
        {"corpus": "ptb", "path": "x", "lower": True},
        {"corpus": "ptb", "path": "x", "min_count": 2},
        {"corpus": "text", "path": "x", "level": "char", "min_count": 2},
        {"corpus": "text", "path": "x", "min_count": 0},
        {"corpus": "text", "path": "x", "level": "line"},
    ],
)
def test_data_settings_that_do_not_fit_together_are_refused(values):
    with pytest.raises(InputError):
        DataConfig(**values)


@pytest.mark.parametrize("corpus", ["ptb", "text"])
def test_path_is_asked_for_when_the_text_is_read(corpus):
    with pytest.raises(InputError, match=f"path must be given for corpus {corpus}"):
        DataConfig(corpus).load()


def test_settings_in_the_guide_are_settings():
    guide = (Path(__file__).parents[2] / "docs" / "language_models.md").read_text()
    (block,) = re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)
    tables = parse_toml(block)
    config = preset(tables.pop("preset")).updated(tables)
    assert config.model.hidden_sizes == (512, 256) and config.model.softmax == "adaptive"
    assert config.training.patience == 3
    named = re.findall(r"^\| (`.*?`) \|", guide.split("## Presets")[1], re.MULTILINE)
    listed = {name for row in named for name in re.findall(r"`([\w-]+)`", row)}
    families = {name.split("-")[0] for name in PRESETS}
    assert {name.split("-")[0] for name in listed if name[0] != "-"} >= families - {"test"}
