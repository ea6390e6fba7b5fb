"""The tables of the report: Markdown from the rows of the CSVs."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from floor import FloorResult, floor
from language_model_step import StepResult
from latency import LatencyResult
from packed import PackedResult
from prepacked import SHORT, PrepackedResult
from quantized import QuantizedResult
from sampling import SamplingResult
from scaling import TBPTT_STEPS, ScalingResult
from text import TextResult
from tutorials import TUTORIALS, EpochRow
from variants import VariantResult

from rnnfast.benchmark import measure
from rnnfast.benchmark.layers import CELLS, MODES, LayerResult, Shape

# At which the tables and charts of one number for each case are.
THREADS = 2
# A table or chart that mixed these would compare what cannot be compared.
SAME = ("cpu", "rnnfast", "torch", "isa")
# Where the same is that was measured with --keep-freed-memory.
KEPT = "freed_memory_kept"
COLUMNS = [(mode, cell) for mode in MODES for cell in CELLS]
# Compiling takes minutes: a peer on some of the cases only.
SOME_CASES = "torch.compile"


class Layers:
    """The results of layers.py at some number of threads, on our kernels.

    Raises:
        ValueError: if the rows come from unlike environments, repeat a case, or lack one that
            others of its mode have.
    """

    def __init__(self, rows: Sequence[LayerResult], threads: int) -> None:
        _check_alike(rows, (*SAME, "dtype"))
        rows = [row for row in rows if row.threads == threads and row.backend == "rnnfast"]
        self.threads = threads
        self.tried = [row for row in rows if row.peer == SOME_CASES]
        self.rows = [row for row in rows if row.ratio is not None]
        if not self.rows:
            raise ValueError(f"there are no results at {threads} threads: run layers.py --output")
        self.shapes = {row.shape: row.sizes for row in self.rows}
        self.peers = {row.peer: row.peer_version for row in self.rows}
        self.by_case: dict[tuple[str, str, str], dict[str, LayerResult]] = {}
        for row in self.rows:
            peers = self.by_case.setdefault((row.shape, row.mode, row.cell), {})
            if row.peer in peers:
                case = f"{row.shape} {row.mode} {row.cell}"
                raise ValueError(f"the results have {case} against {row.peer} twice")
            peers[row.peer] = row
        for mode, cell in COLUMNS:
            everywhere = {row.peer for row in self.rows if row.mode == mode} - {SOME_CASES}
            for shape in self.shapes:
                missing = everywhere - self.by_case.get((shape, mode, cell), {}).keys()
                if missing or not everywhere:
                    against = ", ".join(sorted(missing)) or "any peer"
                    raise ValueError(
                        f"the results lack, at {threads} threads: {shape} {mode} {cell} "
                        f"against {against}"
                    )

    def best(self, shape: str, mode: str, cell: str) -> LayerResult:
        """The row of the peer that comes out best against us."""
        return min(self.by_case[(shape, mode, cell)].values(), key=lambda row: row.ratio)


def _check_alike(rows: Iterable[object], names: Sequence[str]) -> None:
    rows = list(rows)
    for name in names:
        values = sorted({str(getattr(row, name)) for row in rows})
        if len(values) > 1:
            raise ValueError(f"the results mix {name}: {', '.join(values)}")


def read(folder: Path, pattern: str, kind: type[measure.Row]) -> list[measure.Row]:
    """The rows of the files that match, as :func:`measure.read_csv`."""
    return [row for path in sorted(folder.glob(pattern)) for row in measure.read_csv(path, kind)]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """Markdown; columns after the first few are numbers, and stand to the right."""
    rule = ["---"] * text_columns + ["---:"] * (len(heads) - text_columns)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def _figures(value: float) -> str:
    """To three significant digits, or to a unit."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def where(rows: Sequence[measure.Environment]) -> str:
    """On what the rows were measured, and when."""
    first, dates = rows[0], [row.date for row in rows]
    when = " to ".join(dict.fromkeys((min(dates), max(dates))))
    return f"{first.cpu} ({first.isa}), rnnfast {first.rnnfast}, torch {first.torch}, {when}."


