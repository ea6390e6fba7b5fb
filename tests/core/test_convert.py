"""accelerate, restore and patched: the same model with other recurrent modules inside."""

import copy
import pickle
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnfast

KINDS = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
PAIRS = {kind: (getattr(nn, kind), getattr(rnnfast, kind)) for kind in KINDS}
EarlyLSTM = nn.LSTM

# seq_len, batch, input_size, hidden_size
T, N, X, H = 5, 3, 4, 6
DTYPE = torch.float64


class Doubled(nn.LSTM):
    """Reaches torch's methods through super()."""

    def __init__(self, size: int) -> None:
        super().__init__(size, H, dtype=DTYPE)
        self.factor = 2

    def forward(self, input, hx=None):
        output, states = super().forward(input, hx)
        return self.factor * output, states


class OldStyleSuper(nn.LSTM):
    def __init__(self, size: int) -> None:
        super(OldStyleSuper, self).__init__(size, H, dtype=DTYPE)  # noqa: UP008

    def forward(self, input, hx=None):
        return super(OldStyleSuper, self).forward(input, hx)  # noqa: UP008


class CallsByName(nn.GRU):
    """Names torch's class, looked up at each call, instead of super()."""

    def __init__(self, size: int) -> None:
        nn.GRU.__init__(self, size, H, dtype=DTYPE)


class CallsCaptured(EarlyLSTM):
    """Names torch's class as it was at import."""

    def __init__(self, size: int) -> None:
        EarlyLSTM.__init__(self, size, H, dtype=DTYPE)

    def forward(self, input, hx=None):
        return EarlyLSTM.forward(self, input, hx)


class WithNew(nn.RNN):
    def __new__(cls, size: int):
        instance = super().__new__(cls)
        instance.__dict__["made"] = True
        return instance

    def __init__(self, size: int) -> None:
        super().__init__(size, H, dtype=DTYPE)


class WithSlots(nn.GRU):
    __slots__ = ("slot",)

    def __init__(self, size: int) -> None:
        super().__init__(size, H, dtype=DTYPE)
        self.slot = 7


class Mixin:
    def forward(self, *args):
        output, states = super().forward(*args)
        return -output, states


class Abstract(ABC, nn.RNNBase):
    @abstractmethod
    def size(self) -> int: ...


class Diamond(Mixin, Abstract, nn.LSTM):
    """Two ways to RNNBase, and a metaclass."""

    def __init__(self, size: int) -> None:
        super().__init__(size, H, dtype=DTYPE)

    def size(self) -> int:
        return self.hidden_size


class CellSubclass(nn.GRUCell):
    def __init__(self, size: int) -> None:
        super().__init__(size, H, dtype=DTYPE)

    def forward(self, input, hx=None):
        return super().forward(input[0], hx)


SUBCLASSES = [
    Doubled,
    OldStyleSuper,
    CallsByName,
    CallsCaptured,
    WithNew,
    WithSlots,
    Diamond,
    CellSubclass,
]


