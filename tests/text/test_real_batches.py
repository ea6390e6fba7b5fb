"""Batches of the tutorials' own texts: as many as the tutorials have."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from rnnfast.text import ContinuousBatches, OverlappingWindows, load_ptb

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not (DATA / "ptb").is_dir(), reason="../shared/data/ptb is not there")
def test_an_epoch_of_ptb_small():
    tokens = load_ptb(DATA / "ptb").train
    batches = ContinuousBatches(tokens, batch_size=20, num_steps=20)
    assert len(batches) == 2323
    assert batches.num_tokens == 2323 * 20 * 20
    # A column is the 20th part of the 929,589 tokens.
    columns = torch.cat([input for input, _ in batches])
    assert torch.equal(columns.t(), tokens[: 20 * 46479].view(20, 46479)[:, : 2323 * 20])


@pytest.mark.skipif(not (DATA / "quijote").is_dir(), reason="../shared/data/quijote is not there")
def test_the_windows_of_the_quijote_tutorial():
    # 20,480 windows to train and the next 5,120 held out: 20 and 5 batches of 1,024. A window is 32
    # characters and a target, so the last one ends 32 tokens behind its beginning.
    text = (DATA / "quijote" / "quijote.txt").read_text(encoding="utf-8").lower()
    text = re.sub("[^a-záéíóúüñ]+", " ", text)
    characters, ids = np.unique(list(text[:30_000]), return_inverse=True)
    tokens = torch.from_numpy(ids)
    train = OverlappingWindows(tokens[: 20_480 + 32], batch_size=1024, num_steps=32)
    held_out = OverlappingWindows(tokens[20_480 : 25_600 + 32], batch_size=1024, num_steps=32)
    assert (len(train), len(held_out)) == (20, 5)
    first = 0
    for input, target in (*train, *held_out):
        assert input.shape == target.shape == (32, 1024)
        for column in (0, 1023):
            start = first + column
            assert "".join(characters[input[:, column]]) == text[start : start + 32]
            assert "".join(characters[target[:, column]]) == text[start + 1 : start + 33]
        first += 1024
    assert first == 25_600
