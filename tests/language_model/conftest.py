"""A tiny text that is easy to learn, and a tiny model for it."""

import pytest

from rnnfast.language_model import Config, DataConfig, preset
from rnnfast.text import Corpus


@pytest.fixture
def config(tmp_path) -> Config:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat and the dog ran to the cat\nso it is\n" * 40)
    return preset("test").replace(
        data=DataConfig("text", str(path)),
        hidden_size=16,
        num_steps=5,
        batch_size=4,
        epochs=3,
        decay_after=2,
        max_grad_norm=5.0,
        backend="torch",
    )


@pytest.fixture
def corpus(config) -> Corpus:
    return config.data.load()
