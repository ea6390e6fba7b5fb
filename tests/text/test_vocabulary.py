"""Tokens, their numbering, and the way to JSON and back."""

import pytest
import torch

from rnnfast.text import EOS, UNK, InputError, Vocabulary, get_tokenizer


def test_order_is_by_count_then_by_word():
    counts = {"b": 2, "a": 2, "zebra": 5, EOS: 3, "c": 1}
    assert Vocabulary.from_counts(counts).tokens == ("zebra", EOS, "a", "b", "c")


def test_rare_words_become_unk_which_is_sorted_by_their_sum():
    counts = {"the": 4, "cat": 1, "dog": 1, "fox": 1, "sat": 2, EOS: 1}
    vocabulary = Vocabulary.from_counts(counts, min_count=2)
    assert vocabulary.tokens == ("the", UNK, "sat", EOS)
    assert vocabulary.encode(["cat", "the", EOS]).tolist() == [1, 0, 3]


def test_unk_of_the_text_itself_is_an_ordinary_entry():
    assert Vocabulary.from_counts({UNK: 3, "a": 1}).tokens == (UNK, "a")


def test_encode_and_decode():
    vocabulary = Vocabulary(["a", "b", "c"])
    ids = vocabulary.encode(["c", "a", "c"])
    assert ids.dtype == torch.int64
    assert ids.tolist() == [2, 0, 2]
    assert vocabulary.decode(ids) == ["c", "a", "c"]
    assert vocabulary.encode([]).shape == (0,)


def test_unknown_token_without_unk_is_an_error_that_names_it():
    with pytest.raises(InputError, match="'dog' is not in the vocabulary of 2 tokens.*<unk>"):
        Vocabulary(["a", "cat"]).encode(["a", "dog"])


def test_id_outside_the_vocabulary_is_an_error():
    for index in (-1, 2):
        with pytest.raises(InputError, match=f"id {index} is outside the vocabulary of 2"):
            Vocabulary(["a", "b"]).decode([0, index])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "at least one token"),
        (["a", "b", "a"], "'a' twice"),
        (["a", ""], "non-empty"),
        (["\ud83d"], "Unicode"),
    ],
)
def test_a_list_that_is_no_vocabulary_is_refused(tokens, message):
    with pytest.raises(InputError, match=message):
        Vocabulary(tokens)


def test_unknown_tokenizer_and_minimum_count_are_refused():
    with pytest.raises(InputError, match="unknown tokenizer 'syllable'"):
        Vocabulary(["a"], tokenizer="syllable")
    with pytest.raises(InputError, match="min_count must be at least 1, got 0"):
        Vocabulary.from_counts({"a": 1}, min_count=0)


def test_any_unicode_survives_the_way_to_a_file_and_back(tmp_path):
    tokens = [
        "a",
        "\n",
        "\r\n",
        "\0",
        "\u2028",
        "\x85",
        '"',
        "\\",
        "ñ",
        "n\u0303",
        "日本",
        "😀",
        " ",
    ]
    vocabulary = Vocabulary(tokens, tokenizer="char")
    vocabulary.save(tmp_path / "v.json")
    loaded = Vocabulary.load(tmp_path / "v.json")
    assert loaded == vocabulary
    assert loaded.tokens == tuple(tokens)
    assert loaded.level == "char"
    assert loaded.fingerprint == vocabulary.fingerprint


def test_fingerprint_tells_vocabularies_apart():
    fingerprints = {
        Vocabulary(tokens, tokenizer).fingerprint
        for tokens, tokenizer in (
            (["a", "b"], "word"),
            (["b", "a"], "word"),
            (["a", "b"], "char"),
            (["a", "b", "c"], "word"),
            (['a", "b'], "word"),
        )
    }
    assert len(fingerprints) == 5
    assert Vocabulary(["a", "b"]).fingerprint == Vocabulary(["a", "b"]).fingerprint


@pytest.mark.parametrize("content", ["{", "[]", '{"tokenizer": "word", "tokens": ["a", 1]}', "  "])
def test_a_file_that_is_no_vocabulary_is_refused_by_name(tmp_path, content):
    path = tmp_path / "v.json"
    path.write_text(content)
    with pytest.raises(InputError, match="v.json"):
        Vocabulary.load(path)


def test_words_of_raw_text():
    text = "Don't call len(x.y), e.g. with <unk>: it's 3.5 != 4...\nNext line"
    assert get_tokenizer("word").tokenize(text) == [
        *("Don't", "call", "len", "(", "x.y", ")", ",", "e.g.", "with", "<unk>", ":"),
        *("it's", "3.5", "!=", "4", "...", EOS, "Next", "line"),
    ]


def test_words_read_well_again():
    tokenizer = get_tokenizer("word")
    for text in (
        "Hello, world! (This is fine; isn't it?)\nYes.",
        'She said "no, never" and left [twice].',
        "It costs $5 or 10% at len().",
    ):
        assert tokenizer.detokenize(tokenizer.tokenize(text)) == text


def test_prepared_words_stay_as_they_are():
    tokenizer = get_tokenizer("ptb")
    tokens = tokenizer.tokenize(" mr. <unk> did n't pay $ N \n it 's fine \n")
    assert tokens == [
        *("mr.", "<unk>", "did", "n't", "pay", "$", "N", EOS),
        *("it", "'s", "fine", EOS),
    ]
    assert tokenizer.detokenize(tokens) == "mr. <unk> didn't pay $N\nit's fine\n"


def test_characters_are_code_points():
    tokenizer = get_tokenizer("char")
    text = "né\u0301\n😀"
    assert tokenizer.tokenize(text) == ["n", "é", "\u0301", "\n", "😀"]
    assert tokenizer.detokenize(tokenizer.tokenize(text)) == text
