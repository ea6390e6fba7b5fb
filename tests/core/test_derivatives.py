"""Every way in which torch differentiates, through the operators, the layers and the cells.

The truth is torch.nn in float64 or, for what torch lacks, the plain-torch reference, differentiated
by autograd once or twice in a plain Python loop. No transform of torch.func is part of it.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, stack_module_state
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint

import rnnfast
from rnnfast import ops, reference

SEQ_LEN, BATCH, INPUT_SIZE, HIDDEN_SIZE, PROJ_SIZE = 3, 3, 2, 4, 3
# Of a packed batch, as many rows as BATCH.
BATCH_SIZES = [3, 2, 2]

Function = Callable[..., tuple[Tensor, ...]]


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def loss(results: tuple[Tensor, ...]) -> Tensor:
    """A number on which every element of every result has its own, nonlinear influence."""
    return sum(
        (torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype).view(x.shape) * (x + 1).square()).sum()
        for x in results
    )


def loss_of(function: Function) -> Callable[..., Tensor]:
    return lambda *tensors: loss(function(*tensors))


def gradients(function: Function, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """The gradients of the loss by autograd."""
    given = leaves(tensors)
    loss(function(*given)).backward()
    return tuple(tensor.grad for tensor in given)


def gradients_with_graph(function: Function, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    given = leaves(tensors)
    return torch.autograd.grad(loss(function(*given)), given, create_graph=True)


def assert_equal(ours, theirs) -> None:
    """To float64's rounding."""
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


# The operators.


