"""Drawing text from a model."""

import math

import pytest
import torch

from rnnfast.language_model import LanguageModel, ModelConfig, generate, sample, stream_text
from rnnfast.text import EOS, UNK, InputError, Vocabulary

WORDS = Vocabulary([EOS, "the", UNK, "cat", "sat", "mat"])
ABCD = Vocabulary(list("abcd"), tokenizer="char")
CHARACTERS = Vocabulary(list("\n abcdefghij"), tokenizer="char")
SIZES = {"hidden_size": 8, "num_layers": 2}
MODELS = {
    "lstm": {"hidden_size": (9, 5), "embedding_size": 7},
    "gru": {"cell": "gru", **SIZES},
    "gru_reset_before": {"cell": "gru", "reset_after": False, **SIZES},
    "rnn": {"cell": "rnn", "nonlinearity": "relu", "hidden_size": 8},
    "tied": {"tied": True, **SIZES},
    "one_hot": {"embedding": "one_hot", **SIZES},
    "adaptive": {"softmax": "adaptive", "cutoffs": (4,), **SIZES},
    "torch": {"backend": "torch", **SIZES},
    "dropout": {"dropout": 0.5, "weight_dropout": 0.5, "embedding_dropout": 0.5, **SIZES},
}
every_model = pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)


@pytest.fixture
def model() -> LanguageModel:
    return model_for(WORDS, hidden_size=4)


def model_for(vocabulary: Vocabulary, **settings) -> LanguageModel:
    return LanguageModel(len(vocabulary), ModelConfig(init_scale=1.0, **settings), seed=1)


def model_with(vocabulary: Vocabulary, probabilities: list[float]) -> LanguageModel:
    """A model whose next token has these probabilities whatever it has read."""
    model = LanguageModel(len(vocabulary), ModelConfig(hidden_size=2))
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.copy_(torch.tensor(probabilities).log())
    return model


def probabilities_after(model: LanguageModel, ids: list[int]) -> torch.Tensor:
    """Of the next token, by one call of the model on all tokens before it."""
    with torch.no_grad():
        return model.eval()(torch.tensor(ids).unsqueeze(1))[0][-1, 0].softmax(0)


def draw(model: LanguageModel, vocabulary: Vocabulary, **options) -> list[int]:
    """Ids that follow the vocabulary's first token, of one row."""
    return [index for (index,) in generate(model, vocabulary, [0], **options)]


def assert_drawn_with(ids: list[int], probabilities: torch.Tensor) -> None:
    """Pearson's chi-squared lies within 4 standard deviations of its mean, the degrees of freedom;
    no impossible token was drawn."""
    counts = torch.tensor(ids).bincount(minlength=len(probabilities))
    expected = probabilities * len(ids)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    freedom = possible.sum().item() - 1
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum().item()
    assert statistic <= freedom + 4 * math.sqrt(2 * freedom)


# Models


@every_model
@pytest.mark.parametrize("prompt", [[3], [1, 3, 0, 5, 4]], ids=["one token", "five tokens"])
def test_argmax_is_that_of_the_model_on_all_tokens_before(settings, prompt):
    model = model_for(CHARACTERS, **settings).train()
    steps = list(generate(model, CHARACTERS, prompt, length=12, temperature=0, num_samples=2))
    assert not model.training
    context = list(prompt)
    for index, other in steps:
        assert index == other == probabilities_after(model, context).argmax()
        context.append(index)


@every_model
def test_tokens_follow_the_softmax(settings):
    model = model_for(CHARACTERS, **settings)
    first, second = generate(model, CHARACTERS, [3, 4], length=2, num_samples=3000)
    assert_drawn_with(first, probabilities_after(model, [3, 4]))
    most_frequent = max(set(first), key=first.count)
    after = [b for a, b in zip(first, second, strict=True) if a == most_frequent]
    assert len(after) > 200
    assert_drawn_with(after, probabilities_after(model, [3, 4, most_frequent]))


def test_other_dtypes_are_sampled_too():
    single = model_for(CHARACTERS, **SIZES)
    texts = [sample(model, CHARACTERS, length=30) for model in (single, single.double())]
    assert texts[0] == texts[1]


def test_weights_are_those_at_the_call():
    model = model_with(ABCD, [0.97, 0.01, 0.01, 0.01])
    assert set(draw(model, ABCD, length=5, temperature=0)) == {0}
    with torch.no_grad():
        model.output.bias.neg_()
        model.layers[0].weight_hh_l0.zero_()
    assert 0 not in draw(model, ABCD, length=5, temperature=0)


