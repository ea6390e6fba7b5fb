"""The floor of the layers: what is measured for it, and what it comes to in a case."""

import math
import shutil

import floor
import pytest

from rnnfast.benchmark import measure
from rnnfast.benchmark.layers import CELLS, MODES, SHAPES, operations


def rows(**changes: float) -> list[floor.FloorResult]:
    """A machine of 100 GFLOP/s and 10 GB/s a thread, whose activations take 1 ns and calls 2 µs."""
    values = {"multiply_add": 100.0, "read": 10.0, "activation": 1.0, "call": 2.0} | changes

    def row(quantity: str, of: str, threads: int = 1, size: int = 0) -> floor.FloorResult:
        environment = {"date": "", "cpu": "", "rnnfast": "", "torch": "", "isa": "", "unit": ""}
        what = {"quantity": quantity, "of": of, "threads": threads, "bytes": size}
        return floor.FloorResult(**environment, **what, value=threads * values[quantity])

    made = [row("activation", name) for name in ("sigmoid", "tanh")]
    made += [row("call", f"{cell} {mode}") for cell in CELLS for mode in MODES]
    for threads in (1, 2):
        made.append(row("multiply_add", "float32", threads))
        made += [row("read", "float32", threads, size) for size in (1 << 16, 1 << 20)]
    return made


def test_many_rows_are_bound_by_their_products():
    shape = SHAPES["quijote"]
    units = shape.seq_len * shape.batch * shape.hidden_size
    for threads in (1, 2):
        products = operations("LSTM", shape, "training") / (threads * 100e9)
        expected = 2e-6 + products + 6 * units * 1e-9 / threads
        assert floor.floor("LSTM", shape, "training", threads, rows()) == pytest.approx(expected)
    assert floor.floor("GRU", shape, "inference", 1, rows()) == pytest.approx(
        2e-6 + operations("GRU", shape, "inference") / 100e9 + 3 * units * 1e-9
    )


def test_one_row_is_bound_by_reading_its_weights():
    shape = SHAPES["stream512"]
    reading = 100 * 4 * 512 * 512 / 10e9
    projection = 2 * 100 * 512 * 512 / 100e9
    expected = 2e-6 + projection + reading + 100 * 512 * 1e-9
    assert floor.floor("RNN", shape, "inference", 1, rows()) == pytest.approx(expected)
    # Each of two threads has half of them, and of the other work.
    halved = 2e-6 + (expected - 2e-6) / 2
    assert floor.floor("RNN", shape, "inference", 2, rows()) == pytest.approx(halved)
    # Backward reads them again, and has twice the other products.
    training = 2e-6 + 4 * projection + 2 * reading + 100 * 512 * 1e-9
    assert floor.floor("RNN", shape, "training", 1, rows()) == pytest.approx(training)


def test_faster_parts_lower_it():
    shape = SHAPES["stream128"]
    base = floor.floor("LSTM", shape, "training", 2, rows())
    for quantity, better in {"multiply_add": 200, "read": 20, "activation": 0.5, "call": 1}.items():
        assert floor.floor("LSTM", shape, "training", 2, rows(**{quantity: better})) < base


def test_what_was_not_measured_is_missed():
    with pytest.raises(KeyError, match="multiply_add"):
        floor.floor("LSTM", SHAPES["rl"], "training", 4, rows())


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_small_run(tmp_path, capsys):
    output = tmp_path / "floor.csv"
    floor.main(["--smoke", "--threads", "1", "--output", str(output)])
    measured = measure.read_csv(output, floor.FloorResult)
    assert all(row.value > 0 and math.isfinite(row.value) for row in measured)
    assert {row.quantity for row in measured} == floor.QUANTITIES.keys()
    assert [row.bytes for row in measured if row.quantity == "read"] == [1 << 16, 1 << 17]
    for cell in CELLS:
        for mode in MODES:
            assert floor.floor(cell, SHAPES["odd"], mode, 1, measured) > 0
    assert capsys.readouterr().out.count("GB/s") == 2
