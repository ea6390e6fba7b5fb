"""Optimizers by the names that settings have for them, and gradient descent with averages."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from ..optim import ClippedSGD
from .config import TrainingConfig
from .model import LanguageModel


def new_optimizer(
    model: LanguageModel, config: TrainingConfig, *, distributed: bool = False
) -> torch.optim.Optimizer:
    """The optimizer of the settings at the first learning rate, for :func:`train_step`.

    Plain gradient descent of backend ``rnnfast`` is :class:`~rnnfast.optim.ClippedSGD`, on the CPU
    with a sparse gradient of the embedding, which leaves the tokens alone that a window does not
    have. (On a GPU, finding them costs more than it saves.)
    Weight decay touches all tokens, tied weights have a dense gradient, and processes average dense
    ones: there, with the other names and with backend ``torch``, it is torch's optimizer.

    Args:
        model: the model, whose embedding's gradient is made sparse or dense.
        config: ``optimizer``, ``learning_rate``, ``weight_decay`` and ``max_grad_norm`` are read.
        distributed: whether several processes train together.
    """
    is_plain = (
        config.optimizer == "sgd"
        and model.config.backend == "rnnfast"
        and model.config.embedding == "learned"
        and not model.config.tied
        and config.weight_decay == 0
        and not distributed
    )
    if isinstance(model.embedding, nn.Embedding):
        model.embedding.sparse = is_plain and model.embedding.weight.is_cpu
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if is_plain:
        return ClippedSGD(parameters, config.learning_rate, config.max_grad_norm)
    return _OPTIMIZERS[config.optimizer](
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay
    )


def clip_and_step(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], max_grad_norm: float
) -> None:
    """Scale the gradient of all parameters together down to a norm, and update them.

    Args:
        optimizer: the optimizer; a :class:`~rnnfast.optim.ClippedSGD` does both itself.
        parameters: the parameters.
        max_grad_norm: the largest norm; inf for no clipping.
    """
    if not isinstance(optimizer, ClippedSGD) and math.isfinite(max_grad_norm):
        nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()


class AveragedSGD(torch.optim.SGD):
    r"""Gradient descent that can also average its iterates (Polyak & Juditsky 1992).

    Until :meth:`start_averaging` it is :class:`torch.optim.SGD`. From then on it also keeps the
    mean of the weights from that moment on, one for each step:

    .. math:: \bar\theta_k = \frac{1}{k - T + 1} \sum_{i=T}^{k} \theta_i

    When to start is left to the training; AWD-LSTM's rule is :func:`stalls`.

    Args:
        params: parameters, or groups of them as for any optimizer.
        lr: learning rate.
        weight_decay: as of :class:`torch.optim.SGD`.
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict], lr: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        for group in self.param_groups:
            group["num_averaged"] = 0

    @property
    def is_averaging(self) -> bool:
        """Whether averaging has started."""
        return self.param_groups[0]["num_averaged"] > 0

    @torch.no_grad()
    def start_averaging(self) -> None:
        """Average from the present weights on."""
        for group in self.param_groups:
            group["num_averaged"] = 1
            for parameter in group["params"]:
                self.state[parameter]["average"] = parameter.detach().clone()

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = super().step(closure)
        for group in self.param_groups:
            if group["num_averaged"] > 0:
                group["num_averaged"] += 1
                for parameter in group["params"]:
                    average = self.state[parameter]["average"]
                    average.lerp_(parameter, 1 / group["num_averaged"])
        return loss

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """While it lasts, the parameters have their averages, if averaging has started."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"] if group["num_averaged"] > 0 else ():
                state = self.state[parameter]
                parameter.data, state["average"] = state["average"], parameter.data


def weights_for_use(optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
    """While it lasts, the parameters are those to validate and to keep: averages where there are.

    What is trained comes back afterwards.
    """
    return optimizer.averaged() if isinstance(optimizer, AveragedSGD) else nullcontext()


def stalls(losses: list[float], non_monotone: int) -> bool:
    """AWD-LSTM's rule: whether the last loss is above the best of those before the last few.

    Merity, Keskar and Socher, "Regularizing and Optimizing LSTM Language Models", 2017
    (https://arxiv.org/abs/1708.02182), algorithm 1: averaging starts when the validation loss is
    above the least one that is more than ``non_monotone`` validations older.

    Args:
        losses: the validation loss of each epoch so far.
        non_monotone: the paper's ``n``, the number of validations before the last that are not
            looked at.
    """
    older = losses[: max(len(losses) - 1 - non_monotone, 0)]
    return bool(older) and losses[-1] > min(older)


_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adadelta": torch.optim.Adadelta,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "asgd": AveragedSGD,
}
