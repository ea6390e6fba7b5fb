"""The presets, the schedule, and the way to JSON and back."""

import json

import pytest

from rnnfast.language_model import PRESETS, Config, DataConfig, ModelConfig, TrainingConfig
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
    assert set(names) == set(PRESETS)
    for index, name in enumerate(names):
        model, training = PRESETS[name].model, PRESETS[name].training
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
    config = Config.preset("medium", hidden_size=100, batch_size=7, backend="torch", seed=3)
    assert config.model == ModelConfig(100, 2, 0.5, 0.05, "torch")
    assert (config.training.batch_size, config.training.seed, config.training.epochs) == (7, 3, 39)
    assert PRESETS["medium"].model.hidden_size == 650


def test_json_round_trip():
    config = Config.preset("large", DataConfig("text", "Ein Süßes.txt", "char"))
    loaded = Config.from_json(config.to_json())
    assert loaded == config
    assert loaded.fingerprint == config.fingerprint
    assert loaded.fingerprint != config.replace(seed=1).fingerprint


def test_json_that_is_no_configuration_is_refused():
    good = json.loads(Config().to_json())
    for content, message in (
        ("{", "JSON object"),
        ("[]", "keys data, model, training"),
        (json.dumps({**good, "model": {}}), "model has the keys"),
        (json.dumps({**good, "training": {**good["training"], "speed": 1}}), "training has the"),
        (json.dumps({**good, "model": {**good["model"], "hidden_size": "9"}}), "hidden_size must"),
    ):
        with pytest.raises(InputError, match=message):
            Config.from_json(content)


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
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=f"{name} must be .*, got {value!r}"):
        Config.preset("small", **{name: value})


def test_unknown_preset_and_setting_are_refused():
    with pytest.raises(InputError, match="unknown model 'huge': expected one of small, medium"):
        Config.preset("huge")
    with pytest.raises(InputError, match="unknown setting units"):
        Config.preset("small", units=3)


@pytest.mark.parametrize(
    "values",
    [
        {"corpus": "wikipedia"},
        {"corpus": "ptb"},
        {"corpus": "pydoc", "path": "x"},
        {"corpus": "ptb", "path": "x", "level": "char"},
        {"corpus": "ptb", "path": "x", "min_count": 2},
        {"corpus": "text", "path": "x", "level": "char", "min_count": 2},
        {"corpus": "text", "path": "x", "min_count": 0},
        {"corpus": "text", "path": "x", "level": "line"},
    ],
)
def test_data_settings_that_do_not_fit_together_are_refused(values):
    with pytest.raises(InputError):
        DataConfig(**values)
