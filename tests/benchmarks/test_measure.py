"""The measuring code, on a clock that the test turns."""

import dataclasses
from functools import partial

import pytest

from rnnfast.benchmark import measure


class Clock:
    """Stands in for time.perf_counter; calls made through it take the time they are said to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.called: list[str] = []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, seconds: float) -> None:
        self.called.append(name)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measure.time, "perf_counter", clock)
    monkeypatch.setattr(measure.time, "sleep", partial(clock.call, "-"))
    return clock


def test_contenders_alternate_and_each_call_is_timed(clock: Clock):
    contenders = {name: partial(clock.call, name, s) for name, s in {"a": 0.5, "b": 0.25}.items()}
    times = measure.interleave(contenders, seconds=0, min_rounds=4)
    assert "".join(clock.called)[-8:] == "abababab"
    assert times == {"a": [0.5] * 4, "b": [0.25] * 4}


def test_rounds_fill_the_budget(clock: Clock):
    times = measure.interleave({"a": partial(clock.call, "a", 0.25)}, seconds=3, min_rounds=2)
    assert len(times["a"]) == 12


def test_a_sample_of_short_calls_lasts_a_millisecond(clock: Clock):
    call = partial(clock.call, "a", 3e-5)
    count = measure._calls_per_sample(call)
    assert count * 3e-5 >= measure.SAMPLE_SECONDS > count / 2 * 3e-5
    times = measure.interleave({"a": call}, seconds=0)
    assert times["a"] == pytest.approx([3e-5] * 5)


def test_settling_is_not_timed_and_precedes_each_sample(clock: Clock):
    contenders = {name: partial(clock.call, name, s) for name, s in {"a": 0.5, "b": 0.04}.items()}
    times = measure.interleave(contenders, seconds=0, min_rounds=2, settle=0.5)
    # Before each sample it is called for 0.1 s more.
    assert "".join(clock.called)[-16:] == "-aa-bbbb-aa-bbbb"
    assert times == {"a": [0.5] * 2, "b": pytest.approx([0.04] * 2)}


def test_ratio_is_the_median_over_pairs():
    # The third pair ran while the machine was ten times slower: both were.
    assert measure.ratios([2, 4, 30], [1, 1, 10]) == (2.5, 3, 3.5)


def test_gemm_rate_counts_two_operations_a_term():
    assert measure.gemm_gflops([3.0, 2.0, 1.0]) == pytest.approx(2 * 1024**3 / 2.0 / 1e9)


@dataclasses.dataclass
class Row:
    name: str
    count: int
    ratio: float
    share: float | None = None


def test_csv_reads_back(tmp_path):
    rows = [Row("a, b", 1, 1.5), Row("c", 2, 1e-7, 0.5)]
    measure.write_csv(tmp_path / "rows.csv", rows)
    assert measure.read_csv(tmp_path / "rows.csv", Row) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the columns name,count,ratio,share"),
        ("name,ratio,count,share\n", "expected the columns name,count,ratio,share"),
        ("name,count,ratio,share\na,1,2\n", "line 2: expected 4 cells, got 3"),
        ("name,count,ratio,share\na,1.5,2,\n", "line 2: count is no int: '1.5'"),
        ("name,count,ratio,share\na,1,nan,\n", "line 2: ratio is not finite: 'nan'"),
        ("name,count,ratio,share\na,1,,\n", "line 2: ratio is no float: ''"),
        ("name,count,ratio,share\na,1,2,x\n", "line 2: share is no float: 'x'"),
    ],
)
def test_csv_that_is_not_well_formed(tmp_path, text, message):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        measure.read_csv(path, Row)
