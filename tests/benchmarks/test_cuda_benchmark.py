"""The benchmarks on a GPU: their timing by a clock without one, their cases, their rows."""

import dataclasses
import functools
import types

import gpu
import gpu_language_model_step
import gpu_timing
import pytest
import torch

from rnnfast.benchmark import layers, measure

ENVIRONMENT = gpu_timing.GpuEnvironment(
    **dataclasses.asdict(measure.Environment.here()),
    device="no GPU",
    driver="unknown",
    cuda="None",
    cudnn="None",
)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


class FakeMark(types.SimpleNamespace):
    def elapsed_time(self, end: "FakeMark") -> float:
        assert self.clock.waited_at >= end.at, "read before the GPU was waited for"
        return 1e3 * (end.at - self.at)


class FakeClock:
    """A GPU whose work lasts as long as it is told, and which keeps a record of what it did."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.waited_at = 0.0
        self.log: list[str] = []

    def now(self) -> float:
        return self.seconds

    def flush(self) -> None:
        self.work("flush", 0.5)

    def mark(self) -> FakeMark:
        self.log.append("mark")
        return FakeMark(clock=self, at=self.seconds)

    def wait(self) -> None:
        self.waited_at = self.seconds

    def work(self, name: str, seconds: float) -> None:
        self.log.append(name)
        self.seconds += seconds


def test_contenders_are_timed_in_turn_without_the_flush():
    clock = FakeClock()
    calls = {"ours": lambda: clock.work("a", 0.25), "peer": lambda: clock.work("b", 2.0)}
    times = gpu_timing.interleave(calls, 10.0, clock)
    assert times == {"ours": [250.0] * 5, "peer": [2000.0] * 5}
    sample = ["flush", "mark", "{}", "mark"]
    in_turn = [word.format(name) for name in "ab" for word in sample]
    warm_up = ["a"] * 3 + ["b"] * 3
    assert clock.log == warm_up + 5 * in_turn


def test_rounds_go_on_for_as_long_as_the_budget():
    clock = FakeClock()
    times = gpu_timing.interleave({"ours": lambda: clock.work("a", 0.5)}, 20.0, clock)
    assert len(times["ours"]) == 20
    clock = FakeClock()
    times = gpu_timing.interleave({"ours": lambda: clock.work("a", 50.0)}, 1.0, clock, 3)
    assert len(times["ours"]) == 3


def test_the_verdict_is_that_of_three_rounds_in_four():
    assert gpu_timing.verdict(measure.Spread(1.01, 1.2, 1.3)) == "faster"
    assert gpu_timing.verdict(measure.Spread(0.99, 1.2, 1.3)) == "equal"
    assert gpu_timing.verdict(measure.Spread(0.9, 0.95, 0.99)) == "slower"


def test_a_result_that_is_not_a_number_never_agrees():
    right = torch.ones(4)
    assert gpu_timing.disagreement("bfloat16", right, right) == 0
    assert gpu_timing.disagreement("float32", right * 1.01, right) == pytest.approx(100, rel=1e-3)
    assert not gpu_timing.disagreement("bfloat16", right * torch.nan, right) <= 1


def test_tf32_is_as_it_was_afterwards():
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    with gpu_timing.tf32(True):
        assert all(switch.allow_tf32 for switch in switches)
        with gpu_timing.tf32(False):
            assert not any(switch.allow_tf32 for switch in switches)
    assert [switch.allow_tf32 for switch in switches] == before


def test_all_cases_the_most_important_first():
    cases = gpu.cases()
    assert len(cases) == len(set(cases)) == len(gpu.SHAPES) * 3 * 2 * 4
    assert len(gpu.SHAPES) == len(layers.SHAPES) + 4 * 5 * 3 + 2
    assert cases[0] == ("ptb_medium", "LSTM", "training", "bfloat16")
    early = cases[:60]
    assert {case.cell for case in early} == set(layers.CELLS)
    assert {case.mode for case in early} == set(layers.MODES)
    assert {case.dtype for case in early} == set(gpu.DTYPES)
    assert {case.shape for case in early} >= set(gpu.FIRST)
    # What takes longest is not what is measured first.
    work = [layers.operations(case.cell, case.sizes, case.mode) for case in cases]
    assert sum(work[:200]) < sum(work[-200:]) / 10


def test_a_budget_that_is_used_up_leaves_out_the_last(capsys):
    clock = FakeClock()
    wanted = gpu.cases()[:5]
    done = []

    def measured(case):
        clock.work("case", 1.0)
        done.append(case)
        return [case]

    assert list(gpu.within(2.5, wanted, measured, clock)) == [[case] for case in wanted[:3]]
    assert done == wanted[:3]
    assert "2.5 s was enough for 3 of 5 cases" in capsys.readouterr().out


def real_time() -> FakeClock:
    """A clock whose GPU is this process: each reading of the time moves it on."""
    clock = FakeClock()
    mark = clock.mark

    def moving() -> FakeMark:
        clock.seconds += 1e-3
        return mark()

    clock.mark = moving
    return clock


@pytest.mark.parametrize("cell", layers.CELLS)
@pytest.mark.parametrize("mode", layers.MODES)
@pytest.mark.parametrize("dtype", gpu.DTYPES)
def test_a_case_on_the_cpu(cell, mode, dtype, tmp_path):
    """All but the GPU: modules, agreement, numbers, and a CSV that reads back."""
    case = gpu.Case("odd", cell, mode, dtype)
    among = {"torch": gpu.peers()["torch"]}
    rows = gpu.measure_case(case, 0.01, among, real_time(), ENVIRONMENT, device="cpu")
    (row,) = rows
    assert (row.outcome, row.peer, row.backend) == ("measured", "torch", "auto")
    assert (row.ratio, row.verdict, row.rounds) == (1.0, "equal", 5)
    assert row.tflops == pytest.approx(layers.operations(cell, case.sizes, mode) / 1e9, rel=1e-3)
    measure.write_csv(tmp_path / "gpu.csv", rows)
    assert measure.read_csv(tmp_path / "gpu.csv", gpu.GpuResult) == rows
    assert "1.00 (1.00 to 1.00), equal" in str(row)


def test_both_directions_have_no_rate():
    case = gpu.Case("two_ways", "RNN", "inference", "float32")
    among = {"torch": gpu.peers()["torch"]}
    (row,) = gpu.measure_case(case, 0.0, among, real_time(), ENVIRONMENT, device="cpu")
    assert (row.directions, row.outcome, row.tflops) == (2, "measured", None)


def test_a_peer_that_fails_or_is_wrong_has_no_numbers():
    def failing(module, input, grad_output):
        raise ImportError("no such\nlibrary")

    def wrong(module, input, grad_output):
        return lambda: (torch.zeros(input.shape[0], input.shape[1], module.hidden_size),)

    among = {
        "failing": gpu.Peer("1", failing),
        "wrong": gpu.Peer("2", wrong),
        "elsewhere": gpu.Peer("3", failing, serves=lambda case: case.cell == "GRU"),
        "torch": gpu.peers()["torch"],
    }
    case = gpu.Case("odd", "LSTM", "inference", "float32")
    rows = gpu.measure_case(case, 0.0, among, real_time(), ENVIRONMENT, device="cpu")
    failed, mistaken, sound = rows
    assert (failed.outcome, failed.ratio) == ("no such", None)
    assert mistaken.outcome.startswith("result 0 is ") and not mistaken.rounds
    assert (sound.peer, sound.outcome) == ("torch", "measured")


def test_what_haste_and_flashrnn_serve(monkeypatch):
    monkeypatch.setattr(gpu.importlib, "import_module", lambda name: None)
    monkeypatch.setattr(gpu.importlib.metadata, "version", lambda name: f"{name} 1")
    peers = gpu.peers()
    assert peers["haste_pytorch"].version == "haste-pytorch 1"
    served = {name: {case for case in gpu.cases() if p.serves(case)} for name, p in peers.items()}
    assert served["torch"] == set(gpu.cases())
    assert {case.dtype for case in served["haste_pytorch"]} == {"float32"}
    assert {case.cell for case in served["flashrnn"]} == {"LSTM"}
    for name in ("haste_pytorch", "flashrnn"):
        assert all(c.sizes.num_layers == 1 and not c.bidirectional for c in served[name])


@pytest.mark.parametrize("mode", layers.MODES)
def test_flashrnn_is_given_torchs_weights(mode, monkeypatch):
    """Its function in plain torch, with the shapes and the order of gates that it documents."""

    def flashrnn(gates, recurrent, bias, function, dtype):
        assert (function, dtype) == ("lstm", "float32")
        batch, seq_len, _, heads, size = gates.shape
        h = c = gates.new_zeros(batch, heads, size)
        outputs = []
        for x in gates.unbind(1):
            pre = x + torch.einsum("gndp,bnp->bgnd", recurrent, h) + bias
            i, f, z, o = pre.unbind(1)
            c = f.sigmoid() * c + i.sigmoid() * z.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        output = torch.stack(outputs, 1)
        return output[None], output[None, :, -1:]

    module = types.SimpleNamespace(flashrnn=flashrnn)
    monkeypatch.setattr(gpu.importlib, "import_module", lambda name: module)
    case = gpu.Case("odd", "LSTM", mode, "float32")
    _, theirs, data = gpu._contenders(case, "cpu")
    results = gpu._flashrnn_step(theirs, *data)()
    gpu._check(case, layers.step(theirs, *data)(), results, whole=False)


@pytest.mark.parametrize("dtype", gpu_language_model_step.DTYPES)
def test_a_training_step_on_the_cpu(dtype, tmp_path):
    rows = gpu_language_model_step.measure_model(
        "test", dtype, 0.0, real_time(), ENVIRONMENT, device="cpu", contenders=["rnnfast"]
    )
    (row,) = rows
    assert (row.outcome, row.verdict, row.ratio) == ("measured", "equal", 1.0)
    assert row.words_per_second == 1e3 * row.num_steps * row.batch_size
    measure.write_csv(tmp_path / "steps.csv", rows)
    assert measure.read_csv(tmp_path / "steps.csv", gpu_language_model_step.GpuStepResult) == rows


@no_gpu
def test_a_graph_that_cannot_be_captured_is_told():
    (row,) = gpu_language_model_step.measure_model(
        "test",
        "float32",
        0.0,
        real_time(),
        ENVIRONMENT,
        device="cpu",
        contenders=["rnnfast, CUDA graph"],
    )
    assert row.outcome != "measured" and row.ratio is None and "CUDA graph" in str(row)


@no_gpu
@pytest.mark.parametrize("script", [gpu, gpu_language_model_step])
def test_without_a_gpu_nothing_is_measured(script, tmp_path, capsys):
    output = tmp_path / "gpu.csv"
    script.main(["--smoke", "--output", str(output)])
    assert capsys.readouterr().out == gpu_timing.NO_GPU + "\n"
    assert not output.exists()


def on_a_gpu(script, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a script's main believe that there is one; what it measures is on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_timing, "Clock", real_time)
    here = classmethod(lambda kind: ENVIRONMENT)
    monkeypatch.setattr(gpu_timing.GpuEnvironment, "here", here)
    name = "measure_case" if script is gpu else "measure_model"
    measured = getattr(script, name)
    monkeypatch.setattr(script, name, functools.partial(measured, device="cpu"))


def test_the_layers_command(tmp_path, monkeypatch, capsys):
    on_a_gpu(gpu, monkeypatch)
    output = tmp_path / "gpu.csv"
    arguments = ["--smoke", "--cells", "GRU", "--dtypes", "float32", "--output", str(output)]
    gpu.main([*arguments, "--peers", "torch"])
    rows = measure.read_csv(output, gpu.GpuResult)
    assert [(row.shape, row.mode) for row in rows] == [("odd", "training"), ("odd", "inference")]
    assert "peers: torch" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        gpu.main([*arguments, "--peers", "cudnn"])
    monkeypatch.setattr(gpu_timing, "disagreement", lambda *results: 2.0)
    with pytest.raises(SystemExit, match="2 cases failed against torch, the first: odd .* GRU"):
        gpu.main(arguments)


def test_the_training_step_command(tmp_path, monkeypatch):
    on_a_gpu(gpu_language_model_step, monkeypatch)
    monkeypatch.setattr(gpu_language_model_step, "captured", lambda step: step)
    output = tmp_path / "steps.csv"
    gpu_language_model_step.main(["--smoke", "--dtypes", "float32", "--output", str(output)])
    rows = measure.read_csv(output, gpu_language_model_step.GpuStepResult)
    assert [row.contender for row in rows] == ["rnnfast", "rnnfast, CUDA graph"]
    monkeypatch.setattr(gpu_timing, "disagreement", lambda *results: 2.0)
    with pytest.raises(SystemExit, match="2 cases failed, the first: test"):
        gpu_language_model_step.main(["--smoke", "--dtypes", "float32"])
