"""The charts of the report, from plain numbers; matplotlib is imported by what draws only."""

import importlib.util
import io
import itertools
import re
import statistics
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rnnfast import chart_style
from rnnfast.chart_style import FAINT, GRID, INK, PAPER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = dict(zip(("LSTM", "GRU", "RNN"), chart_style.COLORS, strict=False))
MARKERS = {"LSTM": "o", "GRU": "s", "RNN": "D"}

# With a fixed salt and no date the same numbers give the same file.
STYLE = {
    **chart_style.STYLE,
    "axes.titlesize": 12,
    "xtick.minor.size": 0,
    "svg.hashsalt": "rnnfast",
}


def available() -> bool:
    """Whether charts can be drawn here."""
    return importlib.util.find_spec("matplotlib") is not None


def svg(figure: "Figure") -> str:
    """The figure as a file's text."""
    import matplotlib
    from matplotlib import pyplot

    file = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    # Matplotlib ends some lines in a space.
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def creator(svg: str) -> str | None:
    """What drew the file, with its version; None of what is no such file."""
    found = re.search(r"<dc:creator>.*?<dc:title>(.*?)</dc:title>", svg, re.DOTALL)
    return found and found[1]


def _panels(rows: int, columns: int, width: float, height: float, **options):
    import matplotlib
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        return pyplot.subplots(
            rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **options
        )


def ratios(best: dict[str, dict[str, dict[str, float]]]) -> "Figure":
    """How many times faster, by mode, cell and shape: a point each, on a logarithmic axis."""
    figure, ((*panels,),) = _panels(1, len(best), 10, 5.2, sharex=True, sharey=True)
    for panel, (mode, cells) in zip(panels, best.items(), strict=True):
        shapes = list(next(iter(cells.values())))
        for row in range(len(shapes)):
            values = [ratios[shapes[row]] for ratios in cells.values()]
            panel.plot([min(values), max(values)], [row, row], color=GRID, linewidth=5, zorder=1)
        for cell, by_shape in cells.items():
            mean = statistics.geometric_mean(by_shape.values())
            panel.scatter(
                by_shape.values(),
                range(len(shapes)),
                s=46,
                marker=MARKERS[cell],
                color=COLORS[cell],
                edgecolor=PAPER,
                linewidth=0.8,
                zorder=3,
                label=f"{cell}, geometric mean {mean:.2f}",
            )
        panel.axvline(1, color=INK, linewidth=1, zorder=2)
        panel.set_title(mode.capitalize())
        panel.set_yticks(range(len(shapes)), shapes)
        panel.grid(axis="y", visible=False)
        panel.spines["left"].set_visible(False)
        panel.legend(
            loc="upper left", bbox_to_anchor=(0, -0.13), ncols=1, handletextpad=0.2, fontsize=9
        )
        panel.set_xlabel("times as fast as the best peer")
    panels[0].invert_yaxis()
    every = [by_shape.values() for cells in best.values() for by_shape in cells.values()]
    _logarithmic(panels[0].xaxis, list(itertools.chain.from_iterable(every)))
    return figure


