"""rnnfast.prepack: the same results from weights that stay packed, as long as they are the same."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_padded_sequence

import rnnfast
from rnnfast import ops

CASES = {
    "LSTM": (rnnfast.LSTM, {}),
    "LSTM stack": (rnnfast.LSTM, {"num_layers": 2, "bidirectional": True}),
    "LSTM projected": (rnnfast.LSTM, {"proj_size": 5}),
    "LSTM without bias": (rnnfast.LSTM, {"bias": False}),
    "GRU": (rnnfast.GRU, {}),
    "GRU reset before": (rnnfast.GRU, {"reset_after": False}),
    "GRU batch_first": (rnnfast.GRU, {"batch_first": True, "num_layers": 2}),
    "RNN tanh": (rnnfast.RNN, {}),
    "RNN relu": (rnnfast.RNN, {"nonlinearity": "relu", "bidirectional": True}),
}
CELLS = {
    "LSTMCell": (rnnfast.LSTMCell, {}),
    "GRUCell": (rnnfast.GRUCell, {}),
    "GRUCell reset before": (rnnfast.GRUCell, {"reset_after": False}),
    "RNNCell": (rnnfast.RNNCell, {"nonlinearity": "relu", "bias": False}),
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
every_layer = pytest.mark.parametrize(("kind", "options"), CASES.values(), ids=CASES)
every_cell = pytest.mark.parametrize(("kind", "options"), CELLS.values(), ids=CELLS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


def flat(result: object) -> list[torch.Tensor]:
    """The tensors in a module's results, in order."""
    if isinstance(result, torch.Tensor):
        return [] if result.dtype == torch.int64 else [result]
    return [tensor for part in result if part is not None for tensor in flat(part)]


@torch.no_grad()
def run(module: nn.Module, *args, **kwargs) -> list[torch.Tensor]:
    return flat(module(*args, **kwargs))


def assert_same(results: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(results) == len(expected)
    for got, want in zip(results, expected, strict=True):
        assert torch.equal(got, want)


def uses_packed(module: nn.Module, weight: str, *args) -> bool:
    """Whether a call reads what is packed: it does not see a change behind torch's back."""
    before = run(module, *args)
    value = getattr(module, weight)
    original = value.detach().clone()
    value.data.mul_(-2)
    unseen = all(map(torch.equal, run(module, *args), before))
    value.data.copy_(original)
    return unseen


@pytest.fixture
def lstm():
    torch.manual_seed(0)
    return rnnfast.LSTM(12, 21, num_layers=2)


@pytest.mark.usefixtures("isa")
@every_dtype
@every_layer
def test_bits_of_a_layer(kind, options, dtype):
    torch.manual_seed(0)
    module = kind(19, 37, **options).to(dtype)
    input = torch.randn(6, 3, 19, dtype=dtype)
    expected = run(module, input)
    assert rnnfast.prepack(module) is module
    assert_same(run(module, input), expected)  # packs
    assert_same(run(module, input), expected)  # uses
    assert uses_packed(module, "weight_ih_l0", input)
    assert uses_packed(module, "weight_hh_l0", input)


@pytest.mark.usefixtures("isa")
@every_dtype
@every_cell
def test_results_of_a_cell(kind, options, dtype):
    """A step adds up in another order once its weights are packed: that of longer sequences."""
    torch.manual_seed(0)
    module = kind(150, 140, **options).to(dtype)
    input = torch.randn(3, 150, dtype=dtype)
    expected = run(module, input)
    rnnfast.prepack(module)
    for _ in range(2):
        for got, want in zip(run(module, input), expected, strict=True):
            torch.testing.assert_close(got, want)
    assert uses_packed(module, "weight_ih", input)


def test_single_step_has_the_bits_of_a_longer_sequence():
    torch.manual_seed(0)
    module = rnnfast.LSTM(150, 140)
    input = torch.randn(4, 3, 150)
    whole = run(module, input)[0]
    rnnfast.prepack(module)
    assert torch.equal(run(module, input[:1])[0], whole[:1])


@pytest.mark.parametrize("way", ["packed sequence", "lengths", "states", "unbatched", "autocast"])
def test_every_kind_of_call(lstm, way):
    input, args, kwargs = torch.randn(5, 3, 12), [], {}
    if way == "packed sequence":
        input = pack_padded_sequence(input, torch.tensor([2, 5, 3]), enforce_sorted=False)
    elif way == "lengths":
        kwargs["lengths"] = [2, 5, 3]
    elif way == "states":
        args = [(torch.randn(2, 3, 21), torch.randn(2, 3, 21))]
    elif way == "unbatched":
        input = input[:, 0]

    def call():
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
            return run(lstm, input, *args, **kwargs)

    expected = call()
    rnnfast.prepack(lstm)
    assert_same(call(), expected)
    assert lstm._packed_layers.ids
    lstm.weight_hh_l1.data.mul_(-2)
    assert_same(call(), expected)


def change_in_place(module):
    with torch.no_grad():
        module.weight_ih_l0.mul_(1.5)


def change_by_optimizer(module):
    module(torch.randn(4, 2, 12))[0].sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.5).step()