def ratio_table(folder: Path) -> str:
    """Against the best peer, a shape in each row."""
    layers = Layers(read(folder, "layers*.csv", LayerResult), THREADS)
    heads = ["shape", "batch·length·input·hidden·layers"]
    heads += [f"{cell} {mode}" for mode, cell in COLUMNS]
    lines = []
    for shape, sizes in layers.shapes.items():
        results = [layers.best(shape, *column) for column in COLUMNS]
        lines.append([shape, str(sizes), *(f"{row.ratio:.2f}" for row in results)])
    means = [
        statistics.geometric_mean(layers.best(shape, *column).ratio for shape in layers.shapes)
        for column in COLUMNS
    ]
    lines.append(["**geometric mean**", "", *(f"**{mean:.2f}**" for mean in means)])
    return (
        f"{table(heads, lines, text_columns=2)}\n\n"
        f"Time of the best peer over time of rnnfast's kernels, median of rounds: above 1, rnnfast "
        f"is faster. {_peers(layers)} Training is forward and backward with every gradient, the "
        f"input's too. {layers.rows[0].dtype}, {THREADS} threads, {where(layers.rows)}"
    )


def _peers(layers: Layers) -> str:
    names = ["torch.nn"]
    if "onnxruntime" in layers.peers:
        names.append(f"for inference ONNX Runtime {layers.peers['onnxruntime']}")
    if layers.tried:
        measured = sum(row.ratio is not None for row in layers.tried)
        names.append(
            f"torch.compile in the {measured} cases that it compiled of {len(layers.tried)} tried"
        )
    return f"Peers: {', '.join(names)}."


def summary_table(folder: Path) -> str:
    """Against each peer: geometric mean and least over the shapes."""
    rows = read(folder, "layers*.csv", LayerResult)
    kept: dict[tuple[str, str, int], list[float]] = {}
    for row in read(folder / KEPT, "layers.csv", LayerResult):
        if row.peer == "torch":
            kept.setdefault((row.mode, row.cell, row.threads), []).append(row.ratio)
    every = [Layers(rows, threads) for threads in sorted({row.threads for row in rows})]
    names = [name for name in ("torch", "torch.compile", "onnxruntime") if name in every[0].peers]
    lines = []
    for mode, cell in COLUMNS:
        for layers in every:
            cases = [layers.by_case[(shape, mode, cell)] for shape in layers.shapes]
            against = [
                _mean(peers[name].ratio for peers in cases if name in peers) for name in names
            ]
            best = [layers.best(shape, mode, cell) for shape in layers.shapes]
            least = min(best, key=lambda row: row.ratio)
            lines.append(
                [mode, cell, str(layers.threads), *against, _mean(row.ratio for row in best)]
                + [f"{least.ratio:.2f} ({least.shape}, {least.peer})"]
                + ([_mean(kept.get((mode, cell, layers.threads), []))] if kept else [])
            )
    heads = ["mode", "cell", "threads", *(f"over {name}" for name in names)]
    heads += ["over the best", "least", *(["over torch, freed memory kept"] if kept else [])]
    return f"{table(heads, lines, text_columns=2)}\n\n{where(rows)}"


def _mean(ratios: Iterable[float]) -> str:
    ratios = list(ratios)
    return f"{statistics.geometric_mean(ratios):.2f}" if ratios else ""


def share_table(folder: Path) -> str:
    """Part of the machine's GEMM rate that is reached: ours and torch.nn's."""
    layers = Layers(read(folder, "layers*.csv", LayerResult), THREADS)
    lines = []
    for shape in layers.shapes:
        cells = [layers.by_case[(shape, *column)]["torch"] for column in COLUMNS]
        shares = [f"{row.gemm_share:.0%} ({row.peer_gemm_share:.0%})" for row in cells]
        lines.append([shape, *shares])
    heads = ["shape", *(f"{cell} {mode}" for mode, cell in COLUMNS)]
    rates = statistics.median(row.gemm_gflops for row in layers.rows)
    return (
        f"{table(heads, lines)}\n\nIn brackets torch.nn's. 100% is what torch.mm of two "
        f"1024 × 1024 matrices reached around each case, {rates:.0f} GFLOP/s in the median; "
        f"{THREADS} threads, {where(layers.rows)}"
    )


