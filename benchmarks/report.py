"""Writes the README's benchmark table from the CSVs of layers.py, or checks that it agrees."""

import argparse
import difflib
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import measure
from layers import CELLS, MODES, LayerResult

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN = "<!-- benchmark:begin -->"
END = "<!-- benchmark:end -->"
THREADS = 2
HANDED_OVER = "†"
# A table or chart that mixed these would compare what cannot be compared.
SAME = ("cpu", "rnnfast", "torch", "isa", "dtype")
COLUMNS = [(mode, cell) for mode in MODES for cell in CELLS]


def load(paths: Sequence[Path]) -> list[LayerResult]:
    """The rows of the table: our kernels, at 2 threads, every column of every shape.

    Raises:
        ValueError: if the rows come from unlike environments, repeat a case or lack one.
    """
    rows = [row for path in paths for row in measure.read_csv(path, LayerResult)]
    for name in SAME:
        values = sorted({getattr(row, name) for row in rows})
        if len(values) > 1:
            raise ValueError(f"the results mix {name}: {', '.join(values)}")
    rows = [row for row in rows if row.threads == THREADS and row.backend == "rnnfast"]
    cases = [(row.shape, row.mode, row.cell) for row in rows]
    repeated = sorted({" ".join(case) for case in cases if cases.count(case) > 1})
    if repeated:
        raise ValueError(f"the results have these cases twice: {', '.join(repeated)}")
    wanted = [(row.shape, *column) for row in rows for column in COLUMNS]
    missing = sorted({" ".join(case) for case in wanted if case not in cases})
    if missing:
        raise ValueError(f"the results lack, at {THREADS} threads: {', '.join(missing)}")
    if not rows:
        raise ValueError(f"there are no results at {THREADS} threads: run layers.py with --output")
    return rows


def table(rows: Sequence[LayerResult]) -> str:
    """The ratios in Markdown, a shape in each row, and what they mean and where they were taken."""
    first = rows[0]
    dates = [row.date for row in rows]
    when = " to ".join(dict.fromkeys((min(dates), max(dates))))
    by_case = {(row.shape, row.mode, row.cell): row for row in rows}
    heads = ["shape", "batch·length·input·hidden·layers"]
    heads += [f"{cell} {mode}" for mode, cell in COLUMNS]
    lines = [_line(heads), _line(["---", "---", *["---:"] * len(COLUMNS)])]
    for shape in dict.fromkeys(row.shape for row in rows):
        results = [by_case[(shape, *column)] for column in COLUMNS]
        lines.append(_line([shape, str(results[0].sizes), *map(_ratio, results)]))
    means = [
        statistics.geometric_mean(row.ratio for row in rows if (row.mode, row.cell) == column)
        for column in COLUMNS
    ]
    lines.append(_line(["**geometric mean**", "", *(f"**{mean:.2f}**" for mean in means)]))
    lines += [
        "",
        f"Time of torch.nn over time of rnnfast's kernels, median of pairs: above 1, rnnfast is "
        f"faster. Training is forward and backward with every gradient, the input's too. "
        f"{first.dtype}, {THREADS} threads, {first.cpu} ({first.isa}), rnnfast {first.rnnfast}, "
        f"torch {first.torch}, {when}.",
    ]
    if any(row.auto == "torch" for row in rows):
        lines += ["", f"{HANDED_OVER} The default backend, `auto`, hands this call to torch."]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ratio(row: LayerResult) -> str:
    return f"{row.ratio:.2f}" + (f" {HANDED_OVER}" if row.auto == "torch" else "")


def replace_table(text: str, content: str) -> str:
    """The text with `content` between the markers.

    Raises:
        ValueError: if the text has not one pair of markers.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise ValueError(f"expected one {BEGIN} and, after it, one {END}")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def draw(rows: Sequence[LayerResult], path: Path) -> None:
    """The same ratios as bars, training above inference, in the format of the file's suffix."""
    from matplotlib import pyplot as plt

    shapes = list(dict.fromkeys(row.shape for row in rows))
    figure, panels = plt.subplots(
        len(MODES), figsize=(10, 6), sharex=True, sharey=True, layout="constrained"
    )
    for panel, mode in zip(panels, MODES, strict=True):
        for index, cell in enumerate(CELLS):
            results = [row for row in rows if (row.mode, row.cell) == (mode, cell)]
            bars = panel.bar(
                [shapes.index(row.shape) + 0.27 * (index - 1) for row in results],
                [row.ratio - 1 for row in results],
                width=0.25,
                bottom=1,
                label=cell,
            )
            labels = [f"{row.ratio:.2g}" for row in results]
            panel.bar_label(bars, labels, fontsize=6, padding=1)
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.tick_params(axis="y", which="minor", labelleft=False)
        panel.set_ylabel(f"{mode}: torch.nn / rnnfast")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(ncols=len(CELLS), frameon=False)
    panels[-1].set_xticks(range(len(shapes)), shapes, rotation=30)
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the table in the README, or with --check compares; exit code 1 if they differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "results", nargs="*", type=Path, help="default: benchmarks/results/layers*.csv"
    )
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--check", action="store_true", help="write nothing: compare")
    parser.add_argument(
        "--chart", type=Path, metavar="FILE", help="also draw .svg or .png (needs matplotlib)"
    )
    options = parser.parse_args(arguments)
    paths = options.results or sorted(RESULTS.glob("layers*.csv"))
    try:
        rows = load(paths)
        text = options.readme.read_text(encoding="utf-8")
        updated = replace_table(text, table(rows))
        if options.chart:
            draw(rows, options.chart)
    except (OSError, ValueError) as error:
        sys.exit(f"report: {error}")
    except ImportError:
        sys.exit("report: --chart needs matplotlib: pip install matplotlib")
    if not options.check:
        options.readme.write_text(updated, encoding="utf-8")
    elif updated != text:
        names = (str(options.readme), "generated from the results")
        sys.stdout.writelines(
            f"{line}\n"
            for line in difflib.unified_diff(
                text.splitlines(), updated.splitlines(), *names, lineterm=""
            )
        )
        sys.exit(f"report: {options.readme} does not agree with the results: run {Path(__file__)}")


if __name__ == "__main__":
    main()