def change_by_loading(module):
    module.load_state_dict(rnnfast.LSTM(12, 21, num_layers=2).state_dict())


def change_bias(module):
    nn.init.ones_(module.bias_hh_l1)


def replace_parameter(module):
    module.weight_hh_l1 = nn.Parameter(torch.randn(84, 21))


def replace_data(module):
    module.weight_hh_l1.data = torch.randn(84, 21)


@pytest.mark.parametrize(
    "change",
    [
        change_in_place,
        change_by_optimizer,
        change_by_loading,
        change_bias,
        replace_parameter,
        replace_data,
    ],
)
def test_changes_are_noticed(lstm, change):
    input = torch.randn(5, 3, 12)
    rnnfast.prepack(lstm)
    before = run(lstm, input)
    change(lstm)
    after = run(lstm, input)
    assert not torch.equal(after[0], before[0])
    assert_same(after, run(copy.deepcopy(lstm), input))
    assert uses_packed(lstm, "weight_hh_l0", input)


def test_other_tensors_in_a_call(lstm):
    input = torch.randn(5, 3, 12)
    other = {name: torch.randn_like(value) for name, value in lstm.named_parameters()}

    def call():
        with torch.no_grad():
            return flat(torch.func.functional_call(lstm, other, input))

    expected, own = call(), run(lstm, input)
    rnnfast.prepack(lstm)
    assert_same(run(lstm, input), own)
    assert_same(call(), expected)
    assert_same(run(lstm, input), own)


def test_changes_behind_torchs_back_need_another_call(lstm):
    input = torch.randn(5, 3, 12)
    rnnfast.prepack(lstm)
    before = run(lstm, input)
    lstm.weight_ih_l0.data.mul_(2)
    assert_same(run(lstm, input), before)
    rnnfast.prepack(lstm)
    assert_same(run(lstm, input), run(copy.deepcopy(lstm), input))


def test_training_is_as_before(lstm):
    input, twin = torch.randn(5, 3, 12), copy.deepcopy(lstm)
    rnnfast.prepack(lstm)
    run(lstm, input)
    for module in (lstm, twin):
        module(input)[0].square().sum().backward()
    for got, want in zip(lstm.parameters(), twin.parameters(), strict=True):
        assert torch.equal(got.grad, want.grad)


def test_precision_and_isa_may_change(lstm):
    input = torch.randn(5, 3, 12)
    rnnfast.prepack(lstm)
    isa = rnnfast.cpu_isa()
    try:
        for name in (*rnnfast.cpu_isas(), *rnnfast.cpu_isas()):
            rnnfast.set_cpu_isa(name)
            for precision in ("fp32", "bf16"):
                rnnfast.set_precision(precision)
                for steps in (5, 1):
                    got, want = run(lstm, input[:steps]), run(copy.deepcopy(lstm), input[:steps])
                    torch.testing.assert_close(got, want)
    finally:
        rnnfast.set_precision("fp32")
        rnnfast.set_cpu_isa(isa)