def floor_table(folder: Path) -> str:
    """How near each case is to what the machine allows, and how far ahead that lets it be."""
    results = read(folder, "layers*.csv", LayerResult)
    rows = read(folder, "floor.csv", FloorResult)
    if not rows:
        return "Not measured: `results/floor.csv` is absent."
    lines, means = [], []
    for threads in sorted({row.threads for row in results}, reverse=True):
        layers = Layers(results, threads)
        _check_alike([*layers.rows, *rows], SAME)
        reached, possible = ({column: [] for column in COLUMNS} for _ in range(2))
        for shape, sizes in layers.shapes.items():
            cells = []
            for mode, cell in COLUMNS:
                best = layers.best(shape, mode, cell)
                least = 1e3 * floor(cell, sizes, mode, threads, rows)
                reached[mode, cell].append(best.ratio)
                possible[mode, cell].append(best.ratio * best.milliseconds / least)
                cells.append(f"{least / best.milliseconds:.0%}, {possible[mode, cell][-1]:.2f}")
            if threads == THREADS:
                lines.append([shape, *cells])
        of = [f"**{_mean(reached[key])} of {_mean(possible[key])}**" for key in COLUMNS]
        means.append([f"**geometric mean, threads: {threads}**", *of])
    heads = ["shape", *(f"{cell} {mode}" for mode, cell in COLUMNS)]
    rate = next(row for row in rows if row.quantity == "multiply_add" and row.threads == THREADS)
    return (
        f"{table(heads, [*lines, *means])}\n\nThe floor's part of the time that we take, and the "
        "best peer's time over the floor: how many times as fast as that peer a layer could be "
        f"at most, at {THREADS} threads, which make {rate.value:.0f} GFLOP/s in registers. Last "
        f"lines: over the best peer, what is reached of that. {where(rows)}"
    )


def of_script(script: str, kind: type[measure.Row]):
    """Makes a table of the rows of a script's CSV, and a word where there is none."""

    def decorate(make: Callable[[list[measure.Row]], str]) -> Callable[[Path], str]:
        def from_folder(folder: Path) -> str:
            rows = read(folder, f"{script}.csv", kind)
            if not rows:
                return f"Not measured: `results/{script}.csv` is absent."
            _check_alike(rows, SAME)
            return f"{make(rows)}\n\n{where(rows)}"

        return from_folder

    return decorate


@of_script("scaling", ScalingResult)
def length_table(rows: list[ScalingResult]) -> str:
    """Time for an element at each length: ours and, in brackets, torch.nn's."""
    rows = [row for row in rows if row.study == "length"]
    lengths = sorted({row.seq_len for row in rows})
    times = {}
    for row in rows:
        case = (row.mode, row.cell, str(row.batch), str(row.hidden_size))
        times.setdefault(case, {})[row.contender, row.seq_len] = row.nanoseconds
    lines = []
    for case, by_length in times.items():
        cells = []
        for length in lengths:
            peer = by_length.get(("torch", length))
            in_brackets = "" if peer is None else f" ({_figures(peer)})"
            cells.append(_figures(by_length["rnnfast", length]) + in_brackets)
        lines.append([*case, *cells])
    heads = ["mode", "cell", "batch", "size", *(f"{length:,} steps" for length in lengths)]
    return f"{table(heads, lines, 2)}\n\nNanoseconds for an element of the output, 1 thread."


