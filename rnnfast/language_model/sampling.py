"""Text drawn from a model, one token after the other."""

import math
from collections.abc import Iterator

import torch

from ..text import EOS, UNK, InputError, Vocabulary
from .model import LanguageModel


def generate(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: list[int],
    *,
    length: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> Iterator[int]:
    """Draw tokens one by one, each given the prompt and all tokens before it.

    ``<unk>`` is never drawn: it stands for the words that the vocabulary cannot spell.

    Args:
        model: the model; it is put in evaluation mode.
        vocabulary: its vocabulary.
        prompt: ids of the tokens to start from, at least one.
        length: number of tokens to draw, at least 1.
        temperature: the logits are divided by it: below 1 the likely tokens become likelier,
            above 1 all become more alike. A finite number above 0.
        seed: the same seed draws the same tokens.

    Yields:
        ``length`` ids.
    """
    if len(vocabulary) != model.vocab_size:
        raise InputError(
            f"the vocabulary has {len(vocabulary)} tokens, but the model {model.vocab_size}"
        )
    if not prompt:
        raise InputError("prompt must hold at least one token")
    if length < 1:
        raise InputError(f"length must be at least 1, got {length}")
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature must be a finite number above 0, got {temperature}")
    return _draw(model, vocabulary.id_of(UNK), prompt, length, temperature, seed)


def _draw(
    model: LanguageModel,
    unknown: int | None,
    prompt: list[int],
    length: int,
    temperature: float,
    seed: int,
) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    input = torch.tensor(prompt, dtype=torch.int64).unsqueeze(1)
    state = None
    for _ in range(length):
        with torch.inference_mode():
            logits, state = model(input, state)
            scores = logits[-1] / temperature
            if unknown is not None:
                scores[:, unknown] = -math.inf
            input = torch.multinomial(scores.softmax(-1), 1, generator=generator)
        yield input.item()


def sample(
    model: LanguageModel,
    vocabulary: Vocabulary,
    *,
    length: int = 100,
    temperature: float = 1.0,
    prompt: str = "",
    seed: int = 0,
) -> str:
    """A prompt continued by the model, as readable text.

    Args:
        model: the model.
        vocabulary: its vocabulary.
        length: number of tokens to draw after the prompt, at least 1.
        temperature: see :func:`generate`.
        prompt: text to start from. Empty: the start of a line where the vocabulary knows line
            ends, otherwise the most frequent token.
        seed: the same seed gives the same text.

    Raises:
        InputError: a value is out of range, or the prompt holds a token outside the vocabulary.
    """
    ids = vocabulary.encode_text(prompt).tolist()
    start = ids
    if not ids:
        line_end = "\n" if vocabulary.level == "char" else EOS
        start = [vocabulary.id_of(line_end) or 0]
    drawn = generate(model, vocabulary, start, length=length, temperature=temperature, seed=seed)
    return vocabulary.decode_text([*ids, *drawn])