def test_the_prompt_is_read_in_one_call(monkeypatch):
    model = model_for(CHARACTERS, **SIZES)
    lengths = []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda input: lengths.append(len(input)) or hidden(input))
    list(generate(model, CHARACTERS, [1, 2, 3, 4, 5], length=3, num_samples=2))
    assert lengths == [4]


# How a token is chosen


def test_temperature_divides_the_logits():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    model = model_with(ABCD, probabilities.tolist())
    for temperature in (0.5, 1.0, 3.0, 1e6):
        drawn = generate(model, ABCD, [0], length=10, num_samples=200, temperature=temperature)
        assert_drawn_with(sum(drawn, []), probabilities.log().div(temperature).softmax(0))
    for temperature in (0, 0.0, 1e-6):
        assert set(draw(model, ABCD, length=20, temperature=temperature)) == {0}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"top_k": 1}, [0, 0, 1, 0]),
        ({"top_k": 2}, [0, 0.25, 0.5, 0]),
        ({"top_k": 4}, [0.1, 0.25, 0.5, 0.15]),
        ({"top_k": 9}, [0.1, 0.25, 0.5, 0.15]),
        ({"top_p": 0.01}, [0, 0, 1, 0]),
        ({"top_p": 0.49}, [0, 0, 1, 0]),
        ({"top_p": 0.51}, [0, 0.25, 0.5, 0]),
        ({"top_p": 0.74}, [0, 0.25, 0.5, 0]),
        ({"top_p": 0.76}, [0, 0.25, 0.5, 0.15]),
        ({"top_p": 1.0}, [0.1, 0.25, 0.5, 0.15]),
        # Of the 0.75 that two tokens have together, the first has two thirds.
        ({"top_k": 2, "top_p": 0.66}, [0, 0, 1, 0]),
        ({"top_k": 2, "top_p": 0.67}, [0, 0.25, 0.5, 0]),
        # At temperature 0.5 the probabilities are as 4, 25, 100 and 9 of 138.
        ({"temperature": 0.5, "top_p": 0.72}, [0, 0, 1, 0]),
        ({"temperature": 0.5, "top_p": 0.73}, [0, 25, 100, 0]),
    ],
)
def test_top_k_and_top_p_keep_the_likeliest(options, expected):
    model = model_with(ABCD, [0.1, 0.25, 0.5, 0.15])
    expected = torch.tensor(expected, dtype=torch.float32)
    drawn = list(generate(model, ABCD, [0], length=10, num_samples=100, **options))
    assert_drawn_with(sum(drawn, []), expected / expected.sum())


def test_top_k_keeps_so_many_of_equals():
    model = model_with(ABCD, [0.25] * 4)
    assert len(set(draw(model, ABCD, length=200, top_k=2))) == 2


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0}, {"top_k": 6}, {"top_p": 1.0}, {"beam": 2}], ids=str
)
def test_unk_is_never_drawn(model, options):
    with torch.no_grad():
        model.output.bias[2] = 100.0
    assert UNK not in sample(model, WORDS, prompt="the", length=50, **options)


# Seeds and rows