@of_script("scaling", ScalingResult)
def threads_table(rows: list[ScalingResult]) -> str:
    """How many times faster two threads are than one."""
    rows = [row for row in rows if row.study == "threads" and row.threads == 2]
    columns = list(dict.fromkeys((row.mode, row.cell) for row in rows))
    lines = []
    for sizes in dict.fromkeys(row.sizes for row in rows):
        ratio = {
            (row.mode, row.cell, row.contender): row.relative for row in rows if row.sizes == sizes
        }
        pairs = [(ratio[(*column, "rnnfast")], ratio[(*column, "torch")]) for column in columns]
        lines.append([str(sizes), *(f"{ours:.2f} ({torchs:.2f})" for ours, torchs in pairs)])
    heads = ["batch·length·input·hidden·layers", *(f"{cell} {mode}" for mode, cell in columns)]
    return f"{table(heads, lines)}\n\nTime at 1 thread over time at 2; in brackets torch.nn's."


@of_script("scaling", ScalingResult)
def crowded_table(rows: list[ScalingResult]) -> str:
    """Milliseconds where all threads share one CPU: ours and, in brackets, torch.nn's."""
    rows = [row for row in rows if row.study == "crowded"]
    counts = sorted({row.threads for row in rows})
    lines = []
    for sizes, cell in dict.fromkeys((row.sizes, row.cell) for row in rows):
        times = {
            (row.contender, row.threads): row.milliseconds
            for row in rows
            if (row.sizes, row.cell) == (sizes, cell)
        }
        pairs = [(times["rnnfast", n], times["torch", n]) for n in counts]
        cells = [f"{_figures(ours)} ({_figures(torchs)})" for ours, torchs in pairs]
        lines.append([f"{cell} {rows[0].mode}", str(sizes), *cells])
    heads = ["case", "batch·length·input·hidden·layers"]
    heads += [f"{count} thread{'s' * (count > 1)}" for count in counts]
    return f"{table(heads, lines, 2)}\n\nMilliseconds on one CPU; in brackets torch.nn's."


@of_script("scaling", ScalingResult)
def memory_table(rows: list[ScalingResult]) -> str:
    """What training on long sequences adds to the resident memory of the process."""
    rows = [row for row in rows if row.study == "memory"]
    lengths = sorted({row.seq_len for row in rows})
    lines = []
    for who in dict.fromkeys((row.contender, row.memory) for row in rows):
        by_length = {row.seq_len: row for row in rows if (row.contender, row.memory) == who}
        cells = [
            f"{by_length[n].peak_mib:,.0f} MiB, {by_length[n].milliseconds:,.0f} ms"
            for n in lengths
        ]
        lines.append(["torch.nn" if who[0] == "torch" else f"rnnfast, {who[1]}", *cells])
    heads = ["training", *(f"{length:,} steps" for length in lengths)]
    return (
        f"{table(heads, lines)}\n\nOne step of training of an LSTM at batch {rows[0].batch}, size "
        f"{rows[0].hidden_size}, 1 thread: by how much it raises the peak of resident memory, "
        "input and weights not counted, and its time in a fresh process. tbptt: "
        f"{TBPTT_STEPS} steps at a time, states detached."
    )


@of_script("variants", VariantResult)
def variants_table(rows: list[VariantResult]) -> str:
    """Half types, precision and projections against what they replace."""
    lines = []
    groups: dict[tuple, list[VariantResult]] = {}
    for row in rows:
        case = (row.contender, row.peer, row.cell, row.mode, row.threads)
        groups.setdefault(case, []).append(row)
    for (contender, peer, cell, mode, threads), group in groups.items():
        name = f"{contender}, proj_size" if group[0].proj_size else contender
        each = ", ".join(f"{row.shape} {row.ratio:.2f}" for row in group)
        error = max(row.error for row in group)
        mean = _mean(row.ratio for row in group)
        lines.append([name, peer, f"{cell} {mode}", each, str(threads), mean, f"{error:.1g}"])
    heads = ["contender", "over", "case", "each shape", "threads", "geometric mean", "error"]
    return (
        f"{table(heads, lines, 4)}\n\nError: the largest of any element of the output, as a part "
        "of the largest element, against float64."
    )


