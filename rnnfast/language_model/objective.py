"""What is differentiated on a window: the loss, its regularization, what the model reads."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .config import TrainingConfig
from .model import LanguageModel
from .state import State


class Window(NamedTuple):
    """What the model makes of a window.

    Attributes:
        objective: what is differentiated, a scalar.
        loss: the sum over time of the mean over the batch of a target's negative log-probability,
            in nats, a scalar through which no gradient flows.
        state: the :class:`State` after the last time step, through which the gradient flows.
    """

    objective: Tensor
    loss: Tensor
    state: State


class Objective(nn.Module):
    r"""A model's loss on a window, as settings say how it is trained.

    For ``T`` time steps, with :math:`L` the sum over time of the mean over the batch of a target's
    negative log-probability, :math:`h_t` the last layer's output, :math:`\tilde h_t` the same after
    dropout and means over batch and units,

    .. math::
        L + \alpha \sum_{t} \overline{\tilde h_t^2}
        + \beta \frac{T}{T - 1} \sum_{t > 1} \overline{(h_t - h_{t-1})^2}

    or, with ``loss_reduction`` ``"mean"``, a ``T``-th of it. :math:`\alpha` and :math:`\beta` are
    the activation regularizations of Merity, McCann and Socher ("Revisiting Activation
    Regularization for Language RNNs", 2017, https://arxiv.org/abs/1708.01009).

    With ``teacher_forcing`` below 1 the model reads :func:`with_own_guesses` in place of the input.

    Args:
        model: the model, in training mode.
        config: ``loss_reduction``, ``teacher_forcing`` and the regularizations are read.

    Inputs: input, target, state, reset
        - **input, target**: ids ``(T, batch)``, int64.
        - **state**: the :class:`State` before the window; zeros if not given.
        - **reset**: bool ``(T, batch)``: where the state is zero before a step.

    Outputs: a :class:`Window`.
    """

    def __init__(self, model: LanguageModel, config: TrainingConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        state: State | None = None,
        reset: Tensor | None = None,
    ) -> Window:
        config = self.config
        if config.teacher_forcing < 1:
            input = with_own_guesses(self.model, input, state, reset, config.teacher_forcing)
        raw, output, state = self.model.hidden(input, state, reset)
        loss = self.model.loss_of(output, target)
        steps = len(input)
        objective = loss
        if config.activation_regularization > 0:
            activity = output.square().mean()
            objective = objective + steps * config.activation_regularization * activity
        if config.temporal_activation_regularization > 0 and steps > 1:
            change = (raw[1:] - raw[:-1]).square().mean()
            objective = objective + steps * config.temporal_activation_regularization * change
        if config.loss_reduction == "mean":
            objective = objective / steps
        return Window(objective, loss.detach(), state)


@torch.no_grad()
def with_own_guesses(
    model: LanguageModel,
    input: Tensor,
    state: State | None,
    reset: Tensor | None,
    teacher_forcing: float,
) -> Tensor:
    """A window in which the model's own guesses replace some of the text (scheduled sampling).

    Bengio et al. 2015, https://arxiv.org/abs/1506.03099: at each time step and in each row, with
    probability ``1 - teacher_forcing`` drawn by torch's generator, the token that is read is not
    the text's but the likeliest one after what was read before. The first step of a window, before
    which there is no guess, reads the text.

    No gradient flows through a guess, so the guesses may be made beforehand, without dropout and
    step by step: that takes about as long again as a forward pass of single steps.

    Args:
        model: the model, which is left in the mode it was in.
        input: the text.
        state: the :class:`State` before the window; zeros if None.
        reset: where the state is zero before a step; nowhere if None.
        teacher_forcing: probability that a step reads the text.

    Shape:
        - input, reset and the result: ``(T, batch)``.
    """
    was_training = model.training
    model.eval()
    reads_text = (torch.rand(input.shape) < teacher_forcing).to(input.device)
    mixed = input.clone()
    for step in range(1, len(input)):
        before = slice(step - 1, step)
        logits, state = model(mixed[before], state, None if reset is None else reset[before])
        mixed[step] = torch.where(reads_text[step], input[step], logits[0].argmax(-1))
    model.train(was_training)
    return mixed