def test_form_of_gru_may_change():
    module, input = rnnfast.GRU(12, 21), torch.randn(5, 3, 12)
    rnnfast.prepack(module)
    after = run(module, input)
    module.reset_after = False
    before = run(module, input)
    assert not torch.equal(before[0], after[0])
    assert_same(before, run(copy.deepcopy(module), input))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_their_own(lstm, duplicate):
    input = torch.randn(5, 3, 12)
    rnnfast.prepack(lstm)
    expected = run(lstm, input)
    twin = duplicate(lstm)
    assert twin._packed_layers.ids == ()
    assert_same(run(twin, input), expected)
    change_in_place(twin)
    assert not torch.equal(run(twin, input)[0], expected[0])
    assert_same(run(lstm, input), expected)


def test_state_dict_is_that_of_the_weights(lstm):
    names = set(lstm.state_dict())
    rnnfast.prepack(lstm)
    run(lstm, torch.randn(5, 3, 12))
    assert set(lstm.state_dict()) == names
    model, input = nn.Sequential(lstm), torch.randn(5, 3, 12)
    expected = run(lstm, input)
    rnnfast.restore(model)
    assert type(model[0]) is nn.LSTM
    for got, want in zip(run(model, input), expected, strict=True):
        torch.testing.assert_close(got, want)
    rnnfast.accelerate(model)
    assert type(model[0]) is rnnfast.LSTM
    assert not uses_packed(model[0], "weight_hh_l0", input)


def test_moves_between_dtypes(lstm):
    rnnfast.prepack(lstm)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float32):
        lstm.to(dtype)
        input = torch.randn(5, 3, 12, dtype=dtype)
        assert_same(run(lstm, input), run(copy.deepcopy(lstm), input))


def test_weights_made_in_inference_mode():
    """They count no changes, but replacing them is noticed."""
    with torch.inference_mode():
        module, input = rnnfast.LSTM(12, 21), torch.randn(5, 3, 12)
        expected = run(module, input)
        rnnfast.prepack(module)
        assert_same(run(module, input), expected)
        assert uses_packed(module, "weight_hh_l0", input)
        module.weight_hh_l0 = nn.Parameter(torch.randn(84, 21))
        assert_same(run(module, input), run(copy.deepcopy(module), input))
        module.weight_hh_l0.mul_(2)
        rnnfast.prepack(module)
        assert_same(run(module, input), run(copy.deepcopy(module), input))


def test_threads(lstm):
    input = torch.randn(5, 3, 12)
    expected = run(lstm, input)
    rnnfast.prepack(lstm)
    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(lambda _: run(lstm, input), range(200)):
            assert_same(results, expected)


def test_threads_that_pack_at_once():
    """Each of two precisions finds what the other has packed, and packs for itself."""
    module, input = rnnfast.GRU(64, 64), torch.randn(5, 3, 64)
    expected = run(module, input)
    rnnfast.prepack(module)
    halves = copy.deepcopy(module).bfloat16()
    twin = copy.deepcopy(module)

    def call(index):
        if index % 3 == 0:
            rnnfast.prepack(module)
        if index % 3 == 1:
            rnnfast.prepack(module, enabled=False)
        return run(module, input)

    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(call, range(300)):
            assert_same(results, expected)
    assert_same(run(twin, input), expected)
    torch.testing.assert_close(run(halves, input.bfloat16())[0].float(), expected[0], atol=0.05,
                               rtol=0.05)  # fmt: skip


def test_new_weights_at_an_old_address(lstm):
    """What is replaced is held until its successor is packed, so that none comes to stand there."""
    input, size = torch.randn(5, 3, 12), lstm.weight_hh_l0.shape
    rnnfast.prepack(lstm)
    lstm.weight_hh_l0 = nn.Parameter(torch.randn(size))
    before = run(lstm, input)
    for seed in range(50):
        torch.manual_seed(seed)
        lstm.weight_hh_l0 = None
        lstm.weight_hh_l0 = nn.Parameter(torch.randn(size))
        after = run(lstm, input)
        assert not torch.equal(after[0], before[0])
        before = after


