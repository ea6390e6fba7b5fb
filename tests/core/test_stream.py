"""Streams: the module's results step by step, state and weights kept, nothing allocated."""

import gc
import json
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import rnnfast
from rnnfast import _C

FORMS = {
    "LSTM": rnnfast.LSTM,
    # Of a single unit, none.
    "LSTM projected": lambda *args, **kwargs: rnnfast.LSTM(*args, proj_size=args[1] // 2, **kwargs),
    "GRU": rnnfast.GRU,
    "GRU reset before": lambda *args, **kwargs: rnnfast.GRU(*args, reset_after=False, **kwargs),
    "RNN": rnnfast.RNN,
    "RNN relu": lambda *args, **kwargs: rnnfast.RNN(*args, nonlinearity="relu", **kwargs),
}
TORCH_FORMS = {
    "LSTM": nn.LSTM,
    "LSTM projected": lambda *args, **kwargs: nn.LSTM(*args, proj_size=args[1] // 2, **kwargs),
    "GRU": nn.GRU,
    "RNN": nn.RNN,
    "RNN relu": lambda *args, **kwargs: nn.RNN(*args, nonlinearity="relu", **kwargs),
}
every_form = pytest.mark.parametrize("build", FORMS.values(), ids=FORMS)
every_torch_form = pytest.mark.parametrize("build", TORCH_FORMS.values(), ids=TORCH_FORMS)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
# input_size, hidden_size, num_layers, batch, bias: below, at and above the width of vectors, and
# rows that fill no tile, one, or more.
CASES = [
    (1, 1, 1, 1, True),
    (7, 15, 2, 3, True),
    (16, 16, 1, 8, False),
    (33, 17, 3, 1, True),
    (5, 33, 1, 3, True),
    (61, 61, 2, 8, True),
    (130, 64, 1, 1, False),
    (3, 200, 1, 11, True),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
SEQ_LEN = 5


@pytest.fixture(autouse=True)
def settings(kernels) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def flat(states: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (states,) if isinstance(states, Tensor) else states


def problem(build, case, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    input_size, hidden_size, num_layers, batch, bias = case
    module = build(input_size, hidden_size, num_layers, bias=bias, dtype=dtype)
    return module, torch.randn(SEQ_LEN, batch, input_size, dtype=dtype)


def run(stream: rnnfast.Stream, x: Tensor) -> Tensor:
    return torch.stack([stream.step(row).clone() for row in x])


def expected(module: nn.Module, x: Tensor, hx=None) -> list[Tensor]:
    """Output and final states."""
    with torch.no_grad():
        output, final = module(x, hx)
    return [output, *flat(final)]


def assert_same_bits(results: list[Tensor], others: list[Tensor]) -> None:
    for result, other in zip(results, others, strict=True):
        assert result.shape == other.shape
        assert torch.equal(result, other)


class TestResults:
    @every_form
    @every_case
    @both_dtypes
    def test_bits_of_the_module(self, build, case, dtype, isa):
        module, x = problem(build, case, dtype)
        stream = rnnfast.stream(module, batch=case[3])
        assert_same_bits([run(stream, x), *flat(stream.state)], expected(module, x))

    @every_torch_form
    @every_case
    def test_torch_modules_in_float64(self, build, case, isa):
        module, x = problem(build, case, torch.float64)
        stream = rnnfast.stream(module, batch=case[3])
        results = [run(stream, x), *flat(stream.state)]
        for result, other in zip(results, expected(module, x), strict=True):
            torch.testing.assert_close(result, other, rtol=1e-13, atol=1e-14)

    @every_torch_form
    @pytest.mark.parametrize("case", CASES[1:], ids=str)
    def test_error_in_float32(self, build, case, isa):
        """At most twice torch's own, with torch's float64 as truth, averaged over draws."""
        errors = torch.zeros(2)
        for _ in range(max(3, 200 // case[1])):
            module, x = problem(build, case)
            result = run(rnnfast.stream(module, batch=case[3]), x)
            theirs = expected(module, x)[0]
            truth = expected(module.double(), x.double())[0]
            for index, output in enumerate((result, theirs)):
                errors[index] += (output - truth).abs().max() / truth.abs().max()
        assert errors[0] <= 2 * errors[1]

    def test_unbatched(self):
        module, x = problem(rnnfast.LSTM, (5, 6, 2, 1, True))
        stream = rnnfast.stream(module, batch=None)
        results = [run(stream, x[:, 0]), *stream.state]
        assert_same_bits(results, expected(module, x[:, 0]))

    def test_no_input_features(self):
        module = rnnfast.GRU(3, 4)
        module.weight_ih_l0 = nn.Parameter(torch.empty(12, 0))
        module.input_size = 0
        x = torch.empty(SEQ_LEN, 1, 0)
        assert_same_bits([run(rnnfast.stream(module), x)], expected(module, x)[:1])

    def test_dropout_is_inactive(self):
        module, x = problem(rnnfast.GRU, CASES[3])
        module.dropout = 0.9
        assert module.training
        results = [run(rnnfast.stream(module), x)]
        assert_same_bits(results, expected(module.eval(), x)[:1])

    def test_batch_first_and_other_options_do_not_matter(self):
        plain, x = problem(rnnfast.LSTM, CASES[1])
        module = rnnfast.LSTM(
            7, 15, 2, batch_first=True, return_states=True, learn_initial_state=True
        )
        module.load_state_dict(plain.state_dict(), strict=False)
        assert_same_bits([run(rnnfast.stream(module, 3), x)], expected(plain, x)[:1])

    @every_form
    def test_a_row_does_not_depend_on_the_others(self, build, isa):
        """Not even on a NaN."""
        module, x = problem(build, (9, 33, 2, 8, True))
        clean = run(rnnfast.stream(module, batch=8), x)
        alone = run(rnnfast.stream(module), x[:, 5:6])
        x[:, 2] = torch.nan
        results = run(rnnfast.stream(module, batch=8), x)
        assert results[:, 2].isnan().all()
        others = [row for row in range(8) if row != 2]
        assert_same_bits([results[:, others]], [clean[:, others]])
        assert_same_bits([alone], [clean[:, 5:6]])

    @every_form
    def test_threads_change_no_bit(self, build):
        # So long that each part of a step is shared out.
        module, x = problem(build, (300, 330, 2, 20, True))
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            stream = rnnfast.stream(module, batch=20)
            results.append([run(stream, x), *flat(stream.state)])
        assert_same_bits(*results)

    def test_the_isa_of_its_creation_stays(self, isa):
        module, x = problem(rnnfast.LSTM, CASES[5])
        stream = rnnfast.stream(module, batch=8)
        first = expected(module, x)
        rnnfast.set_cpu_isa("baseline")
        before = _C.kernel_calls()
        assert_same_bits([run(stream, x)], first[:1])
        after = _C.kernel_calls()
        for name in rnnfast.cpu_isas():
            steps = SEQ_LEN * module.num_layers if name == isa else 0
            assert after[name] - before[name] == steps
        stream.refresh()
        state = stream.state
        assert_same_bits([run(stream, x)], expected(module, x, state)[:1])


class TestEmbedding:
    @both_dtypes
    @every_form
    @every_case
    def test_bits_of_embedding_and_module(self, build, case, dtype, isa):
        input_size, hidden_size, num_layers, batch, bias = case
        module = build(input_size, hidden_size, num_layers, bias=bias, dtype=dtype)
        embedding = torch.randn(37, input_size, dtype=dtype)
        ids = torch.randint(37, (SEQ_LEN, batch))
        stream = rnnfast.stream(module, batch, embedding=embedding)
        with torch.no_grad():
            expected = module(embedding[ids])[0]
        for row, output in zip(ids, expected, strict=True):
            assert torch.equal(stream.step(row), output)

    def test_unbatched(self):
        module, embedding = rnnfast.GRU(4, 5), torch.randn(3, 4)
        stream = rnnfast.stream(module, None, embedding=embedding)
        for id, output in zip((0, 2), module(embedding[[0, 2]])[0], strict=True):
            assert torch.equal(stream.step(torch.tensor(id)), output)

    def test_refresh_takes_it_over(self):
        module, embedding = rnnfast.LSTM(4, 6), nn.Embedding(5, 4)
        stream = rnnfast.stream(module, embedding=embedding.weight)
        ids = torch.tensor([3])
        before = stream.step(ids).clone()
        with torch.no_grad():
            embedding.weight.mul_(2)
        stream.reset()
        assert torch.equal(stream.step(ids), before)
        stream.refresh()
        stream.reset()
        assert torch.equal(stream.step(ids), module(embedding(ids).unsqueeze(0))[0][0])

    def test_no_tensor_is_kept_but_its_product(self):
        embedding = torch.randn(5, 4)
        stream = rnnfast.stream(rnnfast.RNN(4, 6), embedding=embedding.clone())
        gc.collect()
        expected = rnnfast.stream(stream.module).step(embedding[2:3])
        assert torch.equal(stream.step(torch.tensor([2])), expected)

    @pytest.mark.parametrize("id", [-1, 5, 2**40])
    def test_ids_outside(self, id):
        stream = rnnfast.stream(rnnfast.LSTM(4, 6), 2, embedding=torch.randn(5, 4))
        with pytest.raises(IndexError, match=rf"x must be in \[0, 5\), got {id}"):
            stream.step(torch.tensor([0, id]))
        stream.step(torch.tensor([0, 4]))

    @pytest.mark.parametrize(
        ("x", "error"),
        [
            (torch.zeros(2), TypeError),
            (torch.zeros(2, dtype=torch.int32), TypeError),
            (torch.zeros(3, dtype=torch.int64), ValueError),
            (3, TypeError),
        ],
    )
    def test_errors(self, x, error):
        stream = rnnfast.stream(rnnfast.LSTM(4, 6), 2, embedding=torch.randn(5, 4))
        with pytest.raises(error, match="^x must"):
            stream.step(x)

    @pytest.mark.parametrize(
        ("embedding", "error"),
        [
            (torch.randn(5, 3), ValueError),
            (torch.randn(4), ValueError),
            (torch.randn(0, 4), ValueError),
            (torch.randn(5, 4).double(), TypeError),
            (nn.Embedding(5, 4), TypeError),
            (torch.randn(5, 4, device="meta"), ValueError),
        ],
        ids=["size", "dimensions", "rows", "dtype", "type", "device"],
    )
    def test_what_is_no_embedding(self, embedding, error):
        with pytest.raises(error, match="^embedding must"):
            rnnfast.stream(rnnfast.LSTM(4, 6), embedding=embedding)


class TestState:
    @every_form
    def test_round_trip(self, build):
        case = (7, 17, 2, 3, True)
        module, x = problem(build, case)
        whole = run(rnnfast.stream(module, 3), x)
        first, second = rnnfast.stream(module, 3), rnnfast.stream(module, 3)
        run(first, x[:2])
        run(second, x[3:])
        second.set_state(first.state)
        assert_same_bits([run(second, x[2:])], [whole[2:]])

    @every_form
    def test_reset(self, build):
        module, x = problem(build, CASES[1])
        stream = rnnfast.stream(module, 3)
        first = run(stream, x)
        stream.reset()
        assert not any(state.any() for state in flat(stream.state))
        assert_same_bits([run(stream, x)], [first])

    def test_state_is_a_copy(self):
        module, x = problem(rnnfast.LSTM, CASES[1])
        stream = rnnfast.stream(module, 3)
        given = tuple(torch.randn_like(state) for state in stream.state)
        kept = [state.clone() for state in given]
        stream.set_state(given)
        state = stream.state
        stream.step(x[0])
        assert_same_bits([*given, *state], kept + kept)

    @pytest.mark.parametrize("name", ["LSTM", "GRU"])
    @pytest.mark.parametrize("batch", [3, None])
    def test_learnt_initial_state(self, name, batch):
        module = getattr(rnnfast, name)(5, 6, 2, learn_initial_state=True)
        for state in module._state_names:
            nn.init.normal_(getattr(module, state))
        x = torch.randn(SEQ_LEN, *(() if batch is None else (batch,)), 5)
        stream = rnnfast.stream(module, batch)
        outputs = expected(module, x)[:1]
        assert_same_bits([run(stream, x)], outputs)
        stream.reset()
        assert_same_bits([run(stream, x)], outputs)

    def test_the_output_is_overwritten(self):
        module, x = problem(rnnfast.GRU, CASES[1])
        stream = rnnfast.stream(module, 3)
        first = stream.step(x[0])
        kept = first.clone()
        second = stream.step(x[1])
        assert second is first and second.data_ptr() == first.data_ptr()
        assert not torch.equal(kept, first)
        # What is written there is no part of the state.
        first.fill_(torch.nan)
        assert_same_bits([stream.step(x[2])], [expected(module, x)[0][2]])


class TestRefresh:
    @every_form
    def test_weights_are_copied_until_then(self, build):
        module, x = problem(build, CASES[1])
        stream = rnnfast.stream(module, 3)
        before = run(stream, x)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1.5)
        stream.reset()
        assert_same_bits([run(stream, x)], [before])
        state = stream.state
        stream.refresh()
        assert_same_bits(flat(stream.state), flat(state))
        assert_same_bits([run(stream, x)], expected(module, x, state)[:1])
        assert not torch.equal(before, expected(module, x)[0])

    def test_parametrized_weights(self):
        module, x = problem(rnnfast.LSTM, CASES[1])
        nn.utils.parametrizations.weight_norm(module, "weight_hh_l1")
        assert_same_bits([run(rnnfast.stream(module, 3), x)], expected(module, x)[:1])

    def test_replaced_by_what_does_not_fit(self):
        module, x = problem(rnnfast.GRU, CASES[1])
        stream = rnnfast.stream(module, 3)
        first = run(stream, x)
        module.weight_hh_l1 = nn.Parameter(torch.zeros(45, 16))
        with pytest.raises(ValueError, match=r"weight_hh_l1 .*\(45, 15\).*\(45, 16\)"):
            stream.refresh()
        module.double()
        with pytest.raises(TypeError, match="weight_ih_l0 .*float32.*float64"):
            stream.refresh()
        stream.reset()
        assert_same_bits([run(stream, x)], [first])


class TestInput:
    def test_strided_input(self):
        module, x = problem(rnnfast.LSTM, CASES[1])
        strided = x.transpose(1, 2).contiguous().transpose(1, 2)
        assert not strided[0].is_contiguous()
        assert_same_bits([run(rnnfast.stream(module, 3), strided)], expected(module, x)[:1])

    def test_lazily_negated_input(self):
        """A single element is contiguous, wherever it stands."""
        module = rnnfast.RNN(1, 3)
        x = torch.tensor([[1 + 2j]]).conj().imag
        assert x.is_contiguous() and x.is_neg()
        assert_same_bits([rnnfast.stream(module).step(x)], expected(module, x.clone()[None])[0])

    def test_parameters_and_gradients(self):
        module, x = problem(rnnfast.LSTM, CASES[1])
        stream = rnnfast.stream(module, 3)
        parameter = nn.Parameter(x[0])
        output = stream.step(parameter)
        assert not output.requires_grad
        assert_same_bits([output], [expected(module, x)[0][0]])

    @every_form
    @pytest.mark.parametrize("part", [1, 2])
    def test_the_output_as_the_next_input(self, build, part):
        size = (build(1, 200).proj_size or 200) // part
        module, x = build(size, 200, 2), torch.randn(1, size)
        fed_back, copied = rnnfast.stream(module), rnnfast.stream(module)
        mine, theirs = x, x
        for _ in range(SEQ_LEN):
            mine = fed_back.step(mine)[:, -size:]
            theirs = copied.step(theirs).clone()[:, -size:]
            assert_same_bits([mine], [theirs])

    @pytest.mark.parametrize("steps", [0, 1])
    def test_backward_of_what_was_overwritten_is_refused(self, steps):
        module, x = problem(rnnfast.LSTM, CASES[1])
        stream, head = rnnfast.stream(module, 3), nn.Linear(15, 2)
        loss = head(stream.step(x[0])).sum()
        if steps == 0:
            loss.backward()
            return
        stream.step(x[1])
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_inference_mode_and_others_alternate(self):
        module, x = problem(rnnfast.LSTM, CASES[1])
        with torch.inference_mode():
            stream = rnnfast.stream(module, 3)
            inside = run(stream, x[:2])
            state = stream.state
        outside = run(stream, x[2:4])
        stream.set_state(stream.state)
        with torch.inference_mode():
            stream.set_state(stream.state)
            last = run(stream, x[4:])
        assert_same_bits([torch.cat([inside, outside, last])], expected(module, x)[:1])
        stream.set_state(state)
        stream.reset()

    @pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin")
    def test_under_compile(self):
        """The step is no part of a graph."""
        module, x = problem(rnnfast.LSTM, CASES[1])
        stream = rnnfast.stream(module, 3)
        compiled = torch.compile(lambda x: stream.step(x + 1) * 2, backend="eager")
        result = torch.stack([compiled(row) for row in x])
        assert_same_bits([result], [2 * expected(module, x + 1)[0]])

    @pytest.mark.parametrize(
        ("x", "error", "got"),
        [
            (None, TypeError, "got None"),
            ([[1.0, 2.0]], TypeError, "got a list"),
            (torch.zeros(3, 2, dtype=torch.float64), TypeError, "float64 tensor"),
            (torch.zeros(3, 2, dtype=torch.int64), TypeError, "int64 tensor"),
            (torch.zeros(2), ValueError, r"\(2,\) on cpu"),
            (torch.zeros(2, 3), ValueError, r"\(2, 3\) on cpu"),
            (torch.zeros(1, 3, 2), ValueError, r"\(1, 3, 2\) on cpu"),
            (torch.zeros(3, 2, device="meta"), ValueError, "on meta"),
            (torch.zeros(3, 2).to_sparse(), ValueError, "sparse"),
        ],
    )
    def test_errors(self, x, error, got):
        module = rnnfast.LSTM(2, 4)
        stream = rnnfast.stream(module, 3)
        before = stream.state
        message = r"x must be a dense torch.float32 tensor of shape \(3, 2\) on the CPU, .*" + got
        with pytest.raises(error, match=message):
            stream.step(x)
        assert_same_bits(stream.state, before)

    @pytest.mark.parametrize(
        ("hx", "error", "message"),
        [
            (torch.zeros(1, 3, 4), TypeError, r"hx must be a pair \(h_0, c_0\), got a torch"),
            ((torch.zeros(1, 3, 4),), TypeError, "hx must be a pair"),
            ((torch.zeros(1, 3, 4), None), TypeError, "c_0 must be .*, got None"),
            ((torch.zeros(1, 3, 4), torch.zeros(3, 4)), ValueError, r"c_0 .*\(1, 3, 4\).*\(3, 4\)"),
            ((torch.zeros(1, 1, 4), torch.zeros(1, 3, 4)), ValueError, r"h_0 .*\(1, 1, 4\)"),
            ((torch.zeros(1, 3, 4).double(),) * 2, TypeError, "h_0 .*float32.*float64"),
        ],
    )
    def test_errors_of_set_state(self, hx, error, message):
        stream = rnnfast.stream(rnnfast.LSTM(2, 4), 3)
        stream.step(torch.ones(3, 2))
        before = stream.state
        with pytest.raises(error, match=message):
            stream.set_state(hx)
        assert_same_bits(stream.state, before)


@pytest.mark.parametrize(
    ("module", "batch", "error", "message"),
    [
        (None, 1, TypeError, "module must be an LSTM, GRU or RNN .*, got a NoneType"),
        (nn.Linear(2, 3), 1, TypeError, "got a Linear"),
        (rnnfast.LSTMCell(2, 3), 1, TypeError, "got a LSTMCell"),
        (rnnfast.GRU(2, 3, bidirectional=True), 1, ValueError, "must not be bidirectional"),
        (nn.LSTM(2, 3).bfloat16(), 1, TypeError, "float32 or float64, got .*bfloat16"),
        (nn.LSTM(2, 3, device="meta"), 1, ValueError, "weight_ih_l0 must be .* on meta"),
        (nn.LSTM(2, 3), 0, ValueError, "batch must be a positive integer or None, got 0"),
        (nn.LSTM(2, 3), 2.0, ValueError, "batch must be .*, got 2.0"),
    ],
)
def test_what_no_stream_is_made_of(module, batch, error, message):
    with pytest.raises(error, match=message):
        rnnfast.stream(module, batch)


class TestMemory:
    """Native scratch cannot be allocated in a step: asked for it, the binding raises."""

    @pytest.fixture(params=FORMS.values(), ids=FORMS)
    def step(self, request: pytest.FixtureRequest) -> Callable[[], Tensor]:
        module, x = problem(request.param, (16, 40, 2, 3, True))
        stream = rnnfast.stream(module, batch=3)
        x = x[0]
        stream.step(x)
        return lambda: stream.step(x)

    def test_no_tensor_is_allocated(self, step, tmp_path):
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            for _ in range(10):
                step()
            kept = torch.empty(100)  # noqa: F841  (the profile sees allocations)
        path = tmp_path / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
        sizes = [event["args"]["Bytes"] for event in events if event["name"] == "[memory]"]
        assert [size for size in sizes if size > 0] == [400]

    def test_no_python_object_stays(self, step):
        step()
        gc.collect()
        tracemalloc.start()
        try:
            step()
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(1000):
                step()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert grown < 1000

    def test_the_output_stays_where_it_is(self, step):
        assert len({step().data_ptr() for _ in range(10)}) == 1


class TestThreads:
    def test_two_threads_on_one_stream(self):
        """A step so long that it lets other Python threads run: the second is turned away."""
        module = rnnfast.LSTM(64, 64)
        stream = rnnfast.stream(module, batch=1024)
        x = torch.randn(1024, 64)
        refused, done = [], threading.Event()

        def keep_stepping() -> None:
            while not done.is_set():
                try:
                    stream.step(x)
                except RuntimeError as error:
                    refused.append(str(error))

        others = [threading.Thread(target=keep_stepping) for _ in range(2)]
        for thread in others:
            thread.start()
        deadline = time.monotonic() + 30
        while not refused and time.monotonic() < deadline:
            time.sleep(0.01)
        done.set()
        for thread in others:
            thread.join()
        assert refused and all("one thread at a time" in message for message in refused)
        stream.reset()
        assert_same_bits([stream.step(x)], expected(module, x[None])[0])

    def test_after_fork(self, run_python):
        """A child has none of its parent's threads, and still steps."""
        code = """
import os, signal, torch, rnnfast
torch.set_num_threads(2)
stream = rnnfast.stream(rnnfast.LSTM(700, 700))
x = torch.randn(1, 700)
stream.step(x)
expected = stream.step(x).clone()
stream.reset()
stream.step(x)
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if torch.equal(stream.step(x), expected) else 1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
assert torch.equal(stream.step(x), expected)
"""
        run_python(code)
