"""How a long text becomes batches: windows of token ids, read side by side."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from .errors import InputError

Window = tuple[Tensor, Tensor]


class Batches(ABC):
    r"""A text as epochs of windows; what all classes of this file share.

    A window is a pair (input, target) of ids of ``batch_size`` rows of the batch; the target is the
    input one token later. Iterating reads epoch 0 and ``len()`` is the number of its windows;
    :meth:`epoch` reads any epoch. What is drawn at random in an epoch depends on the seed and the
    epoch's index alone, so a run that is resumed in the middle of an epoch reads what it would have
    read, and the processes of a distributed run agree.

    Only the windows that are read are taken from the text and made int64. The text itself is never
    copied or converted: it may be a memory-mapped file.

    Attributes:
        batch_size: rows of the batch (in a :meth:`shard`, of its share).
        num_steps: time steps of a window.
        carries_state: whether a window goes on where the one before it ended, so that the state is
            carried from one to the next; otherwise each window starts from a state of zeros.
        boundary: id of the token that opens a document, before which the state becomes zero, or
            None.

    Shape:
        - tokens: ``(number of tokens)``, any integer type.
        - input and target: ``(T, batch_size)``, int64, where ``T`` is ``num_steps`` unless a class
          says otherwise. Both are contiguous views of one tensor.
    """

    carries_state: bool
    boundary: int | None = None

    def __init__(
        self, tokens: Tensor, batch_size: int, num_steps: int, *, seed: int, name: str
    ) -> None:
        _require_at_least("batch_size", batch_size, 1)
        _require_at_least("num_steps", num_steps, 1)
        _require_at_least("seed", seed, 0)
        if not isinstance(tokens, Tensor):
            raise InputError(f"tokens must be a tensor of ids, got {type(tokens).__name__}")
        is_integer = not (tokens.is_floating_point() or tokens.is_complex())
        if tokens.dim() != 1 or tokens.dtype == torch.bool or not is_integer:
            raise InputError(
                "tokens must be a tensor of integers with one dimension, got "
                f"{tokens.dtype} with shape {tuple(tokens.shape)}"
            )
        self.batch_size = batch_size
        self.num_steps = num_steps
        self._tokens = tokens
        self._seed = seed
        self._name = name
        self._rank = 0
        self._world_size = 1

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Number of targets in all windows of an epoch together, the same in every epoch."""

    @abstractmethod
    def windows_in(self, index: int) -> int:
        """Number of windows in epoch ``index``."""

    @abstractmethod
    def _windows(self, index: int, start: int) -> Iterator[Window]:
        """The windows of an epoch from window ``start`` on; both numbers are valid."""

    def __len__(self) -> int:
        return self.windows_in(0)

    def __iter__(self) -> Iterator[Window]:
        return self.epoch(0)

    def epoch(self, index: int, start: int = 0) -> Iterator[Window]:
        """The windows of one epoch, always the same for the same index.

        Args:
            index: which epoch, from 0.
            start: number of windows to leave out at its beginning, at most :meth:`windows_in`.

        Raises:
            InputError: there is no such epoch or window.
        """
        windows = self.windows_in(index)
        _require_at_least("start", start, 0)
        if start > windows:
            raise InputError(
                f"start must be at most the {windows} windows of epoch {index}, got {start}"
            )
        return self._windows(index, start)

    def shard(self, rank: int, world_size: int) -> "Batches":
        """The share of one of several processes, which together read what one process reads.

        Each process takes a block of rows of every window: the inputs of all ranks, side by side,
        are the input here. ``batch_size`` and ``num_tokens`` of the result are those of the share.

        Args:
            rank: which process, from 0 to ``world_size - 1``.
            world_size: number of processes, which must divide the batch.

        Raises:
            InputError: there is no such rank, or the batch cannot be divided.
        """
        _require_at_least("world_size", world_size, 1)
        if not isinstance(rank, Integral) or not 0 <= rank < world_size:
            raise InputError(f"rank must be an integer from 0 to {world_size - 1}, got {rank}")
        if self.batch_size % world_size:
            raise InputError(
                f"batch_size must be a multiple of world_size, got batch_size {self.batch_size} "
                f"and world_size {world_size}"
            )
        part = copy.copy(self)
        part.batch_size = self.batch_size // world_size
        part._rank = self._rank * world_size + rank
        part._world_size = self._world_size * world_size
        return part

    def resets(self, input: Tensor) -> Tensor | None:
        """Where the state is to be zero before a token is read: at the first of each document.

        Args:
            input: the input of a window.

        Returns:
            ``input == boundary``, bool, with the shape of the input; None without a boundary.
        """
        return None if self.boundary is None else input == self.boundary

    def _generator(self, index: int) -> np.random.Generator:
        _require_at_least("index", index, 0)
        return np.random.default_rng((self._seed, index))

    def _require_length(self, needed: int, spacing: str = "") -> None:
        if len(self._tokens) < needed:
            raise InputError(
                f"{self._name} is too short: {len(self._tokens)} tokens, but batch_size "
                f"{self.batch_size} and num_steps {self.num_steps}{spacing} need at least {needed}"
            )


