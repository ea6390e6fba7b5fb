"""torch.export, AOTInductor and ONNX: one node for each layer, for any batch and length."""

import io
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_leaves

import rnnfast
import rnnfast.onnx
from rnnfast import ops

# Of torch's own code.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:_check_is_size:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes self.*_flat_weights:UserWarning"),
]

LAYERS = ["LSTM", "GRU", "RNN"]
CELLS = ["LSTMCell", "GRUCell", "RNNCell"]
every_layer = pytest.mark.parametrize("name", LAYERS)
every_cell = pytest.mark.parametrize("name", CELLS)

# What is exported, and what it then has to run at: torch.export takes 1 for no special case.
EXAMPLE = (4, 2)
SIZES = [(4, 2), (7, 9), (2, 3), (1, 5), (5, 1), (1, 1)]
DYNAMIC_SEQUENCE = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}


def build(name: str, *sizes: int, dtype: torch.dtype = torch.float32, **options) -> nn.Module:
    torch.manual_seed(0)
    return getattr(rnnfast, name)(*(sizes or (3, 5)), dtype=dtype, **options)


def export(module: nn.Module, *inputs, dynamic_shapes=(DYNAMIC_SEQUENCE,), **options):
    return torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes, **options)


def operators(program: ExportedProgram) -> Counter:
    """How often the program calls each operator."""
    return Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")


def recurrent_operators(program: ExportedProgram) -> dict[str, int]:
    counts = operators(program)
    return {name: count for name, count in counts.items() if name.startswith("rnnfast.")}


def assert_same_bits(actual, expected) -> None:
    torch.testing.assert_close(tree_leaves(actual), tree_leaves(expected), rtol=0, atol=0)