@dataclass(frozen=True)
class Operator:
    """One form of an operator in one layout, as a function of tensors alone."""

    name: str
    cell: str
    options: dict = field(default_factory=dict)
    proj_size: int = 0

    def __str__(self) -> str:
        return self.name

    def tensors(self, seed: int = 0) -> list[Tensor]:
        """Random arguments: input, states, weights, in the order of the signature."""
        torch.manual_seed(seed)
        gates = {"lstm": 4, "gru": 3, "rnn": 1}[self.cell] * HIDDEN_SIZE
        output_size = self.proj_size or HIDDEN_SIZE
        sizes = (BATCH, SEQ_LEN) if self.options.get("batch_first") else (SEQ_LEN, BATCH)
        sequence = (sum(BATCH_SIZES),) if "batch_sizes" in self.options else sizes
        shapes = [(*sequence, INPUT_SIZE), (BATCH, output_size)]
        if self.cell == "lstm":
            shapes += [(BATCH, HIDDEN_SIZE)]
        shapes += [(gates, INPUT_SIZE), (gates, output_size), (gates,), (gates,)]
        if self.proj_size:
            shapes += [(self.proj_size, HIDDEN_SIZE)]
        return [random(*shape) for shape in shapes]

    def ours(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return getattr(ops, self.cell)(*tensors, **self.options)

    def truth(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        results = getattr(reference, self.cell)(*tensors, **self.options)
        return results[: 3 if self.cell == "lstm" else 2]


def operators() -> list[Operator]:
    forms = {
        "lstm": ("lstm", {}, 0),
        "lstm_projected": ("lstm", {}, PROJ_SIZE),
        "gru": ("gru", {}, 0),
        "gru_reset_before": ("gru", {"reset_after": False}, 0),
        "rnn_tanh": ("rnn", {}, 0),
        "rnn_relu": ("rnn", {"nonlinearity": "relu"}, 0),
    }
    layouts = {
        "time_major": {},
        "batch_first_reverse": {"batch_first": True, "reverse": True},
        "packed": {"batch_sizes": torch.tensor(BATCH_SIZES)},
        "packed_reverse": {"batch_sizes": torch.tensor(BATCH_SIZES), "reverse": True},
    }
    return [
        Operator(f"{form}-{layout}", cell, options | layouts[layout], proj_size)
        for form, (cell, options, proj_size) in forms.items()
        for layout in layouts
    ]


every_operator = pytest.mark.parametrize("operator", operators(), ids=str)


class TestOperators:
    @every_operator
    def test_gradcheck_twice(self, operator):
        given = leaves(operator.tensors())
        assert torch.autograd.gradcheck(operator.ours, given, fast_mode=True)
        assert torch.autograd.gradgradcheck(operator.ours, given, fast_mode=True)

    @every_operator
    def test_second_derivatives(self, operator):
        """Of the loss along a direction, in every argument, against those of the reference."""
        tensors = operator.tensors()
        direction = tuple(operator.tensors(seed=1))
        ours, theirs = (
            torch.autograd.functional.hvp(loss_of(function), tuple(tensors), direction)
            for function in (operator.ours, operator.truth)
        )
        assert_equal(ours, theirs)

    @every_operator
    def test_third_derivatives(self, operator):
        def norm_of_gradient_of_norm(function: Function) -> tuple[Tensor, ...]:
            given = leaves(operator.tensors())
            first = torch.autograd.grad(loss(function(*given)), given, create_graph=True)
            norm = sum(gradient.square().sum() for gradient in first)
            second = torch.autograd.grad(norm, given, create_graph=True)
            return torch.autograd.grad(sum(gradient.sum() for gradient in second), given)

        torch.testing.assert_close(
            norm_of_gradient_of_norm(operator.ours),
            norm_of_gradient_of_norm(operator.truth),
            rtol=1e-9,
            atol=1e-9,
        )

    @every_operator
    def test_create_graph_changes_no_gradient(self, operator):
        kept = gradients_with_graph(operator.ours, operator.tensors())
        assert all(gradient.requires_grad for gradient in kept)
        assert_equal(kept, gradients(operator.ours, operator.tensors()))

    @every_operator
    def test_backward_of_a_batch_of_cotangents(self, operator):
        given = leaves(operator.tensors())
        ours, theirs = operator.ours(*given), operator.truth(*given)
        cotangents = [random(2, *result.shape) for result in ours]
        batched = torch.autograd.grad(ours, given, cotangents, is_grads_batched=True)
        one_by_one = [
            torch.autograd.grad(theirs, given, each, retain_graph=True)
            for each in zip(*cotangents, strict=True)
        ]
        assert_equal(batched, tuple(torch.stack(each) for each in zip(*one_by_one, strict=True)))

    @every_operator
    def test_vmap(self, operator):
        """Over each argument alone and over all at once."""
        tensors, others = operator.tensors(), operator.tensors(seed=1)
        count = len(tensors)
        choices = [[index] for index in range(count)] + [list(range(count))]
        for chosen in choices:
            dims = tuple(0 if index in chosen else None for index in range(count))
            stacked = [
                x if dim is None else torch.stack((x, y))
                for x, y, dim in zip(tensors, others, dims, strict=True)
            ]
            mapped = torch.func.vmap(operator.ours, in_dims=dims)(*stacked)
            second = [
                x if dim is None else y for x, y, dim in zip(tensors, others, dims, strict=True)
            ]
            one_by_one = zip(operator.truth(*tensors), operator.truth(*second), strict=True)
            assert_equal(mapped, tuple(torch.stack(each) for each in one_by_one))

    @every_operator
    def test_vmap_over_other_dimensions(self, operator):
        stacked = [
            torch.stack(pair, dim=-1)
            for pair in zip(operator.tensors(), operator.tensors(seed=1), strict=True)
        ]
        mapped = torch.func.vmap(operator.ours, in_dims=-1, out_dims=1)(*stacked)
        one_by_one = [operator.truth(*(x[..., index] for x in stacked)) for index in range(2)]
        assert_equal(
            mapped, tuple(torch.stack(each, dim=1) for each in zip(*one_by_one, strict=True))
        )

    @every_operator
    def test_grad_jacobians_and_products(self, operator):
        tensors, direction = tuple(operator.tensors()), tuple(operator.tensors(seed=1))
        every = tuple(range(len(tensors)))
        total = loss_of(operator.ours)
        assert_equal(torch.func.grad(total, every)(*tensors), gradients(operator.truth, tensors))

        jacobian = torch.autograd.functional.jacobian(operator.truth, tensors)
        assert_equal(torch.func.jacrev(operator.ours, every)(*tensors), jacobian)
        assert_equal(torch.func.jacfwd(operator.ours, every)(*tensors), jacobian)

        pushed = torch.autograd.functional.jvp(operator.truth, tensors, direction)
        assert_equal(torch.func.jvp(operator.ours, tensors, direction), pushed)

        cotangents = tuple(random(*result.shape) for result in pushed[0])
        pull = torch.func.vjp(operator.ours, *tensors)[1]
        pulled = torch.autograd.functional.vjp(operator.truth, tensors, cotangents)[1]
        assert_equal(pull(cotangents), pulled)

    @every_operator
    def test_hessian_vector_products(self, operator):
        """Forward over reverse, reverse over reverse and reverse over forward."""
        tensors, direction = tuple(operator.tensors()), tuple(operator.tensors(seed=1))
        total = loss_of(operator.ours)
        every = tuple(range(len(tensors)))
        gradient = torch.func.grad(total, every)
        expected = torch.autograd.functional.hvp(loss_of(operator.truth), tensors, direction)[1]

        def slope(*tensors: Tensor) -> Tensor:
            return torch.func.jvp(total, tensors, direction)[1]

        def alignment(*tensors: Tensor) -> Tensor:
            return sum((g * v).sum() for g, v in zip(gradient(*tensors), direction, strict=True))

        assert_equal(torch.func.jvp(gradient, tensors, direction)[1], expected)
        assert_equal(torch.func.grad(alignment, every)(*tensors), expected)
        assert_equal(torch.func.grad(slope, every)(*tensors), expected)

    @every_operator
    def test_dual_numbers(self, operator):
        """Forward mode without torch.func, in one argument at a time."""
        tensors, direction = operator.tensors(), operator.tensors(seed=1)
        for index, tangent in enumerate(direction):

            def function(x: Tensor, index: int = index) -> tuple[Tensor, ...]:
                return operator.truth(*tensors[:index], x, *tensors[index + 1 :])

            expected = torch.autograd.functional.jvp(function, tensors[index], tangent)[1]
            with forward_ad.dual_level():
                given = list(tensors)
                given[index] = forward_ad.make_dual(tensors[index], tangent)
                tangents = [forward_ad.unpack_dual(x).tangent for x in operator.ours(*given)]
            for ours, theirs in zip(tangents, expected, strict=True):
                assert_equal(torch.zeros_like(theirs) if ours is None else ours, theirs)


# The layers and cells.


class GRUResetBefore(nn.GRU):
    """The form of the GRU that torch.nn lacks: one layer, one direction."""

    def forward(self, input, hx=None):
        packed = isinstance(input, PackedSequence)
        x = input.data if packed else input
        batch_sizes = input.batch_sizes if packed else None
        output, h_n, *_ = reference.gru(
            x, hx[0], *self.all_weights[0], batch_sizes=batch_sizes, reset_after=False
        )
        return input._replace(data=output) if packed else output, h_n.unsqueeze(0)


class GRUCellResetBefore(nn.GRUCell):
    def forward(self, input, hx=None):
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        return reference.gru(input.unsqueeze(0), hx, *weights, reset_after=False)[1]


def flatten(results) -> tuple[Tensor, ...]:
    """Output and states side by side."""
    if isinstance(results, Tensor):
        return (results,)
    if isinstance(results, PackedSequence):
        return (results.data,)
    return tuple(tensor for part in results for tensor in flatten(part))


@dataclass(frozen=True)
class Module:
    """A layer, on a padded or on a packed batch, or a cell, with its twin of the same weights."""

    name: str
    kind: type[nn.Module]
    twin: type[nn.Module]
    options: dict = field(default_factory=dict)
    packed: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def is_cell(self) -> bool:
        return issubclass(self.kind, nn.RNNCellBase)

    def build(
        self, seed: int = 0, dtype: torch.dtype = torch.float64, **options
    ) -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(seed)
        options |= self.options
        ours = self.kind(INPUT_SIZE, HIDDEN_SIZE, dtype=dtype, **options)
        shared = {key: x for key, x in options.items() if key not in ("reset_after", "memory")}
        twin = self.twin(INPUT_SIZE, HIDDEN_SIZE, dtype=torch.float64, **shared)
        twin.load_state_dict(ours.state_dict())
        return ours, twin

    def inputs(self, seed: int = 0) -> list[Tensor]:
        """Random input and initial states."""
        torch.manual_seed(seed)
        if self.is_cell:
            sequence, states = (BATCH,), (BATCH,)
        else:
            sequence = (sum(BATCH_SIZES),) if self.packed else (SEQ_LEN, BATCH)
            layers = self.options.get("num_layers", 1)
            states = (layers * (2 if self.options.get("bidirectional") else 1), BATCH)
        sizes = [self.options.get("proj_size", HIDDEN_SIZE)]
        if "LSTM" in self.kind.__name__:
            sizes.append(HIDDEN_SIZE)
        return [random(*sequence, INPUT_SIZE), *(random(*states, size) for size in sizes)]

    def arguments(self, input: Tensor, *states: Tensor) -> tuple:
        """What the module is called with."""
        if self.packed:
            input = PackedSequence(input, torch.tensor(BATCH_SIZES))
        return input, (states if len(states) == 2 else states[0])

    def run(self, module: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
        return flatten(module(*self.arguments(*inputs)))

    def function(self, module: nn.Module) -> Function:
        """The module as a function of input, states and parameters, as in :meth:`tensors`."""
        names = [name for name, _ in module.named_parameters()]

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            inputs, weights = tensors[: -len(names)], tensors[-len(names) :]
            named = dict(zip(names, weights, strict=True))
            return flatten(functional_call(module, named, self.arguments(*inputs)))

        return function

    def tensors(self, module: nn.Module, seed: int = 0) -> list[Tensor]:
        return [*self.inputs(seed), *(weight.detach() for weight in module.parameters())]


def layers_and_cells() -> list[Module]:
    layers = [
        Module("LSTM", rnnfast.LSTM, nn.LSTM),
        Module("LSTM_projected", rnnfast.LSTM, nn.LSTM, {"proj_size": PROJ_SIZE}),
        Module("LSTM_deep", rnnfast.LSTM, nn.LSTM, {"num_layers": 2, "bidirectional": True}),
        Module("LSTM_recompute", rnnfast.LSTM, nn.LSTM, {"memory": "recompute"}),
        Module("GRU", rnnfast.GRU, nn.GRU),
        Module("GRU_reset_before", rnnfast.GRU, GRUResetBefore, {"reset_after": False}),
        Module("RNN_tanh", rnnfast.RNN, nn.RNN),
        Module("RNN_relu", rnnfast.RNN, nn.RNN, {"nonlinearity": "relu"}),
    ]
    packed = [
        Module(f"{layer.name}_packed", layer.kind, layer.twin, layer.options, packed=True)
        for layer in layers
    ]
    cells = [
        Module("LSTMCell", rnnfast.LSTMCell, nn.LSTMCell),
        Module("GRUCell", rnnfast.GRUCell, nn.GRUCell),
        Module(
            "GRUCell_reset_before",
            rnnfast.GRUCell,
            GRUCellResetBefore,
            {"reset_after": False},
        ),
        Module("RNNCell", rnnfast.RNNCell, nn.RNNCell),
    ]
    return layers + packed + cells


def layers_that_drop() -> list[Module]:
    options = {"num_layers": 3, "dropout": 0.5}
    return [
        Module(f"{kind}_dropout", getattr(rnnfast, kind), getattr(nn, kind), options)
        for kind in ("LSTM", "GRU", "RNN")
    ]


every_module = pytest.mark.parametrize("case", layers_and_cells(), ids=str)


def checkpointed(function: Function, use_reentrant: bool) -> Function:
    return lambda *tensors: checkpoint(function, *tensors, use_reentrant=use_reentrant)


both_checkpoints = pytest.mark.parametrize(
    "use_reentrant", [False, True], ids=["saved_tensors", "reentrant"]
)


@pytest.mark.usefixtures("kernels")
class TestAutograd:
    """What torch.autograd offers, through the modules."""

    @pytest.mark.parametrize("case", layers_and_cells() + layers_that_drop(), ids=str)
    def test_backward_in_eval_mode(self, case):
        ours, twin = case.build()
        ours.eval()
        twin.eval()
        assert_equal(
            gradients(case.function(ours), case.tensors(ours)),
            gradients(case.function(twin), case.tensors(ours)),
        )

    @every_module
    def test_gradcheck_twice(self, case):
        ours, _ = case.build()
        given = leaves(case.tensors(ours))
        assert torch.autograd.gradcheck(case.function(ours), given, fast_mode=True)
        assert torch.autograd.gradgradcheck(case.function(ours), given, fast_mode=True)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @every_module
    def test_gradient_penalty(self, case, dtype):
        """backward() through the norm of a gradient, as in a Wasserstein GAN's critic."""
        ours, twin = case.build(dtype=dtype)
        for module, of_dtype in ((ours, dtype), (twin, torch.float64)):
            input, *states = (x.to(dtype).to(of_dtype) for x in case.inputs())
            input.requires_grad_()
            value = loss(case.run(module, input, *states))
            (slope,) = torch.autograd.grad(value, input, create_graph=True)
            (value + (slope.norm() - 1).square()).backward()
        for weight, truth in zip(ours.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(weight.grad, truth.grad.to(dtype))

    @every_module
    def test_create_graph_changes_no_gradient(self, case):
        ours, _ = case.build()
        tensors = case.tensors(ours)
        kept = gradients_with_graph(case.function(ours), tensors)
        assert_equal(kept, gradients(case.function(ours), tensors))

    @every_module
    def test_a_step_of_descent_is_differentiable(self, case):
        """As in model-agnostic meta-learning: the gradient of the loss after a step."""

        def gradient_after_step(module: nn.Module, tensors: list[Tensor]) -> tuple[Tensor, ...]:
            function = case.function(module)
            given = leaves(tensors)
            steps = torch.autograd.grad(loss(function(*given)), given, create_graph=True)
            moved = [x - 0.1 * step for x, step in zip(given, steps, strict=True)]
            return torch.autograd.grad(loss(function(*moved)), given)

        ours, twin = case.build()
        tensors = case.tensors(ours)
        assert_equal(gradient_after_step(ours, tensors), gradient_after_step(twin, tensors))

    @every_module
    def test_backward_of_a_batch_of_cotangents(self, case):
        ours, twin = case.build()
        tensors = tuple(case.tensors(ours))
        assert_equal(
            torch.autograd.functional.jacobian(case.function(ours), tensors, vectorize=True),
            torch.autograd.functional.jacobian(case.function(twin), tensors),
        )

    @every_module
    def test_retained_graph(self, case):
        ours, _ = case.build()
        total = loss(case.run(ours, *case.inputs()))
        total.backward(retain_graph=True)
        first = [weight.grad.clone() for weight in ours.parameters()]
        total.backward()
        assert all(
            torch.equal(weight.grad, 2 * once)
            for weight, once in zip(ours.parameters(), first, strict=True)
        )

    @every_module
    def test_second_backward_without_a_retained_graph_is_torchs_error(self, case):
        messages = []
        for module in case.build():
            total = loss(case.run(module, *case.inputs()))
            total.backward()
            with pytest.raises(RuntimeError, match="backward through the graph a second") as error:
                total.backward()
            messages.append(str(error.value))
        assert messages[0] == messages[1]

    @every_module
    def test_weights_changed_between_forward_and_backward_are_torchs_error(self, case):
        for module in case.build():
            total = loss(case.run(module, *leaves(case.inputs())))
            with torch.no_grad():
                module.get_parameter(next(n for n, _ in module.named_parameters())).mul_(2)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                total.backward()

    @every_module
    def test_partial_inputs(self, case):
        """backward(inputs=...) fills what was asked for and leaves the rest alone."""
        ours, twin = case.build()
        expected = gradients(case.function(twin), case.tensors(ours))
        for index in range(len(expected)):
            given = leaves(case.tensors(ours))
            loss(case.function(ours)(*given)).backward(inputs=given[index])
            assert_equal(given[index].grad, expected[index])
            assert all(x.grad is None for place, x in enumerate(given) if place != index)

    @every_module
    def test_unused_results(self, case):
        """Each of output, h_n and c_n as the only one that the loss depends on."""
        ours, twin = case.build()
        given = leaves(case.tensors(ours))
        results = zip(case.function(ours)(*given), case.function(twin)(*given), strict=True)
        for result, truth in results:
            one, other = (
                torch.autograd.grad(loss((x,)), given, retain_graph=True, materialize_grads=True)
                for x in (result, truth)
            )
            assert_equal(one, other)

    @every_module
    def test_frozen_tensors(self, case):
        """Each of input, states and weights as the only one frozen, and as the only one not."""
        ours, twin = case.build()
        tensors = case.tensors(ours)
        expected = gradients(case.function(twin), tensors)
        places = set(range(len(tensors)))
        for chosen in places:
            for trained in ({chosen}, places - {chosen}):
                given = [x.clone().requires_grad_(i in trained) for i, x in enumerate(tensors)]
                loss(case.function(ours)(*given)).backward()
                for index, gradient in enumerate(expected):
                    if index in trained:
                        assert_equal(given[index].grad, gradient)
                    else:
                        assert given[index].grad is None

    @every_module
    def test_frozen_tensors_in_second_derivatives(self, case):
        """Only the input and one weight trained: the gradient penalty leaves the others alone."""

        def penalty(module: nn.Module, given: list[Tensor]) -> Tensor:
            total = loss(case.function(module)(*given))
            return torch.autograd.grad(total, given[0], create_graph=True)[0].square().sum()

        ours, twin = case.build()
        tensors = case.tensors(ours)
        for chosen in range(1, len(tensors)):
            given = [x.clone().requires_grad_(i in (0, chosen)) for i, x in enumerate(tensors)]
            trained = [given[0], given[chosen]]
            options = {"materialize_grads": True}
            assert_equal(
                torch.autograd.grad(penalty(ours, given), trained, **options),
                torch.autograd.grad(penalty(twin, given), trained, **options),
            )

    @both_checkpoints
    @every_module
    def test_checkpoint(self, case, use_reentrant):
        ours, twin = case.build()
        tensors = case.tensors(ours)
        assert_equal(
            gradients(checkpointed(case.function(ours), use_reentrant), tensors),
            gradients(case.function(twin), tensors),
        )

    @both_checkpoints
    @pytest.mark.parametrize("case", layers_that_drop(), ids=str)
    def test_checkpoint_drops_the_same_again(self, case, use_reentrant):
        ours, _ = case.build()
        function, tensors = case.function(ours), case.tensors(ours)
        torch.manual_seed(2)
        expected = gradients(function, tensors)
        torch.manual_seed(2)
        assert_equal(gradients(checkpointed(function, use_reentrant), tensors), expected)

    @every_module
    def test_checkpoint_in_second_derivatives(self, case):
        ours, twin = case.build()
        function = checkpointed(case.function(ours), use_reentrant=False)
        tensors, direction = tuple(case.tensors(ours)), tuple(case.tensors(ours, seed=1))
        assert_equal(
            torch.autograd.functional.hvp(loss_of(function), tensors, direction),
            torch.autograd.functional.hvp(loss_of(case.function(twin)), tensors, direction),
        )

    @every_module
    def test_saved_tensors_pass_through_hooks(self, case):
        """As with torch.autograd.graph.save_on_cpu: backward uses what the hooks gave back."""
        ours, twin = case.build()
        tensors = case.tensors(ours)
        packed = []

        def pack(tensor: Tensor) -> Tensor:
            packed.append(tensor)
            return tensor.detach().clone()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            found = gradients(case.function(ours), tensors)
        assert packed
        assert_equal(found, gradients(case.function(twin), tensors))


class TestTransforms:
    """What torch.func offers, through the modules."""

    @every_module
    def test_grad_jacobians_and_products(self, case):
        ours, twin = case.build()
        tensors, direction = tuple(case.tensors(ours)), tuple(case.tensors(ours, seed=1))
        every = tuple(range(len(tensors)))
        function, truth = case.function(ours), case.function(twin)
        assert_equal(torch.func.grad(loss_of(function), every)(*tensors), gradients(truth, tensors))
        # Of the input alone, and of a weight, to be brief.
        chosen = (0, len(tensors) - 1)
        jacobian = torch.autograd.functional.jacobian(truth, tensors)
        jacobian = tuple(tuple(row[index] for index in chosen) for row in jacobian)
        assert_equal(torch.func.jacrev(function, chosen)(*tensors), jacobian)
        assert_equal(torch.func.jacfwd(function, chosen)(*tensors), jacobian)
        assert_equal(
            torch.func.jvp(function, tensors, direction),
            torch.autograd.functional.jvp(truth, tensors, direction),
        )

    @every_module
    def test_hessian_vector_products(self, case):
        ours, twin = case.build()
        tensors, direction = tuple(case.tensors(ours)), tuple(case.tensors(ours, seed=1))
        gradient = torch.func.grad(loss_of(case.function(ours)), tuple(range(len(tensors))))
        truth = loss_of(case.function(twin))
        expected = torch.autograd.functional.hvp(truth, tensors, direction)[1]
        assert_equal(torch.func.jvp(gradient, tensors, direction)[1], expected)
        assert_equal(torch.func.vjp(gradient, *tensors)[1](direction), expected)

    @every_module
    def test_dual_parameters(self, case):
        """Forward mode without torch.func, by parameters that are dual numbers."""
        ours, twin = case.build()
        tensors, direction = tuple(case.tensors(ours)), tuple(case.tensors(ours, seed=1))
        expected = torch.autograd.functional.jvp(case.function(twin), tensors, direction)[1]
        with forward_ad.dual_level():
            duals = map(forward_ad.make_dual, tensors, direction)
            results = case.function(ours)(*duals)
            tangents = tuple(forward_ad.unpack_dual(x).tangent for x in results)
        assert_equal(tangents, expected)

    @every_module
    def test_vmap_over_inputs(self, case):
        """Initial states and parameters shared."""
        ours, twin = case.build()
        input, *states = case.inputs()
        stacked = torch.stack((input, random(*input.shape), 2 * input))
        mapped = torch.func.vmap(lambda x: case.run(ours, x, *states))(stacked)
        one_by_one = [case.run(twin, x, *states) for x in stacked]
        assert_equal(mapped, tuple(torch.stack(each) for each in zip(*one_by_one, strict=True)))

    @every_module
    def test_vmap_calls_no_operator_of_torch(self, case):
        """Not even where torch's operator is the faster: it has no rule for vmap."""
        ours, _ = case.build()
        stacked = [torch.stack((x, x)) for x in case.inputs()]
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
            torch.func.vmap(lambda *inputs: case.run(ours, *inputs))(*stacked)
        recurrent = ("aten::lstm", "aten::gru", "aten::rnn")
        assert not [event.name for event in trace.events() if event.name.startswith(recurrent)]

    @pytest.mark.parametrize(
        ("kind", "options", "shape"),
        [
            ("LSTM", {"hidden_size": 256}, (1, 16, 256)),
            ("LSTM", {"hidden_size": 256}, (2, 16, 256)),
            ("RNN", {"hidden_size": 8}, (1, 2, 256)),
            ("LSTMCell", {"hidden_size": 8}, (2, 256)),
            ("RNNCell", {"hidden_size": 8}, (2, 256)),
        ],
        ids=["lstm_step", "lstm", "rnn_step", "lstm_cell", "rnn_cell"],
    )
    def test_vmap_of_shapes_at_which_torch_is_the_faster(self, kind, options, shape):
        torch.manual_seed(0)
        ours = getattr(rnnfast, kind)(256, **options)
        twin = getattr(nn, kind)(256, **options)
        twin.load_state_dict(ours.state_dict())
        stacked = torch.randn(2, *shape)
        mapped = torch.func.vmap(lambda x: flatten(ours(x)))(stacked)
        one_by_one = [flatten(twin(x)) for x in stacked]
        torch.testing.assert_close(
            mapped, tuple(torch.stack(each) for each in zip(*one_by_one, strict=True))
        )

    @pytest.mark.parametrize("batch_first", [False, True], ids=["time_major", "batch_first"])
    @pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
    def test_randomness_of_dropout_under_vmap(self, kind, batch_first):
        options = {"num_layers": 2, "dropout": 0.5, "batch_first": batch_first}
        module = getattr(rnnfast, kind)(INPUT_SIZE, 32, **options)
        stacked = torch.randn(SEQ_LEN, BATCH, INPUT_SIZE).expand(2, -1, -1, -1)

        def mapped(randomness: str) -> Tensor:
            return torch.func.vmap(lambda x: module(x)[0], randomness=randomness)(stacked)

        torch.testing.assert_close(*mapped("same"))
        assert not torch.allclose(*mapped("different"), rtol=1e-3)
        with pytest.raises(RuntimeError, match="randomness"):
            mapped("error")

    @pytest.mark.parametrize(
        "lengths", [[2, 0, 3], torch.tensor([1, 3, 2])], ids=["list", "tensor"]
    )
    @pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
    def test_lengths(self, kind, lengths):
        """They are read, not mapped; truth is autograd, for torch.nn takes no lengths."""
        torch.manual_seed(0)
        module = getattr(rnnfast, kind)(
            INPUT_SIZE, HIDDEN_SIZE, bidirectional=True, dtype=torch.float64
        )
        input, tangent = random(2, SEQ_LEN, BATCH, INPUT_SIZE)

        def function(x: Tensor) -> tuple[Tensor, ...]:
            return flatten(module(x, lengths=lengths))

        assert_equal(torch.func.grad(loss_of(function))(input), gradients(function, [input])[0])
        assert_equal(
            torch.func.jvp(function, (input,), (tangent,)),
            torch.autograd.functional.jvp(function, input, tangent),
        )
        mapped = torch.func.vmap(function)(torch.stack((input, tangent)))
        one_by_one = zip(function(input), function(tangent), strict=True)
        assert_equal(mapped, tuple(torch.stack(each) for each in one_by_one))


class Tagger(nn.Module):
    """A small model: embedded symbols, a recurrent layer or cell, logits of classes."""

    def __init__(self, recurrent: nn.Module, features: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, INPUT_SIZE, dtype=torch.float64)
        self.recurrent = recurrent
        self.logits = nn.Linear(features, 3, dtype=torch.float64)

    def forward(self, symbols: Tensor) -> Tensor:
        """Logits of one unbatched sequence of symbols, or of each row of a batch-first one."""
        embedded = self.embedding(symbols)
        if not isinstance(self.recurrent, nn.RNNCellBase):
            return self.logits(self.recurrent(embedded)[0])
        outputs, state = [], None
        for x in embedded.unbind(-2):
            state = self.recurrent(x, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return self.logits(torch.stack(outputs, dim=-2))


def tagger_loss(model: nn.Module, parameters: dict, symbols: Tensor, classes: Tensor) -> Tensor:
    logits = functional_call(model, parameters, (symbols,))
    return nn.functional.cross_entropy(logits.flatten(0, -2), classes.flatten())


RECURRENT = {
    "LSTM": {},
    "LSTM_projected": {"proj_size": PROJ_SIZE},
    "LSTM_deep": {"num_layers": 2, "bidirectional": True},
    "GRU": {},
    "RNN": {},
    "LSTMCell": {},
    "GRUCell": {},
    "RNNCell": {},
}


@pytest.mark.parametrize("name", RECURRENT)
class TestModels:
    """Per-sample gradients and ensembles of small models, for which torch.func is used most."""

    def build(self, name: str, seed: int = 0) -> tuple[Tagger, Tagger]:
        torch.manual_seed(seed)
        kind, options = name.split("_")[0], dict(RECURRENT[name])
        if not kind.endswith("Cell"):
            options["batch_first"] = True
        features = options.get("proj_size", HIDDEN_SIZE) * (1 + ("bidirectional" in options))
        ours, twin = (
            Tagger(
                getattr(library, kind)(INPUT_SIZE, HIDDEN_SIZE, dtype=torch.float64, **options),
                features,
            )
            for library in (rnnfast, nn)
        )
        twin.load_state_dict(ours.state_dict())
        return ours, twin

    def data(self, samples: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(9)
        return torch.randint(7, (samples, 4)), torch.randint(3, (samples, 4))

    def loop(self, twin: nn.Module, symbols: Tensor, classes: Tensor) -> list[dict[str, Tensor]]:
        """The gradients of each sample, one after the other, by autograd."""
        found = []
        for pair in zip(symbols, classes, strict=True):
            twin.zero_grad()
            tagger_loss(twin, {}, *pair).backward()
            found.append({key: weight.grad.clone() for key, weight in twin.named_parameters()})
        return found

    @pytest.mark.parametrize("batched", [False, True], ids=["unbatched", "batch_of_one"])
    def test_per_sample_gradients(self, name, batched):
        ours, twin = self.build(name)
        symbols, classes = self.data(samples=3)
        parameters = {key: weight.detach() for key, weight in ours.named_parameters()}

        def sample_loss(parameters: dict, symbols: Tensor, classes: Tensor) -> Tensor:
            if batched:
                symbols, classes = symbols.unsqueeze(0), classes.unsqueeze(0)
            return tagger_loss(ours, parameters, symbols, classes)

        gradient = torch.func.vmap(torch.func.grad(sample_loss), in_dims=(None, 0, 0))
        mapped = gradient(parameters, symbols, classes)
        one_by_one = self.loop(twin, symbols, classes)
        assert mapped.keys() == one_by_one[0].keys()
        for key, values in mapped.items():
            assert_equal(values, torch.stack([each[key] for each in one_by_one]))

    def test_ensemble(self, name):
        """Models with stacked weights, called through a skeleton that has none."""
        pairs = [self.build(name, seed) for seed in range(3)]
        parameters, buffers = stack_module_state([ours for ours, _ in pairs])
        skeleton = copy.deepcopy(pairs[0][0]).to("meta")
        symbols, _ = self.data(samples=2)

        def run(parameters: dict, buffers: dict) -> Tensor:
            return functional_call(skeleton, (parameters, buffers), (symbols,))

        mapped = torch.func.vmap(run)(parameters, buffers)
        assert_equal(mapped, torch.stack([twin(symbols) for _, twin in pairs]))

    def test_ensemble_trains(self, name):
        """One backward through the stacked weights gives each model's gradients."""
        pairs = [self.build(name, seed) for seed in range(3)]
        parameters, _ = stack_module_state([ours for ours, _ in pairs])
        skeleton = copy.deepcopy(pairs[0][0]).to("meta")
        symbols, classes = self.data(samples=3)
        losses = torch.func.vmap(
            lambda each, symbols, classes: tagger_loss(skeleton, each, symbols, classes)
        )(parameters, symbols, classes)
        losses.sum().backward()
        for index, (_, twin) in enumerate(pairs):
            (expected,) = self.loop(twin, symbols[[index]], classes[[index]])
            for key, gradient in expected.items():
                assert_equal(parameters[key].grad[index], gradient)
