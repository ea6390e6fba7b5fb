"""Linear cross entropy: torch's loss and gradients, every derivative, every ISA and edge."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.library import opcheck
from torch.nn import functional

import rnnfast
from rnnfast import _C, reference
from rnnfast.loss import linear_cross_entropy

op = torch.ops.rnnfast.linear_cross_entropy.default

# rows, in_features, classes: around vectors, tiles, and blocks of classes (64) and of their sum
# (256); more rows than one panel has; one class, one feature, one row.
SHAPES = [
    (1, 1, 1),
    (1, 70, 300),
    (2, 3, 5),
    (5, 16, 63),
    (15, 17, 64),
    (16, 15, 65),
    (17, 64, 255),
    (33, 33, 257),
    (65, 100, 513),
    (130, 200, 1000),
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_reduction = pytest.mark.parametrize("reduction", ["mean", "sum"])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def problem(
    rows: int, in_features: int, classes: int, *, bias: bool = True, ignored: bool = True, seed=0
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Arguments of the operator in float64 that float32 holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    input = torch.randn(rows, in_features, generator=generator).double()
    weight = torch.randn(classes, in_features, generator=generator).double()
    biases = torch.randn(classes, generator=generator).double() if bias else None
    target = torch.randint(classes, (rows,), generator=generator)
    if ignored:
        target[1::3] = -100
    return input, weight, biases, target


def loss_and_gradients(function: Callable, arguments: tuple, dtype, **options) -> list[Tensor]:
    leaves = [
        tensor.to(dtype, copy=True).requires_grad_()
        for tensor in arguments[:3]
        if tensor is not None
    ]
    input, weight, *bias = leaves
    loss = function(input, weight, bias[0] if bias else None, arguments[3], **options)
    return [loss.detach(), *torch.autograd.grad(loss * 0.75, leaves)]


def ours(input, weight, bias, target, **options) -> Tensor:
    return linear_cross_entropy(input, weight, target, linear_bias=bias, **options)


def torchs(input, weight, bias, target, **options) -> Tensor:
    logits = functional.linear(input, weight, bias)
    return functional.cross_entropy(logits, target, **options)


def worst(results: list[Tensor], truth: list[Tensor]) -> list[float]:
    """Largest deviation of each tensor, relative to the largest magnitude of its truth."""
    return [
        float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30))
        for a, b in zip(results, truth, strict=True)
    ]


@every_reduction
@every_shape
def test_error_is_at_most_twice_torchs(shape, reduction, isa):
    """With float64 as truth; averaged over draws, a torch error below one eps counting as one."""
    draws = max(3, min(40, 600 // shape[1]))
    sums = [[0.0] * 4, [0.0] * 4]
    for seed in range(draws):
        arguments = problem(*shape, seed=seed)
        truth = loss_and_gradients(torchs, arguments, torch.float64, reduction=reduction)
        for total, function in zip(sums, (ours, torchs), strict=True):
            results = loss_and_gradients(function, arguments, torch.float32, reduction=reduction)
            for i, error in enumerate(worst(results, truth)):
                total[i] += error / draws
    eps = torch.finfo(torch.float32).eps
    for name, error, allowed in zip(("loss", "input", "weight", "bias"), *sums, strict=True):
        assert error <= 2 * max(allowed, eps), name


@every_reduction
@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
def test_float64(reduction, bias, isa):
    arguments = problem(37, 29, 301, bias=bias)
    truth = loss_and_gradients(torchs, arguments, torch.float64, reduction=reduction)
    results = loss_and_gradients(ours, arguments, torch.float64, reduction=reduction)
    torch.testing.assert_close(results, truth, rtol=1e-12, atol=1e-13)


@every_reduction
def test_reference_is_what_the_operator_gives(reduction, isa):
    arguments = problem(9, 6, 70)
    expected = reference.linear_cross_entropy(*arguments, reduction=reduction)
    torch.testing.assert_close(op(*arguments, reduction=reduction), expected)


def test_the_forced_isa_is_the_one_that_ran(isa):
    arguments = problem(3, 4, 5)
    before = _C.kernel_calls()
    op(*arguments)
    after = _C.kernel_calls()
    assert {name for name in after if after[name] != before[name]} == {isa}


def test_gradients_that_are_not_needed_are_not_made():
    arguments = problem(6, 5, 7)
    loss, *all_three = op(*arguments)
    for needed in ("need_input", "need_weight", "need_bias"):
        flags = dict.fromkeys(("need_input", "need_weight", "need_bias"), False) | {needed: True}
        alone, *gradients = op(*arguments, **flags)
        assert torch.equal(alone, loss)
        for name, gradient, whole in zip(flags, gradients, all_three, strict=True):
            assert torch.equal(gradient, whole) if name == needed else gradient.shape == (0,)


def test_only_some_leaves_require_a_gradient():
    input, weight, bias, target = problem(6, 5, 7)
    frozen = linear_cross_entropy(input, weight.requires_grad_(), target, linear_bias=bias)
    frozen.backward()
    expected = op(*problem(6, 5, 7))[2]
    assert torch.equal(weight.grad, expected)
    assert input.grad is None and bias.grad is None


def test_backward_runs_twice():
    """Though the first takes the gradients that forward left."""
    input, weight, bias, target = problem(6, 5, 7)
    loss = 0.5 * linear_cross_entropy(input, weight.requires_grad_(), target, linear_bias=bias)
    first, second = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, 0.5 * op(*problem(6, 5, 7))[2])


def test_backward_of_the_operator_leaves_its_results_alone():
    input, weight, bias, target = problem(6, 5, 7)
    loss, _, grad_weight, _ = op(input, weight.requires_grad_(), bias, target)
    before = grad_weight.clone()
    (loss * 0.5).backward()
    assert torch.equal(grad_weight, before)
    assert torch.equal(weight.grad, 0.5 * before)


class TestRegistration:
    """Schema, fake kernel and derivatives are what torch expects of them."""

    @pytest.mark.parametrize(
        ("reduction", "bias", "requires_grad"),
        [("mean", True, True), ("sum", False, True), ("sum", True, False)],
    )
    def test_opcheck(self, reduction, bias, requires_grad):
        *tensors, target = problem(4, 3, 5, bias=bias)
        tensors = [t if t is None else t.requires_grad_(requires_grad) for t in tensors]
        opcheck(op, (*tensors, target), {"reduction": reduction})

    @every_reduction
    def test_derivatives(self, reduction):
        *leaves, target = problem(4, 3, 5)
        leaves = [leaf.requires_grad_() for leaf in leaves]

        def loss(input, weight, bias):
            return ours(input, weight, bias, target, reduction=reduction)

        assert torch.autograd.gradcheck(loss, leaves, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(loss, leaves)

    def test_per_sample_gradients(self):
        input, weight, bias, target = problem(4, 3, 5, ignored=False)

        def loss(weight, x, y):
            return ours(x, weight, bias, y)

        per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
        expected = [
            torch.func.grad(lambda w, x, y: torchs(x, w, bias, y))(weight, x, y)
            for x, y in zip(input, target, strict=True)
        ]
        torch.testing.assert_close(per_sample(weight, input, target), torch.stack(expected))

    @pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`:FutureWarning")
    def test_compile(self):
        torch.compiler.reset()
        module = rnnfast.LinearCrossEntropyLoss(3, 5, bias=True, dtype=torch.float64)
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
        for rows in (4, 7):
            input, _, _, target = problem(rows, 3, 5)
            for run in (module, compiled):
                run(input.requires_grad_(), target).backward()
            torch.testing.assert_close(input.grad, 2 * op(input, *_weights(module), target)[1])


def _weights(module: nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in module.parameters()]


class TestThreads:
    @pytest.mark.parametrize("shape", [(3, 5, 7), (70, 90, 700), (40, 257, 1500)], ids=str)
    def test_threads_change_no_bit(self, shape, isa):
        arguments = [t.float() if t.is_floating_point() else t for t in problem(*shape)]
        alone = op(*arguments)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            for result, expected in zip(op(*arguments), alone, strict=True):
                assert torch.equal(result, expected)

    def test_a_rows_loss_does_not_depend_on_the_others(self, isa):
        input, weight, bias, target = problem(40, 33, 200, ignored=False)
        input, weight, bias = input.float(), weight.float(), bias.float()
        one_by_one = [op(input[[n]], weight, bias, target[[n]])[:2] for n in range(40)]
        for n in (0, 17, 39):
            only_this = torch.full_like(target, -100)
            only_this[n] = target[n]
            loss, grad_input, *_ = op(input, weight, bias, only_this)
            assert torch.equal(loss, one_by_one[n][0])
            assert torch.equal(grad_input[n], one_by_one[n][1][0])


class TestChunks:
    """More rows than one chunk of 64 MiB of logits holds."""

    def test_many_classes(self, isa):
        arguments = problem(40, 2, 300_000)
        truth = loss_and_gradients(torchs, arguments, torch.float64)
        results = loss_and_gradients(ours, arguments, torch.float64)
        torch.testing.assert_close(results, truth, rtol=1e-10, atol=1e-12)


class TestBf16:
    """Products of operands rounded to bfloat16, where the CPU has them; else nothing changes."""

    def test_products_are_those_of_rounded_operands(self, isa):
        """The loss is that of rounded input and weight; gradients are off by d's rounding alone."""
        shape = (35, 31, 257)
        input, weight, bias, target = (
            t.float() if t.is_floating_point() else t for t in problem(*shape)
        )
        loss, *gradients = op(input, weight, bias, target, precision="bf16")
        rounded = [t.bfloat16().double() for t in (input, weight)]
        expected, *expected_gradients = op(*rounded, bias.double(), target)
        if torch.equal(loss, op(input, weight, bias, target)[0]):
            assert isa != "avx512" or not torch.cpu._is_avx512_bf16_supported()
            return
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
        for error in worst(gradients, expected_gradients):
            assert error < 2**-8

    def test_precision_is_the_functions(self):
        input, weight, bias, target = (
            t.float() if t.is_floating_point() else t for t in problem(35, 31, 257)
        )
        before = rnnfast.get_precision()
        rnnfast.set_precision("bf16")
        loss = linear_cross_entropy(input, weight, target, linear_bias=bias)
        rnnfast.set_precision(before)
        assert torch.equal(loss, op(input, weight, bias, target, precision="bf16")[0])

    def test_threads_change_no_bit(self):
        arguments = [t.float() if t.is_floating_point() else t for t in problem(70, 90, 701)]
        alone = op(*arguments, precision="bf16")
        torch.set_num_threads(2)
        for result, expected in zip(op(*arguments, precision="bf16"), alone, strict=True):
            assert torch.equal(result, expected)


