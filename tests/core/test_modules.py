"""The modules are torch.nn's: construction, parameters, results, layouts, errors."""

import copy
import functools
import inspect
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import rnnfast
from rnnfast import reference

pytestmark = pytest.mark.usefixtures("kernels")

LAYERS = ["LSTM", "GRU", "RNN"]
CELLS = ["LSTMCell", "GRUCell", "RNNCell"]
every_layer = pytest.mark.parametrize("name", LAYERS)
every_cell = pytest.mark.parametrize("name", CELLS)
every_module = pytest.mark.parametrize("name", LAYERS + CELLS)

# Deviations in float64 of sums as short as those here.
close = functools.partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)


def pair(name: str, *args, seed: int = 0, dtype: torch.dtype | None = torch.float64, **kwargs):
    """torch's module and ours, built from the same seed."""
    modules = []
    for package in (nn, rnnfast):
        torch.manual_seed(seed)
        modules.append(getattr(package, name)(*args, dtype=dtype, **kwargs))
    return modules


def flat(result: Tensor | tuple) -> list[Tensor]:
    """The tensors of a result or hx, which nests them at most twice."""
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in flat(part)]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def states(name: str, *shape: int):
    """A random hx of that shape."""
    return (random(*shape), random(*shape)) if name.startswith("LSTM") else random(*shape)


def assert_same_results_and_gradients(theirs: nn.Module, ours: nn.Module, x: Tensor, hx=None):
    outputs, gradients = [], []
    for module in (theirs, ours):
        inputs = [x] if hx is None else [x, *flat(hx)]
        leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
        given = [] if hx is None else leaves[1:2] if isinstance(hx, Tensor) else [leaves[1:]]
        result = flat(module(leaves[0], *given))
        torch.manual_seed(2)
        cotangents = [random(*tensor.shape) for tensor in result]
        leaves += module.parameters()
        outputs.append(result)
        gradients.append(torch.autograd.grad(result, leaves, cotangents))
    close(outputs[1], outputs[0])
    close(gradients[1], gradients[0])


