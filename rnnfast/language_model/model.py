"""The language model of the tutorials: embedding, recurrent layers, softmax."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import backend, modules
from ..text import InputError
from .config import ModelConfig
from .dropout import EmbeddingDropout, LockedDropout, drop_connect
from .embedding import OneHot
from .initialization import initialize
from .segments import Segments
from .softmax import AdaptiveSoftmax, Softmax
from .state import State


class Hidden(NamedTuple):
    """What a model computes before its softmax.

    Attributes:
        raw: the last layer's output.
        output: the same after dropout: what the softmax reads.
        state: the :class:`State` after the last time step.

    Shape:
        - raw, output: ``(seq_len, batch, hidden_size)``, with the last layer's hidden size.
    """

    raw: Tensor
    output: Tensor
    state: State


class LanguageModel(nn.Module):
    r"""Predicts the next token from all tokens before it.

    A token's vector (learned, or its place in the vocabulary), a stack of recurrent layers, and a
    softmax over the vocabulary: with the defaults, the model of TensorFlow's PTB tutorial (Zaremba,
    Sutskever and Vinyals, "Recurrent Neural Network Regularization", 2014,
    https://arxiv.org/abs/1409.2329). Dropout acts on what a layer reads and gives; on what passes
    from one time step to the next there is none but that of ``weight_dropout``.

    Each gate has two biases here, ``bias_ih`` and ``bias_hh``, as in :class:`torch.nn.LSTM`, where
    TensorFlow has one; with ``single_bias``, ``bias_hh`` is zero and needs no gradient.

    Args:
        vocab_size: number of tokens ``V`` of the vocabulary.
        config: the shape of the model.
        seed: seeds the initial weights, which are equal for both backends. Default: 0.

    Inputs: input, state, reset
        - **input**: ids ``(seq_len, batch)``, int64, in ``[0, V)``.
        - **state**: a :class:`State`; zeros if not given.
        - **reset**: bool ``(seq_len, batch)``: where a row's state is set to zero before that time
          step; nowhere if not given.

    Outputs: logits, state
        - **logits**: ``(seq_len, batch, V)``, unnormalised log-probabilities of the next token;
          with the adaptive softmax, log-probabilities.
        - **state**: the :class:`State` after the last time step.

    Attributes:
        embedding: an :class:`torch.nn.Embedding`, or a :class:`OneHot` without weights.
        layers: the recurrent layers, the lowest first: modules of one layer each, of rnnfast or
            torch.nn.
        output: the :class:`Softmax` or :class:`AdaptiveSoftmax`; with ``tied``, ``output.weight``
            is ``embedding.weight``.

    Raises:
        InputError: the vocabulary is empty or too small for the adaptive softmax's cutoffs; in
            forward, a shape does not fit or an id is out of range.

    Examples::

        >>> model = LanguageModel(10_000, ModelConfig(hidden_size=(256, 128), embedding_size=200))
        >>> logits, state = model(torch.zeros(20, 4, dtype=torch.int64))
        >>> logits.shape, state.layers[1][0].shape
        (torch.Size([20, 4, 10000]), torch.Size([1, 4, 128]))
    """

    def __init__(self, vocab_size: int, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        if type(vocab_size) is not int or not 1 <= vocab_size < 2**63:
            raise InputError(
                f"vocab_size must be an integer from 1 to 2**63 - 1, got {vocab_size!r}"
            )
        self.vocab_size = vocab_size
        self.config = config
        sizes = config.hidden_sizes
        # What the modules draw for themselves is replaced below.
        with torch.random.fork_rng(devices=[]):
            if config.embedding == "learned":
                size = config.embedding_size or sizes[0]
                self.embedding = nn.Embedding(vocab_size, size)
            else:
                size = vocab_size
                self.embedding = OneHot(vocab_size)
            self.layers = nn.ModuleList(
                _recurrent_layer(config, input_size, hidden_size)
                for input_size, hidden_size in zip((size, *sizes), sizes, strict=False)
            )
            if config.softmax == "adaptive":
                self.output = AdaptiveSoftmax(sizes[-1], vocab_size, config.cutoffs)
            else:
                self.output = Softmax(sizes[-1], vocab_size, fused=config.backend == "rnnfast")
        if config.tied:
            self.output.weight = self.embedding.weight
        if config.single_bias:
            for layer in self.layers:
                layer.bias_hh_l0.requires_grad_(False)

        self.embedding_dropout = EmbeddingDropout(vocab_size, config.embedding_dropout)
        dropout = LockedDropout if config.locked_dropout else nn.Dropout
        self.input_dropout, self.hidden_dropout, self.output_dropout = (
            dropout(config.dropout if p is None else p)
            for p in (config.input_dropout, config.hidden_dropout, config.output_dropout)
        )
        self.reset_parameters(seed)

    @property
    def example_input_array(self) -> Tensor:
        """One token of one row, for :func:`rnnfast.summary` (Lightning's name for such input)."""
        return torch.zeros(1, 1, dtype=torch.int64, device=next(self.parameters()).device)

    def reset_parameters(self, seed: int = 0) -> None:
        """Draw all weights anew from a generator of that seed; torch's own is left alone."""
        initialize(self, self.config, seed)

    def forward(
        self, input: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        _, output, state = self.hidden(input, state, reset)
        return self.output(output), state

    def loss(
        self,
        input: Tensor,
        target: Tensor,
        state: State | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """:func:`sequence_loss` of the logits and the target, and the state.

        Backend ``rnnfast`` computes it without the logits, by
        :func:`rnnfast.loss.linear_cross_entropy`; the adaptive softmax, with those of the targets'
        clusters only.

        Args:
            input, state, reset: as in forward.
            target: the ids that follow, ``(seq_len, batch)``, int64, in ``[0, V)``.
        """
        _, output, state = self.hidden(input, state, reset)
        return self.loss_of(output, target), state

    def loss_of(self, output: Tensor, target: Tensor) -> Tensor:
        """:func:`sequence_loss` of the logits that ``output`` gives, and the target.

        Shape:
            - output: ``(seq_len, batch, hidden_size)``, as :meth:`hidden` gives it.
            - target: ``(seq_len, batch)``, int64, in ``[0, V)``.
            - Output: scalar, in nats.
        """
        if target.shape != output.shape[:2]:
            raise InputError(
                f"target must have the shape of input, {tuple(output.shape[:2])}, "
                f"got {tuple(target.shape)}"
            )
        try:
            with self._precision():
                return self.output.loss(output, target)
        except (IndexError, RuntimeError):
            self._require_ids("target", target)
            raise

    def hidden(
        self, input: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> Hidden:
        """What the last layer gives, before and after dropout, and the state.

        Args:
            input, state, reset: as in forward.
        """
        if input.dim() != 2 or input.numel() == 0:
            raise InputError(
                "input must have the shape (seq_len, batch), each at least 1, "
                f"got {tuple(input.shape)}"
            )
        if state is None:
            states = (None,) * len(self.layers)
        else:
            states = state.layers
            if len(states) != len(self.layers) or states[0][0].size(1) != input.size(1):
                rows = states[0][0].size(1) if states else 0
                raise InputError(
                    f"state must be of {len(self.layers)} layers and {input.size(1)} rows, as the "
                    f"model and the input, got {len(states)} layers and {rows} rows"
                )
        segments = None if reset is None else _segments(reset, input)
        training = self.training
        x = self._embed(input)
        final = []
        with self._precision():
            for index, layer in enumerate(self.layers):
                if training and index > 0:
                    x = self.hidden_dropout(x)
                x, layer_state = self._run(layer, x, states[index], segments)
                final.append(layer_state)
        output = self.output_dropout(x) if training else x
        return Hidden(x, output, State(tuple(final)))

    def _embed(self, input: Tensor) -> Tensor:
        try:
            x = self.embedding(input)
        except (IndexError, RuntimeError):
            self._require_ids("input", input)
            raise
        if self.training:
            x = self.input_dropout(self.embedding_dropout(x, input))
        return x

    def _require_ids(self, name: str, ids: Tensor) -> None:
        if ids.dtype == torch.int64 and (ids.min() < 0 or ids.max() >= self.vocab_size):
            raise InputError(
                f"{name} must hold ids from 0 to {self.vocab_size - 1}, "
                f"got ids from {ids.min()} to {ids.max()}"
            ) from None

    def _run(
        self,
        layer: nn.RNNBase,
        x: Tensor,
        state: tuple[Tensor, ...] | None,
        segments: Segments | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One layer's output and its state after the last time step."""
        run = layer
        if self.training and self.config.weight_dropout > 0:
            run = drop_connect(layer, self.config.weight_dropout)
        if segments is not None:
            return segments.run(partial(_call, run), x, state)
        return _call(run, x, state)

    def _precision(self) -> AbstractContextManager:
        return nullcontext() if self.config.precision == "fp32" else backend.precision("bf16")

    def extra_repr(self) -> str:
        config = self.config
        weights = sum(p.numel() for p in self.parameters() if p.requires_grad)
        told = [f"{self.vocab_size}, backend={config.backend!r}, precision={config.precision!r}"]
        if config.tied:
            told.append("tied=True")
        if config.weight_dropout > 0:
            told.append(f"weight_dropout={config.weight_dropout}")
        return ", ".join([*told, f"trainable_weights={weights}"])


def _recurrent_layer(config: ModelConfig, input_size: int, hidden_size: int) -> nn.RNNBase:
    """One recurrent layer of the cell and backend that are set."""
    package = nn if config.backend == "torch" else modules
    if config.cell == "lstm":
        return package.LSTM(input_size, hidden_size)
    if config.cell == "rnn":
        return package.RNN(input_size, hidden_size, nonlinearity=config.nonlinearity)
    if config.reset_after:
        return package.GRU(input_size, hidden_size)
    return package.GRU(input_size, hidden_size, reset_after=False)


def _call(
    run: Callable[..., tuple[Any, Any]],
    x: Tensor | PackedSequence,
    state: tuple[Tensor, ...] | None,
) -> tuple[Any, tuple[Tensor, ...]]:
    """A recurrent module's call; its state is a tuple here whatever the cell."""
    hx = state if state is None or len(state) == 2 else state[0]
    output, final = run(x, hx)
    return output, final if isinstance(final, tuple) else (final,)


def _segments(reset: Tensor, input: Tensor) -> Segments | None:
    """None: no row's state is set to zero."""
    if reset.shape != input.shape or reset.dtype != torch.bool:
        raise InputError(
            f"reset must be bool with the shape of input, {tuple(input.shape)}, "
            f"got {reset.dtype} with {tuple(reset.shape)}"
        )
    return Segments(reset) if reset.any() else None
