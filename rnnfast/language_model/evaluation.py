"""How well a model predicts a text."""

import math

import torch
from torch import Tensor

from ..text import ContinuousBatches
from .model import LanguageModel


def perplexity(mean_loss: float) -> float:
    """``exp`` of the mean negative log-probability of a token, in nats; inf where it overflows."""
    try:
        return math.exp(mean_loss)
    except OverflowError:
        return math.inf


@torch.inference_mode()
def evaluate(model: LanguageModel, batches: ContinuousBatches) -> float:
    """Perplexity of a model on a text, the state carried from window to window.

    Args:
        model: the model; it is evaluated without dropout and left in the mode it was in.
        batches: the text.

    Returns:
        ``exp`` of the mean negative log-probability of all targets.
    """
    was_training = model.training
    model.eval()
    loss = torch.zeros((), dtype=torch.float64)
    state = None
    for input, target in batches:
        window_loss, state = model.loss(input, target, state)
        loss += window_loss
    model.train(was_training)
    return perplexity(loss.item() * batches.batch_size / batches.num_tokens)


def evaluate_text(model: LanguageModel, tokens: Tensor, name: str = "the text") -> float:
    """Perplexity of a text read as one column, from its first token to its last.

    The state is carried over the whole text, so the result is that of feeding one token at a
    time, as the tutorial tests; only for speed are many time steps given to the LSTM in one call.

    Shape:
        - tokens: ``(number of tokens)``, int64, at least 2 of them.
    """
    batches = ContinuousBatches(
        tokens, batch_size=1, num_steps=_STEPS_PER_CALL, keep_remainder=True, name=name
    )
    return evaluate(model, batches)


# Long enough that the softmax is one good matrix product, short enough that the logits of a large
# vocabulary stay small (128 steps of 10,000 tokens are 5 MB).
_STEPS_PER_CALL = 128
