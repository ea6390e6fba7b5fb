"""The tutorials' models and how they were trained, by name."""

from ..text import SPANISH, InputError
from .config import Config, DataConfig, ModelConfig, TrainingConfig


def preset(name: str) -> Config:
    """The settings of that name, one of :data:`PRESETS`.

    Where a preset's text is the user's to give, its ``data.path`` is None.
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _tensorflow(**settings: object) -> ModelConfig:
    """With the one bias of TensorFlow's cells: a second would double the bias's learning rate."""
    return ModelConfig(single_bias=True, **settings)


def _examples(tied: bool) -> Config:
    return Config(
        model=ModelConfig(
            hidden_size=200, num_layers=2, dropout=0.2, tied=tied, init="embeddings", init_scale=0.1
        ),
        training=TrainingConfig(
            num_steps=35,
            epochs=40,
            learning_rate=20.0,
            schedule="plateau",
            lr_decay=0.25,
            max_grad_norm=0.25,
            loss_reduction="mean",
        ),
    )


def _quijote(cell: str, learning_rate: float, reset_after: bool = True) -> Config:
    return Config(
        data=DataConfig(
            corpus="text",
            level="char",
            lower=True,
            keep=SPANISH,
            # 20,480 windows of 32 tokens and their targets, the next 5,120, and 5,120 more.
            splits=((0, 20_512), (20_480, 25_632), (25_600, 30_752)),
        ),
        model=ModelConfig(
            cell=cell,
            embedding="one_hot",
            hidden_size=32,
            reset_after=reset_after,
            init="normal",
            init_scale=0.01,
        ),
        training=TrainingConfig(
            batch_size=1024,
            num_steps=32,
            epochs=11,
            batching="overlapping",
            shuffle=True,
            optimizer="adadelta",
            learning_rate=learning_rate,
            schedule="constant",
            max_grad_norm=1.0,
            loss_reduction="mean",
        ),
    )


PRESETS: dict[str, Config] = {
    "small": Config(
        model=_tensorflow(hidden_size=200, num_layers=2, dropout=0.0, init_scale=0.1),
        training=TrainingConfig(
            num_steps=20, epochs=13, decay_after=4, lr_decay=0.5, max_grad_norm=5.0
        ),
    ),
    "medium": Config(
        model=_tensorflow(hidden_size=650, num_layers=2, dropout=0.5, init_scale=0.05),
        training=TrainingConfig(
            num_steps=35, epochs=39, decay_after=6, lr_decay=0.8, max_grad_norm=5.0
        ),
    ),
    "large": Config(
        model=_tensorflow(hidden_size=1500, num_layers=2, dropout=0.65, init_scale=0.04),
        # At this rate the first steps overshoot to many times the loss of a uniform guess. From
        # some weights they come back within a hundred steps, from others not in several hundred.
        training=TrainingConfig(
            num_steps=35, epochs=55, decay_after=14, lr_decay=1 / 1.15, max_grad_norm=10.0, seed=2
        ),
    ),
    "test": Config(
        model=_tensorflow(hidden_size=2, num_layers=1, dropout=0.0, init_scale=0.1),
        training=TrainingConfig(
            num_steps=2, epochs=1, decay_after=1, lr_decay=0.5, max_grad_norm=1.0
        ),
    ),
    "stacked": Config(
        model=_tensorflow(hidden_size=(256, 128), embedding_size=200, init_scale=0.1),
        training=TrainingConfig(
            batch_size=60, num_steps=20, epochs=15, decay_after=4, lr_decay=0.5, max_grad_norm=5.0
        ),
    ),
    "examples": _examples(tied=False),
    "examples-tied": _examples(tied=True),
    "awd": Config(
        model=ModelConfig(
            hidden_size=(1150, 1150, 400),
            embedding_size=400,
            tied=True,
            init="embeddings",
            init_scale=0.1,
            input_dropout=0.4,
            hidden_dropout=0.25,
            output_dropout=0.4,
            embedding_dropout=0.1,
            weight_dropout=0.5,
            locked_dropout=True,
        ),
        training=TrainingConfig(
            num_steps=70,
            epochs=500,
            variable_length=True,
            optimizer="asgd",
            learning_rate=30.0,
            weight_decay=1.2e-6,
            schedule="constant",
            max_grad_norm=0.25,
            loss_reduction="mean",
            activation_regularization=2.0,
            temporal_activation_regularization=1.0,
            seed=141,
        ),
    ),
    "quijote-rnn": _quijote("rnn", 1.0),
    "quijote-lstm": _quijote("lstm", 4.0),
    "quijote-gru": _quijote("gru", 4.0),
    "quijote-gru-original": _quijote("gru", 4.0, reset_after=False),
    "keras": Config(
        data=DataConfig(corpus="text", level="char", splits=((0.0, 0.9), (0.9, 0.95), (0.95, 1.0))),
        model=ModelConfig(
            embedding_size=256,
            hidden_size=1024,
            single_bias=True,
            forget_bias=1.0,
            init="embeddings",
            init_scale=0.05,
        ),
        training=TrainingConfig(
            batch_size=64,
            num_steps=100,
            epochs=10,
            optimizer="adam",
            learning_rate=0.001,
            schedule="constant",
            max_grad_norm=float("inf"),
            loss_reduction="mean",
        ),
    ),
}
"""By name:

- ``small``, ``medium``, ``large`` and ``test``: TensorFlow's PTB tutorial, after Zaremba et al.
  (2014); batch 20 and learning rate 1 in each.
- ``stacked``: its notebook form with cells of unequal size.
- ``examples`` and ``examples-tied``: ``word_language_model`` of pytorch/examples.
- ``awd``: AWD-LSTM (Merity et al. 2017) for the Penn Treebank.
- ``quijote-rnn``, ``-lstm``, ``-gru`` and ``-gru-original`` (the form of the paper that introduced
  the GRU): from scratch on Don Quijote by character; with ``init="torch"`` the concise
  versions.
- ``keras``: the stateful character model of Keras' text generation.
"""