class TestEdges:
    def test_large_logits(self, isa):
        """No overflow, and nothing lost where a target's logit is far from the largest."""
        input, weight, bias, target = problem(20, 8, 100)
        arguments = (input * 300, weight, bias, target)
        truth = loss_and_gradients(torchs, arguments, torch.float64)
        results = loss_and_gradients(ours, arguments, torch.float32)
        expected = loss_and_gradients(torchs, arguments, torch.float32)
        assert all(
            error <= 2 * max(allowed, 1e-7)
            for error, allowed in zip(worst(results, truth), worst(expected, truth), strict=True)
        )

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("place", [0, 99])
    def test_logits_that_are_not_finite(self, value, place, isa):
        """Through a bias of one class: what torch gives, with the NaN in the same places."""
        input, weight, bias, target = problem(20, 8, 100)
        bias[place] = value
        arguments = (input, weight, bias, target.clamp(max=98))
        for reduction in ("mean", "sum"):
            results, expected = (
                loss_and_gradients(function, arguments, torch.float64, reduction=reduction)
                for function in (ours, torchs)
            )
            torch.testing.assert_close(results[0], expected[0], equal_nan=True)
            if value == -math.inf:
                torch.testing.assert_close(results, expected)

    def test_a_nan_stays_in_its_row(self, isa):
        input, weight, bias, target = problem(20, 8, 100)
        target[5] = 3
        input[5, 2] = math.nan
        loss, grad_input, *_ = op(input, weight, bias, target)
        assert loss.isnan()
        assert grad_input.isnan().any(1).nonzero().flatten().tolist() == [5]

    def test_no_class_is_likely(self):
        """All logits -inf: NaN, as torch has it."""
        input, weight, bias, target = problem(3, 2, 70, ignored=False)
        assert op(input, weight, bias - math.inf, target)[0].isnan()

    @pytest.mark.parametrize("classes", [3, 300])
    def test_no_rows(self, classes, isa):
        arguments = problem(0, 4, classes)
        for reduction in ("mean", "sum"):
            results, expected = (
                loss_and_gradients(function, arguments, torch.float64, reduction=reduction)
                for function in (ours, torchs)
            )
            torch.testing.assert_close(results[0], expected[0], equal_nan=True)
            assert not any(gradient.any() for gradient in op(*arguments, reduction=reduction)[1:])

    def test_every_row_ignored(self, isa):
        input, weight, bias, target = problem(5, 4, 30)
        loss, *gradients = op(input, weight, bias, target.fill_(7), ignore_index=7)
        assert loss.isnan()
        assert not any(gradient.any() for gradient in gradients)

    def test_ignore_index_may_be_a_class(self):
        input, weight, bias, target = problem(12, 4, 3)
        results, expected = (
            loss_and_gradients(
                function, (input, weight, bias, target.abs() % 3), torch.float64, ignore_index=1
            )
            for function in (ours, torchs)
        )
        torch.testing.assert_close(results, expected)

    def test_strides(self):
        input, weight, bias, target = problem(12, 6, 30)
        every_other = torch.stack((target, target), 1)[:, 0]
        wide = torch.cat((input, input), 1)[:, :6]
        expected = op(input, weight, bias, target)
        for strided in (wide, input.T.contiguous().T):
            results = op(strided, weight.T.contiguous().T, bias, every_other)
            assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"target": torch.tensor([0, 1, 5])}, r"target\[2\] is 5"),
            ({"target": torch.tensor([-1, 1, 0])}, r"in \[0, 5\).*target\[0\] is -1"),
            ({"target": torch.tensor([0, 1])}, "target must have rows 3, but has 2"),
            ({"target": torch.zeros(3)}, "target must have dtype Long"),
            ({"weight": torch.zeros(5, 3)}, "weight must have in_features 4, but has 3"),
            ({"weight": torch.zeros(0, 4)}, "at least one class"),
            ({"weight": torch.zeros(1, 4).expand(2**60, 4)}, "fewer than 2\\^31 classes"),
            ({"weight": torch.zeros(5, 4).double()}, "weight must have the dtype of input, Float"),
            ({"bias": torch.zeros(4)}, "bias must have num_classes 5, but has 4"),
            ({"input": torch.zeros(3)}, r"input must be 2-D \[rows, in_features\]"),
            ({"input": torch.zeros(3, 4).half()}, "input must have dtype Float or Double"),
            ({"reduction": "none"}, "reduction must be 'mean' or 'sum', but got 'none'"),
        ],
    )
    def test_bad_arguments_are_named(self, change, message):
        arguments = {
            "input": torch.zeros(3, 4),
            "weight": torch.zeros(5, 4),
            "bias": torch.zeros(5),
            "target": torch.tensor([0, 1, 2]),
        }
        with pytest.raises(RuntimeError, match=message):
            op(**(arguments | change))


