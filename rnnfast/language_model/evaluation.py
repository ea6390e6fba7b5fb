"""How well a model predicts a text: loss, perplexity, bits per token, accuracy."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..text import Batches, ContinuousBatches, InputError
from .model import LanguageModel


def perplexity(mean_loss: float) -> float:
    """``exp`` of the mean negative log-probability of a token, in nats; inf where it overflows."""
    try:
        return math.exp(mean_loss)
    except OverflowError:
        return math.inf


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text.

    Attributes:
        mean_loss: mean negative log-probability of a target, in nats.
        num_tokens: number of targets that the mean is over.
        accuracy: share of the targets that the model holds the likeliest, from 0 to 1; None where
            it was not asked for.
    """

    mean_loss: float
    num_tokens: int
    accuracy: float | None = None

    @property
    def perplexity(self) -> float:
        """``exp`` of the mean loss; inf where it overflows."""
        return perplexity(self.mean_loss)

    @property
    def bits_per_token(self) -> float:
        """The mean loss in bits: at character level, the bits per character."""
        return self.mean_loss / math.log(2)


@torch.inference_mode()
def evaluate(model: LanguageModel, batches: Batches, *, accuracy: bool = False) -> Evaluation:
    """How well a model predicts a text.

    The state is carried from window to window if the batches carry it, and starts from zeros in
    each window if they do not. Every target counts the same, whatever the length of its window.

    Args:
        model: the model, on any device. It is evaluated without dropout and left in the mode it was
            in.
        batches: the text.
        accuracy: whether the accuracy of the argmax is computed, which takes all logits.

    Raises:
        InputError: the batches hold no window.

    Examples::

        >>> model = LanguageModel(len(corpus.vocabulary), ModelConfig(hidden_size=64))
        >>> valid = ContinuousBatches(corpus.valid, batch_size=20, num_steps=35)
        >>> evaluate(model, valid, accuracy=True)
        Evaluation(mean_loss=6.8..., num_tokens=..., accuracy=0.0...)
    """
    was_training = model.training
    model.eval()
    try:
        return _evaluate(model, batches, accuracy)
    finally:
        model.train(was_training)


def _evaluate(model: LanguageModel, batches: Batches, accuracy: bool) -> Evaluation:
    device = next(model.parameters()).device
    # Sums stay on the device, so that no window waits for the one before it.
    loss = torch.zeros((), dtype=torch.float64, device=device)
    hits = torch.zeros((), dtype=torch.int64, device=device)
    num_tokens = 0
    state = None
    for input, target in batches:
        input, target = input.to(device), target.to(device)
        reset = batches.resets(input)
        if not batches.carries_state:
            state = None
        if accuracy:
            logits, state = model(input, state, reset)
            logits, targets = logits.flatten(0, 1), target.flatten()
            loss += F.cross_entropy(logits, targets, reduction="sum")
            hits += (logits.argmax(-1) == targets).sum()
        else:
            window_loss, state = model.loss(input, target, state, reset)
            loss += window_loss.double() * target.size(1)
        num_tokens += target.numel()
    if num_tokens == 0:
        raise InputError("batches must hold at least one window, got none")
    share = hits.item() / num_tokens if accuracy else None
    return Evaluation(loss.item() / num_tokens, num_tokens, share)


def evaluate_text(
    model: LanguageModel,
    tokens: Tensor,
    name: str = "the text",
    *,
    boundary: int | None = None,
    accuracy: bool = False,
) -> Evaluation:
    """How well a model predicts a text read as one column, from its first token to its last.

    The state is carried over the whole text, so the result is that of feeding one token at a
    time, as TensorFlow's tutorial tests (batch 1, one step); only for speed are many time steps
    given to the layers in one call. The first token is read and not predicted.

    Args:
        model: the model, see :func:`evaluate`.
        tokens: ids of the text.
        name: what the text is, for messages.
        boundary: id of the token that opens a document, before which the state becomes zero. None:
            the text is one document.
        accuracy: whether the accuracy of the argmax is computed.

    Shape:
        - tokens: ``(number of tokens)``, any integer type, at least 2 of them.

    Raises:
        InputError: the text is too short.
    """
    batches = ContinuousBatches(
        tokens,
        batch_size=1,
        num_steps=_STEPS_PER_CALL,
        keep_remainder=True,
        boundary=boundary,
        name=name,
    )
    return evaluate(model, batches, accuracy=accuracy)


# Long enough that the softmax is one good matrix product, short enough that the logits of a large
# vocabulary stay small (128 steps of 10,000 tokens are 5 MB).
_STEPS_PER_CALL = 128
