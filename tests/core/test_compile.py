"""torch.compile takes the modules whole: one graph, any batch and length, eager's results."""

from collections.abc import Callable, Iterator

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.utils import fresh_cache
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)
from torch.utils._pytree import tree_leaves

import rnnfast

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("kernels"),
    # Of torch's own code.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning"),
]

LAYERS = ["LSTM", "GRU", "RNN"]
CELLS = ["LSTMCell", "GRUCell", "RNNCell"]
every_layer = pytest.mark.parametrize("name", LAYERS)
every_cell = pytest.mark.parametrize("name", CELLS)


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> None:
    torch.compiler.reset()


def build(name: str, *sizes: int, dtype: torch.dtype = torch.float64, **options) -> nn.Module:
    torch.manual_seed(0)
    return getattr(rnnfast, name)(*(sizes or (3, 5)), dtype=dtype, **options)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def states(name: str, *shape: int):
    return (random(*shape), random(*shape)) if name.startswith("LSTM") else random(*shape)


def tensors(results) -> list[Tensor]:
    """A PackedSequence holds None where it was sorted to begin with."""
    return [leaf for leaf in tree_leaves(results) if leaf is not None]


def results_and_gradients(run: Callable, module: nn.Module, *inputs) -> list[Tensor]:
    """What `run` gives, then the gradients of its inputs and of the module's parameters."""
    leaves = [leaf for leaf in tensors(inputs) if leaf.is_floating_point()]
    for leaf in leaves:
        leaf.requires_grad_()
    results = tensors(run(*inputs))
    differentiable = [result for result in results if result.requires_grad]
    torch.manual_seed(1)
    cotangents = [torch.randn_like(result) for result in differentiable]
    gradients = torch.autograd.grad(differentiable, [*leaves, *module.parameters()], cotangents)
    return [result.detach() for result in results] + list(gradients)