class Tagger(nn.Module):
    """Recurrent modules among others, one of them shared."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, X, dtype=DTYPE)
        self.encoder = nn.LSTM(X, H, 2, bidirectional=True, dtype=DTYPE)
        self.mixer = Doubled(2 * H)
        self.alias = self.mixer
        self.cell = nn.GRUCell(H, H, dtype=DTYPE)
        self.head = nn.Linear(H, 11, dtype=DTYPE)

    def forward(self, tokens: Tensor) -> Tensor:
        output, _ = self.encoder(self.embedding(tokens))
        output, _ = self.mixer(output)
        return self.head(self.cell(output[-1]))


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=DTYPE, requires_grad=True)


def packed() -> PackedSequence:
    return pack_padded_sequence(draw(T, N, X), torch.tensor([3, 5, 2]), enforce_sorted=False)


# What it is called with, by name: options of the constructor, arguments of the call.
LAYER_CALLS: dict[str, tuple[dict, Callable[[], tuple]]] = {
    "plain": ({}, lambda: (draw(T, N, X),)),
    "no bias": ({"bias": False}, lambda: (draw(T, N, X),)),
    "unbatched": ({"bidirectional": True}, lambda: (draw(T, X),)),
    "stack": (
        {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5},
        lambda: (draw(N, T, X),),
    ),
    "packed": ({"num_layers": 2, "bidirectional": True, "dropout": 0.5}, lambda: (packed(),)),
}
CASES: dict[str, tuple[str, dict, Callable[[], tuple]]] = {
    f"{kind}, {name}": (kind, options, arguments)
    for kind in ("LSTM", "GRU", "RNN")
    for name, (options, arguments) in LAYER_CALLS.items()
} | {
    "LSTM, states": ("LSTM", {}, lambda: (draw(T, N, X), (draw(1, N, H), draw(1, N, H)))),
    "LSTM, proj_size": ("LSTM", {"proj_size": 2, "num_layers": 2}, lambda: (draw(T, N, X),)),
    "LSTM, proj_size, packed": ("LSTM", {"proj_size": 2}, lambda: (packed(),)),
    "GRU, states": ("GRU", {}, lambda: (draw(T, N, X), draw(1, N, H))),
    "RNN, relu": ("RNN", {"nonlinearity": "relu"}, lambda: (draw(T, N, X), draw(1, N, H))),
    "LSTMCell": ("LSTMCell", {}, lambda: (draw(N, X),)),
    "LSTMCell, states": ("LSTMCell", {}, lambda: (draw(N, X), (draw(N, H), draw(N, H)))),
    "GRUCell": ("GRUCell", {}, lambda: (draw(N, X), draw(N, H))),
    "GRUCell, unbatched": ("GRUCell", {"bias": False}, lambda: (draw(X),)),
    "RNNCell": ("RNNCell", {}, lambda: (draw(N, X),)),
    "RNNCell, relu": ("RNNCell", {"nonlinearity": "relu"}, lambda: (draw(N, X), draw(N, H))),
}


def tensors(value) -> list[Tensor]:
    """Every tensor in nested tuples, PackedSequences included."""
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value if item is not None for t in tensors(item)]


def results(module: nn.Module, arguments: tuple) -> list[Tensor]:
    """Outputs and states, then gradients by the inputs and parameters; dropout from one seed."""
    torch.manual_seed(5)
    outputs = [t for t in tensors(module(*arguments)) if t.is_floating_point()]
    by = [t for t in tensors(arguments) if t.requires_grad] + list(module.parameters())
    loss = sum(
        (t * torch.linspace(-1, 2, t.numel(), dtype=DTYPE).view_as(t)).sum() for t in outputs
    )
    return outputs + list(torch.autograd.grad(loss, by))


def is_ours(module: nn.Module) -> bool:
    return isinstance(module, tuple(ours for _, ours in PAIRS.values()))


def is_torchs(module: nn.Module) -> bool:
    return isinstance(module, tuple(theirs for theirs, _ in PAIRS.values()))


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("case", CASES)
def test_accelerated_computes_the_same_and_restored_the_same_bits(case: str):
    kind, options, arguments = CASES[case]
    theirs, ours = PAIRS[kind]
    torch.manual_seed(0)
    module = theirs(X, H, dtype=DTYPE, **options)
    inputs = arguments()
    before = results(module, inputs)
    keys, parameters = list(module.state_dict()), list(module.parameters())

    report = rnnfast.accelerate(module)
    assert type(module) is ours
    assert report.swapped == {"": f"torch.nn.{kind} -> rnnfast.{kind}"} and not report.left
    assert list(module.state_dict()) == keys
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
    torch.testing.assert_close(results(module, inputs), before)

    report = rnnfast.restore(module)
    assert type(module) is theirs
    assert report.swapped == {"": f"rnnfast.{kind} -> torch.nn.{kind}"} and not report.left
    for restored, original in zip(results(module, inputs), before, strict=True):
        assert torch.equal(restored, original)


@pytest.mark.parametrize("kind", KINDS)
def test_an_accelerated_module_has_the_other_methods_too(kind: str):
    theirs, _ = PAIRS[kind]
    module, expected = theirs(X, H), theirs(X, H)
    rnnfast.accelerate(module)
    assert repr(module) == repr(expected)
    for each in (module, expected):
        torch.manual_seed(3)
        each.reset_parameters()
    for name, parameter in expected.named_parameters():
        assert torch.equal(module.get_parameter(name), parameter)
    assert next(module.to(DTYPE).parameters()).dtype == DTYPE


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernels_serve_an_accelerated_module(kind: str, kernels: None):
    theirs, ours = PAIRS[kind]
    module, built = theirs(X, H, dtype=DTYPE), ours(X, H, dtype=DTYPE)
    built.load_state_dict(module.state_dict())
    input = draw(N, X) if kind.endswith("Cell") else draw(T, N, X)
    rnnfast.accelerate(module)
    for accelerated, expected in zip(
        results(module, (input,)), results(built, (input,)), strict=True
    ):
        assert torch.equal(accelerated, expected)


@pytest.mark.parametrize("cls", SUBCLASSES)
def test_instances_of_subclasses_stay_such(cls: type):
    torch.manual_seed(0)
    module, inputs = cls(X), (draw(T, N, X),)
    before, attributes = results(module, inputs), set(vars(module))

    rnnfast.accelerate(module)
    assert isinstance(module, cls) and is_ours(module) and not is_torchs(module)
    assert type(module).__name__ == cls.__name__ and type(module).__module__ == cls.__module__
    assert set(vars(module)) == attributes
    torch.testing.assert_close(results(module, inputs), before)

    rnnfast.restore(module)
    assert type(module) is cls
    for restored, original in zip(results(module, inputs), before, strict=True):
        assert torch.equal(restored, original)


def test_super_leads_to_our_forward(monkeypatch: pytest.MonkeyPatch):
    module = Doubled(X)
    rnnfast.accelerate(module)
    input = draw(T, N, X)
    module(input)
    monkeypatch.setattr(rnnfast.LSTM, "forward", lambda self, input, hx=None: (21, None))
    assert module(input)[0] == 42


def test_instances_of_one_subclass_get_one_class():
    first, second = Doubled(X), Doubled(X)
    rnnfast.accelerate(first)
    rnnfast.accelerate(second)
    assert type(first) is type(second)


@pytest.mark.parametrize("cls", [Doubled, Diamond, nn.LSTM])
def test_copies_and_pickles_of_accelerated_modules(cls: type):
    module = cls(X) if cls is not nn.LSTM else cls(X, H, dtype=DTYPE)
    rnnfast.accelerate(module)
    inputs = (draw(T, N, X),)
    before = results(module, inputs)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(twin) is type(module)
        assert twin.weight_ih_l0 is not module.weight_ih_l0
        for copied, original in zip(results(twin, inputs), before, strict=True):
            assert torch.equal(copied, original)


def test_a_model_is_swapped_in_place_and_the_report_says_so():
    model = Tagger()
    modules = dict(model.named_modules())
    report = rnnfast.accelerate(model)
    assert dict(model.named_modules()) == modules
    assert report.swapped == {
        "encoder": "torch.nn.LSTM -> rnnfast.LSTM",
        "mixer": "torch.nn.LSTM -> rnnfast.LSTM as the base of Doubled",
        "cell": "torch.nn.GRUCell -> rnnfast.GRUCell",
    }
    assert model.mixer is model.alias and is_ours(model.alias)
    assert str(report).splitlines()[:2] == [
        "3 swapped, 0 left",
        "  swapped encoder: torch.nn.LSTM -> rnnfast.LSTM",
    ]

    again = rnnfast.accelerate(model)
    assert not again.swapped
    assert again.left == {
        "encoder": "already rnnfast.LSTM",
        "mixer": "already rnnfast.LSTM",
        "cell": "already rnnfast.GRUCell",
    }
    assert "  left cell: already rnnfast.GRUCell" in str(again).splitlines()
    assert str(rnnfast.accelerate(nn.GRU(1, 1))).endswith("(root): torch.nn.GRU -> rnnfast.GRU")


def test_an_optimizer_goes_on():
    torch.manual_seed(0)
    plain = Tagger()
    swapped = copy.deepcopy(plain)
    tokens, targets = torch.randint(11, (T, N)), torch.randint(11, (N,))

    def losses(model: nn.Module, swap: bool) -> list[float]:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        history = []
        for step in range(8):
            if swap and step == 3:
                rnnfast.accelerate(model)
            if swap and step == 6:
                rnnfast.restore(model)
            loss = nn.functional.cross_entropy(model(tokens), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        return history

    expected = losses(plain, swap=False)
    assert expected[-1] < 0.5 * expected[0]
    torch.testing.assert_close(losses(swapped, swap=True), expected)


def test_hooks_buffers_and_flags_are_kept():
    module = nn.GRU(X, H, dtype=DTYPE).eval()
    module.register_buffer("steps", torch.tensor(3))
    module.weight_hh_l0.requires_grad_(False)
    seen = []
    module.register_forward_pre_hook(lambda module, args: seen.append("before"))
    module.register_forward_hook(lambda module, args, result: seen.append("after"))
    module.register_full_backward_hook(lambda module, grad_in, grad_out: seen.append("backward"))
    rnnfast.accelerate(module)
    module(draw(T, N, X))[0].sum().backward()
    assert seen == ["before", "after", "backward"]
    assert not module.training and "steps" in module.state_dict()
    assert module.weight_hh_l0.grad is None and module.weight_ih_l0.grad is not None


@pytest.mark.parametrize("cls", [nn.LSTM, Doubled])
def test_parametrized_modules(cls: type):
    torch.manual_seed(0)
    module = nn.LSTM(X, H, dtype=DTYPE) if cls is nn.LSTM else cls(X)
    parametrizations.weight_norm(module, "weight_hh_l0")
    inputs = (draw(T, N, X),)
    before, keys = results(module, inputs), list(module.state_dict())

    rnnfast.accelerate(module)
    assert is_ours(module) and not is_torchs(module)
    assert parametrize.is_parametrized(module, "weight_hh_l0")
    assert list(module.state_dict()) == keys
    torch.testing.assert_close(results(module, inputs), before)

    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original0.mul_(2)
    assert not torch.allclose(module(*inputs)[0], before[0])
    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original0.div_(2)

    rnnfast.restore(module)
    assert isinstance(module, cls) and not is_ours(module)
    for restored, original in zip(results(module, inputs), before, strict=True):
        assert torch.equal(restored, original)


@pytest.mark.parametrize("cls", [nn.LSTM, Doubled])
def test_parametrizations_come_and_go_on_accelerated_modules(cls: type):
    module = nn.LSTM(X, H, dtype=DTYPE) if cls is nn.LSTM else cls(X)
    input = draw(T, N, X)
    parametrizations.weight_norm(module, "weight_hh_l0")
    rnnfast.accelerate(module)
    parametrizations.weight_norm(module, "weight_ih_l0")
    before = module(input)[0]
    torch.testing.assert_close(copy.deepcopy(module)(input)[0], before)
    rnnfast.restore(module)
    torch.testing.assert_close(module(input)[0], before)
    rnnfast.accelerate(module)
    for name in ("weight_hh_l0", "weight_ih_l0"):
        parametrize.remove_parametrizations(module, name)
    assert is_ours(module) and not parametrize.is_parametrized(module)
    torch.testing.assert_close(module(input)[0], before)
    rnnfast.restore(module)
    assert type(module) is cls


def test_an_accelerated_model_compiles_without_a_graph_break(fresh_dynamo: None):
    torch.manual_seed(0)
    model = Tagger()
    expected = copy.deepcopy(model)
    rnnfast.accelerate(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    tokens = torch.randint(11, (T, N))
    torch.testing.assert_close(compiled(tokens), expected(tokens))
    compiled(tokens).sum().backward()
    expected(tokens).sum().backward()
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


# What is left, and why.


class OwnLayer(nn.RNNBase):
    def __init__(self) -> None:
        super().__init__("LSTM", X, H)


class Registered(nn.LSTM):
    def __init_subclass__(cls, *, key: str) -> None: ...


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("swap", [rnnfast.accelerate, rnnfast.restore])
def test_other_recurrent_modules_are_left(swap: Callable):
    scripted = torch.jit.script(nn.Sequential(nn.Dropout(), nn.GRU(X, H)))
    quantized = torch.ao.nn.quantized.dynamic.LSTM(X, H)
    model = nn.ModuleDict({"scripted": scripted, "quantized": quantized, "own": OwnLayer()})
    types = [type(module) for module in model.modules()]
    report = swap(model)
    assert not report.swapped
    assert [type(module) for module in model.modules()] == types
    assert set(report.left) == {"scripted.1", "quantized", "own"}
    assert "scripted" in report.left["scripted.1"]
    assert "quantized" in report.left["quantized"]
    assert "OwnLayer derives from none of" in report.left["own"]


def test_subclasses_that_collide_with_ours_are_left():
    [private, *_] = [
        name
        for name in dir(rnnfast.LSTM)
        if not hasattr(nn.LSTM, name) and name.startswith("_") and not name.startswith("__")
    ]
    uses_our_name = type("UsesOurName", (nn.LSTM,), {private: "its own"})(X, H)
    option = nn.LSTM(X, H)
    option.return_states = True
    buffer = nn.LSTM(X, H)
    buffer.register_buffer("memory", torch.zeros(10, 10))
    attribute = nn.LSTM(X, H)
    setattr(attribute, private, "its own")
    model = nn.ModuleList([uses_our_name, option, buffer, Registered(X, H), attribute])
    report = rnnfast.accelerate(model)
    assert not report.swapped and not any(map(is_ours, model))
    assert report.left["0"] == f"UsesOurName and rnnfast.LSTM both define {private}"
    assert report.left["1"] == "rnnfast.LSTM would not compute the same with return_states=True"
    assert "memory=tensor" in report.left["2"]
    assert report.left["3"].startswith("Registered cannot be based on rnnfast.LSTM: ")
    assert report.left["4"] == f"LSTM and rnnfast.LSTM both define {private}"


@pytest.mark.parametrize("swap", [rnnfast.accelerate, rnnfast.restore])
def test_only_modules_are_taken(swap: Callable):
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got list"):
        swap([nn.LSTM(X, H)])


# restore, where accelerate did not come first.


@pytest.mark.parametrize("case", CASES)
def test_restore_of_modules_that_were_built_as_ours(case: str):
    kind, options, arguments = CASES[case]
    theirs, ours = PAIRS[kind]
    module, expected = ours(X, H, dtype=DTYPE, **options), theirs(X, H, dtype=DTYPE, **options)
    expected.load_state_dict(module.state_dict())
    rnnfast.restore(module)
    assert type(module) is theirs
    inputs = arguments()
    for restored, original in zip(results(module, inputs), results(expected, inputs), strict=True):
        assert torch.equal(restored, original)


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        ("GRU", "reset_after", False),
        ("GRUCell", "reset_after", False),
        ("LSTM", "return_states", True),
        ("RNN", "learn_initial_state", True),
    ],
)
def test_restore_leaves_what_torch_lacks(kind: str, option: str, value: bool):
    module = PAIRS[kind][1](X, H, **{option: value})
    report = rnnfast.restore(module)
    assert type(module) is PAIRS[kind][1]
    reason = f"torch.nn.{kind} would not compute the same with {option}={value}"
    assert report.left == {"": reason} and not report.swapped
    assert "already torch.nn.LSTM" in rnnfast.restore(nn.LSTM(X, H)).left.values()


def test_options_that_change_no_function_are_kept():
    options = {"memory": "recompute", "recurrent_init": "orthogonal", "forget_bias": 1.0}
    module = rnnfast.LSTM(X, H, dtype=DTYPE, **options)
    inputs = (draw(T, N, X),)
    before = results(module, inputs)
    rnnfast.restore(module)
    assert type(module) is nn.LSTM
    torch.testing.assert_close(results(module, inputs), before)
    rnnfast.accelerate(module)
    assert type(module) is rnnfast.LSTM
    assert {name: getattr(module, name) for name in options} == options


def test_restore_of_a_subclass_of_ours():
    class Halved(rnnfast.LSTM):
        def forward(self, input, hx=None):
            output, states = super().forward(input, hx)
            return output / 2, states

    module, inputs = Halved(X, H, dtype=DTYPE), (draw(T, N, X),)
    before = results(module, inputs)
    rnnfast.restore(module)
    assert isinstance(module, Halved) and isinstance(module, nn.LSTM) and not is_ours(module)
    torch.testing.assert_close(results(module, inputs), before)
    rnnfast.accelerate(module)
    assert type(module) is Halved


# patched


def torch_state() -> list:
    """All that patched() touches."""
    namespaces = (nn, nn.modules, nn.modules.rnn)
    state = [getattr(namespace, kind) for namespace in namespaces for kind in KINDS]
    state += [vars(cls).get("__init__") for pair in PAIRS.values() for cls in pair]
    return [*state, torch._dynamo.config.allow_rnn]


@pytest.fixture(autouse=True)
def torch_is_left_as_it_was():
    before = torch_state()
    yield
    assert torch_state() == before


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_builds_ours_within(kind: str):
    theirs, ours = PAIRS[kind]
    with rnnfast.patched():
        built = [
            namespace(X, H)
            for namespace in (
                getattr(torch.nn, kind),
                getattr(torch.nn.modules, kind),
                getattr(torch.nn.modules.rnn, kind),
                theirs,
            )
        ]
        assert all(type(module) is ours for module in built)
        assert all(isinstance(module, getattr(torch.nn, kind)) for module in built)
    assert all(type(module) is ours for module in built)
    assert type(theirs(X, H)) is type(getattr(nn, kind)(X, H)) is theirs


@pytest.mark.parametrize("case", CASES)
def test_modules_built_within_work_within_and_after(case: str):
    kind, options, arguments = CASES[case]
    expected = PAIRS[kind][0](X, H, dtype=DTYPE, **options)
    inputs = arguments()
    truth = results(expected, inputs)
    with rnnfast.patched():
        module = getattr(nn, kind)(X, H, dtype=DTYPE, **options)
        module.load_state_dict(expected.state_dict())
        torch.testing.assert_close(results(module, inputs), truth)
    torch.testing.assert_close(results(module, inputs), truth)


@pytest.mark.parametrize("cls", SUBCLASSES)
def test_subclasses_of_torchs_classes_that_were_derived_before(cls: type):
    torch.manual_seed(0)
    expected, inputs = cls(X), (draw(T, N, X),)
    with rnnfast.patched():
        torch.manual_seed(0)
        module = cls(X)
        assert isinstance(module, cls) and is_ours(module) and not is_torchs(module)
        torch.testing.assert_close(results(module, inputs), results(expected, inputs))
    assert set(vars(module)) == set(vars(expected))
    for name, parameter in expected.named_parameters():
        assert torch.equal(module.get_parameter(name), parameter)
    torch.testing.assert_close(results(module, inputs), results(expected, inputs))
    assert type(cls(X)) is cls


def test_classes_derived_within_are_ours_for_good():
    with rnnfast.patched():

        class Within(torch.nn.LSTM):
            def forward(self, input, hx=None):
                return super().forward(input, hx)[0]

    module = Within(X, H, dtype=DTYPE)
    assert isinstance(module, rnnfast.LSTM) and not isinstance(module, nn.LSTM)
    assert module(draw(T, N, X)).shape == (T, N, H)


def test_modules_that_exist_are_not_touched_within():
    existing = Doubled(X)
    with rnnfast.patched():
        duplicate = copy.deepcopy(existing)
        output = existing(draw(T, N, X))[0]
    assert type(existing) is type(duplicate) is Doubled
    assert output.shape == (T, N, H)


def test_wrong_arguments_raise_torchs_errors_within():
    with rnnfast.patched():
        with pytest.raises(TypeError):
            EarlyLSTM()
        with pytest.raises(ValueError, match="hidden_size must be greater than zero"):
            EarlyLSTM(X, 0)
        with pytest.raises(ValueError, match="hidden_size must be greater than zero"):
            nn.LSTM(X, 0)


def test_patches_end_with_an_exception():
    with pytest.raises(KeyError), rnnfast.patched():
        raise KeyError
    assert nn.LSTM is EarlyLSTM
    assert type(EarlyLSTM(X, H)) is EarlyLSTM


def test_contexts_nest():
    with rnnfast.patched():
        with rnnfast.patched():
            assert nn.LSTM is rnnfast.LSTM
        assert nn.LSTM is rnnfast.LSTM
        assert type(EarlyLSTM(X, H)) is rnnfast.LSTM
    assert nn.LSTM is EarlyLSTM


def test_contexts_of_several_threads_may_end_in_any_order():
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with rnnfast.patched():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    with rnnfast.patched():
        thread.start()
        assert entered.wait(10)
    assert nn.LSTM is rnnfast.LSTM
    leave.set()
    thread.join()
    assert nn.LSTM is EarlyLSTM


def test_as_a_decorator():
    @rnnfast.patched()
    def build(size: int) -> nn.Module:
        return nn.Sequential(nn.LSTM(size, H), Doubled(size))

    for _ in range(2):
        assert all(map(is_ours, build(X)))
        assert nn.LSTM is EarlyLSTM


def test_a_model_built_within_compiles_within_and_after(fresh_dynamo: None):
    tokens = torch.randint(11, (T, N))

    def compiled(model: nn.Module) -> Tensor:
        torch._dynamo.reset()
        return torch.compile(model, fullgraph=True, backend="aot_eager")(tokens)

    with rnnfast.patched():
        model = Tagger()
        torch.testing.assert_close(compiled(model), model(tokens))
    torch.testing.assert_close(compiled(model), model(tokens))


def test_quantization_after_restore_finds_torchs_classes():
    with rnnfast.patched():
        model = nn.Sequential(nn.LSTM(X, H), nn.GRU(X, H))
    rnnfast.restore(model)
    assert [type(module) for module in model] == [nn.LSTM, nn.GRU]