@pytest.mark.usefixtures("kernels")
class TestExport:
    @pytest.mark.parametrize(
        ("options", "count"),
        [
            ({}, 1),
            ({"num_layers": 3, "batch_first": True, "bias": False}, 3),
            ({"num_layers": 2, "bidirectional": True}, 4),
        ],
        ids=["one", "layers", "directions"],
    )
    @pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
    @every_layer
    def test_one_node_for_each_layer_and_direction(self, name, training, options, count):
        module = build(name, **options)
        operator = f"rnnfast.{name.lower()}{'' if training else '_inference'}.default"
        with torch.set_grad_enabled(training):
            program = export(module, torch.randn(*EXAMPLE, 3))
            decomposed = program.run_decompositions()
        assert recurrent_operators(program) == {operator: count}
        assert recurrent_operators(decomposed) == {operator: count}
        for form in (program, decomposed):
            run = form.module()
            for size in SIZES:
                input = torch.randn(*size, 3)
                assert_same_bits(run(input), module(input))

    @every_layer
    def test_given_states(self, name):
        module = build(name, num_layers=2)

        def inputs(seq_len: int, batch: int):
            states = [torch.randn(2, batch, 5) for _ in range(2)]
            return torch.randn(seq_len, batch, 3), tuple(states) if name == "LSTM" else states[0]

        state = {1: Dim.DYNAMIC}
        shapes = (DYNAMIC_SEQUENCE, (state, state) if name == "LSTM" else state)
        run = export(module, *inputs(*EXAMPLE), dynamic_shapes=shapes).module()
        for size in SIZES:
            given = inputs(*size)
            assert_same_bits(run(*given), module(*given))

    @every_cell
    def test_cells(self, name):
        module = build(name)
        program = export(module, torch.randn(4, 3), dynamic_shapes=({0: Dim.DYNAMIC},))
        operator = f"rnnfast.{name.removesuffix('Cell').lower()}.default"
        assert recurrent_operators(program) == {operator: 1}
        for batch in (4, 9, 1):
            input = torch.randn(batch, 3)
            assert_same_bits(program.module()(input), module(input))

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("RNN", {"nonlinearity": "relu"}),
            ("GRU", {"reset_after": False}),
            ("LSTM", {"proj_size": 2}),
            ("LSTM", {"learn_initial_state": True}),
            ("LSTM", {"return_states": True}),
            ("GRU", {"memory": "recompute"}),
            ("LSTM", {"dtype": torch.bfloat16}),
        ],
        ids=str,
    )
    def test_options(self, name, options):
        module = build(name, num_layers=2, **options)
        dtype = module.weight_hh_l0.dtype
        program = export(module, torch.randn(*EXAMPLE, 3, dtype=dtype))
        assert sum(recurrent_operators(program).values()) == 2
        for size in SIZES:
            input = torch.randn(*size, 3, dtype=dtype)
            assert_same_bits(program.module()(input), module(input))

    def test_lengths(self):
        module = build("LSTM", num_layers=2, bidirectional=True)
        lengths = torch.tensor([3, 0, 4, 1])
        program = torch.export.export(
            module,
            (torch.randn(4, 4, 3),),
            {"lengths": lengths},
            dynamic_shapes={"input": DYNAMIC_SEQUENCE, "lengths": {0: Dim.DYNAMIC}},
        )
        assert sum(recurrent_operators(program).values()) == 4
        for given in ([3, 0, 4, 1], [2, 7], [5, 5, 5]):
            input, lengths = torch.randn(max(given), len(given), 3), torch.tensor(given)
            expected = module(input, lengths=lengths)
            assert_same_bits(program.module()(input, lengths=lengths), expected)

    def test_strict(self):
        """torch.export's other way to trace, that of torch.compile."""
        module = build("LSTM", num_layers=2)
        program = export(module, torch.randn(*EXAMPLE, 3), strict=True)
        assert recurrent_operators(program) == {"rnnfast.lstm.default": 2}
        input = torch.randn(7, 9, 3)
        assert_same_bits(program.module()(input), module(input))

    def test_auto_never_leaves_a_call_to_torch(self):
        """In eager it does so at this shape."""
        rnnfast.set_backend("auto")
        program = export(build("LSTM", 256, 256), torch.randn(2, 20, 256))
        assert recurrent_operators(program) == {"rnnfast.lstm.default": 1}

    @every_layer
    def test_an_exported_program_can_be_trained(self, name):
        module = build(name, num_layers=2)
        exported = export(module, torch.randn(*EXAMPLE, 3)).module()
        input = torch.randn(7, 9, 3)
        for run in (module, exported):
            run(input)[0].square().sum().backward()
        expected = {key: value.grad for key, value in module.named_parameters()}
        assert_same_bits({key: value.grad for key, value in exported.named_parameters()}, expected)

    def test_saved_and_loaded(self):
        module = build("GRU", num_layers=2)
        file = io.BytesIO()
        torch.export.save(export(module, torch.randn(*EXAMPLE, 3)), file)
        file.seek(0)
        input = torch.randn(7, 9, 3)
        assert_same_bits(torch.export.load(file).module()(input), module(input))

    @every_layer
    def test_dropout_stays(self, name):
        """torch's own modules lose it in run_decompositions."""
        module = build(name, 3, 50, num_layers=3, dropout=0.5)
        program = export(module, torch.randn(*EXAMPLE, 3))
        assert operators(program)["aten.dropout.default"] == 2
        decomposed = program.run_decompositions()
        assert operators(decomposed)["aten.native_dropout.default"] == 2
        input = torch.randn(7, 9, 3)
        for form in (program, decomposed):
            runs = []
            for seed in (1, 1, 2):
                torch.manual_seed(seed)
                runs.append(form.module()(input)[0])
            assert torch.equal(runs[0], runs[1])
            assert not torch.equal(runs[0], runs[2])
            torch.manual_seed(1)
            assert torch.equal(runs[0], module(input)[0])


