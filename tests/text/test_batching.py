"""Batches against pictures written by hand, and what holds for every text and size."""

import inspect
import os
from itertools import islice, permutations, zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnfast.text import Batches, ContinuousBatches, InputError, OverlappingWindows, RandomWindows

CONTINUOUS = """\
input 0   target 0   input 1   target 1
a h       b i        d k       e l
b i       c j        e l       f m
c j       d k        f m       g n
"""

OFFSET_BY_ONE = """\
input 0   target 0   input 1   target 1
b i       c j        e l       f m
c j       d k        f m       g n
d k       e l        g n       h o
"""

LENGTHS_7_5_REST = """\
input 0   target 0   input 1   target 1   input 2   target 2
a         b          h         i          m         n
b         c          i         j
c         d          j         k
d         e          k         l
e         f          l         m
f         g
g         h
"""

RANDOM = """\
input 0   target 0   input 1   target 1
h b       i c        k e       l f
i c       j d        l f       m g
j d       k e        m g       n h
"""

OVERLAPPING = """\
input 0   target 0   input 1   target 1
a b       b c        c d       d e
b c       c d        d e       e f
c d       d e        e f       f g
"""


def text(number: int) -> torch.Tensor:
    """The ids of as many letters, the first of which is a."""
    return torch.arange(number)


def picture(windows) -> str:
    """Windows as they are drawn in the docstrings: one under the other what follows in time."""
    columns = []
    for number, (input, target) in enumerate(windows):
        for title, ids in ((f"input {number}", input), (f"target {number}", target)):
            rows = [" ".join(chr(ord("a") + id) for id in row) for row in ids.tolist()]
            width = max(map(len, [title, *rows]))
            columns.append([line.ljust(width) for line in [title, *rows]])
    lines = zip_longest(*columns)
    empty = [" " * len(column[0]) for column in columns]
    padded = ([cell or gap for cell, gap in zip(line, empty, strict=True)] for line in lines)
    return "".join("   ".join(line).rstrip() + "\n" for line in padded)


def listed(windows):
    return [(input.tolist(), target.tolist()) for input, target in windows]


def stands_in_docstring(drawn: str, batches: type[Batches]) -> bool:
    return "\n".join("    " + line for line in drawn.splitlines()) in inspect.getdoc(batches)


def test_picture_of_continuous_batches():
    # o fills no row of two columns and is left out.
    batches = ContinuousBatches(text(15), batch_size=2, num_steps=3)
    assert picture(batches) == CONTINUOUS
    assert stands_in_docstring(CONTINUOUS, ContinuousBatches)
    assert batches.carries_state
    assert (len(batches), batches.num_tokens) == (2, 12)


def test_picture_of_a_random_offset():
    batches = ContinuousBatches(text(16), batch_size=2, num_steps=3, random_offset=True)
    drawn = [picture(batches.epoch(index)) for index in range(100)]
    assert OFFSET_BY_ONE in drawn
    assert stands_in_docstring(OFFSET_BY_ONE, ContinuousBatches)
    # None, one or two tokens are left out, never a whole window's three.
    assert CONTINUOUS in drawn
    assert len(set(drawn)) == 3
    assert {lines.splitlines()[1][0] for lines in drawn} == {"a", "b", "c"}


def test_picture_of_variable_lengths():
    batches = ContinuousBatches(text(14), batch_size=1, num_steps=6, variable_length=True)
    assert LENGTHS_7_5_REST in (picture(batches.epoch(index)) for index in range(1000))
    assert stands_in_docstring(LENGTHS_7_5_REST, ContinuousBatches)


def test_picture_of_random_windows():
    # 15 letters hold four windows behind an offset of at most two, so an epoch is one of 3 · 4!.
    batches = RandomWindows(text(15), batch_size=2, num_steps=3)
    drawn = {picture(batches.epoch(index)) for index in range(1000)}
    assert RANDOM in drawn
    assert stands_in_docstring(RANDOM, RandomWindows)
    letters = [chr(ord("a") + id) for id in range(15)]
    possible = set()
    for offset in range(3):
        for first in permutations(range(offset, offset + 12, 3)):
            starts = [[letters[s + t] for s in first] for t in range(4)]
            rows = ["input 0   target 0   input 1   target 1"]
            for now, then in zip(starts[:-1], starts[1:], strict=True):
                rows.append(
                    f"{now[0]} {now[1]}       {then[0]} {then[1]}        "
                    f"{now[2]} {now[3]}       {then[2]} {then[3]}"
                )
            possible.add("\n".join(rows) + "\n")
    assert len(possible) == 72
    assert drawn == possible
    assert not batches.carries_state
    assert (len(batches), batches.num_tokens) == (2, 12)