class ContinuousBatches(Batches):
    r"""The text cut into ``batch_size`` columns that are read in parallel, window by window.

    This is ``ptb_producer`` of TensorFlow's PTB tutorial. Column :math:`b` is the :math:`b`-th
    piece of ``len(tokens) // batch_size`` tokens; a window is ``num_steps`` rows of all columns,
    and the targets are the same rows one step later. Window follows window, so a state carried
    from one to the next has read its column from the top.

    The 14 tokens ``a`` to ``n`` in 2 columns and windows of 3 rows::

        input 0   target 0   input 1   target 1
        a h       b i        d k       e l
        b i       c j        e l       f m
        c j       d k        f m       g n

    The number of windows is ``(len(tokens) // batch_size - 1) // num_steps``.

    With ``random_offset`` the windows' borders fall elsewhere in each epoch: up to
    ``num_steps - 1`` tokens are left out at the beginning, as many as are drawn. The columns are
    as long in every epoch, so what is not left out at the beginning is left out at the end. The 16
    tokens ``a`` to ``p`` in an epoch that leaves out one::

        input 0   target 0   input 1   target 1
        b i       c j        e l       f m
        c j       d k        f m       g n
        d k       e l        g n       h o

    With ``variable_length`` each window draws its length, as AWD-LSTM does (Merity, Keskar, Socher,
    "Regularizing and Optimizing LSTM Language Models", 2017, section 4.1): a base of ``num_steps``
    with probability 0.95, else of half of it; then a normal draw around the base with standard
    deviation 5, rounded. It is at least 5, and at most ``num_steps + 20``, four deviations above
    the base, which bounds the memory. Windows still follow each other without gap or overlap, the
    last one is cut to what is left, and epochs differ in their number of windows. One column of 14
    tokens, ``num_steps`` 6, in an epoch that draws 7, 5 and more than the last row::

        input 0   target 0   input 1   target 1   input 2   target 2
        a         b          h         i          m         n
        b         c          i         j
        c         d          j         k
        d         e          k         l
        e         f          l         m
        f         g
        g         h

    The paper also scales a step's learning rate by the window's length, ``len(input) / num_steps``:
    that is the training loop's part.

    Args:
        tokens: ids of the text.
        batch_size: number of columns, at least 1.
        num_steps: rows of a window, at least 1.
        keep_remainder: also give the rows that fill no whole window, as a shorter one at the end.
            The tutorial drops them, which is the default; ``variable_length`` always keeps them.
        random_offset: leave out a random number of tokens at the beginning, as far as at least one
            window remains.
        variable_length: draw each window's length around ``num_steps``.
        boundary: id of the token that opens a document, for :meth:`resets`.
        seed: of the random draws, at least 0.
        name: what the text is, for messages.

    Raises:
        InputError: an argument is out of its range, or the text too short for one window.
    """

    carries_state = True

    def __init__(
        self,
        tokens: Tensor,
        batch_size: int,
        num_steps: int,
        *,
        keep_remainder: bool = False,
        random_offset: bool = False,
        variable_length: bool = False,
        boundary: int | None = None,
        seed: int = 0,
        name: str = "the text",
    ) -> None:
        super().__init__(tokens, batch_size, num_steps, seed=seed, name=name)
        if boundary is not None:
            _require_at_least("boundary", boundary, 0)
        self.boundary = boundary
        self._variable_length = variable_length
        may_end_short = keep_remainder or variable_length
        needed = batch_size * (1 + (1 if may_end_short else num_steps))
        self._require_length(needed)
        self._largest_offset = min(num_steps - 1, len(tokens) - needed) if random_offset else 0
        self._column_length = (len(tokens) - self._largest_offset) // batch_size
        rows = self._column_length - 1
        self._num_rows = rows if may_end_short else rows // num_steps * num_steps

    @property
    def num_tokens(self) -> int:
        return self._num_rows * self.batch_size

    def windows_in(self, index: int) -> int:
        return len(self._plan(index)[1])

    def _windows(self, index: int, start: int) -> Iterator[Window]:
        offset, first_rows = self._plan(index)
        num_columns = self.batch_size * self._world_size
        text = self._tokens[offset : offset + num_columns * self._column_length]
        own = slice(self._rank * self.batch_size, (self._rank + 1) * self.batch_size)
        columns = text.view(num_columns, self._column_length)[own].t()
        for first, end in pairwise(chain(first_rows[start:], (self._num_rows,))):
            yield _window(columns[first : end + 1])

    def _plan(self, index: int) -> tuple[int, Sequence[int]]:
        """What an epoch draws: the tokens left out, and the first row of each window."""
        generator = self._generator(index)
        offset = int(generator.integers(self._largest_offset, endpoint=True))
        if not self._variable_length:
            return offset, range(0, self._num_rows, self.num_steps)
        lengths = np.empty(0, np.int64)
        while lengths.sum() < self._num_rows:
            is_full = generator.random(1 + self._num_rows // self.num_steps) < _FULL_BASE
            drawn = generator.normal(np.where(is_full, self.num_steps, self.num_steps / 2), _SPREAD)
            drawn = drawn.round().clip(_SHORTEST, self.num_steps + 4 * _SPREAD)
            lengths = np.append(lengths, drawn.astype(np.int64))
        first_rows = lengths.cumsum() - lengths
        return offset, first_rows[first_rows < self._num_rows].tolist()


class _SeparateWindows(Batches):
    """Windows that begin every ``stride`` tokens, each read from a state of zeros."""

    carries_state = False

    def __init__(
        self,
        tokens: Tensor,
        batch_size: int,
        num_steps: int,
        *,
        stride: int,
        shuffle: bool,
        random_offset: bool,
        keep_remainder: bool,
        seed: int,
        name: str,
    ) -> None:
        super().__init__(tokens, batch_size, num_steps, seed=seed, name=name)
        _require_at_least("stride", stride, 1)
        self._shuffle = shuffle
        needed = ((1 if keep_remainder else batch_size) - 1) * stride + num_steps + 1
        self._require_length(needed, f" at stride {stride}" if stride != num_steps else "")
        # A longer one leaves a single window too, and may be more than numpy's integers hold.
        stride = self._stride = min(stride, len(tokens))
        self._largest_offset = min(stride - 1, len(tokens) - needed) if random_offset else 0
        self._num_candidates = 1 + (len(tokens) - self._largest_offset - num_steps - 1) // stride
        dropped = 0 if keep_remainder else self._num_candidates % batch_size
        self._num_read = self._num_candidates - dropped

    @property
    def num_tokens(self) -> int:
        return self._num_read // self._world_size * self.num_steps

    def windows_in(self, index: int) -> int:
        _require_at_least("index", index, 0)
        return -(-self._num_read // (self.batch_size * self._world_size))

    def shard(self, rank: int, world_size: int) -> Batches:
        part = super().shard(rank, world_size)
        remainder = self._num_read // self._world_size % self.batch_size
        if remainder % world_size:
            raise InputError(
                f"the last batch must be a multiple of world_size, got {remainder} windows and "
                f"world_size {world_size}; without keep_remainder it is left out"
            )
        return part

    def _windows(self, index: int, start: int) -> Iterator[Window]:
        generator = self._generator(index)
        offset = int(generator.integers(self._largest_offset, endpoint=True))
        order = generator.permutation(self._num_candidates) if self._shuffle else None
        text = self._tokens.unfold(0, self.num_steps + 1, 1)
        whole = self.batch_size * self._world_size
        for first in range(start * whole, self._num_read, whole):
            size = min(whole, self._num_read - first) // self._world_size
            own = slice(first + self._rank * size, first + (self._rank + 1) * size)
            numbers = np.arange(own.start, own.stop) if order is None else order[own]
            yield _window(text[torch.from_numpy(offset + numbers * self._stride)].t())


class RandomWindows(_SeparateWindows):
    r"""The text cut into windows that follow each other, read in random order.

    Each epoch leaves out a random number of tokens at the beginning, 0 to ``num_steps - 1`` (as far
    as one batch remains), cuts the rest into windows without gap or overlap, and reads these in
    random order, ``batch_size`` at a time and each from a state of zeros. An epoch reads no token
    twice. It leaves out at most ``2 * num_steps - 2`` tokens at the two ends of the text together,
    so that epochs are equally long, and the windows that fill no batch, others in each epoch.

    The 15 tokens ``a`` to ``o``, 2 windows of 3 steps in a batch, in an epoch that leaves out
    ``a``::

        input 0   target 0   input 1   target 1
        h b       i c        k e       l f
        i c       j d        l f       m g
        j d       k e        m g       n h

    The order is held in memory while an epoch is read, 8 bytes for a window.

    Args:
        tokens: ids of the text.
        batch_size: number of windows in a batch, at least 1.
        num_steps: time steps of a window, at least 1.
        seed: of the offset and the order, at least 0.
        name: what the text is, for messages.

    Raises:
        InputError: an argument is out of its range, or the text too short for one batch.
    """

    def __init__(
        self,
        tokens: Tensor,
        batch_size: int,
        num_steps: int,
        *,
        seed: int = 0,
        name: str = "the text",
    ) -> None:
        super().__init__(
            tokens,
            batch_size,
            num_steps,
            stride=num_steps,
            shuffle=True,
            random_offset=True,
            keep_remainder=False,
            seed=seed,
            name=name,
        )


class OverlappingWindows(_SeparateWindows):
    r"""All windows of the text that begin ``stride`` tokens apart, each from a state of zeros.

    With a stride of 1 this is the batching of tutorials that write a network from scratch: a text
    of ``num_windows + num_steps`` tokens gives ``num_windows`` windows, and nearly every token is
    read ``num_steps`` times in an epoch.

    The 7 tokens ``a`` to ``g``, 2 windows of 3 steps in a batch::

        input 0   target 0   input 1   target 1
        a b       b c        c d       d e
        b c       c d        d e       e f
        c d       d e        e f       f g

    Args:
        tokens: ids of the text.
        batch_size: number of windows in a batch, at least 1.
        num_steps: time steps of a window, at least 1.
        stride: distance from the beginning of one window to that of the next, at least 1.
        shuffle: whether to read the windows in random order, another one in each epoch, which is
            held in memory meanwhile, 8 bytes for a window. Otherwise they are read as they stand.
        keep_remainder: also give the windows that fill no whole batch, as a smaller one at the end;
            who averages over windows has to weigh by ``input.size(1)``.
        seed: of the order, at least 0.
        name: what the text is, for messages.

    Raises:
        InputError: an argument is out of its range, or the text too short for one batch.
    """

    def __init__(
        self,
        tokens: Tensor,
        batch_size: int,
        num_steps: int,
        *,
        stride: int = 1,
        shuffle: bool = False,
        keep_remainder: bool = False,
        seed: int = 0,
        name: str = "the text",
    ) -> None:
        super().__init__(
            tokens,
            batch_size,
            num_steps,
            stride=stride,
            shuffle=shuffle,
            random_offset=False,
            keep_remainder=keep_remainder,
            seed=seed,
            name=name,
        )


# AWD-LSTM's window lengths: how often the base is all of num_steps, the standard deviation around
# the base, and the least length.
_FULL_BASE = 0.95
_SPREAD = 5
_SHORTEST = 5


def _window(rows: Tensor) -> Window:
    """Input and target of ``T + 1`` rows ``(T + 1, batch_size)`` of the text, made int64."""
    rows = rows.to(torch.int64, memory_format=torch.contiguous_format, copy=True)
    return rows[:-1], rows[1:]


def _require_at_least(argument: str, value: int, least: int) -> None:
    if not isinstance(value, Integral) or value < least:
        raise InputError(f"{argument} must be an integer of at least {least}, got {value}")
