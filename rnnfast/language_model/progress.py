"""The progress bar of one epoch: perplexity and words per second while it trains."""

import math
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
        in_bits: whether bits per token, which are characters then, stand beside the perplexity.
        show: whether anything is drawn.
    """

    def __init__(
        self, title: str, num_windows: int, *, in_bits: bool = False, show: bool = True
    ) -> None:
        self.title = title
        self.in_bits = in_bits
        self._interval = 0.25 if sys.stderr.isatty() else 10.0
        self._bar = tqdm(
            total=num_windows,
            desc=title,
            disable=not show,
            bar_format="{percentage:3.0f}% |{bar:20}| {desc}",
            miniters=1,  # each update is drawn: they come at the interval above
            mininterval=0,
        )
        self._last = time.perf_counter()

    def update(self, done: int, nats: Tensor, num_tokens: int, words_per_second: float) -> None:
        """Take note that ``done`` windows are trained, whose targets' losses sum to ``nats``."""
        now = time.perf_counter()
        if now - self._last >= self._interval and not self._bar.disable:
            self._last = now
            self._describe(self._text(nats.item() / num_tokens), words_per_second)
            self._bar.update(done - self._bar.n)

    def finish(self, train_loss: float, valid_loss: float, words_per_second: float) -> None:
        """Fill the bar and let the epoch's losses, in nats, stand there when it is closed."""
        self._bar.n = self._bar.total
        losses = f"train {self._text(train_loss)}, valid {self._text(valid_loss)}"
        self._describe(losses, words_per_second)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()

    def __enter__(self) -> "EpochProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _text(self, mean_loss: float) -> str:
        bits = f" ({mean_loss / math.log(2):.3f} bits)" if self.in_bits else ""
        return f"{perplexity(mean_loss):.2f}{bits}"

    def _describe(self, losses: str, words_per_second: float) -> None:
        unit = "characters" if self.in_bits else "words"
        text = f"{self.title}: perplexity {losses}, {words_per_second:,.0f} {unit}/s"
        self._bar.set_description_str(text, refresh=False)