class TestModule:
    def test_agrees_with_torchs_module(self):
        """Parameters, their names and what comes out, with torch's arguments."""
        torchs_module = getattr(nn, "LinearCrossEntropyLoss", None)
        if torchs_module is None:
            pytest.skip("this torch has no LinearCrossEntropyLoss")
        input, _, _, target = problem(12, 6, 30, ignored=False)
        for options in (
            {},
            {"bias": True, "reduction": "sum"},
            {"bias": True, "ignore_index": int(target[3])},
            {"reduction": "none"},
            {"weight": torch.rand(30, dtype=torch.float64), "label_smoothing": 0.1},
        ):
            peer = torchs_module(6, 30, dtype=torch.float64, **options)
            module = rnnfast.LinearCrossEntropyLoss(6, 30, dtype=torch.float64, **options)
            module.load_state_dict(peer.state_dict())
            torch.testing.assert_close(module(input, target), peer(input, target))

    def test_sequences(self):
        input, weight, bias, target = problem(12, 6, 30)
        expected = linear_cross_entropy(input, weight, target, linear_bias=bias)
        shaped = linear_cross_entropy(
            input.view(3, 4, 6), weight, target.view(3, 4), linear_bias=bias
        )
        assert torch.equal(shaped, expected)
        with pytest.raises(RuntimeError, match=r"target must have the shape.*\(3, 4\), got \(4,"):
            linear_cross_entropy(input.view(3, 4, 6), weight, target.view(4, 3))

    @pytest.mark.parametrize("name", ["auto", "torch"])
    def test_backend(self, name):
        before = rnnfast.get_backend()
        rnnfast.set_backend(name)
        counted = sum(_C.kernel_calls().values())
        input, weight, bias, target = problem(3, 4, 5)
        linear_cross_entropy(input, weight, target, linear_bias=bias)
        rnnfast.set_backend(before)
        assert sum(_C.kernel_calls().values()) - counted == (name == "auto")

    def test_half_types_and_autocast_are_torchs(self):
        input, weight, bias, target = problem(3, 4, 5)
        for dtype in (torch.bfloat16, torch.float16):
            halves = (input.to(dtype), weight.to(dtype), bias.to(dtype), target)
            assert torch.equal(ours(*halves), torchs(*halves))
        singles = (input.float(), weight.float(), bias.float(), target)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(ours(*singles), torchs(*singles))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"reduction": "max"}, "reduction must be"),
            ({"weight": torch.ones(4)}, r"weight must have shape \(5,\), got \(4,\)"),
            ({"label_smoothing": 1.5}, "label_smoothing must be in"),
        ],
    )
    def test_bad_options_are_named(self, options, message):
        with pytest.raises(ValueError, match=message):
            rnnfast.LinearCrossEntropyLoss(3, 5, **options)
