"""The progress bar of one epoch: perplexity and words per second while it trains."""

import sys
import time

from torch import Tensor

from .evaluation import perplexity

try:
    from tqdm import tqdm
except ImportError as error:
    raise ImportError("training needs tqdm: pip install rnnfast[lm]") from error


class EpochProgress:
    """A bar on stderr that is redrawn a few times a second, or rarely where stderr is a file.

    Reading the loss is left to those moments, so that the steps between do not wait for it.

    Args:
        title: text before the numbers.
        num_windows: windows of the epoch.
        num_steps: time steps of a window.
        batch_size: columns of a window.
        show: whether anything is drawn; the words per second are counted all the same.
    """

    def __init__(
        self, title: str, num_windows: int, num_steps: int, batch_size: int, show: bool = True
    ) -> None:
        self.title = title
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.words_per_second = 0.0
        self._interval = 0.25 if sys.stderr.isatty() else 10.0
        self._bar = tqdm(
            total=num_windows,
            desc=title,
            disable=not show,
            bar_format="{percentage:3.0f}% |{bar:20}| {desc}",
            miniters=1,  # each update is drawn: they come at the interval above
            mininterval=0,
        )
        self._start = self._last = time.perf_counter()

    def update(self, done: int, loss_sum: Tensor) -> None:
        """Take note that ``done`` windows are trained, the sum of whose losses is ``loss_sum``."""
        now = time.perf_counter()
        self.words_per_second = done * self.num_steps * self.batch_size / (now - self._start)
        if now - self._last >= self._interval and not self._bar.disable:
            self._last = now
            mean_loss = loss_sum.item() / (done * self.num_steps)
            self._describe(f"perplexity {perplexity(mean_loss):.2f}")
            self._bar.update(done - self._bar.n)

    def finish(self, train_perplexity: float, valid_perplexity: float) -> None:
        """Fill the bar and let the epoch's results stand there when it is closed."""
        self._bar.n = self._bar.total
        self._describe(f"perplexity train {train_perplexity:.2f}, valid {valid_perplexity:.2f}")

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()

    def __enter__(self) -> "EpochProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _describe(self, numbers: str) -> None:
        text = f"{self.title}: {numbers}, {self.words_per_second:,.0f} words/s"
        self._bar.set_description_str(text, refresh=False)
