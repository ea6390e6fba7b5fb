"""How a training went, as a picture: perplexity and learning rate by epoch."""

import dataclasses
import io
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .. import chart_style
from ..chart_style import COLORS, FAINT, INK
from ..text import InputError, write_atomically
from .logs import CsvLog, Number
from .results import EpochResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PathLike = str | os.PathLike
Epochs = Sequence[EpochResult] | PathLike

STYLE = {**chart_style.STYLE, "ytick.minor.size": 0}
TRAIN = {"alpha": 0.7, "linewidth": 1.3, "linestyle": (0, (3, 2))}
RING = {"marker": "o", "markersize": 10, "markerfacecolor": "none"}
FIELDS = ("epoch", "learning_rate", "train_perplexity", "valid_perplexity")


class _Curves(NamedTuple):
    """One run's columns; what is not finite is NaN."""

    name: str
    epoch: list[float]
    learning_rate: list[float]
    train_perplexity: list[float]
    valid_perplexity: list[float]

    @property
    def best(self) -> int | None:
        """Index of the epoch with the lowest validation perplexity, None where it has none."""
        known = [i for i, value in enumerate(self.valid_perplexity) if not math.isnan(value)]
        return min(known, key=self.valid_perplexity.__getitem__, default=None)


def plot_history(
    history: Epochs | Sequence[PathLike] | Mapping[str, Epochs],
    path: PathLike,
    *,
    title: str | None = None,
) -> None:
    """Draw how one training went, or several, to compare them.

    Perplexity on the training text (dashed) and on the validation text, with the best epoch marked,
    by epoch; at the right the same axis in bits per token, the loss. Below, the learning rate.

    Args:
        history: ``result.epochs`` of a training, or the file that a :class:`CsvLog` wrote; several
            such files, which are named after their folders if they have one name, else after
            themselves; or several histories by name.
        path: the PNG file, whose name ends in ``.png``; replaced in one step. The same history
            gives the same bytes.
        title: a line above. Default: the name of a single file or history.

    Raises:
        ImportError: matplotlib is missing, which the extra ``plot`` brings.
        InputError: a file cannot be used, there is no epoch to draw, or the path is no PNG's.

    Examples::

        >>> result = fit(model, corpus, config.training)
        >>> plot_history(result.epochs, "history.png")
        >>> plot_history(["runs/small/log.csv", "runs/medium/log.csv"], "comparison.png")
        >>> plot_history({"LSTM": lstm.epochs, "GRU": gru.epochs}, "cells.png")
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("charts need matplotlib: pip install rnnfast[plot]") from error
    # A text or a log that is named by mistake is not to be lost.
    if Path(path).suffix.lower() != ".png":
        raise InputError(f"path must end in .png, got {path}")
    runs = [_curves(name, epochs) for name, epochs in _named(history)]
    if not any(value > 0 for run in runs for value in run.train_perplexity + run.valid_perplexity):
        raise InputError("there is no epoch to draw")
    if title is None and len(runs) == 1:
        title = runs[0].name
    image = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = _draw(runs, title)
        # Without the program's version, which is no part of the picture.
        figure.savefig(image, format="png", dpi=160, metadata={"Software": None})
    write_atomically(path, image.getvalue())


def _named(
    history: Epochs | Sequence[PathLike] | Mapping[str, Epochs],
) -> list[tuple[str, Epochs]]:
    """Each history with its name."""
    if isinstance(history, Mapping):
        return list(history.items())
    if isinstance(history, (str, os.PathLike)):
        history = [history]
    if not all(isinstance(item, (str, os.PathLike)) for item in history):
        return [("", history)]
    paths = [Path(item).resolve() for item in history]
    alike = len({path.name for path in paths}) == 1
    names = [path.parent.name if alike else path.stem for path in paths]
    return list(zip(names, history, strict=True))


def _curves(name: str, epochs: Epochs) -> _Curves:
    if isinstance(epochs, (str, os.PathLike)):
        rows = CsvLog.read(epochs)
        missing = [field for row in rows[:1] for field in FIELDS if field not in row]
        if missing:
            raise InputError(f"{epochs} lacks the field {', '.join(missing)}")
    else:
        rows = [dataclasses.asdict(result) for result in epochs]
    return _Curves(name, *([_finite(row[field]) for row in rows] for field in FIELDS))


def _finite(value: Number) -> float:
    return math.nan if value is None or not math.isfinite(value) else float(value)


def _draw(runs: list[_Curves], title: str | None) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 5), layout="constrained")
    perplexity, rate = figure.subplots(2, 1, sharex=True, height_ratios=(7, 1))
    colors = list(itertools.islice(itertools.cycle(COLORS), len(runs)))
    for run, color in zip(runs, colors, strict=True):
        # A point for each of a few epochs, and for a single one, which has no line.
        marker = "o" if len(run.epoch) <= 20 else None
        points = {"color": color, "marker": marker}
        perplexity.plot(run.epoch, run.train_perplexity, markersize=2.5, **points, **TRAIN)
        perplexity.plot(run.epoch, run.valid_perplexity, markersize=4, linewidth=2, **points)
        # A single run's rate is as grey as its axis: it is there to explain the curve above.
        faint = {"color": color if len(runs) > 1 else FAINT, "alpha": 0.6, "linewidth": 1.3}
        rate.step(run.epoch, run.learning_rate, where="mid", marker=marker, markersize=2, **faint)
        if run.best is not None:
            perplexity.plot(
                run.epoch[run.best],
                run.valid_perplexity[run.best],
                color=color,
                linestyle="none",
                markeredgewidth=1.8,
                clip_on=False,
                **RING,
            )
    ends = [epoch for run in runs for epoch in run.epoch]
    margin = max(0.5, 0.02 * (max(ends) - min(ends)))
    rate.set_xlim(min(ends) - margin, max(ends) + margin)
    rate.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    rate.set_xlabel("epoch")
    every = [value for run in runs for value in run.train_perplexity + run.valid_perplexity]
    _logarithmic(perplexity, every)
    perplexity.set_ylabel("perplexity")
    # A rate that decayed to zero has no place on a logarithmic axis.
    rates = [value for run in runs for value in run.learning_rate if value > 0]
    if rates:
        _logarithmic(rate, rates, ticks=[min(rates), max(rates)])
    rate.set_title("learning rate", fontsize=9, fontweight="normal", color=FAINT, pad=4)
    rate.tick_params(axis="y", labelcolor=FAINT, labelsize=9)
    _bits(perplexity)
    _legend(perplexity, runs, colors)
    perplexity.set_title(title or "", pad=10)
    return figure


def _legend(panel: "Axes", runs: list[_Curves], colors: list[str]) -> None:
    """Which line is which, and the best epochs."""
    from matplotlib.lines import Line2D

    if len(runs) == 1:
        color, entries, told = colors[0], [], f"validation{_best(runs[0], ', best ')}"
    else:
        color, told = INK, "validation, the best epoch ringed"
        entries = [
            (Line2D([], [], color=own, linewidth=2), f"{run.name}{_best(run, ': ')}")
            for run, own in zip(runs, colors, strict=True)
        ]
    entries += [
        (Line2D([], [], color=color, **TRAIN), "training"),
        (Line2D([], [], color=color, linewidth=2, **RING), told),
    ]
    panel.legend(*zip(*entries, strict=True), loc="upper right", handlelength=2.6)


def _best(run: _Curves, before: str) -> str:
    if run.best is None:
        return ""
    value, epoch = run.valid_perplexity[run.best], run.epoch[run.best]
    return f"{before}{value:.4g} in epoch {epoch:.0f}"


def _logarithmic(panel: "Axes", values: list[float], ticks: list[float] | None = None) -> None:
    """A logarithmic axis as far as the values go; its ticks are round numbers if not given."""
    known = [value for value in values if value > 0]
    low, high = min(known), max(known)
    margin = 1.05 * (high / low) ** 0.05
    low, high = low / margin, high * margin
    panel.set_yscale("log")
    panel.set_ylim(low, high)
    ticks = _round_ticks(low, high) if ticks is None else ticks
    panel.set_yticks(ticks, [f"{tick:,.3g}" if tick < 1000 else f"{tick:,.0f}" for tick in ticks])
    panel.set_yticks([], minor=True)


def _round_ticks(low: float, high: float) -> list[float]:
    """At most 8 round numbers between two, spread evenly on a logarithmic axis."""
    from matplotlib.ticker import MaxNLocator

    if high < 3 * low:
        ticks = MaxNLocator(nbins=7, steps=[1, 2, 5, 10]).tick_values(low, high)
        return [float(tick) for tick in ticks if low <= tick <= high]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = []
    for digits in ((1, 1.5, 2, 3, 4, 6, 8), (1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**power for power in powers for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 8:
            break
    return ticks


def _bits(panel: "Axes") -> None:
    """The same axis once more, at the right, in bits: where perplexity doubles, one more."""
    from matplotlib.ticker import MaxNLocator

    low, high = map(math.log2, panel.get_ylim())
    bits = panel.twinx()
    bits.set_ylim(low, high)
    bits.set_ylabel("bits per token", color=FAINT)
    bits.tick_params(axis="y", labelcolor=FAINT)
    bits.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    bits.grid(visible=False)