def _logarithmic(axis, values: list[float]) -> None:
    """A logarithmic axis with ticks at 1, 2, 5, 10 ..., as far as the values go."""
    low, high = min(values) / 1.15, max(values) * 1.15
    name = axis.axis_name
    axis.axes.set(**{f"{name}scale": "log", f"{name}lim": (low, high)})
    for digits in ((1, 2, 5), (1,)):
        ticks = [digit * 10**power for power in range(-3, 7) for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 9:
            break
    axis.set_ticks(ticks, [f"{tick:,g}" for tick in ticks])
    axis.set_ticks([], minor=True)


def roofline(share: dict[str, dict[str, dict[str, tuple[float, float]]]]) -> "Figure":
    """Part of the GEMM rate, by mode, cell and shape: ours and torch.nn's, joined."""
    modes = list(share)
    cells = list(share[modes[0]])
    figure, panels = _panels(len(modes), len(cells), 10, 7.5, sharex=True, sharey=True)
    for row, mode in zip(panels, modes, strict=True):
        for panel, cell in zip(row, cells, strict=True):
            shapes = list(share[mode][cell])
            ours, torchs = zip(*share[mode][cell].values(), strict=True)
            places = range(len(shapes))
            panel.hlines(places, torchs, ours, color=GRID, linewidth=4, zorder=1)
            panel.scatter(torchs, places, s=34, color=FAINT, zorder=2, label="torch.nn")
            panel.scatter(ours, places, s=44, color=COLORS[cell], zorder=3, label="rnnfast")
            panel.axvline(1, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            panel.set_title(f"{cell} {mode}")
            panel.set_yticks(places, shapes)
            panel.grid(axis="y", visible=False)
            panel.spines["left"].set_visible(False)
    panels[0][0].invert_yaxis()
    panels[0][0].set_xlim(left=0)
    panels[0][0].xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    for panel in panels[-1]:
        panel.set_xlabel("share of this machine's GEMM rate")
        panel.legend(loc="upper left", bbox_to_anchor=(0, -0.13), ncols=2, handletextpad=0.2)
    return figure


def scaling(
    curves: dict[str, dict[tuple[str, str], dict[int, float]]],
    speedup: dict[str, dict[str, tuple[float, float]]],
    memory: dict[str, dict[int, float]],
) -> "Figure":
    """What length and a second thread do.

    Args:
        curves: by mode, then cell and contender, then length: nanoseconds for an element.
        speedup: by cell, then shape: of two threads over one, ours and torch.nn's.
        memory: by way of training, then length: MiB.
    """
    figure, panels = _panels(2, 2, 10, 7.5)
    for panel, (mode, lines) in zip(panels[0], curves.items(), strict=True):
        for (cell, who), curve in lines.items():
            ours = who == "rnnfast"
            panel.plot(
                curve.keys(),
                curve.values(),
                color=COLORS[cell],
                linestyle="-" if ours else (0, (2, 2)),
                marker=MARKERS[cell],
                markersize=6 if ours else 4,
                markerfacecolor=COLORS[cell] if ours else PAPER,
                label=f"{cell}, {'rnnfast' if ours else 'torch.nn'}",
            )
        _logarithmic(panel.yaxis, [value for curve in lines.values() for value in curve.values()])
        _lengths(panel.xaxis, next(iter(lines.values())))
        panel.set_title(f"{mode.capitalize()}: nanoseconds for an element")
        panel.legend(fontsize=9)
    threads, peak = panels[1]
    shapes = list(next(iter(speedup.values())))
    for offset, (cell, pairs) in zip((-0.13, 0.13), speedup.items(), strict=True):
        places = [place + offset for place in range(len(shapes))]
        ours, torchs = zip(*(pairs[shape] for shape in shapes), strict=True)
        threads.hlines(places, torchs, ours, color=GRID, linewidth=4, zorder=1)
        threads.scatter(torchs, places, s=26, color=FAINT, marker=MARKERS[cell], zorder=2)
        threads.scatter(
            ours, places, s=40, color=COLORS[cell], marker=MARKERS[cell], zorder=3, label=cell
        )
    threads.scatter([], [], s=26, color=FAINT, label="torch.nn")
    threads.axvline(2, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    threads.set_yticks(range(len(shapes)), shapes)
    threads.invert_yaxis()
    threads.grid(axis="y", visible=False)
    threads.set_title("Training: 2 threads, times as fast as 1")
    threads.legend(fontsize=9, ncols=3, loc="upper left", bbox_to_anchor=(0, -0.1))
    for (who, curve), color in zip(memory.items(), (FAINT, *COLORS.values()), strict=True):
        peak.plot(curve.keys(), curve.values(), color=color, marker="o", label=who)
    _logarithmic(peak.yaxis, [value for curve in memory.values() for value in curve.values()])
    _lengths(peak.xaxis, next(iter(memory.values())))
    peak.set_title("LSTM training: peak of memory, MiB")
    peak.legend(fontsize=9)
    return figure


def _lengths(axis, lengths: Iterable[int]) -> None:
    axis.axes.set_xscale("log")
    axis.set_ticks(list(lengths), [f"{length:,}" for length in lengths])
    axis.set_ticks([], minor=True)
    axis.set_label_text("steps")


# Ours in blue, the others each in its own colour.
CONTENDERS = {
    "stream": "#0072B2",
    "module": "#56B4E9",
    "onnxruntime": "#009E73",
    "torch.nn cell": "#E69F00",
    "torch.nn": "#D55E00",
}
NAMES = {
    "stream": "rnnfast.stream",
    "module": "rnnfast.LSTM",
    "onnxruntime": "ONNX Runtime",
    "torch.nn cell": "torch.nn.LSTMCell",
    "torch.nn": "torch.nn.LSTM",
}


def latency(
    panels: dict[str, dict[str, tuple[float, list[tuple[float, float, int]]]]],
) -> "Figure":
    """Histograms above each other, on a logarithmic axis of microseconds.

    Args:
        panels: by pace, then contender: the median, and lower and upper edge and count of bins.
    """
    figure, ((*axes,),) = _panels(1, len(panels), 10, 4.6, sharex=True, sharey=True)
    titles = {"hot": "Step after step", "paced": "A step every 2 ms"}
    for panel, (pace, contenders) in zip(axes, panels.items(), strict=True):
        names = [name for name in CONTENDERS if name in contenders]
        for row, name in enumerate(names):
            median, bins = contenders[name]
            bins = _visible(bins)
            highest = max(count for _, _, count in bins)
            for lower, upper, count in bins:
                panel.fill_between(
                    [lower, upper], row, row - 0.85 * count / highest, color=CONTENDERS[name],
                    linewidth=0,
                )  # fmt: skip
            panel.axhline(row, color=GRID, linewidth=1, zorder=0)
            panel.annotate(
                f"{median:.3g} µs",
                (max(upper for _, upper, count in bins if count > 0.1 * highest), row),
                xytext=(6, 12),
                textcoords="offset points",
                color=CONTENDERS[name],
                weight="bold",
            )
        panel.set_title(f"{titles[pace]}: LSTM 128, batch 1")
        panel.set_yticks(range(len(names)), [NAMES[name] for name in names])
        panel.grid(axis="y", visible=False)
        panel.spines["left"].set_visible(False)
        panel.set_xlabel("microseconds; the median is given")
    axes[0].invert_yaxis()
    every = [
        bin for panel in panels.values() for _, bins in panel.values() for bin in _visible(bins)
    ]
    low, high = min(bin[0] for bin in every), max(bin[1] for bin in every)
    _logarithmic(axes[0].xaxis, [low, high * 1.2])
    return figure


def _visible(bins: list[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """Those that hold at least 2 steps of 1000; the percentiles in the table tell of the others."""
    least = 2e-3 * sum(count for _, _, count in bins)
    return [bin for bin in bins if bin[2] >= least]


def tutorials(panels: dict[str, dict[str, list[tuple[int, float, float]]]]) -> "Figure":
    """Perplexity by epoch: by panel and training, the epoch, that in training, that held out."""
    figure, axes = _panels(1, len(panels), 5.2 * len(panels), 3.9)
    for axis, (title, trained) in zip(axes.flat, panels.items(), strict=True):
        colors = (*chart_style.COLORS, INK, FAINT)
        for (name, epochs), color in zip(trained.items(), itertools.cycle(colors), strict=False):
            numbers, train, held_out = zip(*epochs, strict=True)
            axis.plot(numbers, train, color=color, alpha=0.7, linewidth=1.3, linestyle=(0, (3, 2)))
            axis.plot(numbers, held_out, color=color, linewidth=1.8, marker=".", label=name)
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.set_ylabel("perplexity (dashed: training)")
        values = [value for epochs in trained.values() for epoch in epochs for value in epoch[1:]]
        _logarithmic(axis.yaxis, values)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, fontsize=8)
    return figure
