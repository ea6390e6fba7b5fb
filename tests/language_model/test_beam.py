"""Beam search against all continuations there are."""

import itertools
import math

import pytest
import torch

from rnnfast.language_model import LanguageModel, ModelConfig, beam_search, generate, sample
from rnnfast.text import EOS, UNK, Vocabulary

WORDS = Vocabulary([EOS, "the", UNK, "cat"])
LENGTH = 4


@pytest.fixture(params=[0, 1, 2])
def model(request) -> LanguageModel:
    config = ModelConfig(hidden_size=(6, 5), embedding_size=4, init_scale=1.5)
    return LanguageModel(len(WORDS), config, seed=request.param)


def log_probability(model: LanguageModel, prompt: list[int], ids: tuple[int, ...]) -> float:
    """Of these tokens after the prompt, by one call of the model, without ``<unk>``."""
    input = torch.tensor([*prompt, *ids[:-1]]).unsqueeze(1)
    with torch.no_grad():
        logits = model.eval()(input)[0][len(prompt) - 1 :, 0].double()
    logits[:, 2] = -math.inf
    return logits.log_softmax(-1).gather(1, torch.tensor(ids).unsqueeze(1)).sum().item()


def all_continuations(stop: tuple[int, ...]) -> set[tuple[int, ...]]:
    """Those with the end mark at their end and nowhere before, and those of full length."""
    found = set()
    for ids in itertools.product([0, 1, 3], repeat=LENGTH):
        for end in range(len(stop), LENGTH + 1):
            if stop and ids[end - len(stop) : end] == stop:
                ids = ids[:end]
                break
        found.add(ids)
    return found


@pytest.mark.parametrize("stop", [(), (0,), (1, 3)], ids=str)
@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0])
def test_a_beam_of_every_continuation_is_exhaustive_search(model, stop, length_penalty):
    prompt = [1, 3]
    sums = {ids: log_probability(model, prompt, ids) for ids in all_continuations(stop)}
    ranked = sorted(sums, key=lambda ids: sums[ids] / len(ids) ** length_penalty, reverse=True)
    found = beam_search(
        model,
        WORDS,
        prompt,
        width=len(WORDS) ** LENGTH,
        length=LENGTH,
        stop=stop,
        length_penalty=length_penalty,
    )
    assert [tuple(hypothesis.ids) for hypothesis in found] == ranked
    for hypothesis in found:
        expected = sums[tuple(hypothesis.ids)]
        assert hypothesis.log_probability == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_a_narrow_beam_keeps_the_best_continuations_of_those_it_has(model, width):
    """By the definition, without the stack of states that the search carries along."""
    kept = [()]
    for _ in range(LENGTH):
        longer = [(*ids, index) for ids in kept for index in (0, 1, 3)]
        longer.sort(key=lambda ids: log_probability(model, [0], ids), reverse=True)
        kept = longer[:width]
    found = beam_search(model, WORDS, [0], width=width, length=LENGTH)
    assert [tuple(hypothesis.ids) for hypothesis in found] == kept


@pytest.mark.parametrize("stop", [(), (0,)], ids=str)
def test_a_beam_of_one_is_argmax(model, stop):
    (hypothesis,) = beam_search(model, WORDS, [3], width=1, length=12, stop=stop)
    steps = generate(model, WORDS, [3], length=12, temperature=0, stop=stop)
    assert hypothesis.ids == [index for (index,) in steps]


def test_the_search_ends_when_nothing_better_can_come(model, monkeypatch):
    """With sums, once the end marks of the beam are likelier than all that goes on."""
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.copy_(torch.tensor([0.9, 0.05, 0.01, 0.04]).log())
    calls = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *args: calls.append(1) or forward(*args))
    found = beam_search(model, WORDS, [1], width=2, length=1000, stop=[0])
    assert [hypothesis.ids for hypothesis in found] == [[0], [1, 0]]
    assert len(calls) < 5


def test_text_of_a_beam(model):
    found = beam_search(model, WORDS, [1, 3], width=4, length=6)
    texts = [WORDS.decode_text([1, 3, *hypothesis.ids]) for hypothesis in found]
    assert sample(model, WORDS, prompt="the cat", length=6, beam=4) == texts[0]
    assert sample(model, WORDS, prompt="the cat", length=6, beam=4, num_samples=3) == texts[:3]
