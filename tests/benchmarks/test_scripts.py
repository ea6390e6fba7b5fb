"""The other scripts: a short run of each, and all of them as one command."""

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import report
import scaling
import text
import variants

from rnnfast.benchmark import measure

FOLDER = Path(scaling.__file__).parent


@pytest.fixture(autouse=True)
def no_warm_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "WARM_UP_SECONDS", 0)


def run(script, path: Path, kind: type, *arguments: str) -> list:
    script.main(["--smoke", "--output", str(path), *arguments])
    return measure.read_csv(path, kind)


def test_length_is_relative_to_1000_steps(tmp_path):
    rows = run(scaling, tmp_path / "s.csv", scaling.ScalingResult, "--studies", "length")
    assert {row.seq_len for row in rows} == {10, 1000}
    for row in rows:
        elements = row.batch * row.seq_len * row.hidden_size
        assert row.nanoseconds == pytest.approx(1e6 * row.milliseconds / elements, rel=1e-3)
        assert row.seq_len != 1000 or row.relative == 1


@pytest.mark.skipif(measure.available_cpus() < 2, reason="one CPU")
def test_threads_are_relative_to_one(tmp_path):
    rows = run(scaling, tmp_path / "s.csv", scaling.ScalingResult, "--studies", "threads")
    assert all(row.relative == 1 for row in rows if row.threads == 1)
    assert {(row.contender, row.threads) for row in rows} == {
        (who, threads) for who in ("rnnfast", "torch") for threads in (1, 2)
    }


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="CPUs cannot be chosen")
def test_crowded_threads_have_one_cpu(tmp_path):
    mine = os.sched_getaffinity(0)
    rows = run(scaling, tmp_path / "s.csv", scaling.ScalingResult, "--studies", "crowded")
    assert {(row.cell, row.contender, row.threads) for row in rows} == {
        (cell, who, threads)
        for cell in ("LSTM", "GRU")
        for who in ("rnnfast", "torch")
        for threads in (1, 2)
    }
    assert all(row.relative == 1 for row in rows if row.threads == 1)
    assert os.sched_getaffinity(0) == mine
    with scaling._one_cpu():
        pool = multiprocessing.get_context("spawn").Pool(1)
    with pool:
        assert len(pool.apply(os.sched_getaffinity, (0,))) == 1


def test_recomputing_takes_less_memory_than_keeping(tmp_path):
    """Nothing but what backward needs is counted: neither the input nor what was loaded before."""
    full, recompute = scaling.study_memory([3000], ["full", "recompute"])
    sequence = 3000 * 8 * 64 * 4 / 2**20
    # Output, its gradient and five tensors that are kept; of the other the first two and a segment.
    assert full.peak_mib >= 6 * sequence
    assert 2 * recompute.peak_mib <= full.peak_mib


def test_variants(tmp_path):
    arguments = ("--threads", "1", "--modes", "training")
    rows = run(variants, tmp_path / "v.csv", variants.VariantResult, *arguments)
    by_pair = {(row.variant, row.cell, row.contender, row.peer): row for row in rows}
    assert len(by_pair) == len(rows) == 1 + 2 * 2 + 2 * 4
    for row in rows:
        # A half type's error is that of its last rounding at least; float32's is far below.
        exact = row.contender == "rnnfast"
        assert row.error < 1e-5 if exact else 1e-5 < row.error < 0.05
        assert row.proj_size == (30 if row.variant == "proj_size" else 0)


def test_text(tmp_path):
    encoding, counting = run(text, tmp_path / "t.csv", text.TextResult)
    assert (encoding.task, counting.task) == ("encode_file", "count_tokens")
    for row in (encoding, counting):
        assert 0 < row.types < row.tokens < 1e6 * row.megabytes
        assert row.rounds >= 5 and row.ratio > 0
        assert row.megabytes_per_second > 0 and row.peer_megabytes_per_second > 0


def test_all_are_run_by_one_command(monkeypatch, capsys):
    """Each script in a process of its own: with --smoke once, else into its own file, and then the
    report. One that fails ends it."""
    scripts = ("layers", "floor", "prepacked", "packed", "variants", "quantized", "latency")
    on_gpu = ("gpu", "gpu_language_model_step")
    names = (*scripts, "language_model_step", "sampling", "text", "scaling", *on_gpu, "tutorials")
    calls, reports, failing = [], [], ["text"]

    def run(command: list[str]) -> subprocess.CompletedProcess:
        interpreter, script, *arguments = command
        name = Path(script).stem
        assert interpreter == sys.executable and Path(script) == FOLDER / f"{name}.py"
        calls.append((name, arguments))
        return subprocess.CompletedProcess(command, int(name in failing))

    def benchmarks(*arguments: str) -> None:
        calls.clear()
        monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
        runpy.run_path(str(FOLDER), run_name="__main__")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(report, "main", reports.append)
    with pytest.raises(SystemExit, match="text failed"):
        benchmarks()
    failing.clear()
    benchmarks("--smoke")
    assert calls == [(name, ["--smoke"]) for name in names] and not reports
    benchmarks()
    assert {name for name, _ in calls} == set(names) - {"tutorials"} and reports == [[]]
    benchmarks("packed", "layers_compiled")
    (_, packed), (_, compiled) = calls
    assert packed == ["--output", str(FOLDER / "results" / "packed.csv")]
    assert compiled[:2] == ["--peers", "torch.compile"]
    assert compiled[-1] == str(FOLDER / "results" / "layers_compiled.csv")
    with pytest.raises(SystemExit):
        benchmarks("speed")
    assert "got speed" in capsys.readouterr().err
