"""The language model of the tutorials: embedding, LSTM, softmax."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..loss import linear_cross_entropy
from .config import ModelConfig


class State(NamedTuple):
    """What the model carries from one time step to the next.

    Shape:
        - h: ``(num_layers, batch, hidden_size)``, the outputs of each layer.
        - c: ``(num_layers, batch, hidden_size)``, the cells of each layer.
    """

    h: Tensor
    c: Tensor

    def detach(self) -> "State":
        """The same values, through which no gradient flows back."""
        return State(self.h.detach(), self.c.detach())


class LanguageModel(nn.Module):
    r"""Predicts the next token from all tokens before it.

    Embedding, LSTM layers and a linear layer to one logit per token of the vocabulary, not tied
    to the embedding, as in TensorFlow's PTB tutorial (Zaremba, Sutskever and Vinyals,
    "Recurrent Neural Network Regularization", 2014, https://arxiv.org/abs/1409.2329). Dropout acts
    on the embedding and on the output of each layer, never from one time step to the next.

    All weights and biases start uniform in :math:`[-s, s]` with ``s = config.init_scale``. The
    forget gate gets no extra bias. Each gate has two biases here, ``bias_ih`` and ``bias_hh``, as
    in :class:`torch.nn.LSTM`, where TensorFlow has one that starts at zero.

    Args:
        vocab_size: number of tokens ``V`` of the vocabulary.
        config: the shape of the model.
        seed: seeds the initial weights, which are equal for both backends. Default: 0.

    Inputs: input, state
        - **input**: ids ``(seq_len, batch)``, int64, in ``[0, V)``.
        - **state**: a :class:`State`; zeros if not given.

    Outputs: logits, state
        - **logits**: ``(seq_len, batch, V)``, unnormalised log-probabilities of the next token.
        - **state**: the :class:`State` after the last time step.

    Examples::

        >>> model = LanguageModel(10_000, ModelConfig(hidden_size=200, backend="torch"))
        >>> logits, state = model(torch.zeros(20, 4, dtype=torch.int64))
        >>> logits.shape, state.h.shape
        (torch.Size([20, 4, 10000]), torch.Size([2, 4, 200]))
    """

    def __init__(self, vocab_size: int, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.config = config
        size = config.hidden_size
        self.embedding = nn.Embedding(vocab_size, size)
        self.dropout = nn.Dropout(config.dropout)
        # With one layer there is nothing between layers, and torch.nn.LSTM warns about dropout.
        between_layers = config.dropout if config.num_layers > 1 else 0.0
        lstm = _lstm_class(config.backend)
        self.lstm = lstm(size, size, num_layers=config.num_layers, dropout=between_layers)
        self.output = nn.Linear(size, vocab_size)
        self.reset_parameters(seed)

    def reset_parameters(self, seed: int = 0) -> None:
        """Draw all weights anew from a generator of that seed; torch's own is left alone."""
        generator = torch.Generator().manual_seed(seed)
        scale = self.config.init_scale
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-scale, scale, generator=generator)

    def forward(self, input: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        hidden, state = self._hidden(input, state)
        return self.output(hidden), state

    def loss(
        self, input: Tensor, target: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        """:func:`sequence_loss` of the logits and the target, and the state.

        Backend ``rnnfast`` computes it without the logits, by
        :func:`rnnfast.loss.linear_cross_entropy`.

        Args:
            input, state: as in forward.
            target: the ids that follow, ``(seq_len, batch)``, int64, in ``[0, V)``.
        """
        hidden, state = self._hidden(input, state)
        if self.config.backend == "torch":
            return sequence_loss(self.output(hidden), target), state
        total = linear_cross_entropy(
            hidden,
            self.output.weight,
            target,
            linear_bias=self.output.bias,
            reduction="sum",
        )
        return total / target.size(1), state

    def _hidden(self, input: Tensor, state: State | None) -> tuple[Tensor, State]:
        """What the output layer reads, and the state."""
        hidden, (h, c) = self.lstm(self.dropout(self.embedding(input)), state)
        return self.dropout(hidden), State(h, c)


def _lstm_class(backend: str) -> type[nn.Module]:
    if backend == "torch":
        return nn.LSTM
    from rnnfast import LSTM

    return LSTM


def sequence_loss(logits: Tensor, target: Tensor) -> Tensor:
    r"""The loss that is differentiated: the sum over time of the mean over the batch.

    .. math:: L = \sum_t \frac{1}{B} \sum_b -\log p(\text{target}_{t,b})

    This is TensorFlow's convention in the PTB tutorial; with it the tutorial's learning rate 1
    and gradient norm 5 keep their meaning. Perplexity is ``exp(L / seq_len)``.

    Shape:
        - logits: ``(seq_len, batch, V)``.
        - target: ``(seq_len, batch)``, int64, in ``[0, V)``.
        - Output: scalar, in nats.
    """
    total = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
    return total / target.size(1)
