r"""A linear layer and the cross entropy of its output, as one function.

The logits of a large vocabulary are the largest tensor of a language model, and the passes over
them (log-softmax, its gradient, two products) cost more than the recurrent layers of a small one.
The kernel bounds how many logits there are at a time, exponentiates each once, and has the
gradients as soon as it has the loss.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.library import register_fake
from torch.nn import functional

from rnnfast import backend, reference
from rnnfast.ops import composite_gradients, records_gradient, transformed

__all__ = ["LinearCrossEntropyLoss", "linear_cross_entropy"]

_op = torch.ops.rnnfast.linear_cross_entropy.default


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""The cross entropy between `target` and the logits that a linear layer makes of `input`.

    Equals ``cross_entropy(linear(input, linear_weight, linear_bias), target, ...)`` of
    ``torch.nn.functional``, up to rounding:

    .. math::
        \ell_n = -\log \frac{\exp(w_{y_n} x_n + b_{y_n})}{\sum_c \exp(w_c x_n + b_c)}

    The kernel serves float32 and float64 on the CPU with class indices, ``reduction`` ``"mean"`` or
    ``"sum"``, no `weight` and no `label_smoothing`; all else is left to ``torch.nn.functional``, as
    it is under autocast and with ``rnnfast.set_backend("torch")``.
    It multiplies as :func:`rnnfast.set_precision` says; with ``"bf16"``, the gradient of the logits
    is rounded to bfloat16 as well.

    Args:
        input: `(*, in_features)`, any number of leading dimensions.
        linear_weight: `(num_classes, in_features)`.
        target: class indices in ``[0, num_classes)`` or `ignore_index`, `(*)`, int64.
        linear_bias: `(num_classes)`, or ``None`` for zero.
        weight: a factor for each class, `(num_classes)`, or ``None`` for 1.
        reduction: ``"mean"`` (over the targets that are not ignored), ``"sum"`` or ``"none"``.
        ignore_index: rows with this target count neither in the loss nor in the gradients.
        label_smoothing: what part of each target is spread over all classes, in [0, 1].

    Returns:
        The loss in nats, a scalar; with ``reduction="none"`` one for each row, `(*)`.

    Raises:
        RuntimeError: a target is out of range, or a shape or dtype does not fit.
    """
    options = {"reduction": reduction, "ignore_index": ignore_index}
    rows, targets = input, target
    if input.dim() != 2:
        rows, targets = input.reshape(-1, input.size(-1)), target.reshape(-1)
        if target.shape != input.shape[:-1]:
            raise RuntimeError(
                f"linear_cross_entropy: target must have the shape of input but for its last "
                f"dimension, {tuple(input.shape[:-1])}, got {tuple(target.shape)}"
            )
    served = reduction in ("mean", "sum") and weight is None and label_smoothing == 0
    if not (served and _kernel_serves(rows, linear_weight, targets, linear_bias)):
        logits = functional.linear(rows, linear_weight, linear_bias)
        loss = functional.cross_entropy(
            logits, targets, weight, label_smoothing=label_smoothing, **options
        )
        return loss if reduction != "none" else loss.reshape(target.shape)
    options["precision"] = backend.product_precision(input)
    arguments = (rows, linear_weight, linear_bias, targets)
    if transformed():
        return reference.linear_cross_entropy(*arguments, **options)[0]
    if records_gradient(*arguments[:3]):
        if torch.compiler.is_compiling():
            return _op(*arguments, **options)[0]
        return _OwningDerivative.apply(options, *arguments)
    return _op(*arguments, **options, need_input=False, need_weight=False, need_bias=False)[0]