def test_picture_of_overlapping_windows():
    batches = OverlappingWindows(text(7), batch_size=2, num_steps=3)
    assert picture(batches) == OVERLAPPING
    assert stands_in_docstring(OVERLAPPING, OverlappingWindows)
    assert not batches.carries_state
    assert (len(batches), batches.num_tokens) == (2, 12)


def test_a_stride_beyond_any_text_leaves_one_window():
    for stride in (12, 2**70):
        ((input, target),) = OverlappingWindows(text(12), 1, 3, stride=stride)
        assert (input.flatten().tolist(), target.flatten().tolist()) == ([0, 1, 2], [1, 2, 3])


def test_overlapping_windows_with_a_stride_and_a_remainder():
    # Windows begin at 0, 2, 4, 6 and 8; the fifth fills no batch of two.
    dropped = OverlappingWindows(text(12), batch_size=2, num_steps=3, stride=2)
    first = ([[0, 2], [1, 3], [2, 4]], [[1, 3], [2, 4], [3, 5]])
    second = ([[4, 6], [5, 7], [6, 8]], [[5, 7], [6, 8], [7, 9]])
    assert listed(dropped) == [first, second]
    kept = OverlappingWindows(text(12), batch_size=2, num_steps=3, stride=2, keep_remainder=True)
    assert listed(kept) == [first, second, ([[8], [9], [10]], [[9], [10], [11]])]
    assert (len(dropped), dropped.num_tokens) == (2, 12)
    assert (len(kept), kept.num_tokens) == (3, 15)


def test_shuffled_overlapping_windows_are_the_same_in_another_order():
    kwargs = {"batch_size": 2, "num_steps": 3, "keep_remainder": True}
    in_order = OverlappingWindows(text(40), **kwargs)
    shuffled = OverlappingWindows(text(40), shuffle=True, **kwargs)

    def starts(windows):
        return [start for input, _ in windows for start in input[0].tolist()]

    assert starts(in_order) == list(range(37))
    assert listed(in_order.epoch(1)) == listed(in_order.epoch(0))
    assert sorted(starts(shuffled)) == starts(in_order)
    assert starts(shuffled.epoch(1)) != starts(shuffled.epoch(0)) != starts(in_order)


def test_rows_that_fill_no_window_are_dropped_or_kept():
    dropped = ContinuousBatches(text(6), batch_size=1, num_steps=3)
    assert listed(dropped) == [([[0], [1], [2]], [[1], [2], [3]])]
    kept = ContinuousBatches(text(6), batch_size=1, num_steps=3, keep_remainder=True)
    assert listed(kept) == [([[0], [1], [2]], [[1], [2], [3]]), ([[3], [4]], [[4], [5]])]
    assert (len(kept), kept.num_tokens) == (2, 5)