class TestConstruction:
    @pytest.mark.parametrize(
        ("name", "args", "kwargs"),
        [
            ("LSTM", (3, 5), {}),
            ("LSTM", (3, 5, 2, False, True, 0.25, True), {}),
            ("LSTM", (3, 5), {"num_layers": 2, "bias": False, "bidirectional": True}),
            ("LSTM", (3, 5, 2, True, False, 0.0, True, 2), {}),
            ("LSTM", (3, 5), {"proj_size": 4}),
            ("GRU", (3, 5), {}),
            ("GRU", (3, 5, 3, False, True, 0.5, True), {}),
            ("GRU", (3, 5), {"num_layers": 2, "batch_first": True}),
            ("RNN", (3, 5), {}),
            ("RNN", (3, 5, 2, "relu", False, True, 0.5, True), {}),
            ("RNN", (3, 5), {"nonlinearity": "relu", "num_layers": 3}),
            ("LSTMCell", (3, 5, False), {}),
            ("GRUCell", (3, 5), {"bias": True}),
            ("RNNCell", (3, 5, True, "relu"), {}),
            ("RNNCell", (3, 5), {"nonlinearity": "relu"}),
        ],
    )
    def test_same_arguments_parameters_and_attributes(self, name, args, kwargs):
        theirs, ours = pair(name, *args, **kwargs)
        assert repr(ours) == repr(theirs)
        parameters = dict(theirs.named_parameters())
        assert list(dict(ours.named_parameters())) == list(parameters)
        for key, value in ours.named_parameters():
            assert torch.equal(value, parameters[key])
        public = [key for key in vars(theirs) if not key.startswith("_") and key != "training"]
        assert {key: getattr(ours, key) for key in public} == {
            key: getattr(theirs, key) for key in public
        }
        if name in LAYERS:
            assert [len(weights) for weights in ours.all_weights] == [
                len(weights) for weights in theirs.all_weights
            ]
        # Whatever was drawn after construction is also the same.
        torch.manual_seed(7)
        theirs.reset_parameters()
        torch.manual_seed(7)
        ours.reset_parameters()
        assert all(
            torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True)
        )

    @every_module
    def test_state_dict_both_ways(self, name):
        options = {"num_layers": 2, "bidirectional": True} if name in LAYERS else {}
        theirs, _ = pair(name, 3, 5, seed=1, **options)
        _, ours = pair(name, 3, 5, seed=2, **options)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        ours.load_state_dict(theirs.state_dict())
        x = random(4, 2, 3) if name in LAYERS else random(2, 3)
        close(flat(ours(x)), flat(theirs(x)))
        _, other = pair(name, 3, 5, seed=3, **options)
        theirs.load_state_dict(other.state_dict())
        close(flat(theirs(x)), flat(other(x)))

    @pytest.mark.parametrize(
        ("name", "args", "kwargs"),
        [
            ("LSTM", (3, 0), {}),
            ("LSTM", (0, 3), {}),
            ("LSTM", (3, 5, 0), {}),
            ("LSTM", (3, 5.0), {}),
            ("LSTM", (3, 5), {"dropout": 1.5}),
            ("LSTM", (3, 5), {"dropout": True}),
            ("LSTM", (3, 5), {"bias": 1}),
            ("LSTM", (3, 5), {"batch_first": 1}),
            ("LSTM", (3, 5), {"proj_size": -1}),
            ("LSTM", (3, 5), {"proj_size": 5}),
            ("GRU", (3, 5), {"proj_size": 2}),
            ("RNN", (3, 5), {"proj_size": 2}),
            ("RNN", (3, 5), {"nonlinearity": "sin"}),
            ("RNN", (3, 5), {"nonlinearity": ["tanh"]}),
            ("RNN", (3, 5, 1, "sin"), {}),
        ],
    )
    def test_same_errors(self, name, args, kwargs):
        errors = []
        for package in (nn, rnnfast):
            with pytest.raises((TypeError, ValueError)) as caught:
                getattr(package, name)(*args, **kwargs)
            errors.append((caught.type, str(caught.value)))
        assert errors[1] == errors[0]

    def test_dropout_with_one_layer_warns(self):
        with pytest.warns(UserWarning, match="dropout option adds dropout"):
            rnnfast.GRU(3, 5, dropout=0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rnnfast.GRU(3, 5, num_layers=2, dropout=0.5)

    @every_layer
    def test_it_is_no_instance_of_torchs_module(self, name):
        """torch.compile refuses those."""
        module = getattr(rnnfast, name)(3, 5)
        assert isinstance(module, nn.RNNBase)
        assert not isinstance(module, (nn.LSTM, nn.GRU, nn.RNN))

    @every_module
    def test_everything_public_is_documented(self, name):
        module = getattr(rnnfast, name)
        for section in ("Args:", "Inputs:", "Outputs:", "Shape:", "Raises:"):
            assert section in inspect.getdoc(module)


class TestResults:
    @pytest.mark.parametrize("given", [False, True], ids=["zero_states", "given_states"])
    @pytest.mark.parametrize("unbatched", [False, True], ids=["batched", "unbatched"])
    @pytest.mark.parametrize("batch_first", [False, True], ids=["time_major", "batch_first"])
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"bias": False},
            {"num_layers": 3},
            {"bidirectional": True},
            {"num_layers": 2, "bidirectional": True, "bias": False},
        ],
        ids=["plain", "no_bias", "layers", "bidirectional", "all"],
    )
    @every_layer
    def test_layers(self, name, options, batch_first, unbatched, given):
        theirs, ours = pair(name, 3, 5, batch_first=batch_first, **options)
        rows = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
        shape = [4] if unbatched else [2, 4] if batch_first else [4, 2]
        x = random(*shape, 3)
        hx = states(name, *([rows, 5] if unbatched else [rows, 2, 5])) if given else None
        assert_same_results_and_gradients(theirs, ours, x, hx)

    def test_rnn_with_relu(self):
        theirs, ours = pair("RNN", 3, 5, 2, nonlinearity="relu", bidirectional=True)
        assert_same_results_and_gradients(theirs, ours, random(4, 2, 3))

    @pytest.mark.parametrize("given", [False, True], ids=["zero_states", "given_states"])
    @pytest.mark.parametrize("batch", [[], [1], [4], [0]], ids=["unbatched", "1", "4", "0"])
    @pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
    @every_cell
    def test_cells(self, name, bias, batch, given):
        theirs, ours = pair(name, 3, 5, bias=bias)
        hx = states(name, *batch, 5) if given else None
        assert_same_results_and_gradients(theirs, ours, random(*batch, 3), hx)

    def test_rnn_cell_with_relu(self):
        theirs, ours = pair("RNNCell", 3, 5, nonlinearity="relu")
        assert_same_results_and_gradients(theirs, ours, random(4, 3))

    @pytest.mark.parametrize("batch_first", [False, True])
    @every_layer
    def test_no_row(self, name, batch_first):
        theirs, ours = pair(name, 3, 5, 2, batch_first=batch_first, bidirectional=True)
        x = random(0, 4, 3) if batch_first else random(4, 0, 3)
        assert [t.shape for t in flat(ours(x))] == [t.shape for t in flat(theirs(x))]

    @every_layer
    def test_states_as_a_list_and_from_the_call_before(self, name):
        _, ours = pair(name, 3, 5, num_layers=2)
        x = random(6, 2, 3)
        whole, final = ours(x)
        first, carried = ours(x[:2])
        second, last = ours(x[2:], list(carried) if name == "LSTM" else carried)
        close(torch.cat([first, second]), whole)
        close(flat(last), flat(final))

    @pytest.mark.parametrize("reset_after", [False, True])
    def test_gru_in_both_forms(self, reset_after):
        ours = rnnfast.GRU(3, 5, 2, dtype=torch.float64, reset_after=reset_after)
        x = expected = random(4, 2, 3)
        for weights in ours.all_weights:
            zeros = expected.new_zeros(2, 5)
            expected = reference.gru(expected, zeros, *weights, reset_after=reset_after)[0]
        close(ours(x)[0], expected)
        cell = rnnfast.GRUCell(3, 5, dtype=torch.float64, reset_after=reset_after)
        step = reference.gru(
            x[:1],
            zeros,
            cell.weight_ih,
            cell.weight_hh,
            cell.bias_ih,
            cell.bias_hh,
            reset_after=reset_after,
        )
        close(cell(x[0]), step[1])
        for module in (ours, cell):
            assert ("reset_after=False" in repr(module)) == (not reset_after)

    @every_layer
    def test_nan_stays_in_its_row(self, name, isa):
        torch.manual_seed(0)
        ours = getattr(rnnfast, name)(7, 33, num_layers=2, bidirectional=True)
        x = torch.randn(5, 6, 7)
        clean = flat(ours(x))
        x[2, 3, 1] = float("nan")
        for result, expected in zip(flat(ours(x)), clean, strict=True):
            rows = [0, 1, 2, 4, 5]
            assert torch.equal(result[:, rows], expected[:, rows])
            assert result[:, 3].isnan().any()

    @every_layer
    def test_strided_input_and_states(self, name):
        theirs, ours = pair(name, 3, 5, 2)
        x = random(2, 4, 6).transpose(0, 1)[..., ::2]
        hx = states(name, 2, 5, 2)
        hx = tuple(s.transpose(1, 2) for s in hx) if name == "LSTM" else hx.transpose(1, 2)
        close(flat(ours(x, hx)), flat(theirs(x, hx)))