def test_ensembles(lstm):
    """Under a transform of torch.func, weights may be of many models at once."""
    input = torch.randn(5, 3, 12)
    rnnfast.prepack(lstm)
    expected = run(lstm, input)[0]
    weights = {name: torch.stack([value, value]) for name, value in lstm.named_parameters()}

    def call(weights):
        return torch.func.functional_call(lstm, weights, input)[0]

    with torch.no_grad():
        both = torch.func.vmap(call)(weights)
    torch.testing.assert_close(both, torch.stack([expected, expected]))


def test_traced(lstm):
    input = torch.randn(5, 3, 12)
    rnnfast.prepack(lstm)
    run(lstm, input)
    with torch.no_grad():
        traced = torch.jit.trace(lstm, input)
        change_in_place(lstm)
        torch.testing.assert_close(flat(traced(input)), run(lstm, input))


def test_no_graph_holds_what_is_packed(lstm):
    input = torch.randn(5, 3, 12)
    rnnfast.prepack(lstm)
    run(lstm, input)
    with torch.no_grad():
        graph = make_fx(lambda x: lstm(x)[0])(input)
        exported = torch.export.export(lstm.eval(), (input,))
    for nodes in (graph.graph.nodes, exported.graph.nodes):
        calls = [node for node in nodes if "rnnfast" in str(node.target)]
        assert calls
        assert not any(node.kwargs.get("packed_weights") for node in calls)


def test_compiled(lstm):
    input = torch.randn(5, 3, 12)
    expected = run(lstm, input)
    rnnfast.prepack(lstm)
    torch.testing.assert_close(run(torch.compile(lstm, backend="eager"), input), expected)


def test_a_model_and_letting_go():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 12), "rnn": rnnfast.LSTM(12, 21),
                           "cell": rnnfast.GRUCell(12, 21)})  # fmt: skip
    rnnfast.prepack(model)
    run(model["rnn"], torch.randn(5, 3, 12))
    (id,) = model["rnn"]._packed_layers.ids
    weights = model["rnn"].all_weights[0]
    states = torch.zeros(3, 21), torch.zeros(3, 21)
    with torch.no_grad():
        ops.lstm(torch.randn(5, 3, 12), *states, *weights, packed_weights=id)
        rnnfast.prepack(model, enabled=False)
        with pytest.raises(
            RuntimeError, match=f"lstm_inference: packed_weights must be 0 .* got {id}"
        ):
            ops.lstm(torch.randn(5, 3, 12), *states, *weights, packed_weights=id)
    assert not uses_packed(model["rnn"], "weight_hh_l0", torch.randn(5, 3, 12))


@torch.no_grad()
def test_operators_refuse_packed_weights_of_another_layer(lstm):
    rnnfast.prepack(lstm)
    run(lstm, torch.randn(5, 3, 12))
    first, second = lstm._packed_layers.ids
    state = torch.zeros(3, 21)
    with pytest.raises(
        RuntimeError, match="gru_inference: packed_weights must be of a layer of the same"
    ):
        ops.gru(torch.randn(5, 3, 12), state, torch.randn(63, 12), torch.randn(63, 21),
                packed_weights=first)  # fmt: skip
    with pytest.raises(
        RuntimeError, match="lstm_inference: packed_weights must be of a layer of the same"
    ):
        ops.lstm(torch.randn(5, 3, 12), state, state, *lstm.all_weights[0], packed_weights=second)
    with pytest.raises(
        RuntimeError, match="rnn_inference: packed_weights must be of a layer of the same"
    ):
        ops.rnn(torch.randn(5, 3, 12), state, torch.randn(21, 12), torch.randn(21, 21),
                packed_weights=first)  # fmt: skip


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got str"):
        rnnfast.prepack("lstm")
    with pytest.raises(ValueError, match=r"an LSTM, GRU, RNN or a cell of rnnfast, got LSTM"):
        rnnfast.prepack(nn.LSTM(3, 4))