@pytest.mark.parametrize("length", range(40, 100, 7))
def test_number_of_windows_is_the_tutorials(length):
    batches = ContinuousBatches(text(length), batch_size=4, num_steps=3)
    assert len(batches) == len(list(batches)) == (length // 4 - 1) // 3
    assert batches.num_tokens == 4 * 3 * len(batches)


def test_boundary_resets_before_the_token_that_opens_a_document():
    document = torch.tensor([9, 1, 2, 9, 3, 4, 5, 9, 6, 7, 8])
    batches = ContinuousBatches(document, batch_size=2, num_steps=2, boundary=9)
    inputs = [input for input, _ in batches]
    assert [input.tolist() for input in inputs] == [[[9, 4], [1, 5]], [[2, 9], [9, 6]]]
    resets = [batches.resets(input) for input in inputs]
    assert [reset.tolist() for reset in resets] == [
        [[True, False], [False, False]],
        [[False, True], [True, False]],
    ]
    assert resets[0].dtype == torch.bool
    for without in (ContinuousBatches(document, 2, 2), RandomWindows(document, 2, 2)):
        assert without.boundary is None
        assert without.resets(inputs[0]) is None


def test_variable_lengths_are_drawn_as_published():
    batches = ContinuousBatches(text(1_400_000), batch_size=1, num_steps=70, variable_length=True)
    lengths = np.array([len(input) for input, _ in batches])[:-1]
    assert lengths.min() >= 5 and lengths.max() <= 90
    # Between the two bases, 7 standard deviations from each, the share of the half base shows.
    is_half = lengths < 52
    number = len(lengths)
    assert is_half.mean() == pytest.approx(0.05, abs=5 * (0.05 * 0.95 / number) ** 0.5)
    for base, drawn in ((70, lengths[~is_half]), (35, lengths[is_half])):
        assert drawn.mean() == pytest.approx(base, abs=5 * 5 / len(drawn) ** 0.5)
        # Rounding adds 1/12 to the variance of 25.
        spread = (25 + 1 / 12) ** 0.5
        assert drawn.std() == pytest.approx(spread, abs=5 * spread / (2 * len(drawn)) ** 0.5)


def test_short_variable_lengths_are_five():
    batches = ContinuousBatches(text(2001), batch_size=1, num_steps=1, variable_length=True)
    lengths = [len(input) for input, _ in batches][:-1]
    assert min(lengths) == 5
    assert max(lengths) <= 21


# Every way to build batches, by name. The seed is an argument of all of them.
KINDS = {
    "continuous": ContinuousBatches,
    "remainder": lambda *sizes, **k: ContinuousBatches(*sizes, keep_remainder=True, **k),
    "offset": lambda *sizes, **k: ContinuousBatches(*sizes, random_offset=True, **k),
    "variable": lambda *sizes, **k: ContinuousBatches(
        *sizes, random_offset=True, variable_length=True, **k
    ),
    "random": RandomWindows,
    "overlapping": OverlappingWindows,
    "stride": lambda *sizes, **k: OverlappingWindows(
        *sizes, stride=2, shuffle=True, keep_remainder=True, **k
    ),
}
every_kind = pytest.mark.parametrize("new", KINDS.values(), ids=KINDS)
a_few = settings(max_examples=30, deadline=None)


@st.composite
def sizes(draw, multiple_of: int = 1):
    """Number of tokens, batch_size and num_steps of which some text is long enough for a batch."""
    batch_size = multiple_of * draw(st.integers(1, 4))
    num_steps = draw(st.integers(1, 12))
    needed = batch_size * (num_steps + 1) + 1
    return draw(st.integers(needed, needed + 150)), batch_size, num_steps


@every_kind
@given(sizes(), st.integers(0, 5), st.integers(0, 2**63), st.data())
@a_few
def test_an_epoch_is_a_function_of_seed_and_index(new, size, index, seed, data):
    number, *rest = size
    batches = new(text(number), *rest, seed=seed)
    windows = listed(batches.epoch(index))
    assert len(windows) == batches.windows_in(index) > 0
    assert listed(new(text(number), *rest, seed=seed).epoch(index)) == windows
    start = data.draw(st.integers(0, len(windows)))
    assert listed(batches.epoch(index, start)) == windows[start:]
    assert len(batches) == batches.windows_in(0)
    assert listed(batches) == listed(batches.epoch(0))


@every_kind
@given(sizes(), st.integers(0, 5))
@a_few
def test_windows_are_what_they_say(new, size, index):
    number, batch_size, num_steps = size
    batches = new(text(number), batch_size, num_steps)
    assert (batches.batch_size, batches.num_steps) == (batch_size, num_steps)
    count = 0
    for input, target in batches.epoch(index):
        for ids in (input, target):
            assert ids.dtype == torch.int64 and ids.is_contiguous()
        # The text counts from 0, so the next token is one more.
        assert torch.equal(target, input + 1)
        assert torch.equal(input, input[0] + torch.arange(len(input))[:, None])
        count += target.numel()
    assert count == batches.num_tokens


@pytest.mark.parametrize("kind", ["continuous", "remainder", "offset", "variable"])
@given(sizes(), st.integers(0, 5))
@a_few
def test_each_row_of_the_columns_is_read_once_and_in_order(kind, size, index):
    number, batch_size, num_steps = size
    batches = KINDS[kind](text(number), batch_size, num_steps)
    windows = list(batches.epoch(index))
    targets = torch.cat([target for _, target in windows])
    offset = int(targets[0, 0]) - 1
    random = kind in ("offset", "variable")
    assert 0 <= offset <= (num_steps - 1 if random else 0)
    length = len(targets)
    assert torch.equal(targets, targets[0] + torch.arange(length)[:, None])
    # One column begins where the one before it ends, up to rows that fill no window.
    spacing = set((targets[0, 1:] - targets[0, :-1]).tolist())
    tail = num_steps if kind in ("continuous", "offset") else 1
    assert all(length < distance <= length + tail for distance in spacing)
    assert len(spacing) <= 1
    # What is left out: the offset's range, less than a row, and less than a window in each column.
    assert batch_size * (length + tail) > number - (num_steps - 1 if random else 0) - batch_size
    if kind != "variable":
        assert all(len(input) == num_steps for input, _ in windows[:-1])


@given(sizes(), st.integers(0, 5))
@a_few
def test_random_windows_are_next_to_each_other_and_read_once(size, index):
    number, batch_size, num_steps = size
    batches = RandomWindows(text(number), batch_size, num_steps)
    starts = torch.cat([input[0] for input, _ in batches.epoch(index)]).sort().values
    distances = starts.diff()
    assert (distances % num_steps == 0).all() and (distances > 0).all()
    fitting = (number - num_steps) // num_steps
    assert len(starts) >= max(1, fitting // batch_size) * batch_size
    assert starts[-1] + num_steps < number


@every_kind
@given(sizes(multiple_of=4), st.integers(0, 3), st.sampled_from([1, 2, 4]))
@a_few
def test_shards_together_are_the_whole(new, size, index, world_size):
    number, batch_size, num_steps = size
    if new is KINDS["stride"]:  # keeps the remainder, which has to be divisible as well
        number -= (1 + (number - num_steps - 1) // 2) % 4 * 2
    batches = new(text(number), batch_size, num_steps, seed=3)
    parts = [batches.shard(rank, world_size) for rank in range(world_size)]
    assert {part.batch_size for part in parts} == {batch_size // world_size}
    assert sum(part.num_tokens for part in parts) == batches.num_tokens
    whole = list(batches.epoch(index))
    assert {part.windows_in(index) for part in parts} == {len(whole)}
    epochs = (part.epoch(index) for part in parts)
    for (input, target), *shares in zip(whole, *epochs, strict=True):
        assert torch.equal(torch.cat([share[0] for share in shares], dim=1), input)
        assert torch.equal(torch.cat([share[1] for share in shares], dim=1), target)


@every_kind
def test_a_shard_of_a_shard_is_a_shard(new):
    batches = new(text(202), 8, 3)
    again = batches.shard(1, 2).shard(0, 2)
    assert listed(again.epoch(1)) == listed(batches.shard(2, 4).epoch(1))
    assert (again.batch_size, again.num_tokens) == (2, batches.num_tokens // 4)


@pytest.mark.parametrize("kind", ["variable", "random", "stride"])
def test_epochs_and_seeds_differ(kind):
    epochs = [
        str(listed(KINDS[kind](text(500), 2, 7, seed=seed).epoch(index)))
        for seed in (0, 1)
        for index in (0, 1, 2)
    ]
    assert len(set(epochs)) == len(epochs)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32]
)
@every_kind
def test_any_integer_type_gives_the_same_windows(new, dtype):
    ids = np.random.default_rng(0).integers(torch.iinfo(dtype).max, size=300, endpoint=True)
    expected = listed(new(torch.tensor(ids), 4, 5).epoch(1))
    assert listed(new(torch.tensor(ids).to(dtype), 4, 5).epoch(1)) == expected
    strided = torch.tensor(ids.repeat(2)).to(dtype)[::2]
    assert listed(new(strided, 4, 5).epoch(1)) == expected


@pytest.mark.parametrize("kind", ["continuous", "remainder", "offset", "overlapping"])
def test_a_large_file_is_read_as_far_as_needed(kind, tmp_path):
    # A file of 8 GB of zeros that has no blocks on disk, mapped to memory.
    path = tmp_path / "tokens"
    number = 2**32
    with path.open("wb") as file:
        file.truncate(2 * number)
    tokens = torch.from_file(str(path), shared=True, size=number, dtype=torch.uint16)
    before = resident_bytes()
    windows = KINDS[kind](tokens, 4, 5).epoch(1)
    for input, target in islice(windows, 100):
        assert not input.any() and not target.any()
    assert resident_bytes() - before < 2**26


def resident_bytes() -> int:
    """Memory of this process, the pages of mapped files that it has touched among it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def test_text_too_short_for_a_batch_is_refused():
    ContinuousBatches(text(80), batch_size=20, num_steps=3)
    with pytest.raises(
        InputError, match="my text is too short: 79 tokens, .*batch_size 20 .*num_steps 3 .*80"
    ):
        ContinuousBatches(text(79), batch_size=20, num_steps=3, name="my text")
    for option in ("keep_remainder", "variable_length"):
        ContinuousBatches(text(2), batch_size=1, num_steps=9, **{option: True})
        with pytest.raises(InputError, match="1 tokens.*need at least 2"):
            ContinuousBatches(text(1), batch_size=1, num_steps=9, **{option: True})


@pytest.mark.parametrize(
    ("new", "needed"),
    [
        (RandomWindows, 13),
        (OverlappingWindows, 7),
        (lambda *sizes, **k: OverlappingWindows(*sizes, stride=5, **k), 19),
        (lambda *sizes, **k: OverlappingWindows(*sizes, stride=5, keep_remainder=True, **k), 4),
    ],
)
def test_text_too_short_for_a_batch_of_windows_is_refused(new, needed):
    assert len(new(text(needed), 4, 3)) == 1
    with pytest.raises(
        InputError, match=f"poem is too short: .*batch_size 4 .*num_steps 3.* at least {needed}$"
    ):
        new(text(needed - 1), 4, 3, name="poem")


def test_an_offset_leaves_one_window():
    for number in (14, 15, 16, 17):
        batches = ContinuousBatches(text(number), batch_size=2, num_steps=6, random_offset=True)
        for index in range(20):
            assert [input.shape for input, _ in batches.epoch(index)] == [(6, 2)]


@every_kind
@pytest.mark.parametrize("value", [0, 1.5, "2"])
@pytest.mark.parametrize("argument", ["batch_size", "num_steps"])
def test_sizes_that_are_no_positive_integers_are_refused(new, argument, value):
    sizes = {"batch_size": 2, "num_steps": 2, argument: value}
    with pytest.raises(
        InputError, match=f"{argument} must be an integer of at least 1, got {value}"
    ):
        new(text(50), sizes["batch_size"], sizes["num_steps"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: OverlappingWindows(text(50), 2, 2, stride=0), "stride must .* 1, got 0"),
        (lambda b: RandomWindows(text(50), 2, 2, seed=-1), "seed must .* 0, got -1"),
        (lambda b: ContinuousBatches(text(50), 2, 2, boundary=-1), "boundary must .* 0, got -1"),
        (lambda b: RandomWindows([1, 2, 3], 1, 1), "tokens must be a tensor of ids, got list"),
        (lambda b: RandomWindows(torch.ones(9), 1, 1), "tokens must .*float32 with shape .9,"),
        (lambda b: RandomWindows(text(8).view(2, 4), 1, 1), "tokens must .*int64 with shape .2, 4"),
        (lambda b: b.epoch(-1), "index must .* 0, got -1"),
        (lambda b: b.windows_in(-1), "index must .* 0, got -1"),
        (lambda b: b.epoch(0, -1), "start must .* 0, got -1"),
        (lambda b: b.epoch(0, 9), "start must be at most the [78] windows of epoch 0, got 9"),
        (lambda b: b.shard(0, 0), "world_size must .* 1, got 0"),
        (lambda b: b.shard(2, 2), "rank must be an integer from 0 to 1, got 2"),
        (lambda b: b.shard(-1, 2), "rank must be an integer from 0 to 1, got -1"),
        (lambda b: b.shard(0, 4), "batch_size must .* batch_size 6 and world_size 4"),
    ],
)
@pytest.mark.parametrize("new", [ContinuousBatches, RandomWindows])
def test_bad_arguments_are_refused(new, call, message):
    batches = new(text(50), 6, 1)
    with pytest.raises(InputError, match=message):
        call(batches)


def test_a_last_batch_that_cannot_be_divided_is_refused():
    batches = OverlappingWindows(text(10), 4, 3, keep_remainder=True)
    assert [input.size(1) for input, _ in batches] == [4, 3]
    with pytest.raises(InputError, match="last batch must .* got 3 windows and world_size 2"):
        batches.shard(0, 2)