def assert_same_bits(actual: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def assert_compiles(module: nn.Module, *inputs, **options) -> None:
    """In one graph, with eager's bits and eager's gradients."""
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", **options)
    expected = results_and_gradients(module, module, *inputs)
    assert_same_bits(results_and_gradients(compiled, module, *inputs), expected)
    with torch.no_grad():
        assert_same_bits(tensors(compiled(*inputs)), tensors(module(*inputs)))


class Recorder:
    """A backend that keeps the graphs of forward and backward, which it runs as they are."""

    def __init__(self) -> None:
        self.graphs: dict[str, list[torch.fx.Graph]] = {"forward": [], "backward": []}
        self.backend = aot_autograd(
            fw_compiler=self._keep("forward"),
            bw_compiler=self._keep("backward"),
            partition_fn=min_cut_rematerialization_partition,
        )

    def _keep(self, part: str) -> Callable:
        def keep(module: torch.fx.GraphModule, inputs: list) -> Callable:
            self.graphs[part].append(module.graph)
            return make_boxed_func(module.forward)

        return keep

    def operators(self, part: str) -> list[str]:
        """The operators of this package in the one graph of forward or backward."""
        (graph,) = self.graphs[part]
        targets = (str(node.target) for node in graph.nodes)
        return [target for target in targets if target.startswith("rnnfast.")]


class TestWholeGraph:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"batch_first": True, "bias": False},
            {"num_layers": 2, "bidirectional": True},
            {"num_layers": 2, "bidirectional": True, "batch_first": True},
        ],
        ids=["plain", "batch_first", "stack", "batch_first_stack"],
    )
    @every_layer
    def test_layers(self, name, options):
        assert_compiles(build(name, **options), random(4, 2, 3))

    @every_layer
    def test_layers_with_given_states(self, name):
        module = build(name, num_layers=2, bidirectional=True)
        assert_compiles(module, random(4, 2, 3), states(name, 4, 2, 5))

    @every_layer
    def test_layers_unbatched(self, name):
        assert_compiles(build(name), random(4, 3), states(name, 1, 5))

    @pytest.mark.parametrize("given", [False, True], ids=["zero_states", "given_states"])
    @every_cell
    def test_cells(self, name, given):
        assert_compiles(build(name), random(2, 3), *([states(name, 2, 5)] if given else []))

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("RNN", {"nonlinearity": "relu"}),
            ("RNNCell", {"nonlinearity": "relu"}),
            ("GRU", {"reset_after": False}),
            ("GRUCell", {"reset_after": False}),
            ("LSTM", {"proj_size": 2, "num_layers": 2}),
            ("LSTM", {"memory": "recompute"}),
            ("GRU", {"memory": "recompute"}),
            ("LSTM", {"return_states": True, "num_layers": 2}),
            ("GRU", {"return_states": True, "bidirectional": True}),
            ("LSTM", {"learn_initial_state": True}),
            ("RNN", {"learn_initial_state": True, "num_layers": 2}),
        ],
        ids=str,
    )
    def test_options(self, name, options):
        assert_compiles(
            build(name, **options), random(2, 3) if name.endswith("Cell") else random(4, 2, 3)
        )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @every_layer
    def test_dtypes(self, name, dtype):
        assert_compiles(build(name, dtype=dtype), random(4, 2, 3).to(dtype))

    @pytest.mark.parametrize("name", LAYERS + CELLS)
    def test_autocast(self, name):
        module = build(name, dtype=torch.float32)

        def run(input: Tensor):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return module(input)

        input = torch.randn(2, 3) if name.endswith("Cell") else torch.randn(4, 2, 3)
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        expected = results_and_gradients(run, module, input)
        assert_same_bits(results_and_gradients(compiled, module, input), expected)

    @pytest.mark.parametrize(
        ("options", "count"),
        [
            ({}, 1),
            ({"num_layers": 3, "dropout": 0.5}, 3),
            ({"num_layers": 2, "bidirectional": True}, 4),
        ],
        ids=["one", "layers", "directions"],
    )
    @every_layer
    def test_one_node_for_each_layer_and_direction(self, name, options, count):
        recorder = Recorder()
        module = build(name, **options)
        compiled = torch.compile(module, fullgraph=True, backend=recorder.backend)
        results_and_gradients(compiled, module, random(4, 2, 3))
        assert recorder.operators("forward") == [f"rnnfast.{name.lower()}.default"] * count
        expected = [f"rnnfast.{name.lower()}_backward.default"] * count
        assert recorder.operators("backward") == expected

    def test_recomputed(self):
        """Forward runs again in the graph of backward."""
        recorder = Recorder()
        module = build("LSTM", memory="recompute")
        compiled = torch.compile(module, fullgraph=True, backend=recorder.backend)
        results_and_gradients(compiled, module, random(4, 2, 3))
        assert recorder.operators("forward") == ["rnnfast.lstm.default"]
        expected = ["rnnfast.lstm.default", "rnnfast.lstm_backward.default"]
        assert recorder.operators("backward") == expected

    @every_layer
    def test_without_gradients_nothing_is_kept(self, name):
        recorder = Recorder()
        compiled = torch.compile(build(name), fullgraph=True, backend=recorder.backend)
        with torch.no_grad():
            compiled(random(4, 2, 3))
        assert recorder.operators("forward") == [f"rnnfast.{name.lower()}_inference.default"]


