"""Updates by truncated back-propagation through time, window after window."""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..text import Batches
from .config import TrainingConfig
from .evaluation import perplexity
from .model import LanguageModel
from .objective import Objective
from .optimizers import clip_and_step
from .state import State


def train_step(
    model: LanguageModel,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    input: Tensor,
    target: Tensor,
    state: State | None,
    max_grad_norm: float,
) -> tuple[Tensor, State]:
    """One update on one window by the plain loss, without what settings may add to it.

    Args:
        model: the model, in training mode.
        parameters: its parameters, as a list that is made once and not at each step.
        optimizer: an optimizer of those parameters, see :func:`new_optimizer`.
        input, target: ids ``(num_steps, batch_size)``, int64.
        state: the state before the window; zeros if None.
        max_grad_norm: the gradient of all weights together is scaled down to this norm, unless the
            optimizer is a :class:`~rnnfast.optim.ClippedSGD`, which does so itself.

    Returns:
        The loss before the update (see :func:`sequence_loss`), a scalar, and the state after the
        window; no gradient flows through either.
    """
    loss, state = model.loss(input, target, state)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    clip_and_step(optimizer, parameters, max_grad_norm)
    return loss.detach(), state.detach()


def train_epoch(
    model: LanguageModel,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    *,
    epoch: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """One pass over the training text, from a state of zeros.

    After each window the gradient's way back is cut and the weights are updated. With
    ``truncation`` below 1 this happens after a window with that probability :math:`c` only;
    otherwise the gradient flows back into the window, multiplied by :math:`1 / (1 - c)`, and the
    next update is on the sum of all windows since the last: so the gradient has, in the mean over
    all ways to cut, no bias (Tallec & Ollivier, "Unbiasing Truncated Backpropagation Through Time",
    2017, https://arxiv.org/abs/1705.08209). What is kept for backward grows with the windows
    between two cuts, ``1 / c`` in the mean and without a limit, which would be a bias.

    With ``variable_length`` the learning rate of an update is multiplied by the mean length of its
    windows over ``num_steps`` (Merity et al. 2017, section 4.1).

    Args:
        model: the model, which is put into training mode.
        batches: the training text.
        optimizer: an optimizer of the model's parameters, at the epoch's learning rate.
        config: the settings.
        epoch: which epoch of the batches, from 0; and of the cuts that are drawn.
        progress: called after each update with the number of windows done and of their targets.

    Returns:
        Perplexity on the training text, of each window before its update.
    """
    model.train()
    place = Place.at_start(device_of(model))
    for _ in train_windows(Objective(model, config), batches, optimizer, config, epoch, place):
        if progress is not None:
            progress(place.window, place.num_tokens)
    return perplexity(place.nats.item() / place.num_tokens)


@dataclass
class Place:
    """Where a training stands within an epoch, after an update.

    Attributes:
        nats: sum of the losses of the targets so far, a float64 scalar on the model's device.
        window, num_tokens, seconds: as in :class:`Checkpoint`.
        state: the state that the next window starts from; None for zeros.
    """

    nats: Tensor
    window: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    state: State | None = None

    @classmethod
    def at_start(cls, device: torch.device) -> "Place":
        return cls(torch.zeros((), dtype=torch.float64, device=device))


def train_windows(
    objective: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    epoch: int,
    place: Place,
) -> Iterator[None]:
    """Train on the windows of an epoch from ``place`` on, which moves; yields after each update.

    Args:
        objective: an :class:`Objective` in training mode, or one that is replicated.
        batches, optimizer, config, epoch: as of :func:`train_epoch`.
        place: where to start.
    """
    parameters = [p for p in objective.parameters() if p.requires_grad]
    device = device_of(objective)
    cuts = _cuts(config, epoch, batches.windows_in(epoch))
    pending: Tensor | float = 0.0
    lengths: list[int] = []
    clock = time.perf_counter()
    windows = batches.epoch(epoch, place.window)
    for window, (input, target) in enumerate(windows, start=place.window):
        input, target = input.to(device), target.to(device)
        is_cut = cuts[window]
        waits = not is_cut and isinstance(objective, nn.parallel.DistributedDataParallel)
        with objective.no_sync() if waits else nullcontext():
            value, loss, state = objective(input, target, place.state, batches.resets(input))
        place.nats += loss.double() * target.size(1)
        place.num_tokens += target.numel()
        pending = pending + value
        lengths.append(len(input))
        if not is_cut:
            place.state = _with_scaled_gradient(state, 1 / (1 - config.truncation))
            continue
        optimizer.zero_grad(set_to_none=True)
        pending.backward()
        scale = sum(lengths) / (len(lengths) * config.num_steps) if config.variable_length else 1
        _step(optimizer, parameters, config.max_grad_norm, scale)
        pending, lengths = 0.0, []
        place.state = state.detach() if batches.carries_state else None
        place.window = window + 1
        place.seconds += time.perf_counter() - clock
        yield
        clock = time.perf_counter()


def _step(
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    max_grad_norm: float,
    scale: float,
) -> None:
    """One update at the learning rate times ``scale``."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] *= scale
    clip_and_step(optimizer, parameters, max_grad_norm)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _cuts(config: TrainingConfig, epoch: int, num_windows: int) -> list[bool]:
    """After which windows of an epoch the gradient's way back is cut; always after the last."""
    # Another stream than that of the batches, which draw from (seed, epoch).
    generator = np.random.default_rng((config.seed, epoch, 1))
    return [*(generator.random(num_windows - 1) < config.truncation).tolist(), True]


def _with_scaled_gradient(state: State, factor: float) -> State:
    """The same state, through which the gradient flows multiplied by ``factor``."""

    def scaled(tensor: Tensor) -> Tensor:
        view = tensor.view_as(tensor)
        view.register_hook(lambda gradient: gradient * factor)
        return view

    return State.from_tensors({name: scaled(value) for name, value in state.tensors().items()})


def device_of(module: nn.Module) -> torch.device:
    """The device that a module's weights are on."""
    return next(module.parameters()).device
