"""Drawing text from a model."""

import math

import pytest
import torch

from rnnfast.language_model import LanguageModel, ModelConfig, generate, sample
from rnnfast.text import EOS, UNK, InputError, Vocabulary

WORDS = Vocabulary([EOS, "the", UNK, "cat", "sat", "mat"])


@pytest.fixture
def model() -> LanguageModel:
    return LanguageModel(len(WORDS), ModelConfig(hidden_size=4, init_scale=1.0, backend="torch"))


def test_seed_decides_the_text(model):
    texts = [sample(model, WORDS, length=40, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_prompt_begins_the_text_and_length_counts_what_follows(model):
    text = sample(model, WORDS, length=7, prompt="the cat")
    assert text.startswith("the cat")
    ids = list(generate(model, WORDS, [1, 3], length=7))
    assert len(ids) == 7
    assert WORDS.decode_text([1, 3, *ids]) == text


def test_each_token_is_drawn_given_all_before_it(model):
    ids = list(generate(model, WORDS, [1, 3], length=5, temperature=0.01))
    context = [1, 3]
    for index in ids:
        with torch.no_grad():
            logits = model.eval()(torch.tensor(context).unsqueeze(1))[0][-1, 0]
        logits[2] = -math.inf
        assert index == logits.argmax().item()
        context.append(index)


def test_frequencies_follow_the_softmax_at_the_temperature():
    model = LanguageModel(3, ModelConfig(hidden_size=2, backend="torch"))
    vocabulary = Vocabulary(["a", "b", "c"], tokenizer="char")
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    for temperature in (0.5, 2.0):
        draws = list(generate(model, vocabulary, [0], length=1000, temperature=temperature))
        expected = torch.tensor([0.0, 1.0, 2.0]).div(temperature).softmax(0)
        frequencies = torch.tensor(draws).bincount(minlength=3) / 1000
        # Four standard deviations of a frequency.
        assert (
            (frequencies - expected).abs() < 4 * (expected * (1 - expected) / 1000).sqrt()
        ).all()


def test_unk_is_never_drawn(model):
    with torch.no_grad():
        model.output.bias[2] = 100.0
    assert 2 not in list(generate(model, WORDS, [2], length=50))


def test_without_prompt_a_line_begins(model):
    ids = list(generate(model, WORDS, [0], length=9, seed=3))
    assert sample(model, WORDS, length=9, seed=3) == WORDS.decode_text(ids)
    characters = Vocabulary(list("ab\ncde"), tokenizer="char")
    ids = list(generate(model, characters, [2], length=9, seed=3))
    assert sample(model, characters, length=9, seed=3) == characters.decode_text(ids)
    no_line_ends = Vocabulary(list("abcdef"), tokenizer="char")
    ids = list(generate(model, no_line_ends, [0], length=9, seed=3))
    assert sample(model, no_line_ends, length=9, seed=3) == no_line_ends.decode_text(ids)


def test_values_out_of_range_are_refused_at_once(model):
    for values, message in (
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be .* above 0, got 0"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"temperature": math.inf}, "temperature must be"),
    ):
        with pytest.raises(InputError, match=message):
            generate(model, WORDS, [0], **{"length": 1, **values})
    with pytest.raises(InputError, match="prompt must hold at least one token"):
        generate(model, WORDS, [], length=1)
    with pytest.raises(InputError, match="vocabulary has 2 tokens, but the model 6"):
        generate(model, Vocabulary(["a", "b"]), [0], length=1)
    with pytest.raises(InputError, match="'z' is not in the vocabulary"):
        sample(model, Vocabulary(list("abcdef"), tokenizer="char"), prompt="z")