class TestModels:
    def test_training_step(self):
        """Three steps of a classifier end with eager's parameters."""

        class Classifier(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embedding = nn.Embedding(11, 3)
                self.recurrent = rnnfast.GRU(3, 5, 2, batch_first=True, bidirectional=True)
                self.attention = rnnfast.LSTM(10, 4)
                self.linear = nn.Linear(4, 2)

            def forward(self, tokens: Tensor) -> Tensor:
                hidden, _ = self.recurrent(self.embedding(tokens))
                _, (h_n, _) = self.attention(hidden.transpose(0, 1))
                return self.linear(h_n[-1])

        trained = []
        for compile in (False, True):
            torch.manual_seed(0)
            model = Classifier().double()
            run = torch.compile(model, fullgraph=True, backend="aot_eager") if compile else model
            optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
            for _ in range(3):
                tokens, labels = torch.randint(11, (4, 6)), torch.randint(2, (4,))
                nn.functional.cross_entropy(run(tokens), labels).backward()
                optimizer.step()
                optimizer.zero_grad()
            trained.append(list(model.parameters()))
        torch.testing.assert_close(trained[1], trained[0], rtol=1e-12, atol=1e-12)

    @every_layer
    def test_replaced_weights(self, name):
        module = build(name, num_layers=2)
        others = {key: value.detach() * 2 for key, value in module.named_parameters()}

        def run(weights: dict[str, Tensor], input: Tensor):
            return torch.func.functional_call(module, weights, (input,))

        input = random(4, 2, 3)
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        assert_same_bits(tensors(compiled(others, input)), tensors(run(others, input)))
        own = dict(module.named_parameters())
        assert_same_bits(tensors(compiled(own, input)), tensors(module(input)))

    def test_parametrized_weights(self):
        module = build("LSTM")
        parametrizations.weight_norm(module, "weight_hh_l0")
        assert_compiles(module, random(4, 2, 3))

    @every_layer
    def test_transforms(self, name):
        """Compiled, too, they get the composite that has a rule for them."""
        module = build(name)
        parameters = {key: value.detach() for key, value in module.named_parameters()}

        def loss(weights: dict[str, Tensor], input: Tensor) -> Tensor:
            return torch.func.functional_call(module, weights, (input,))[0].square().sum()

        per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
        inputs = random(3, 4, 3)
        compiled = torch.compile(per_sample, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(
            compiled(parameters, inputs), per_sample(parameters, inputs), rtol=1e-12, atol=1e-12
        )


class TestDynamic:
    """Lengths and batches of 0 and 1 are apart: torch.compile makes a graph for each of these."""

    SIZES = [(4, 2), (3, 7), (5, 5), (2, 9), (17, 3)]

    @pytest.mark.parametrize("batch_first", [False, True], ids=["time_major", "batch_first"])
    @every_layer
    def test_any_batch_and_length(self, name, batch_first):
        module = build(name, num_layers=2, bidirectional=True, batch_first=batch_first)
        compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
        results_and_gradients(compiled, module, random(6, 8, 3))
        with torch.compiler.set_stance("fail_on_recompile"):
            for size in self.SIZES:
                input = random(*size, 3)
                expected = results_and_gradients(module, module, input)
                assert_same_bits(results_and_gradients(compiled, module, input), expected)

    def test_recomputed(self):
        """Eager adds up its gradients segment by segment."""
        module = build("LSTM", memory="recompute")
        compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
        results_and_gradients(compiled, module, random(6, 8, 3))
        with torch.compiler.set_stance("fail_on_recompile"):
            for size in [*self.SIZES, (70, 4)]:
                input = random(*size, 3)
                expected = results_and_gradients(module, module, input)
                actual = results_and_gradients(compiled, module, input)
                torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)

    @every_layer
    def test_any_batch_and_length_without_gradients(self, name):
        module = build(name).eval()
        compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
        with torch.no_grad():
            compiled(random(6, 8, 3), states(name, 1, 8, 5))
            with torch.compiler.set_stance("fail_on_recompile"):
                for seq_len, batch in self.SIZES:
                    inputs = random(seq_len, batch, 3), states(name, 1, batch, 5)
                    assert_same_bits(tensors(compiled(*inputs)), tensors(module(*inputs)))

    @every_layer
    def test_by_default_from_the_second_shape_on(self, name):
        module = build(name)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        for size in [(6, 8), (7, 9)]:
            compiled(random(*size, 3))
        with torch.compiler.set_stance("fail_on_recompile"):
            for size in self.SIZES:
                input = random(*size, 3)
                assert_same_bits(tensors(compiled(input)), tensors(module(input)))

    @every_layer
    def test_with_dropout(self, name):
        module = build(name, 3, 64, num_layers=2, dropout=0.5)
        compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
        compiled(random(6, 8, 3))
        with torch.compiler.set_stance("fail_on_recompile"):
            for size in self.SIZES:
                assert compiled(random(*size, 3))[0].shape == (*size, 64)

    @every_cell
    def test_cells_at_any_batch(self, name):
        module = build(name)
        compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
        results_and_gradients(compiled, module, random(8, 3), states(name, 8, 5))
        with torch.compiler.set_stance("fail_on_recompile"):
            for batch in (2, 3, 17):
                inputs = random(batch, 3), states(name, batch, 5)
                expected = results_and_gradients(module, module, *inputs)
                assert_same_bits(results_and_gradients(compiled, module, *inputs), expected)


def see_through(module: nn.Module) -> nn.Module:
    """Makes the second of two layers give 0 exactly where its input is 0.

    Of its weights only the identity that forms the candidate is left, and gates that carry a state
    over are shut. What its output shows of zeros is then what dropout let through.
    """
    hidden_size = module.hidden_size
    with torch.no_grad():
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(module, f"{kind}_l1").zero_()
        if module.mode == "LSTM":  # i, f, g, o
            candidate = 2
            module.bias_ih_l1[hidden_size : 2 * hidden_size] = -1e9
        elif module.mode == "GRU":  # r, z, n
            candidate = 2
            module.bias_ih_l1[hidden_size : 2 * hidden_size] = -1e9
        else:
            candidate = 0
        rows = slice(candidate * hidden_size, (candidate + 1) * hidden_size)
        module.weight_ih_l1[rows].copy_(torch.eye(hidden_size))
    return module


def assert_drops(module: nn.Module, run: Callable) -> None:
    """That a quarter of what reaches the second layer is zeros, and in evaluation nothing."""
    input = random(10, 20, 3).to(module.weight_hh_l0.dtype)
    torch.manual_seed(0)
    dropped, again = run(input)[0], run(input)[0]
    # Of 40000 draws, four standard deviations.
    assert (dropped == 0).double().mean().item() == pytest.approx(0.25, abs=0.009)
    assert not torch.equal(dropped == 0, again == 0)
    module.eval()
    whole = run(input)[0]
    assert (whole != 0).all()
    kept = dropped != 0
    assert (dropped[kept].abs() > whole[kept].abs()).all()


class TestDropout:
    @pytest.mark.parametrize("batch_first", [False, True], ids=["time_major", "batch_first"])
    @pytest.mark.parametrize("backend", [None, "aot_eager"], ids=["eager", "aot_eager"])
    @every_layer
    def test_it_drops(self, name, backend, batch_first):
        module = build(name, 3, 200, num_layers=2, dropout=0.25, batch_first=batch_first)
        run = torch.compile(module, fullgraph=True, backend=backend) if backend else module
        assert_drops(see_through(module), run)

    @pytest.mark.parametrize("decomposed", [False, True], ids=["exported", "decomposed"])
    @every_layer
    def test_it_drops_when_exported(self, name, decomposed):
        """torch's own modules lose it in run_decompositions."""
        module = build(name, 3, 200, num_layers=2, dropout=0.25)
        see_through(module)
        programs = {}
        for training in (True, False):
            program = torch.export.export(module.train(training), (random(10, 20, 3),))
            if decomposed:
                program = program.run_decompositions()
            programs[training] = program.module()
        module.train()
        assert_drops(module, lambda input: programs[module.training](input))

    @every_layer
    def test_eagers_masks_from_the_same_seed(self, name):
        module = build(name, num_layers=3, dropout=0.3, bidirectional=True)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        input = random(4, 2, 3)
        both = []
        for run in (module, compiled):
            torch.manual_seed(5)
            both.append(results_and_gradients(run, module, input))
        assert_same_bits(both[1], both[0])


class TestPacked:
    """A PackedSequence passes through; torch.compile does not trace torch's packing itself."""

    @staticmethod
    def sequence(lengths: list[int], enforce_sorted: bool) -> PackedSequence:
        return pack_sequence([random(n, 3) for n in lengths], enforce_sorted=enforce_sorted)

    @pytest.mark.parametrize("enforce_sorted", [True, False], ids=["sorted", "unsorted"])
    @every_layer
    def test_in_and_out(self, name, enforce_sorted):
        module = build(name, num_layers=2, bidirectional=True)
        packed = self.sequence([5, 3, 1] if enforce_sorted else [3, 5, 1], enforce_sorted)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        output, _ = compiled(packed)
        assert isinstance(output, PackedSequence)
        expected = results_and_gradients(module, module, packed)
        assert_same_bits(results_and_gradients(compiled, module, packed), expected)

    @pytest.mark.parametrize("enforce_sorted", [True, False], ids=["sorted", "unsorted"])
    def test_any_batch_and_lengths(self, enforce_sorted):
        module = build("LSTM")
        compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
        compiled(self.sequence([9, 4, 4, 2], enforce_sorted))
        with torch.compiler.set_stance("fail_on_recompile"):
            for lengths in ([5, 3], [6, 6, 6, 1], [12, 11, 3, 2]):
                packed = self.sequence(lengths, enforce_sorted)
                assert_same_bits(tensors(compiled(packed)), tensors(module(packed)))

    def test_packed_inside(self):
        """The graph breaks around torch's functions; results stay eager's."""
        module = build("GRU", batch_first=True)

        def run(input: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(input, lengths, batch_first=True, enforce_sorted=False)
            return pad_packed_sequence(module(packed)[0], batch_first=True)[0]

        inputs = random(3, 6, 3), torch.tensor([4, 6, 1])
        compiled = torch.compile(run, backend="aot_eager")
        expected = results_and_gradients(run, module, *inputs)
        assert_same_bits(results_and_gradients(compiled, module, *inputs), expected)

    @pytest.mark.parametrize(
        ("name", "batch_first"), [("LSTM", False), ("LSTM", True), ("GRU", True), ("RNN", False)]
    )
    def test_lengths(self, name, batch_first):
        """What packing is for, in one graph for all lengths."""
        module = build(name, num_layers=2, bidirectional=True, batch_first=batch_first)

        def run(input: Tensor, lengths: Tensor):
            return module(input, lengths=lengths)

        def inputs(*lengths: int) -> tuple[Tensor, Tensor]:
            batch = len(lengths)
            return random(*((batch, 6) if batch_first else (6, batch)), 3), torch.tensor(lengths)

        compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
        results_and_gradients(compiled, module, *inputs(3, 6, 0, 1))
        with torch.compiler.set_stance("fail_on_recompile"):
            for lengths in [(4, 6, 0, 1), (1, 2, 3), (6, 6, 6, 6, 6), (0, 0)]:
                given = inputs(*lengths)
                expected = results_and_gradients(run, module, *given)
                assert_same_bits(results_and_gradients(compiled, module, *given), expected)
            for lengths in [(7, 6, 2), (-1, 3, 3)]:
                with pytest.raises(RuntimeError, match="lengths must be at (most|least)"):
                    results_and_gradients(compiled, module, *inputs(*lengths))


@pytest.fixture(scope="module")
def empty_cache() -> Iterator[None]:
    """What inductor keeps on disk outlives a change of the operators."""
    with fresh_cache():
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("empty_cache")
class TestInductor:
    """Machine code for what surrounds the kernels."""

    def test_any_batch_and_length(self):
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.lstm = rnnfast.LSTM(3, 5, batch_first=True)
                self.gru = rnnfast.GRU(5, 4)
                self.cell = rnnfast.RNNCell(4, 4)

            def forward(self, input: Tensor):
                output, (h_n, c_n) = self.lstm(input)
                output, _ = self.gru(output.tanh())
                return self.cell(output[-1]), h_n, c_n

        torch.manual_seed(0)
        model = Model()
        compiled = torch.compile(model, fullgraph=True, dynamic=True)
        results_and_gradients(compiled, model, torch.randn(4, 6, 3))
        with torch.compiler.set_stance("fail_on_recompile"):
            for size in [(4, 6), (2, 9), (7, 3)]:
                input = torch.randn(*size, 3)
                expected = results_and_gradients(model, model, input)
                torch.testing.assert_close(results_and_gradients(compiled, model, input), expected)

    def test_it_drops(self):
        module = build("LSTM", 3, 200, num_layers=2, dropout=0.25)
        run = torch.compile(module, fullgraph=True)
        with torch.no_grad():
            assert_drops(see_through(module), run)