def test_seed_decides_the_text(model):
    texts = [sample(model, WORDS, length=40, seed=seed) for seed in (1, 1, 2, 2**63 - 1)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_rows_do_not_depend_on_how_many_there_are():
    model = model_for(CHARACTERS, **SIZES)
    # More tokens than the random numbers that are drawn at once.
    texts = sample(model, CHARACTERS, length=270, num_samples=3)
    assert len(set(texts)) == 3
    assert sample(model, CHARACTERS, length=270, num_samples=1) == texts[:1]
    assert sample(model, CHARACTERS, length=270) == texts[0]
    assert sample(model, CHARACTERS, length=90) == texts[0][:90]
    assert sample(model, CHARACTERS, length=90, num_samples=2) == [text[:90] for text in texts[:2]]


def test_hundreds_of_rows_in_one_batch():
    texts = sample(model_for(CHARACTERS, **SIZES), CHARACTERS, length=20, num_samples=300)
    assert len(set(texts)) == len(texts) == 300
    assert all(len(text) == 20 for text in texts)


def test_random_states_of_others_stay(model):
    before = torch.get_rng_state()
    draw(model, WORDS, length=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_reads_the_iterator_is_not_in_inference_mode(model):
    for _ in generate(model, WORDS, [0], length=3):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


# Prompt and end mark


def test_prompt_begins_the_text_and_length_counts_what_follows(model):
    text = sample(model, WORDS, length=7, prompt="the cat")
    assert text.startswith("the cat")
    ids = [i for (i,) in generate(model, WORDS, WORDS.encode_text("the cat"), length=7)]
    assert len(ids) == 7
    assert WORDS.decode_text([1, 3, *ids]) == text


def test_without_prompt_a_line_begins(model):
    assert sample(model, WORDS, length=9) == WORDS.decode_text(draw(model, WORDS, length=9))
    for tokens, start in (("ab\ncde", 2), ("abcdef", 0)):
        vocabulary = Vocabulary(list(tokens), tokenizer="char")
        ids = [i for (i,) in generate(model, vocabulary, [start], length=9)]
        assert sample(model, vocabulary, length=9) == vocabulary.decode_text(ids)


def test_a_row_ends_with_its_end_mark():
    model = model_with(ABCD, [0.4, 0.4, 0.1, 0.1])
    options = {"length": 60, "num_samples": 8, "seed": 1}
    whole = list(zip(*generate(model, ABCD, [0], **options), strict=True))
    steps = list(generate(model, ABCD, [0], stop=[2, 3], **options))
    ended = list(zip(*steps, strict=True))
    lengths = []
    for row, until in zip(whole, ended, strict=True):
        marks = [n for n in range(2, 61) if row[n - 2 : n] == (2, 3)]
        lengths.append(marks[0] if marks else 60)
        assert until == row[: lengths[-1]] + (None,) * (len(steps) - lengths[-1])
    assert 60 in lengths and min(lengths) < 60
    # All rows have the first mark, and then nothing more is drawn.
    lengths = [row.index(2) + 1 for row in whole if 2 in row]
    assert len(list(generate(model, ABCD, [0], stop=torch.tensor([2]), **options))) == max(lengths)


def test_end_mark_may_be_a_token_or_a_text(model):
    texts = {sample(model, WORDS, length=200, stop=stop) for stop in ("\n", "<eos>")}
    assert texts == {sample(model, WORDS, length=200).split("\n")[0] + "\n"}
    text = sample(model, WORDS, length=200, stop="the cat")
    assert text.endswith("the cat") and text.count("the cat") == 1
    characters = model_for(CHARACTERS, **SIZES)
    text = sample(characters, CHARACTERS, length=900, stop="ab")
    assert text.index("ab") == len(text) - 2


# Text as it comes

QUOTED = [EOS, "it", '"', "'", "(", ")", ",", "$", "5", "%", "don't", UNK]
PREPARED = [EOS, "it", "'s", "'", "n't", "$", "5", "%", "do", UNK]


@pytest.mark.parametrize(
    ("tokenizer", "tokens", "prompt", "stop"),
    [
        ("char", list("ab \n\ufffd"), "a b", "ba"),
        ("ptb_char", ["a", "_", EOS, "b"], "a b", "\n"),
        ("word", QUOTED, "it ( it", '"'),
        ("ptb", PREPARED, "it $ 5", "'s"),
    ],
)
def test_pieces_are_the_text(tokenizer, tokens, prompt, stop):
    vocabulary = Vocabulary(tokens, tokenizer=tokenizer)
    model = model_for(vocabulary, hidden_size=4)
    for seed in range(10):
        for options in ({}, {"prompt": prompt}, {"prompt": prompt, "stop": stop, "top_k": 9}):
            options = {"length": 50, "seed": seed, **options}
            pieces = list(stream_text(model, vocabulary, **options))
            assert "".join(pieces) == sample(model, vocabulary, **options)
            if "prompt" in options:
                assert pieces[0] == vocabulary.decode_text(vocabulary.encode_text(prompt))


def test_a_piece_comes_with_its_token():
    model = model_for(CHARACTERS, **SIZES)
    pieces = stream_text(model, CHARACTERS, prompt="abc", length=10)
    assert next(pieces) == "abc"
    assert [len(piece) for piece in pieces] == [1] * 10


def test_a_character_comes_when_its_bytes_are_complete():
    tokenizers = pytest.importorskip("rnnfast.text.subword")
    pytest.importorskip("tokenizers", reason="sub-words need the package tokenizers")
    tokenizer = tokenizers.SubwordTokenizer.train(["the cat sat on the mat\n"], size=262)
    vocabulary = Vocabulary(tokenizer.tokens, tokenizer=tokenizer)
    model = model_for(vocabulary, hidden_size=4)
    for seed in range(3):
        options = {"length": 400, "prompt": "über\n", "seed": seed}
        pieces = list(stream_text(model, vocabulary, **options))
        assert "".join(pieces) == sample(model, vocabulary, **options)
    logits = torch.full((len(vocabulary),), -50.0)
    bytes_of_u = vocabulary.encode_text("ü").tolist()
    assert len(bytes_of_u) == 2
    logits[bytes_of_u] = 0.0
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.copy_(logits)
    assert "ü" in list(stream_text(model, vocabulary, length=50))


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length must be an integer of at least 1, got 0"),
        ({"length": 1.5}, "length must be an integer of at least 1, got 1.5"),
        ({"temperature": -1.0}, "temperature must be 0, or a number from 1e-06 to"),
        ({"temperature": 1e-7}, "temperature must be 0, or"),
        ({"temperature": 1e39}, "temperature must be 0, or a number .* to 1e.30, got 1e.39"),
        ({"temperature": math.nan}, "temperature must be 0, or"),
        ({"temperature": math.inf}, "temperature must be 0, or"),
        ({"temperature": "1"}, "temperature must be 0, or"),
        ({"top_k": 0}, "top_k must be an integer of at least 1, got 0"),
        ({"top_k": True}, "top_k must be an integer of at least 1, got True"),
        ({"top_p": 0.0}, "top_p must be a number above 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "top_p must be a number above 0 and at most 1, got 1.1"),
        ({"num_samples": 0}, "num_samples must be an integer of at least 1, got 0"),
        ({"seed": -1}, r"seed must be an integer from 0 to 2\*\*63 - 1, got -1"),
        ({"seed": 2**63}, "seed must be"),
        ({"stop": [6]}, "stop must be ids from 0 to 5, got 6"),
        ({"stop": [0, 2]}, "stop must hold no <unk>, which is never drawn"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_at_once(model, options, message):
    with pytest.raises(InputError, match=message):
        generate(model, WORDS, [0], **{"length": 1, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "z"}, "prompt: 'z' is not in the vocabulary"),
        ({"stop": "az"}, "stop: 'z' is not in the vocabulary"),
        ({"stop": ""}, "stop must be a text that holds a token, got ''"),
        ({"stop": [0]}, r"stop must be a text, got \[0\]"),
        ({"prompt": None}, "prompt must be a text, got None"),
        ({"num_samples": 0}, "num_samples must be an integer of at least 1, got 0"),
        ({"beam": 0}, "beam must be an integer of at least 1, got 0"),
        ({"beam": 2, "num_samples": 3}, "num_samples must be at most 2, the beam's width, got 3"),
        ({"beam": 2, "temperature": 0.5}, "temperature must be left out with beam, got 0.5"),
        ({"beam": 2, "top_k": 3}, "top_k must be left out with beam, got 3"),
        ({"beam": 2, "top_p": 0.9}, "top_p must be left out with beam, got 0.9"),
        ({"length_penalty": 1.0}, "length_penalty must be left out without beam, got 1.0"),
        ({"beam": 2, "length_penalty": -1.0}, "length_penalty must be a number from 0 to 10"),
    ],
    ids=str,
)
def test_errors_name_the_argument(options, message):
    with pytest.raises(InputError, match=message):
        sample(model_for(ABCD, hidden_size=4), ABCD, **options)


def test_prompt_and_vocabulary_must_be_the_models(model):
    with pytest.raises(InputError, match="prompt must hold at least one token"):
        generate(model, WORDS, [], length=1)
    for prompt, value in (([0, 6], "6"), ([-1], "-1"), (torch.tensor([0.5]), "0.5")):
        with pytest.raises(InputError, match=f"prompt must be ids from 0 to 5, got {value}"):
            generate(model, WORDS, prompt, length=1)
    with pytest.raises(InputError, match="vocabulary has 4 tokens, but the model 6"):
        generate(model, ABCD, [0], length=1)
    with pytest.raises(InputError, match="nothing but <unk>"):
        sample(LanguageModel(1, ModelConfig(hidden_size=2)), Vocabulary([UNK]))
    with pytest.raises(InputError, match="stop must hold no <unk>"):
        sample(model, WORDS, stop="dog")


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_p": 0.5}, {"beam": 2}], ids=str)
def test_a_diverged_model_is_refused(model, options):
    with torch.no_grad():
        model.output.bias[1] = math.nan
    with pytest.raises(InputError, match="model must give finite logits"):
        sample(model, WORDS, **options)