@of_script("quantized", QuantizedResult)
def quantized_table(rows: list[QuantizedResult]) -> str:
    """Inference with int8 weights."""
    lines = [
        [row.shape, _sizes(row), row.cell, str(row.threads), f"{row.fp32:.2f}"]
        + [f"{row.torch_int8:.2f}" if row.torch_int8 else "", f"{row.torch_fp32:.2f}"]
        + [f"{row.error:.2g}", f"{row.torch_int8_error:.2g}" if row.torch_int8 else ""]
        for row in rows
    ]
    heads = ["shape", "batch·length·input·hidden·layers", "cell", "threads", "over our float32"]
    heads += ["over torch.ao's int8", "over torch.nn's float32", "error", "torch.ao's error"]
    return table(heads, lines, 3)


@of_script("prepacked", PrepackedResult)
def prepacked_table(rows: list[PrepackedResult]) -> str:
    """Inference with weights that stay packed, for each shape and over all those of layers.py."""
    rows = [row for row in rows if row.threads == THREADS]
    names = list(dict.fromkeys(row.peer for row in rows))
    ratios = {(row.shape, row.cell, row.peer): row.ratio for row in rows}
    lines = [
        [shape, sizes, *(f"{ratios[shape, cell, peer]:.2f}" for cell in CELLS for peer in names)]
        for shape, sizes in dict.fromkeys((row.shape, _sizes(row)) for row in rows)
    ]
    long = [shape for shape in dict.fromkeys(row.shape for row in rows) if shape not in SHORT]
    means = [
        f"{statistics.geometric_mean(ratios[shape, cell, peer] for shape in long):.2f}"
        for cell in CELLS
        for peer in names
    ]
    lines.append(["geometric mean", f"the first {len(long)}", *means])
    heads = ["shape", "batch·length·input·hidden·layers"]
    heads += [f"{cell} over {peer}" for cell in CELLS for peer in names]
    return (
        f"{table(heads, lines, 2)}\n\nThe peer's time over ours with packed weights; the peer "
        f"rnnfast packs in each call. {THREADS} threads."
    )


def _sizes(row: object) -> str:
    return str(Shape(*(getattr(row, name) for name in Shape._fields)))


@of_script("packed", PackedResult)
def packed_table(rows: list[PackedResult]) -> str:
    """Training on a PackedSequence."""
    lines = [
        [row.cell, row.lengths, str(row.seq_len), f"{row.torch_packed:.2f}", f"{row.padded:.2f}"]
        for row in rows
        if row.threads == THREADS
    ]
    heads = ["cell", "lengths", "longest", "over torch.nn packed", "over ours padded"]
    return f"{table(heads, lines, 2)}\n\n{THREADS} threads."


@of_script("latency", LatencyResult)
def latency_table(rows: list[LatencyResult]) -> str:
    """Microseconds of a step at batch 1."""
    names = list(dict.fromkeys(row.contender for row in rows))
    lines = []
    for case in dict.fromkeys((row.cell, row.size, row.threads, row.pace) for row in rows):
        group = {
            row.contender: row
            for row in rows
            if (row.cell, row.size, row.threads, row.pace) == case
        }
        cells = [
            f"{_figures(group[name].p50)} / {_figures(group[name].p99)}" if name in group else ""
            for name in names
        ]
        lines.append([*map(str, case), *cells])
    heads = ["cell", "size", "threads", "pace", *names]
    return (
        f"{table(heads, lines)}\n\nMicroseconds of one step at batch 1, called from Python: median "
        "/ 99th percentile. Paced: after 2 ms of sleep."
    )


def language_model_table(folder: Path) -> str:
    """A whole training step of a word language model."""
    rows, kept_rows = (
        read(f, "language_model_step.csv", StepResult) for f in (folder, folder / KEPT)
    )
    _check_alike([*rows, *kept_rows], SAME)
    kept = {(row.model, row.precision, row.threads): f"{row.ratio:.2f}" for row in kept_rows}
    lines = []
    for row in rows:
        case = (row.model, row.precision, row.threads)
        sizes = f"{row.batch_size}·{row.num_steps}·{row.hidden_size.replace(' ', '·')}"
        speeds = [f"{v:,.0f}" for v in (row.words_per_second, row.torch_words_per_second)]
        ratios = [f"{row.ratio:.2f}", kept.get(case, "")]
        lines.append([row.model, sizes, row.precision, str(row.threads), *ratios, *speeds])
    heads = ["model", "batch·steps·units", "precision", "threads", "times as fast"]
    heads += ["freed memory kept", "words/s", "words/s of torch.nn"]
    return (
        f"{table(heads, lines, 3)}\n\ntorch.nn in float32; {rows[0].vocab_size:,} words. Freed "
        "memory kept: times as fast in a process that keeps what it frees, by "
        f"`--keep-freed-memory`.\n\n{where(rows)}"
    )


