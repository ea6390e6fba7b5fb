"""The README's table: what it says, that --check notices a difference, and this project's own."""

import dataclasses

import measure
import pytest
import report
from layers import SHAPES, LayerResult

README = f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\nThe end.\n"


def result(shape: str = "rl", cell: str = "LSTM", mode: str = "training", **changes) -> LayerResult:
    values = {field.name: field.type(1) for field in dataclasses.fields(LayerResult)} | SHAPES[
        shape
    ]._asdict()
    values |= {"threads": 2, "shape": shape, "cell": cell, "mode": mode}
    return LayerResult(**values | {"backend": "rnnfast", "auto": "rnnfast"} | changes)


def results(shape: str = "rl", **changes) -> list[LayerResult]:
    return [result(shape, cell, mode, **changes) for mode, cell in report.COLUMNS]


@pytest.fixture
def files(tmp_path):
    """Writes rows; returns the arguments of a report on them."""

    def write(rows: list[LayerResult], readme: str = README) -> list[str]:
        measure.write_csv(tmp_path / "layers.csv", rows)
        (tmp_path / "README.md").write_text(readme)
        return [str(tmp_path / "layers.csv"), "--readme", str(tmp_path / "README.md")]

    return write


def test_table_has_each_shape_and_the_geometric_mean(files, tmp_path):
    rows = results(ratio=2.0)
    slow = results("odd", ratio=8.0)
    slow[0] = result("odd", ratio=0.5, auto="torch")
    other = [result(threads=1, ratio=99.0), result("odd", backend="auto", auto="torch", ratio=99.0)]
    report.main(files(rows + slow + other))
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# Title\n\n") and text.endswith("\n\nThe end.\n")
    assert "old" not in text and "99" not in text
    lines = text.splitlines()
    assert "| rl | 8·128·64·64·1 | 2.00 | 2.00 | 2.00 | 2.00 | 2.00 | 2.00 |" in lines
    assert "| odd | 7·13·37·61·1 | 0.50 † | 8.00 | 8.00 | 8.00 | 8.00 | 8.00 |" in lines
    mean = "**4.00** | " * 4 + "**4.00** |"
    assert f"| **geometric mean** |  | **1.00** | {mean}" in lines
    assert "† The default backend, `auto`, hands this call to torch." in lines


def test_check_writes_nothing_and_notices_a_typed_number(files, tmp_path, capsys):
    arguments = files(results(ratio=2.0))
    readme = tmp_path / "README.md"
    with pytest.raises(SystemExit, match="does not agree"):
        report.main([*arguments, "--check"])
    assert readme.read_text() == README
    report.main(arguments)
    report.main([*arguments, "--check"])
    readme.write_text(readme.read_text().replace("| 2.00 |", "| 2.10 |", 1))
    capsys.readouterr()
    with pytest.raises(SystemExit, match="does not agree"):
        report.main([*arguments, "--check"])
    assert "2.10" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (results()[1:], "lack, at 2 threads: rl training LSTM"),
        (results() + results(), "these cases twice: rl inference GRU, "),
        (results() + results("odd", cpu="other"), "mix cpu: 1, other"),
        ([result(threads=1)], "no results at 2 threads"),
    ],
)
def test_results_that_make_no_table(files, rows, message):
    with pytest.raises(SystemExit, match=message):
        report.main(files(rows))


@pytest.mark.parametrize("readme", ["", report.BEGIN, f"{report.END}{report.BEGIN}", README * 2])
def test_readme_without_one_pair_of_markers(files, readme):
    with pytest.raises(SystemExit, match="expected one"):
        report.main(files(results(), readme))


def test_chart(files, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "layers.svg"
    report.main([*files(results() + results("odd", ratio=0.5)), "--chart", str(path)])
    assert "<svg" in path.read_text()


def test_readme_of_this_project_agrees_with_its_results():
    report.main(["--check"])
