"""Optimizers for recurrent networks."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

__all__ = ["ClippedSGD"]


class ClippedSGD(torch.optim.Optimizer):
    r"""Gradient descent on the gradient scaled down to a largest norm, in one pass for each.

    .. math::
        \theta \leftarrow \theta - \eta \min\Bigl(1, \frac{m}{\lVert g \rVert + 10^{-6}}\Bigr) g

    with :math:`\lVert g \rVert` the 2-norm of all gradients together (Pascanu et al. 2013). Equals
    ``clip_grad_norm_(parameters, m)`` and ``torch.optim.SGD(parameters, lr).step()``, up to
    rounding, but reads each gradient twice where those read it three times and write it once: the
    gradients are left as they are. Of a sparse gradient, as ``torch.nn.Embedding(sparse=True)`` has
    it, only the rows that are there are read and updated.

    Args:
        params: parameters, or groups of them as for any optimizer; the norm is that of all groups.
        lr: learning rate :math:`\eta`, which each group may have its own of.
        max_grad_norm: largest norm :math:`m`, above 0; ``inf`` for no clipping.

    Raises:
        ValueError: `lr` is negative, or `max_grad_norm` is not above 0.
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict], lr: float, max_grad_norm: float = math.inf
    ) -> None:
        if not lr >= 0:
            raise ValueError(f"lr must be at least 0, got {lr}")
        if not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be above 0, got {max_grad_norm}")
        self.max_grad_norm = max_grad_norm
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update.

        Args:
            closure: computes the loss and its gradients anew, if given.

        Returns:
            The closure's loss, or ``None``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        updates = [
            (parameter, _coalesced(parameter.grad), group["lr"])
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        factor = 1.0
        if math.isfinite(self.max_grad_norm) and updates:
            norm = get_total_norm([g.values() if g.is_sparse else g for _, g, _ in updates])
            # By torch's clamp, which lets NaN through: it has to reach the weights.
            factor = (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            if factor.is_cpu:
                factor = factor.item()
        for parameter, gradient, lr in updates:
            if isinstance(factor, float):
                parameter.add_(gradient, alpha=-lr * factor)
            elif gradient.is_sparse:
                parameter.add_(gradient * factor.to(gradient.device), alpha=-lr)
            else:
                # On a GPU nobody waits for the norm, so that a CUDA graph may hold the whole step.
                parameter.addcmul_(gradient, factor.to(gradient.device), value=-lr)
        return loss


def _coalesced(gradient: Tensor) -> Tensor:
    """A sparse gradient with each row once."""
    return gradient.coalesce() if gradient.is_sparse else gradient
