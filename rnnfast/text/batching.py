"""How a long text becomes batches: columns read side by side in windows."""

from collections.abc import Iterator

from torch import Tensor

from .errors import InputError


class ContinuousBatches:
    r"""The text cut into ``batch_size`` columns that are read in parallel, window by window.

    This is ``ptb_producer`` of TensorFlow's PTB tutorial. Column :math:`b` is the :math:`b`-th
    piece of ``len(tokens) // batch_size`` tokens; a window is ``num_steps`` rows of all columns,
    and the targets are the same rows one step later. Window follows window, so a state carried
    from one to the next has read its column from the top.

    With 14 tokens ``a`` to ``n``, 2 columns and windows of 3 rows::

        a h | input 0        b i | target 0
        b i |                c j |
        c j |                d k |
        d k | input 1        e l | target 1
        e l |                f m |
        f m |                g n |
        g n

    Iterating gives pairs (input, target); ``len()`` is the number of windows,
    ``(len(tokens) // batch_size - 1) // num_steps``.

    Args:
        tokens: ids of the text.
        batch_size: number of columns, at least 1.
        num_steps: rows of a window, at least 1.
        keep_remainder: also give the rows that fill no whole window, as a shorter one at the end.
            The tutorial drops them, which is the default.
        name: what the text is, for messages.

    Shape:
        - tokens: ``(number of tokens)``, int64.
        - input and target: ``(num_steps, batch_size)``, int64; views of one tensor, not to be
          written to.

    Raises:
        InputError: the text is too short for one window.
    """

    def __init__(
        self,
        tokens: Tensor,
        batch_size: int,
        num_steps: int,
        *,
        keep_remainder: bool = False,
        name: str = "the text",
    ) -> None:
        for argument, value in (("batch_size", batch_size), ("num_steps", num_steps)):
            if value < 1:
                raise InputError(f"{argument} must be at least 1, got {value}")
        self.batch_size = batch_size
        self.num_steps = num_steps
        length = len(tokens) // batch_size
        needed = 1 + (1 if keep_remainder else num_steps)
        if length < needed:
            raise InputError(
                f"{name} is too short: {len(tokens)} tokens, but batch_size {batch_size} and "
                f"num_steps {num_steps} need at least {batch_size * needed}"
            )
        self._columns = tokens[: batch_size * length].view(batch_size, length).t().contiguous()
        rows = length - 1
        self._rows = rows if keep_remainder else rows // num_steps * num_steps

    def __len__(self) -> int:
        return -(-self._rows // self.num_steps)

    @property
    def num_tokens(self) -> int:
        """Number of targets in all windows together."""
        return self._rows * self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, self._rows, self.num_steps):
            end = min(start + self.num_steps, self._rows)
            yield self._columns[start:end], self._columns[start + 1 : end + 1]