def _kernel_serves(input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> bool:
    return (
        not input.is_cuda
        and backend.use_kernels("linear_cross_entropy", input)
        and all(t is None or t.is_cpu for t in (weight, target, bias))
        and input.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and target.dtype == torch.int64
    )


class LinearCrossEntropyLoss(nn.Module):
    r"""A linear layer and the cross entropy of its output, in place of
    ``torch.nn.LinearCrossEntropyLoss``.

    .. math::
        \ell_n = -\log \frac{\exp(w_{y_n} x_n + b_{y_n})}{\sum_c \exp(w_c x_n + b_c)}

    The kernel serves float32 and float64 on the CPU with class indices, ``reduction`` ``"mean"`` or
    ``"sum"``, no `weight` and no `label_smoothing`; all else is left to ``torch.nn.functional``. It
    never holds more than 64 MiB of logits, and has the gradients as soon as it has the loss. Unlike
    torch's, it is differentiable any number of times and takes any number of leading dimensions;
    it has no `out_features` and no `options`.

    Args:
        in_features: size of each input row.
        num_classes: number of classes.
        bias: whether the linear layer has a bias. Default: ``False``, as in torch.
        device, dtype: of the parameters.
        reduction: ``"mean"`` (over the targets that are not ignored), ``"sum"`` or ``"none"``.
        weight: a factor for each class, `(num_classes)`, or ``None`` for 1.
        ignore_index: rows with this target count neither in the loss nor in the gradients.
        label_smoothing: what part of each target is spread over all classes, in [0, 1].

    Inputs: input, target
        - **input**: the rows, for example the output of an LSTM.
        - **target**: the class of each row, int64, in ``[0, num_classes)`` or `ignore_index`.

    Shape:
        - input: `(*, in_features)`.
        - target: `(*)`.
        - Output: a scalar, in nats; `(*)` with ``reduction="none"``.

    Attributes:
        linear: the :class:`torch.nn.Linear`, so that state dicts are those of torch's module.

    Examples::

        >>> loss = rnnfast.LinearCrossEntropyLoss(200, 10_000, bias=True)
        >>> output = torch.randn(20, 4, 200, requires_grad=True)
        >>> loss(output, torch.randint(10_000, (20, 4))).backward()
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
        if weight is not None and weight.shape != (num_classes,):
            raise ValueError(f"weight must have shape {(num_classes,)}, got {tuple(weight.shape)}")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
        self.in_features = in_features
        self.num_classes = num_classes
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", weight)
        self.linear = nn.Linear(in_features, num_classes, bias, device=device, dtype=dtype)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return linear_cross_entropy(
            input,
            self.linear.weight,
            target,
            linear_bias=self.linear.bias,
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.num_classes}, bias={self.linear.bias is not None}, "
            f"reduction={self.reduction!r}, ignore_index={self.ignore_index}, "
            f"label_smoothing={self.label_smoothing}"
        )


@register_fake("rnnfast::linear_cross_entropy")
def _(input, weight, bias, target, *, need_input=True, need_weight=True, need_bias=True, **options):
    return (
        input.new_empty(()),
        input.new_empty(input.shape if need_input else (0,)),
        weight.new_empty(weight.shape if need_weight else (0,)),
        weight.new_empty(weight.shape[:1] if need_bias else (0,)),
    )


def _loss_and_gradients(
    options: dict, needed: tuple[bool, ...], arguments: tuple[Tensor | None, ...]
) -> list[Tensor]:
    """The loss, and its gradients by input, weight and bias, empty where not needed."""
    needs = dict(zip(("need_input", "need_weight", "need_bias"), needed, strict=True))
    with torch._C._AutoDispatchBelowAutograd():
        return _op(*arguments, **options, **needs)


def _derivative(ctx, arguments: tuple, grad_loss: Tensor, gradients: Callable) -> tuple:
    """What a backward returns: `gradients()` of the loss where needed, already multiplied; where
    they have to be differentiable, those of the twin."""
    needed = ctx.needs_input_grad[1:]
    if torch.is_grad_enabled() or transformed():
        twin = reference.linear_cross_entropy
        found = composite_gradients(twin, ctx.options, arguments, needed, (grad_loss,))
    else:
        found = [
            gradient if need else None
            for need, gradient in zip(needed, (*gradients(), None), strict=True)
        ]
    return None, *found


class _Derivative(torch.autograd.Function):
    """Autograd's rule: forward has the gradients already, for a loss whose own gradient is 1."""

    @staticmethod
    def forward(ctx, options, *arguments):
        loss, *gradients = _loss_and_gradients(options, ctx.needs_input_grad[1:4], arguments)
        ctx.mark_non_differentiable(*gradients)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments, *gradients)
        ctx.options = options
        return loss, *gradients

    @staticmethod
    def backward(ctx, grad_loss, *_):
        if grad_loss is None:
            return (None,) * 5
        saved = ctx.saved_tensors
        return _derivative(ctx, saved[:4], grad_loss, lambda: [g * grad_loss for g in saved[4:]])


class _OwningDerivative(torch.autograd.Function):
    """The same where nobody else sees the gradients: the first backward scales them in place, for
    new memory as large as the weight takes longer to come by than to fill. Another computes anew.
    """

    @staticmethod
    def forward(ctx, options, *arguments):
        loss, *ctx.gradients = _loss_and_gradients(options, ctx.needs_input_grad[1:4], arguments)
        ctx.save_for_backward(*arguments)
        ctx.options = options
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        arguments = ctx.saved_tensors

        def scaled() -> list[Tensor]:
            gradients, ctx.gradients = ctx.gradients, None
            if gradients is None:
                needed = ctx.needs_input_grad[1:4]
                _, *gradients = _loss_and_gradients(ctx.options, needed, arguments)
            return [gradient.mul_(grad_loss) for gradient in gradients]

        return _derivative(ctx, arguments, grad_loss, scaled)


_library = torch.library.Library("rnnfast", "IMPL")


def _autograd_kernel(input, weight, bias, target, **options):
    if records_gradient(input, weight, bias):
        options = {name: value for name, value in options.items() if not name.startswith("need_")}
        return _Derivative.apply(options, input, weight, bias, target)
    with torch._C._AutoDispatchBelowAutograd():
        return _op(input, weight, bias, target, **options)


_library.impl(_op, _autograd_kernel, "Autograd")