def tutorials_table(folder: Path) -> str:
    """Each training of a tutorial after its last epoch, beside what the tutorial published."""
    rows = read(folder, "tutorials.csv", EpochRow)
    heads = ["tutorial", "layers of", "epochs", "train", "valid", "test"]
    heads += ["published train", "valid", "test"]
    lines = []
    for (name, backend, precision), epochs in trainings(rows).items():
        last, published = epochs[-1], TUTORIALS[name]
        whose = backend if precision == "fp32" else f"{backend}, {precision}"
        ours = (last.train_perplexity, last.valid_perplexity, last.test_perplexity)
        theirs = (published.train, published.valid, published.test)
        perplexities = ["" if value is None else f"{value:.5g}" for value in (*ours, *theirs)]
        lines.append([name, whose, f"{last.epoch} of {last.epochs}", *perplexities])
    return (
        f"{table(heads, lines, text_columns=3)}\n\n"
        "Perplexity of a word or, for quijote and shakespeare, of a character, after the last "
        "epoch that was trained. In training it is of each window before its update; on the test "
        "text (quijote: a further part held out) of the weights that validate best, the text read "
        f"as one column. {where(rows)}"
    )


def sampling_table(folder: Path) -> str:
    """Characters drawn per second, alone and in a batch."""
    rows = read(folder, "sampling.csv", SamplingResult)
    heads = ["LSTM units", "texts at once", "characters per second", "torch.nn", "times as fast"]
    lines = [
        [
            str(row.hidden_size),
            str(row.num_samples),
            _figures(row.characters_per_second),
            _figures(row.torch_characters_per_second),
            f"{row.ratio:.2f}",
        ]
        for row in rows
    ]
    threads = sorted({row.threads for row in rows})
    return (
        f"{table(heads, lines, 0)}\n\nAll texts together, by the same code on layers of rnnfast "
        f"and of torch.nn; threads: {', '.join(map(str, threads))}. {where(rows)}"
    )


def text_table(folder: Path) -> str:
    """Megabytes of text counted and encoded per second."""
    rows = read(folder, "text.csv", TextResult)
    heads = ["text", "tokens are", "task", "MB/s", "in Python", "times as fast"]
    lines = [
        [
            row.text,
            "characters" if row.tokenizer == "char" else "words between blanks",
            row.task,
            _figures(row.megabytes_per_second),
            _figures(row.peer_megabytes_per_second),
            f"{row.ratio:.1f}",
        ]
        for row in rows
    ]
    return f"{table(heads, lines, 3)}\n\nOn one core. {where(rows)}"


def trainings(rows: Sequence[EpochRow]) -> dict[tuple[str, str, str], list[EpochRow]]:
    """The epochs of each training, by tutorial, backend and precision."""
    found: dict[tuple[str, str, str], list[EpochRow]] = {}
    for row in rows:
        found.setdefault((row.tutorial, row.backend, row.precision), []).append(row)
    return found


TABLES: dict[str, Callable[[Path], str]] = {
    "benchmark": ratio_table,
    "summary": summary_table,
    "share": share_table,
    "floor": floor_table,
    "length": length_table,
    "threads": threads_table,
    "crowded": crowded_table,
    "memory": memory_table,
    "variants": variants_table,
    "quantized": quantized_table,
    "prepacked": prepacked_table,
    "packed": packed_table,
    "latency": latency_table,
    "language_model": language_model_table,
    "tutorials": tutorials_table,
    "sampling": sampling_table,
    "text": text_table,
}
