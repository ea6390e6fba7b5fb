"""Beam search: the likeliest continuation, as far as a beam of limited width finds it."""

import math
from typing import NamedTuple

import torch

from ..text import Vocabulary
from .checks import is_number, require, require_at_least_one
from .continuation import Ids, check_logits, checked_task, forbid_unknown, id_tensor, read_prompt
from .model import LanguageModel


class Hypothesis(NamedTuple):
    """A continuation that a beam has found.

    Attributes:
        ids: of the tokens after the prompt, the end mark included.
        log_probability: the sum of their log-probabilities, in nats.
    """

    ids: list[int]
    log_probability: float


def beam_search(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: Ids,
    *,
    width: int,
    length: int,
    stop: Ids = (),
    length_penalty: float = 0.0,
) -> list[Hypothesis]:
    r"""Continues a prompt by the likeliest tokens, keeping several continuations at each step.

    Of all continuations of those kept by one more token, the ``width`` likeliest are kept. With
    width 1 that is the argmax of each step; with a width of all continuations there are, it finds
    the likeliest. Continuations are compared by

    .. math:: \frac{\sum_t \log p(w_t \mid w_{<t})}{T^\alpha}

    with the length :math:`T` in tokens and :math:`\alpha` = ``length_penalty``. ``<unk>`` has
    probability 0, as in :func:`generate`.

    Args:
        model: the model; it is put in evaluation mode.
        vocabulary: its vocabulary.
        prompt: ids of the tokens to start from, at least one.
        width: continuations kept, at least 1.
        length: most tokens of a continuation, at least 1.
        stop: ids of the end mark: a continuation that ends with them is complete. Default: none,
            all have ``length`` tokens.
        length_penalty: 0 compares sums, which favours short continuations; 1 compares means. From
            0 to 10.

    Returns:
        At most ``width`` continuations, the best first.

    Raises:
        InputError: a value is out of range.

    Examples::

        >>> best, *others = beam_search(model, vocabulary, [0], width=4, length=20)
        >>> vocabulary.decode_text(best.ids)
    """
    prompt, end = checked_task(model, vocabulary, prompt, length, stop)
    require_at_least_one("width", width)
    is_penalty = is_number(length_penalty) and 0 <= length_penalty <= 10
    require(is_penalty, "length_penalty", length_penalty, "a number from 0 to 10")

    def score(hypothesis: Hypothesis) -> float:
        return hypothesis.log_probability / len(hypothesis.ids) ** length_penalty

    complete: list[Hypothesis] = []
    kept = [Hypothesis([], 0.0)]
    with torch.inference_mode():
        state = read_prompt(model, prompt)
        tokens = id_tensor(model, prompt[-1:])
        for _ in range(length):
            logits, state = model(tokens.unsqueeze(0), state)
            check_logits(logits)
            scores = forbid_unknown(logits.squeeze(0), vocabulary).log_softmax(-1, torch.float64)
            sums = scores + scores.new_tensor([h.log_probability for h in kept]).unsqueeze(1)
            # At most one continuation of each completes the end mark, so that `width` go on.
            best = sums.flatten().topk(min(2 * width, sums.numel()))
            parents, previous, kept = [], kept, []
            candidates = zip(best.values.tolist(), best.indices.tolist(), strict=True)
            for rank, (value, place) in enumerate(candidates):
                parent, index = divmod(place, len(vocabulary))
                hypothesis = Hypothesis([*previous[parent].ids, index], value)
                if value == -math.inf:
                    break
                if end and hypothesis.ids[-len(end) :] == end:
                    if rank < width:
                        complete.append(hypothesis)
                elif len(kept) < width:
                    kept.append(hypothesis)
                    parents.append(parent)
            complete = sorted(complete, key=score, reverse=True)[:width]
            # A sum only falls, so that this is more than a kept one can still reach.
            if not kept or (
                len(complete) == width
                and kept[0].log_probability / length**length_penalty <= score(complete[-1])
            ):
                break
            tokens = id_tensor(model, [h.ids[-1] for h in kept])
            state = state.select(id_tensor(model, parents))
    return sorted([*complete, *kept], key=score, reverse=True)[:width]
