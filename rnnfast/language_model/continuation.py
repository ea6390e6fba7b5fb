"""Continuing a text with a model: what drawing from it and beam search share."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ..modules.base import Recurrent
from ..streaming import stream
from ..text import UNK, InputError, Vocabulary
from .checks import is_integer, require, require_at_least_one
from .embedding import OneHot
from .model import LanguageModel
from .state import State

# Characters rather than words: so many that a stream may be given all their vectors at once.
_FEW_TOKENS = 1024

Ids = Iterable[int] | Tensor

Step = Callable[[Tensor], Tensor]
"""Reads a token of every row, ``(batch)``, and gives the logits of the next, ``(batch, V)``."""


def checked_task(
    model: LanguageModel, vocabulary: Vocabulary, prompt: Ids, length: int, stop: Ids
) -> tuple[list[int], list[int]]:
    """The ids of the prompt and of the end mark, if there is a way from the one to the other.

    Raises:
        InputError: the vocabulary is not the model's, an id is not in it, the prompt is empty,
            the end mark cannot be drawn, or `length` is out of range.
    """
    size = len(vocabulary)
    if size != model.vocab_size:
        raise InputError(f"the vocabulary has {size} tokens, but the model {model.vocab_size}")
    if vocabulary.tokens == (UNK,):
        raise InputError(f"the vocabulary has nothing but {UNK}, which is never drawn")
    prompt, stop = (
        ids.tolist() if isinstance(ids, Tensor) else list(ids) for ids in (prompt, stop)
    )
    for name, ids in (("prompt", prompt), ("stop", stop)):
        for index in ids:
            is_id = is_integer(index) and 0 <= index < size
            require(is_id, name, index, f"ids from 0 to {size - 1}")
    if not prompt:
        raise InputError("prompt must hold at least one token")
    if vocabulary.id_of(UNK) in stop:
        raise InputError(f"stop must hold no {UNK}, which is never drawn")
    require_at_least_one("length", length)
    return prompt, stop


def read_prompt(model: LanguageModel, prompt: Sequence[int]) -> State | None:
    """The state after all tokens of a prompt but the last, read in one call; None: zeros.

    The model is put in evaluation mode. The last token is the first that a :data:`Step` reads.
    """
    model.eval()
    if len(prompt) == 1:
        return None
    return model.hidden(id_tensor(model, prompt[:-1]).unsqueeze(1)).state


def id_tensor(model: LanguageModel, ids: Sequence[int]) -> Tensor:
    """Ids, ``(number of ids)``, where the model is."""
    return torch.tensor(ids, dtype=torch.int64, device=next(model.parameters()).device)


def stepper(model: LanguageModel, state: State | None, batch_size: int) -> Step:
    """A :data:`Step` whose rows all go on from the state of one row.

    Where the layers are rnnfast's and on the CPU, they run as :func:`rnnfast.stream`, which has
    packed the weights as they are now; else each step is a call of the model.
    """
    if state is not None:
        state = state.select(id_tensor(model, [0] * batch_size))
    if _can_stream(model):
        return _stream_stepper(model, state, batch_size)

    def step(tokens: Tensor) -> Tensor:
        nonlocal state
        logits, state = model(tokens.unsqueeze(0), state)
        return logits.squeeze(0)

    return step


def _can_stream(model: LanguageModel) -> bool:
    weights = (layer.weight_hh_l0 for layer in model.layers)
    return (
        model.config.backend == "rnnfast"
        and all(isinstance(layer, Recurrent) for layer in model.layers)
        and all(w.is_cpu and w.dtype in (torch.float32, torch.float64) for w in weights)
        and isinstance(model.output, nn.Linear)
    )


def _stream_stepper(model: LanguageModel, state: State | None, batch_size: int) -> Step:
    embed = model.embedding.forward  # a module's own call costs more than what it computes here
    # Of a few rows, the product with the transposed weight takes the least time.
    weight, bias = model.output.weight.t().contiguous(), model.output.bias
    first, *others = model.layers
    embedding = _small_embedding(model)
    streams = [stream(first, batch_size, embedding=embedding)]
    streams += [stream(layer, batch_size) for layer in others]
    if state is not None:
        for layer, layer_state in zip(streams, state.layers, strict=True):
            layer.set_state(layer_state if len(layer_state) == 2 else layer_state[0])
    steps = [layer.step for layer in streams]

    def step(tokens: Tensor) -> Tensor:
        x = embed(tokens) if embedding is None else tokens
        for layer_step in steps:
            x = layer_step(x)
        return x.mm(weight) if bias is None else torch.addmm(bias, x, weight)

    return step


def _small_embedding(model: LanguageModel) -> Tensor | None:
    """The vectors of all tokens where these are few, as characters are: ``(V, size)``."""
    if model.vocab_size > _FEW_TOKENS:
        return None
    if isinstance(model.embedding, OneHot):
        return model.embedding(torch.arange(model.vocab_size))
    return model.embedding.weight


def check_logits(logits: Tensor) -> None:
    """Raises InputError if there are infinite ones or NaN, which give no probabilities."""
    if not logits.isfinite().all():
        raise InputError("model must give finite logits, got others: has its training diverged?")


def forbid_unknown(logits: Tensor, vocabulary: Vocabulary) -> Tensor:
    """The logits, ``(batch, V)``, with ``<unk>`` made impossible in place."""
    unknown = vocabulary.id_of(UNK)
    if unknown is not None:
        logits.select(1, unknown).fill_(-math.inf)
    return logits
