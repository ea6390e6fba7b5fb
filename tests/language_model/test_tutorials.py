"""Each preset, made tiny, learns on a piece of the tutorial's own text."""

import dataclasses
import math
from pathlib import Path

import pytest

from rnnfast.language_model import PRESETS, DataConfig, LanguageModel, fit, preset
from rnnfast.text import SPLITS, Corpus

pytestmark = pytest.mark.slow

DATA = Path(__file__).parents[3] / "shared" / "data"
PIECE = 8_000

# What makes a preset tiny: sizes and lengths alone, so that all else is the tutorial's.
TINY = {"batch_size": 8, "num_steps": 10, "epochs": 2}
LAYERS = {"stacked": (16, 8), "awd": (24, 24, 16)}


def piece(name: str) -> Corpus:
    """The corpus of a preset, of which little is kept."""
    data = preset(name).data
    if data.corpus == "pydoc":
        data = DataConfig("ptb", str(DATA / "ptb"))
    else:
        text = "quijote/quijote.txt" if "quijote" in name else "tinyshakespeare/input.txt"
        data = dataclasses.replace(data, path=str(DATA / text))
    corpus = data.load()
    parts = {split: corpus.split(split)[:PIECE] for split in SPLITS}
    return Corpus(corpus.name, corpus.vocabulary, **parts)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the data sets are not in {DATA}")
@pytest.mark.parametrize("name", PRESETS)
def test_preset_learns(name):
    config = preset(name).replace(**TINY)
    size = LAYERS.get(name, 16)
    changes = {"hidden_size": size}
    if config.model.embedding_size is not None:
        changes["embedding_size"] = size[-1] if name == "awd" else 16
    if config.training.batching == "overlapping":
        changes["stride"] = 8
    config = config.replace(**changes)
    corpus = piece(name)
    model = LanguageModel(len(corpus.vocabulary), config.model, seed=1)
    result = fit(model, corpus, config.training, show_progress=False)
    first, last = result.epochs
    uniform = len(corpus.vocabulary)
    assert last.train_loss < first.train_loss < math.log(uniform)
    assert result.test_perplexity < uniform / 2
