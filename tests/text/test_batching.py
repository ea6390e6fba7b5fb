"""Batches against pictures written by hand."""

import pytest
import torch

from rnnfast.text import ContinuousBatches, InputError


def windows(batches):
    return [(input.tolist(), target.tolist()) for input, target in batches]


def test_picture():
    # 0 ... 6 and 7 ... 13 side by side; 14 fills no row and is left out.
    tokens = torch.arange(15)
    batches = ContinuousBatches(tokens, batch_size=2, num_steps=3)
    assert len(batches) == 2
    assert batches.num_tokens == 12
    assert windows(batches) == [
        ([[0, 7], [1, 8], [2, 9]], [[1, 8], [2, 9], [3, 10]]),
        ([[3, 10], [4, 11], [5, 12]], [[4, 11], [5, 12], [6, 13]]),
    ]


def test_rows_that_fill_no_window_are_dropped_or_kept():
    tokens = torch.arange(6)
    dropped = ContinuousBatches(tokens, batch_size=1, num_steps=3)
    assert windows(dropped) == [([[0], [1], [2]], [[1], [2], [3]])]
    kept = ContinuousBatches(tokens, batch_size=1, num_steps=3, keep_remainder=True)
    assert windows(kept) == [([[0], [1], [2]], [[1], [2], [3]]), ([[3], [4]], [[4], [5]])]
    assert (len(kept), kept.num_tokens) == (2, 5)


@pytest.mark.parametrize("length", range(40, 100, 7))
def test_number_of_windows_is_the_tutorials(length):
    batches = ContinuousBatches(torch.arange(length), batch_size=4, num_steps=3)
    assert len(batches) == len(windows(batches)) == (length // 4 - 1) // 3
    assert batches.num_tokens == 4 * 3 * len(batches)


def test_each_pass_is_the_same():
    batches = ContinuousBatches(torch.arange(50), batch_size=3, num_steps=4)
    assert windows(batches) == windows(batches)


def test_text_too_short_for_a_batch_is_refused():
    ContinuousBatches(torch.arange(80), batch_size=20, num_steps=3)
    with pytest.raises(
        InputError, match="my text is too short: 79 tokens, .*batch_size 20 .*num_steps 3 .*80"
    ):
        ContinuousBatches(torch.arange(79), batch_size=20, num_steps=3, name="my text")
    ContinuousBatches(torch.arange(2), batch_size=1, num_steps=9, keep_remainder=True)
    with pytest.raises(InputError, match="1 tokens.*need at least 2"):
        ContinuousBatches(torch.arange(1), batch_size=1, num_steps=9, keep_remainder=True)


@pytest.mark.parametrize("argument", ["batch_size", "num_steps"])
def test_sizes_below_one_are_refused(argument):
    sizes = {"batch_size": 2, "num_steps": 2, argument: 0}
    with pytest.raises(InputError, match=f"{argument} must be at least 1, got 0"):
        ContinuousBatches(torch.arange(50), **sizes)