class Model(nn.Module):
    """All three layers in a row, in both layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = rnnfast.LSTM(3, 5, 2, batch_first=True, bidirectional=True)
        self.gru = rnnfast.GRU(10, 4, batch_first=True)
        self.rnn = rnnfast.RNN(4, 6)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        output, (h_n, c_n) = self.lstm(input)
        output, _ = self.gru(output)
        return self.rnn(output.transpose(0, 1))[0], h_n, c_n


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="AOTInductor needs a C++ compiler",
)
def test_aot_inductor_package(tmp_path: Path):
    torch.manual_seed(0)
    model = Model().eval()
    with torch.no_grad():
        program = export(model, torch.randn(*EXAMPLE, 3))
    with fresh_cache():  # what inductor keeps on disk outlives a change of the operators
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "model.pt2")
        )
    package = torch._inductor.aoti_load_package(path)
    for size in SIZES:
        input = torch.randn(*size, 3)
        with torch.no_grad():
            torch.testing.assert_close(tuple(package(input)), model(input))


class TestONNX:
    @pytest.fixture(autouse=True)
    def needs(self) -> None:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)

    @staticmethod
    def to_onnx(module: nn.Module, *inputs, dynamic_shapes=(DYNAMIC_SEQUENCE,), **options):
        return torch.onnx.export(
            module.eval(),
            inputs,
            dynamo=True,
            dynamic_shapes=dynamic_shapes,
            verbose=False,
            **options,
        )

    @classmethod
    def translated(cls, module: nn.Module, *inputs, **options):
        table = rnnfast.onnx.translations()
        return cls.to_onnx(module, *inputs, custom_translation_table=table, **options)

    @staticmethod
    def session(program):
        import onnx
        import onnxruntime

        onnx.checker.check_model(program.model_proto, full_check=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return onnxruntime.InferenceSession(
            program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    @staticmethod
    def assert_agrees(session, module: nn.Module, *inputs) -> None:
        names = [argument.name for argument in session.get_inputs()]
        arrays = [tensor.numpy() for tensor in tree_leaves(inputs)]
        results = session.run(None, dict(zip(names, arrays, strict=True)))
        with torch.no_grad():
            expected = tree_leaves(module(*inputs))
        torch.testing.assert_close([torch.from_numpy(result) for result in results], expected)

    @pytest.mark.parametrize(
        ("options", "count"),
        [
            ({}, 1),
            ({"batch_first": True, "bias": False}, 1),
            ({"num_layers": 2, "bidirectional": True, "dropout": 0.5}, 4),
        ],
        ids=["plain", "batch_first", "stack"],
    )
    @pytest.mark.parametrize(
        ("name", "form"),
        [
            ("LSTM", {}),
            ("GRU", {}),
            ("GRU", {"reset_after": False}),
            ("RNN", {}),
            ("RNN", {"nonlinearity": "relu"}),
        ],
        ids=["LSTM", "GRU", "GRU_reset_before", "RNN", "RNN_relu"],
    )
    def test_translation(self, name, form, options, count):
        """One node of the standard for each layer and direction, at any batch and length."""
        module = build(name, **form, **options)
        program = self.translated(module, torch.randn(*EXAMPLE, 3))
        nodes = [node for node in program.model.graph if node.op_type == name]
        assert len(nodes) == count
        session = self.session(program)
        for size in SIZES:
            self.assert_agrees(session, module, torch.randn(*size, 3))

    @every_layer
    def test_given_states(self, name):
        module = build(name, num_layers=2)

        def inputs(seq_len: int, batch: int):
            states = [torch.randn(2, batch, 5) for _ in range(2)]
            return torch.randn(seq_len, batch, 3), tuple(states) if name == "LSTM" else states[0]

        state = {1: Dim.DYNAMIC}
        shapes = (DYNAMIC_SEQUENCE, (state, state) if name == "LSTM" else state)
        session = self.session(self.translated(module, *inputs(*EXAMPLE), dynamic_shapes=shapes))
        for size in SIZES:
            self.assert_agrees(session, module, *inputs(*size))

    @every_cell
    def test_cells(self, name):
        module = build(name)
        program = self.translated(module, torch.randn(4, 3), dynamic_shapes=({0: Dim.DYNAMIC},))
        session = self.session(program)
        for batch in (4, 9, 1):
            self.assert_agrees(session, module, torch.randn(batch, 3))

    @every_layer
    def test_float16(self, name):
        """Its nodes are float32, for ONNX Runtime has no others; rounded where a module rounds."""
        module = build(name, num_layers=2, bidirectional=True, dtype=torch.float16)
        session = self.session(self.translated(module, torch.randn(*EXAMPLE, 3).half()))
        for size in SIZES:
            self.assert_agrees(session, module, torch.randn(*size, 3).half())

    def test_whole_model_exported_without_gradients(self):
        """By the operators that keep nothing for backward."""
        torch.manual_seed(0)
        model = Model()
        with torch.no_grad():
            program = self.translated(model, torch.randn(*EXAMPLE, 3))
        kinds = Counter(node.op_type for node in program.model.graph)
        assert {kind: kinds[kind] for kind in LAYERS} == {"LSTM": 4, "GRU": 1, "RNN": 1}
        session = self.session(program)
        for size in SIZES:
            self.assert_agrees(session, model, torch.randn(*size, 3))

    @pytest.mark.parametrize("missing", ["bias_ih", "bias_hh"])
    def test_one_bias_alone(self, missing):
        class OneBias(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weights = nn.ParameterDict(
                    {
                        "weight_ih": torch.randn(15, 3),
                        "weight_hh": torch.randn(15, 5),
                        "bias_ih": torch.randn(15),
                        "bias_hh": torch.randn(15),
                    }
                )
                del self.weights[missing]

            def forward(self, input: Tensor):
                return ops.gru(input, input.new_zeros(input.shape[1], 5), **self.weights)

        torch.manual_seed(0)
        module = OneBias()
        session = self.session(self.translated(module, torch.randn(*EXAMPLE, 3)))
        self.assert_agrees(session, module, torch.randn(7, 9, 3))

    def test_what_the_standard_lacks(self):
        with pytest.raises(torch.onnx.OnnxExporterError) as caught:
            self.translated(build("LSTM", proj_size=2), torch.randn(*EXAMPLE, 3))
        assert "proj_size" in self.causes(caught.value)

        class Packed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.gru = rnnfast.GRU(3, 5)

            def forward(self, input: Tensor, batch_sizes: Tensor):
                weights = self.gru.all_weights[0]
                h_0 = input.new_zeros(2, 5)
                return ops.gru(input, h_0, *weights, batch_sizes=batch_sizes)

        with pytest.raises(torch.onnx.OnnxExporterError) as caught:
            self.translated(
                Packed(), torch.randn(5, 3), torch.tensor([2, 2, 1]), dynamic_shapes=None
            )
        assert "batch_sizes" in self.causes(caught.value)

    @staticmethod
    def causes(error: BaseException | None) -> str:
        """The messages of the errors that led to this one."""
        messages = []
        while error is not None:
            messages.append(str(error))
            error = error.__cause__
        return "\n".join(messages[1:])

    @pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
    @every_layer
    def test_restored(self, name, options):
        """torch's exporter takes torch's modules, for a fixed length."""
        module = nn.Sequential(build(name, batch_first=True, **options))
        input = torch.randn(2, 4, 3)
        with torch.no_grad():
            expected = tree_leaves(module(input))
        rnnfast.restore(module)
        program = self.to_onnx(module, input, dynamic_shapes=({0: Dim.DYNAMIC},))
        session = self.session(program)
        results = session.run(None, {session.get_inputs()[0].name: input.numpy()})
        torch.testing.assert_close([torch.from_numpy(result) for result in results], expected)
        self.assert_agrees(session, module, torch.randn(5, 4, 3))