class TestDropout:
    @pytest.mark.parametrize("dropout", [0.3, 1.0])
    @pytest.mark.parametrize("batch_first", [False, True], ids=["time_major", "batch_first"])
    @every_layer
    def test_same_masks_from_the_same_seed(self, name, batch_first, dropout):
        theirs, ours = pair(
            name, 3, 5, 3, dropout=dropout, batch_first=batch_first, bidirectional=True
        )
        x = random(7, 6, 3)
        results = []
        for module in (theirs, ours):
            torch.manual_seed(5)
            results.append(flat(module(x)))
        close(results[1], results[0])
        for module in (theirs, ours):
            module.eval()
        close(flat(ours(x)), flat(theirs(x)))

    def test_share_of_zeros(self):
        """What reaches the second layer, seen through an identity in its place."""
        ours = rnnfast.RNN(1, 1000, 2, dropout=0.25, nonlinearity="relu")
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.zero_()
            ours.bias_ih_l0.fill_(1.0)
            ours.weight_ih_l1.copy_(torch.eye(1000))
            output = ours(torch.zeros(10, 10, 1))[0]
        kept = torch.tensor(1 / 0.75)
        assert torch.all((output == 0) | (output == kept))
        # 100,000 coins: one standard deviation of the share is 0.0014.
        assert abs((output == 0).float().mean().item() - 0.25) < 0.007


