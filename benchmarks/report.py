"""Writes every benchmark table and chart from the CSVs in results/, or checks that they agree.

A table stands between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->`` in a Markdown file; the
NAMEs are the keys of ``tables.TABLES``. ``FOLDER/NAME`` is the same of the CSVs in results/FOLDER,
another machine's.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import charts
from latency import HistogramBin, LatencyResult
from scaling import STUDIES, ScalingResult
from tables import TABLES, THREADS, Layers, read, trainings
from tutorials import EpochRow

from rnnfast.benchmark.layers import CELLS, MODES, SHAPES, LayerResult

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / name for name in ("performance.md", "language_models.md")),
)
IMAGES = ROOT / "docs" / "images"


def draw_layers(folder: Path) -> "dict[str, charts.Figure]":
    layers = Layers(read(folder, "layers*.csv", LayerResult), THREADS)
    best = {
        mode: {
            cell: {shape: layers.best(shape, mode, cell).ratio for shape in layers.shapes}
            for cell in CELLS
        }
        for mode in MODES
    }
    share = {
        mode: {
            cell: {
                shape: (row.gemm_share, row.peer_gemm_share)
                for shape in layers.shapes
                for row in [layers.by_case[(shape, mode, cell)]["torch"]]
            }
            for cell in CELLS
        }
        for mode in MODES
    }
    return {"ratios": charts.ratios(best), "roofline": charts.roofline(share)}


def draw_scaling(folder: Path) -> "dict[str, charts.Figure]":
    rows = read(folder, "scaling.csv", ScalingResult)
    if {row.study for row in rows} != set(STUDIES):
        return {}
    largest = max(row.hidden_size for row in rows if row.study == "length")
    curves: dict[str, dict[tuple[str, str], dict[int, float]]] = {}
    speedup: dict[str, dict[str, tuple[float, float]]] = {}
    memory: dict[str, dict[int, float]] = {}
    names = {sizes: name for name, sizes in SHAPES.items()}
    for row in rows:
        if row.study == "length" and row.hidden_size == largest:
            curve = curves.setdefault(row.mode, {}).setdefault((row.cell, row.contender), {})
            curve[row.seq_len] = row.nanoseconds
        elif row.study == "threads" and row.threads == 2 and row.mode == "training":
            pair = speedup.setdefault(row.cell, {}).setdefault(names[row.sizes], [None, None])
            pair[row.contender == "torch"] = row.relative
        elif row.study == "memory":
            who = "torch.nn" if row.contender == "torch" else f"rnnfast, {row.memory}"
            memory.setdefault(who, {})[row.seq_len] = row.peak_mib
    return {"scaling": charts.scaling(curves, speedup, memory)}


def draw_latency(folder: Path) -> "dict[str, charts.Figure]":
    bins = read(folder, "latency_histogram.csv", HistogramBin)
    rows = read(folder, "latency.csv", LatencyResult)
    wanted = ("LSTM", 128, 1)
    panels: dict[str, dict[str, tuple[float, list[tuple[float, float, int]]]]] = {}
    for row in rows:
        if (row.cell, row.size, row.threads) == wanted:
            histogram = [
                (one.lower, one.upper, one.count)
                for one in bins
                if (one.cell, one.size, one.threads) == wanted
                and (one.pace, one.contender) == (row.pace, row.contender)
            ]
            panels.setdefault(row.pace, {})[row.contender] = (row.p50, histogram)
    return {"latency": charts.latency(panels)} if panels else {}


def draw_tutorials(folder: Path) -> "dict[str, charts.Figure]":
    panels: dict[str, dict[str, list[tuple[int, float, float]]]] = {}
    for (name, backend, precision), epochs in trainings(
        read(folder, "tutorials.csv", EpochRow)
    ).items():
        text, model = name.split("-", 1)
        label = " ".join([model, *({backend, precision} - {"rnnfast", "fp32"})])
        curve = [(row.epoch, row.train_perplexity, row.valid_perplexity) for row in epochs]
        panels.setdefault(TITLES[text], {})[label] = curve
    return {"tutorials": charts.tutorials(panels)} if panels else {}


TITLES = {
    "ptb": "Penn Treebank, words",
    "quijote": "Don Quijote, letters",
    "shakespeare": "Tiny Shakespeare, characters",
}
CHARTS = (draw_layers, draw_scaling, draw_latency, draw_tutorials)


def fill(text: str, folder: Path) -> str:
    """The page with each table between its markers made anew.

    Raises:
        ValueError: if a marker is of no table here, or has not its other half after it.
    """
    for name in dict.fromkeys(re.findall(r"<!-- (\S+):(?:begin|end) -->", text)):
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        machine, _, table = name.rpartition("/")
        if table not in TABLES:
            raise ValueError(f"{begin}: expected one of {', '.join(TABLES)}")
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
            raise ValueError(f"expected one {begin} and, after it, one {end}")
        before, rest = text.split(begin)
        after = rest.split(end)[1]
        text = f"{before}{begin}\n{TABLES[table](folder / machine)}\n{end}{after}"
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes tables and charts, or with --check compares; exit code 1 if they differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSVs")
    parser.add_argument("--pages", nargs="+", type=Path, default=PAGES, metavar="MARKDOWN")
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder of the charts")
    parser.add_argument("--check", action="store_true", help="write nothing: compare")
    options = parser.parse_args(arguments)
    try:
        pages = {path: path.read_text(encoding="utf-8") for path in options.pages}
        made = {path: fill(text, options.results) for path, text in pages.items()}
        if charts.available():
            figures = [item for draw in CHARTS for item in draw(options.results).items()]
            made |= {options.images / f"{name}.svg": charts.svg(figure) for name, figure in figures}
        else:
            print("report: no charts, for matplotlib is missing: pip install 'rnnfast[bench]'")
    except (OSError, ValueError) as error:
        sys.exit(f"report: {error}")
    if options.check:
        _compare(made)
        return
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _compare(made: dict[Path, str]) -> None:
    different = []
    for path, text in made.items():
        present = path.read_text(encoding="utf-8") if path.exists() else ""
        # Another release of matplotlib draws the same chart with other bytes.
        if present == text or present and charts.creator(present) != charts.creator(text):
            continue
        different.append(str(path))
        if path.suffix != ".svg":
            names = (str(path), "generated from the results")
            lines = difflib.unified_diff(
                present.splitlines(), text.splitlines(), *names, lineterm=""
            )
            print(*lines, sep="\n")
    if different:
        sys.exit(f"report: not what the results give: {', '.join(different)}; run {Path(__file__)}")


if __name__ == "__main__":
    main()
