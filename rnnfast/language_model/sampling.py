"""Text drawn from a model, one token after the other."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..text import InputError, Vocabulary
from .beam import beam_search
from .checks import is_integer, is_number, require, require_at_least_one
from .continuation import (
    Ids,
    check_logits,
    checked_task,
    forbid_unknown,
    id_tensor,
    read_prompt,
    stepper,
)
from .model import LanguageModel

# Logits divided by less could overflow; more does, in float32.
_LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE = 1e-6, 1e30
# Random numbers of a row that are drawn at once.
_BLOCK = 256


def generate(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: Ids,
    *,
    length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Ids = (),
    num_samples: int = 1,
    seed: int = 0,
) -> Iterator[list[int | None]]:
    """Draw tokens one by one, each given the prompt and all tokens before it, in rows of a batch.

    ``<unk>`` is never drawn: it stands for the words that the vocabulary cannot spell. On the CPU,
    rnnfast's layers run as a :func:`rnnfast.stream`.

    Args:
        model: the model; it is put in evaluation mode, and must not change meanwhile.
        vocabulary: its vocabulary.
        prompt: ids of the tokens to start from, at least one. They are read in one call.
        length: number of tokens to draw, at least 1.
        temperature: the logits are divided by it: below 1 the likely tokens become likelier,
            above 1 all become more alike. From 1e-6 to 1e30, or 0: always the likeliest token
            (argmax).
        top_k: draw from the ``top_k`` likeliest tokens only, at least 1. None: from all.
        top_p: draw from the likeliest tokens only, as few as have together at least this
            probability, above 0 and at most 1: nucleus sampling (Holtzman et al. 2020, "The Curious
            Case of Neural Text Degeneration", https://arxiv.org/abs/1904.09751). With ``top_k``, of
            the probability that the ``top_k`` tokens have together. None: from all.
        stop: ids of the end mark, with which a row ends; it is the last that is drawn. Default:
            none.
        num_samples: number of rows, each of which continues the prompt by itself, at least 1.
        seed: the same seed draws the same tokens. Each row has random numbers of its own: what it
            draws does not depend on how many other rows there are, unless a number falls so near
            the edge of a token's share that the rounding of the logits decides.

    Yields:
        ``length`` times, or until all rows have ended, the ids that were drawn, one for each row,
        and None for a row that has ended.

    Raises:
        InputError: a value is out of range.

    Examples::

        >>> for (index,) in generate(model, vocabulary, [0], length=100, top_p=0.9):
        ...     print(vocabulary.tokens[index])
    """
    prompt, end = checked_task(model, vocabulary, prompt, length, stop)
    is_temperature = is_number(temperature) and (
        temperature == 0 or _LOWEST_TEMPERATURE <= temperature <= _HIGHEST_TEMPERATURE
    )
    expected = f"0, or a number from {_LOWEST_TEMPERATURE} to {_HIGHEST_TEMPERATURE}"
    require(is_temperature, "temperature", temperature, expected)
    if top_k is not None:
        require_at_least_one("top_k", top_k)
    if top_p is not None:
        is_share = is_number(top_p) and 0 < top_p <= 1
        require(is_share, "top_p", top_p, "a number above 0 and at most 1")
    require_at_least_one("num_samples", num_samples)
    is_seed = is_integer(seed) and 0 <= seed < 2**63
    require(is_seed, "seed", seed, "an integer from 0 to 2**63 - 1")
    choose = _choice(temperature, top_k, top_p)
    steps = _draw(model, vocabulary, prompt, length, choose, num_samples, seed)
    return _until(end, steps, num_samples) if end else steps


Choice = Callable[[Tensor, Tensor], Tensor]
"""Logits, ``(batch, V)``, and random numbers, uniform in [0, 1), ``(batch, 1)``, to ids."""


def _draw(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: Sequence[int],
    length: int,
    choose: Choice,
    num_samples: int,
    seed: int,
) -> Iterator[list[int]]:
    with torch.inference_mode():
        step = stepper(model, read_prompt(model, prompt), num_samples)
        tokens = id_tensor(model, [prompt[-1]] * num_samples)
    uniforms = _uniforms(seed, num_samples, tokens.device)
    for position in range(length):
        with torch.inference_mode():
            logits = step(tokens)
            if position == 0:
                check_logits(logits)
            forbid_unknown(logits, vocabulary)
            tokens = choose(logits, next(uniforms))
        yield tokens.tolist()


def _choice(temperature: float, top_k: int | None, top_p: float | None) -> Choice:
    """How the next token is chosen."""
    if temperature == 0:
        return lambda logits, uniform: logits.argmax(-1)
    if top_k is None and top_p is None:
        return lambda logits, uniform: _invert(_cumulative(logits, temperature), uniform).squeeze(1)

    def choose(logits: Tensor, uniform: Tensor) -> Tensor:
        size = logits.size(1)
        logits, order = logits.topk(min(top_k or size, size))
        cumulative = _cumulative(logits, temperature)
        if top_p is not None:
            # Beyond the token with which the sum reaches top_p there is nothing to be drawn.
            last = torch.searchsorted(cumulative, top_p * cumulative.narrow(1, -1, 1))
            cumulative = cumulative.clamp(max=cumulative.gather(1, last))
        return order.gather(1, _invert(cumulative, uniform)).squeeze(1)

    return choose


def _cumulative(logits: Tensor, temperature: float) -> Tensor:
    """The sums of each token's probability and all before it, ``(batch, V)``."""
    if temperature != 1:
        logits = logits / temperature
    return logits.softmax(-1).cumsum(-1)


def _invert(cumulative: Tensor, uniform: Tensor) -> Tensor:
    """The token on whose part of the whole sum the random number falls, ``(batch, 1)``."""
    # Below the sum, however it is rounded; a token of probability 0 has no part.
    return torch.searchsorted(cumulative, uniform * cumulative.narrow(1, -1, 1), right=True)


def _uniforms(seed: int, num_samples: int, device: torch.device) -> Iterator[Tensor]:
    """Random numbers for each step, ``(num_samples, 1)``; each row has its own stream of them."""
    rows = [
        np.random.Generator(np.random.Philox(key=np.array([seed, row], dtype=np.uint64)))
        for row in range(num_samples)
    ]
    while True:
        block = np.stack([row.random(_BLOCK, dtype=np.float32) for row in rows], axis=1)
        yield from torch.from_numpy(block).to(device).unsqueeze(-1)


def _until(
    end: list[int], steps: Iterable[list[int]], num_samples: int
) -> Iterator[list[int | None]]:
    """The steps until every row has drawn the end mark; None for those that already have."""
    recent: list[list[int]] = [[] for _ in range(num_samples)]
    for step in steps:
        yield [None if tail == end else index for tail, index in zip(recent, step, strict=True)]
        recent = [
            tail if tail == end else [*tail, index][-len(end) :]
            for tail, index in zip(recent, step, strict=True)
        ]
        if all(tail == end for tail in recent):
            return


def sample(
    model: LanguageModel,
    vocabulary: Vocabulary,
    *,
    length: int = 100,
    prompt: str = "",
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    beam: int | None = None,
    length_penalty: float = 0.0,
    stop: str | None = None,
    num_samples: int | None = None,
    seed: int = 0,
) -> str | list[str]:
    """A prompt continued by the model, as readable text.

    Args:
        model: the model; it is put in evaluation mode.
        vocabulary: its vocabulary.
        length: number of tokens to draw after the prompt, at least 1.
        prompt: text to start from. Empty: the start of a line where the vocabulary knows line
            ends, otherwise the most frequent token.
        temperature, top_k, top_p: how a token is drawn, see :func:`generate`. Temperature 0 takes
            the likeliest token at each step.
        beam: width of a beam search, in place of drawing: see :func:`beam_search`. None: draw.
        length_penalty: see :func:`beam_search`.
        stop: end mark, with which the text ends: a token such as ``"<eos>"``, or a text such as
            ``"\\n"``, which is found where it is drawn as the tokens that the vocabulary splits it
            into. None: no such mark, all ``length`` tokens are drawn.
        num_samples: number of texts, drawn in one batch; of a beam, that many of the best, at most
            as many as it is wide. None: a single one, as a string.
        seed: the same seed gives the same text; text number ``n`` is the same however many there
            are.

    Returns:
        The prompt and what continues it; with ``num_samples``, a list of such texts.

    Raises:
        InputError: a value is out of range, the prompt or the end mark holds a token outside the
            vocabulary, or a beam search is asked for together with a way to draw.

    Examples::

        >>> sample(model, vocabulary, prompt="The class", temperature=0.7)
        >>> sample(model, vocabulary, top_p=0.9, stop="\\n", num_samples=200)
    """
    ids = _encode("prompt", vocabulary, prompt)
    start, end = ids or [vocabulary.line_end or 0], _encode_stop(vocabulary, stop)
    count = 1 if num_samples is None else num_samples
    require_at_least_one("num_samples", count)
    if beam is None:
        require(length_penalty == 0, "length_penalty", length_penalty, "left out without beam")
        steps = generate(
            model,
            vocabulary,
            start,
            length=length,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop=end,
            num_samples=count,
            seed=seed,
        )
        rows = ([i for i in row if i is not None] for row in zip(*steps, strict=True))
    else:
        for name, value, default in (
            ("temperature", temperature, 1),
            ("top_k", top_k, None),
            ("top_p", top_p, None),
        ):
            require(value == default, name, value, "left out with beam")
        require_at_least_one("beam", beam)
        require(count <= beam, "num_samples", count, f"at most {beam}, the beam's width")
        found = beam_search(
            model,
            vocabulary,
            start,
            width=beam,
            length=length,
            stop=end,
            length_penalty=length_penalty,
        )
        rows = (hypothesis.ids for hypothesis in found[:count])
    texts = [vocabulary.decode_text([*ids, *row]) for row in rows]
    return texts[0] if num_samples is None else texts


def stream_text(
    model: LanguageModel,
    vocabulary: Vocabulary,
    *,
    length: int = 100,
    prompt: str = "",
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: str | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """What :func:`sample` gives, piece by piece as it is drawn.

    Args:
        model, vocabulary, length, prompt, temperature, top_k, top_p, stop, seed: see
            :func:`sample`.

    Yields:
        First the prompt if there is one, then a piece of text for each token, as soon as no later
        token can change it; joined, they are the text that :func:`sample` gives.

    Raises:
        InputError: see :func:`sample`.

    Examples::

        >>> for piece in stream_text(model, vocabulary, length=1000):
        ...     print(piece, end="", flush=True)
    """
    ids = _encode("prompt", vocabulary, prompt)
    steps = generate(
        model,
        vocabulary,
        ids or [vocabulary.line_end or 0],
        length=length,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop=_encode_stop(vocabulary, stop),
        seed=seed,
    )
    return _pieces(vocabulary, itertools.chain([ids], steps))


def _pieces(vocabulary: Vocabulary, steps: Iterable[list[int]]) -> Iterator[str]:
    """The text of ids that come step by step."""
    # Of words, how a line begins decides about blanks and quotes further on.
    whole_lines = vocabulary.level == "word"
    line: list[int] = []
    shown = 0
    for ids in steps:
        line += ids
        text = vocabulary.decode_text(line)
        # The bytes of a sub-word may end within a character, which is then read as U+FFFD.
        settled = text.removesuffix("\ufffd")
        if len(settled) > shown:
            yield settled[shown:]
            shown = len(settled)
        if settled == text and (not whole_lines or text.endswith("\n")):
            line, shown = [], 0
    if line and (rest := vocabulary.decode_text(line)[shown:]):
        yield rest


def _encode_stop(vocabulary: Vocabulary, stop: str | None) -> list[int]:
    if stop is None:
        return []
    if isinstance(stop, str) and stop in vocabulary:
        return [vocabulary.id_of(stop)]
    ids = _encode("stop", vocabulary, stop)
    require(len(ids) > 0, "stop", stop, "a text that holds a token")
    return ids


def _encode(name: str, vocabulary: Vocabulary, text: str) -> list[int]:
    require(isinstance(text, str), name, text, "a text")
    try:
        return vocabulary.encode_text(text).tolist()
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