class TestWeightsThatChange:
    """Each call uses the weights that the module has then."""

    @every_layer
    def test_functional_call(self, name):
        theirs, ours = pair(name, 3, 5)
        doubled = {key: 2 * value for key, value in ours.named_parameters()}
        x = random(4, 2, 3)
        with_theirs = torch.func.functional_call(theirs, doubled, (x,))
        close(flat(torch.func.functional_call(ours, doubled, (x,))), flat(with_theirs))
        close(flat(ours(x)), flat(theirs(x)))

    @every_layer
    def test_assignment(self, name):
        theirs, ours = pair(name, 3, 5)
        x = random(4, 2, 3)
        for module in (theirs, ours):
            module(x)
            module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach() / 2)
            module.bias_ih_l0.data = module.bias_ih_l0.data + 1
        close(flat(ours(x)), flat(theirs(x)))

    def test_a_tensor_in_place_of_a_parameter(self):
        theirs, ours = pair("LSTM", 3, 5)
        x = random(4, 2, 3)
        for module in (theirs, ours):
            raw = module.weight_hh_l0
            del module.weight_hh_l0
            module.weight_hh_l0 = raw * 0.5
        close(flat(ours(x)), flat(theirs(x)))

    @every_layer
    def test_tensors_put_into_flat_weights(self, name):
        """As adapters on torch's modules do, until an attribute is replaced."""
        theirs, ours = pair(name, 3, 5, num_layers=2)
        x = random(4, 2, 3)
        for module in (theirs, ours):
            module(x)
            module._flat_weights = [2 * weight for weight in module._flat_weights]
        assert_same_results_and_gradients(theirs, ours, x)
        for module in (theirs, ours):
            module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach() / 2)
        assert_same_results_and_gradients(theirs, ours, x)

    def test_parametrization(self):
        _, ours = pair("GRU", 3, 5)
        x = random(4, 2, 3)
        before = ours(x)[0]
        parametrizations.weight_norm(ours, "weight_hh_l0")
        close(ours(x)[0], before)
        with torch.no_grad():
            ours.parametrizations.weight_hh_l0.original0.mul_(0)
        assert not torch.allclose(ours(x)[0], before)

    @every_cell
    def test_a_cell_computes_a_parametrization_once_a_call(self, name):
        """Of spectral_norm, which goes a step further at every look at the weight."""
        results = []
        for module in pair(name, 3, 5):
            torch.manual_seed(1)
            parametrizations.spectral_norm(module, "weight_ih")
            parametrizations.spectral_norm(module, "weight_hh")
            results.append(flat(module(torch.ones(2, 3, dtype=torch.float64))))
        close(*results)

    def test_the_mode_says_what_an_rnn_computes(self):
        """Modules that old versions of torch pickled have no attribute nonlinearity."""
        theirs, ours = pair("RNN", 3, 5)
        for module in (theirs, ours):
            del module.nonlinearity
        for mode in ("RNN_TANH", "RNN_RELU"):
            theirs.mode = ours.mode = mode
            for x in (random(4, 2, 3), random(4, 3)):
                assert_same_results_and_gradients(theirs, ours, x)

    @every_module
    def test_deepcopy_and_pickle(self, name):
        _, ours = pair(name, 3, 5)
        x = random(4, 2, 3) if name in LAYERS else random(2, 3)
        expected = flat(ours(x))
        for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert all(torch.equal(a, b) for a, b in zip(flat(twin(x)), expected, strict=True))
            with torch.no_grad():
                next(twin.parameters()).zero_()
            assert not torch.equal(flat(twin(x))[0], expected[0])
        assert all(torch.equal(a, b) for a, b in zip(flat(ours(x)), expected, strict=True))

    @every_layer
    def test_change_of_dtype(self, name):
        ours = getattr(rnnfast, name)(3, 5)
        x = torch.randn(4, 2, 3)
        single = ours(x)[0]
        double = ours.double()(x.double())[0]
        assert double.dtype == torch.float64
        torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-6)
        ours.flatten_parameters()

    def test_frozen_weights(self):
        theirs, ours = pair("LSTM", 3, 5)
        for module in (theirs, ours):
            module.weight_ih_l0.requires_grad_(False)
            module.bias_hh_l0.requires_grad_(False)
        x = random(4, 2, 3)
        for module in (theirs, ours):
            module(x)[0].sum().backward()
        for theirs_p, ours_p in zip(theirs.parameters(), ours.parameters(), strict=True):
            assert (ours_p.grad is None) == (theirs_p.grad is None)
            if ours_p.grad is not None:
                close(ours_p.grad, theirs_p.grad)


