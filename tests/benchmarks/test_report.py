"""The report: what its tables say, that --check notices a difference, and this project's own."""

import dataclasses
from typing import get_args

import charts
import pytest
import report
import tables
from floor import FloorResult

from rnnfast.benchmark import measure
from rnnfast.benchmark.layers import SHAPES, LayerResult

PAGE = "# Title\n\n<!-- benchmark:begin -->\nold\n<!-- benchmark:end -->\n\nThe end.\n"


def result(shape: str = "rl", cell: str = "LSTM", mode: str = "training", **changes) -> LayerResult:
    values = {
        field.name: (get_args(field.type) or [field.type])[0](1)
        for field in dataclasses.fields(LayerResult)
    }
    values |= SHAPES[shape]._asdict()
    values |= {"threads": 2, "shape": shape, "cell": cell, "mode": mode, "peer": "torch"}
    return LayerResult(**values | {"backend": "rnnfast"} | changes)


def results(shape: str = "rl", **changes) -> list[LayerResult]:
    return [result(shape, cell, mode, **changes) for mode, cell in tables.COLUMNS]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Writes rows; returns the arguments of a report on them, without charts."""
    monkeypatch.setattr(charts, "available", lambda: False)

    def write(rows: list[LayerResult], page: str = PAGE) -> list[str]:
        measure.write_csv(tmp_path / "layers.csv", rows)
        (tmp_path / "page.md").write_text(page)
        folders = ["--results", str(tmp_path), "--images", str(tmp_path / "images")]
        return [*folders, "--pages", str(tmp_path / "page.md")]

    return write


def test_table_has_each_shape_and_the_geometric_mean(files, tmp_path):
    rows = results(ratio=2.0)
    slow = results("odd", ratio=8.0)
    slow[0] = result("odd", ratio=0.5)
    other = [result(threads=1, ratio=99.0), result("odd", backend="auto", ratio=99.0)]
    report.main(files(rows + slow + other))
    text = (tmp_path / "page.md").read_text()
    assert text.startswith("# Title\n\n") and text.endswith("\n\nThe end.\n")
    assert "old" not in text and "99" not in text
    lines = text.splitlines()
    assert "| rl | 8·128·64·64·1 | 2.00 | 2.00 | 2.00 | 2.00 | 2.00 | 2.00 |" in lines
    assert "| odd | 7·13·37·61·1 | 0.50 | 8.00 | 8.00 | 8.00 | 8.00 | 8.00 |" in lines
    mean = "**4.00** | " * 4 + "**4.00** |"
    assert f"| **geometric mean** |  | **1.00** | {mean}" in lines


def test_table_is_of_the_best_peer(files, tmp_path):
    """A peer that was not measured counts neither as the best nor as missing."""
    rows = results(ratio=2.0)
    peers = [row for row in results(ratio=1.5, peer="onnxruntime") if row.mode == "inference"]
    peers += [
        result(ratio=1.25, peer="torch.compile"),
        result(cell="GRU", ratio=None, peer="torch.compile", outcome="no result within 1 s"),
    ]
    report.main(files(rows + peers))
    text = (tmp_path / "page.md").read_text()
    assert "| rl | 8·128·64·64·1 | 1.25 | 2.00 | 2.00 | 1.50 | 1.50 | 1.50 |" in text.splitlines()
    assert "torch.compile in the 1 cases that it compiled of 2 tried" in text


def test_summary_tells_the_peers_apart(files, tmp_path):
    rows = results(ratio=2.0) + results("odd", ratio=8.0)
    rows += [
        result(shape, cell, "inference", ratio=ratio, peer="onnxruntime")
        for shape, ratio in (("rl", 4.0), ("odd", 1.0))
        for cell in ("LSTM", "GRU", "RNN")
    ]
    report.main(files(rows, PAGE.replace("benchmark", "summary")))
    lines = (tmp_path / "page.md").read_text().splitlines()
    assert "| training | GRU | 2 | 4.00 |  | 4.00 | 2.00 (rl, torch) |" in lines
    assert "| inference | GRU | 2 | 4.00 | 2.00 | 1.41 | 1.00 (odd, onnxruntime) |" in lines


def test_summary_has_what_was_measured_with_freed_memory_kept(files, tmp_path):
    kept = results(ratio=1.5) + results("odd", ratio=6.0)
    kept += [result(peer="torch.compile", ratio=None), result(peer="onnxruntime", ratio=99.0)]
    measure.write_csv(tmp_path / tables.KEPT / "layers.csv", kept)
    report.main(files(results(ratio=2.0), PAGE.replace("benchmark", "summary")))
    lines = (tmp_path / "page.md").read_text().splitlines()
    assert "| training | LSTM | 2 | 2.00 | 2.00 | 2.00 (rl, torch) | 3.00 |" in lines


def test_share_of_the_gemm_rate(files, tmp_path):
    rows = results(gemm_share=0.9, peer_gemm_share=0.25)
    report.main(files(rows, PAGE.replace("benchmark", "share")))
    assert "| rl |" + " 90% (25%) |" * 6 in (tmp_path / "page.md").read_text().splitlines()


def test_floor_bounds_what_a_layer_can_be_ahead(files, tmp_path, monkeypatch):
    """Twice as fast as the peer and at 40% of its floor, a layer could be 5 times as fast."""
    monkeypatch.setattr(tables, "floor", lambda *case: 4e-4)
    page = PAGE.replace("benchmark", "floor")
    arguments = files(results(ratio=2.0) + results(ratio=3.0, threads=1), page)
    report.main(arguments)
    assert "`results/floor.csv` is absent" in (tmp_path / "page.md").read_text()
    row = results()[0]
    of_machine = {"quantity": "multiply_add", "of": "float32", "threads": 2, "bytes": 0}
    environment = {name: getattr(row, name) for name in ("date", *tables.SAME)}
    rate = FloorResult(**environment, **of_machine, value=400, unit="GFLOP/s")
    measure.write_csv(tmp_path / "floor.csv", [rate])
    report.main(arguments)
    text = (tmp_path / "page.md").read_text()
    assert f"| rl | {' | '.join(['40%, 5.00'] * 6)} |" in text
    for threads, mean in {2: "2.00 of 5.00", 1: "3.00 of 7.50"}.items():
        line = " | ".join([f"**geometric mean, threads: {threads}**", *[f"**{mean}**"] * 6])
        assert f"| {line} |" in text
    assert "400 GFLOP/s in registers" in text


def test_check_writes_nothing_and_notices_a_typed_number(files, tmp_path, capsys):
    arguments = files(results(ratio=2.0))
    page = tmp_path / "page.md"
    with pytest.raises(SystemExit, match="not what the results give"):
        report.main([*arguments, "--check"])
    assert page.read_text() == PAGE and not (tmp_path / "images").exists()
    report.main(arguments)
    report.main([*arguments, "--check"])
    page.write_text(page.read_text().replace("| 2.00 |", "| 2.10 |", 1))
    capsys.readouterr()
    with pytest.raises(SystemExit, match="not what the results give"):
        report.main([*arguments, "--check"])
    assert "2.10" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (results()[1:], "lack, at 2 threads: rl training LSTM against torch"),
        (results() + results(), "have rl training LSTM against torch twice"),
        (results() + results("odd", cpu="other"), "mix cpu: 1, other"),
        ([result(threads=1)], "no results at 2 threads"),
        (
            results() + [result(mode="inference", peer="onnxruntime")],
            "lack, at 2 threads: rl inference GRU against onnxruntime",
        ),
    ],
)
def test_results_that_make_no_table(files, rows, message):
    with pytest.raises(SystemExit, match=message):
        report.main(files(rows))


def test_table_of_another_machine_is_of_the_csvs_in_its_folder(files, tmp_path):
    arguments = files(results(ratio=2.0), f"{PAGE}{PAGE.replace('benchmark', 'older/benchmark')}")
    (tmp_path / "older").mkdir()
    measure.write_csv(tmp_path / "older" / "layers.csv", results(ratio=3.0))
    report.main(arguments)
    here, older = (tmp_path / "page.md").read_text().split("The end.")[:2]
    assert "| 2.00 |" in here and "| 3.00 |" not in here
    assert "| 3.00 |" in older and "| 2.00 |" not in older


BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"


@pytest.mark.parametrize("page", [BEGIN, f"{END}{BEGIN}", PAGE * 2, "<!-- speed:begin -->"])
def test_page_without_one_pair_of_markers(files, page):
    with pytest.raises(SystemExit, match="expected one"):
        report.main(files(results(), page))


def test_charts_are_the_same_when_drawn_again(files, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(charts, "available", lambda: True)
    arguments = files(results() + results("odd", ratio=0.5))
    report.main(arguments)
    drawn = {path.name: path.read_text() for path in (tmp_path / "images").iterdir()}
    assert {"ratios.svg", "roofline.svg"} <= drawn.keys()
    assert all("<svg" in text and "Matplotlib" in charts.creator(text) for text in drawn.values())
    report.main([*arguments, "--check"])
    path = tmp_path / "images" / "ratios.svg"
    path.write_text(drawn["ratios.svg"].replace("<path", "<PATH", 1))
    with pytest.raises(SystemExit, match=r"ratios\.svg"):
        report.main([*arguments, "--check"])


def test_pages_of_this_project_agree_with_its_results():
    report.main(["--check"])