class TestErrors:
    """Wrong calls raise what torch raises, in its words."""

    @pytest.fixture(autouse=True)
    def default_backend(self, kernels):
        rnnfast.set_backend("auto")

    @staticmethod
    def caught(module: nn.Module, args: tuple) -> tuple[type, str]:
        with pytest.raises((RuntimeError, ValueError, TypeError, AttributeError)) as caught:
            module(*args)
        # TypeErrors of torch's argument parser go on to list what was given, addresses included.
        return caught.type, str(caught.value).splitlines()[0]

    @pytest.mark.parametrize("batch_first", [False, True])
    @every_layer
    def test_layers(self, name, batch_first):
        theirs, ours = pair(name, 3, 5, 2, batch_first=batch_first)

        def hx(*shape: int, dtype: torch.dtype = torch.float64):
            state = torch.zeros(*shape, dtype=dtype)
            return (state, state) if name == "LSTM" else state

        x = random(4, 4, 3)
        wrong = [
            (random(4, 4, 2),),
            (random(4),),
            (random(1, 4, 4, 3),),
            (x.float(),),
            (x.long(),),
            (random(0, 4, 3) if not batch_first else random(4, 0, 3),),
            (random(0, 3),),
            (x, hx(1, 4, 5)),
            (x, hx(2, 3, 5)),
            (x, hx(2, 4, 6)),
            (x, hx(2, 5)),
            (random(4, 3), hx(2, 1, 5)),
            (random(4, 3), hx(2, 6)),
            (x, hx(2, 4, 5, dtype=torch.float32)),
        ]
        if name == "LSTM":
            wrong.append((x, (torch.zeros(2, 4, 5), torch.zeros(2, 4, 6))))
            wrong.append((x, (torch.zeros(2, 4, 5),) * 3))
        for args in wrong:
            assert self.caught(ours, args) == self.caught(theirs, args)

    @every_cell
    def test_cells(self, name):
        theirs, ours = pair(name, 3, 5)

        def hx(*shape: int):
            return (random(*shape), random(*shape)) if name == "LSTMCell" else random(*shape)

        wrong = [
            (random(2, 4),),
            (random(2, 2, 3),),
            (random(2, 3).float(),),
            (random(2, 3), hx(3, 5)),
            (random(2, 3), hx(2, 4)),
            (random(2, 3), hx(1, 2, 5)),
            (random(3), hx(4)),
        ]
        for args in wrong:
            assert self.caught(ours, args) == self.caught(theirs, args)

    def test_unknown_nonlinearity_of_a_cell(self):
        theirs, ours = pair("RNNCell", 3, 5, nonlinearity="sin")
        assert self.caught(ours, (random(2, 3),)) == self.caught(theirs, (random(2, 3),))

    @pytest.mark.parametrize("name", ["GRU", "GRUCell"])
    def test_gru_that_resets_before_never_runs_as_torchs(self, name):
        ours = getattr(rnnfast, name)(3, 5, reset_after=False)
        shape = (4, 2) if name == "GRU" else (2,)
        for args in [
            (torch.randn(*shape, 4),),
            (torch.randn(*shape, 3).double(),),
            (torch.randn(*shape, 3), torch.randn(*shape, 6)),
        ]:
            with pytest.raises((RuntimeError, ValueError)):
                ours(*args)
        rnnfast.set_backend("rnnfast")
        with pytest.raises(RuntimeError, match=f"{name} has to run on rnnfast's kernels"):
            ours.to("meta")(torch.randn(*shape, 3, device="meta"))
