"""The numbering of tokens, and the way to JSON and back."""

import hashlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnnfast.text import EOS, UNK, Cleaning, InputError, Vocabulary


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


def test_max_size_counts_every_entry_and_the_rest_is_unk():
    counts = {"the": 9, "cat": 3, "sat": 2, "a": 2, "mat": 1}
    for size in (5, 6, None):
        assert Vocabulary.from_counts(counts, max_size=size).tokens == (
            *("the", "cat", "a", "sat", "mat"),
        )
    # What is left out, 3 words, makes <unk> as frequent as cat; "<" sorts before "c".
    vocabulary = Vocabulary.from_counts(counts, max_size=4)
    assert vocabulary.tokens == ("the", UNK, "cat", "a")
    assert vocabulary.encode(["sat", "mat", "a"]).tolist() == [1, 1, 3]
    assert Vocabulary.from_counts(counts, max_size=1).tokens == (UNK,)


def test_max_size_and_min_count_share_one_unk():
    counts = {"the": 9, "cat": 3, "sat": 2, "a": 2, "mat": 1, EOS: 1}
    vocabulary = Vocabulary.from_counts(counts, min_count=2, max_size=5)
    assert vocabulary.tokens == ("the", UNK, "cat", "a", EOS)
    assert len(Vocabulary.from_counts(counts, min_count=2, max_size=6)) == 6


def test_specials_stand_first_in_their_order_and_count_as_entries():
    counts = {"the": 9, "cat": 3, EOS: 4, "a": 2}
    vocabulary = Vocabulary.from_counts(counts, specials=("<pad>", EOS))
    assert vocabulary.tokens == ("<pad>", EOS, "the", "cat", "a")
    vocabulary = Vocabulary.from_counts(counts, specials=("<pad>", UNK), min_count=3, max_size=4)
    assert vocabulary.tokens == ("<pad>", UNK, "the", EOS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_size": 2, "specials": ("<pad>", "<bos>")}, "max_size must be at least 3.*<unk>.*2"),
        ({"max_size": 0}, "max_size must be at least 1, room for <unk>, got 0"),
        ({"specials": "<pad>"}, "specials must be a sequence of tokens, got the string '<pad>'"),
        ({"specials": ("x", "x")}, "'x' twice"),
    ],
)
def test_sizes_and_specials_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Vocabulary.from_counts({"a": 2, "b": 1}, **options)


@given(
    st.dictionaries(st.sampled_from([*"abcdefgh", UNK, EOS]), st.integers(1, 4), min_size=1),
    st.integers(1, 4),
    st.integers(3, 12),
)
def test_every_text_of_the_counts_can_be_read(counts, min_count, max_size):
    vocabulary = Vocabulary.from_counts(counts, min_count=min_count, max_size=max_size)
    assert len(vocabulary) <= max_size
    ids = vocabulary.encode(list(counts))
    for token, index in zip(counts, ids.tolist(), strict=True):
        assert vocabulary.tokens[index] in (token, UNK)
        if counts[token] >= min_count and len(counts) < max_size:
            assert vocabulary.tokens[index] == token


def test_vocabulary_of_a_text():
    assert Vocabulary.from_text("b a b\n").tokens == ("b", EOS, "a")
    assert Vocabulary.from_text("b a b\n", "char").tokens == (" ", "b", "\n", "a")
    vocabulary = Vocabulary.from_text(
        "B b!bb C",
        "char",
        max_size=3,
        specials=("<pad>",),
        cleaning=Cleaning(lower=True, keep="bc"),
    )
    assert vocabulary.tokens == ("<pad>", UNK, "b")
    assert vocabulary.encode_text("Bc?").tolist() == [2, 1, 1]


def test_line_end_is_that_of_the_tokenizer():
    assert Vocabulary(["a", "\n", EOS], "char").line_end == 1
    assert Vocabulary(["a", "\n", EOS], "word").line_end == 2
    assert Vocabulary(["a", "_", EOS], "ptb_char").line_end == 2
    assert Vocabulary(["a", "b"], "char").line_end is None


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


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, unique=True)
)
def test_any_tokens_survive_the_way_to_json_and_back(tokens):
    vocabulary = Vocabulary(tokens, "char")
    loaded = Vocabulary.from_json(vocabulary.to_json())
    assert loaded == vocabulary and loaded.tokens == tuple(tokens)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_survives_its_character_vocabulary(text):
    vocabulary = Vocabulary.from_json(Vocabulary.from_text(text, "char").to_json())
    assert vocabulary.decode_text(vocabulary.encode_text(text)) == text


def test_cleaning_is_saved_and_applied():
    vocabulary = Vocabulary(["a", "b", " "], "char", cleaning=Cleaning(lower=True, keep="ab"))
    loaded = Vocabulary.from_json(vocabulary.to_json())
    assert loaded == vocabulary and hash(loaded) == hash(vocabulary)
    assert loaded.cleaning == Cleaning(lower=True, keep="ab")
    assert loaded.decode_text(loaded.encode_text("A, B!")) == "a b "
    assert loaded != Vocabulary(["a", "b", " "], "char")


def test_file_without_cleaning_is_read_and_keeps_its_fingerprint():
    content = {"tokenizer": "word", "tokens": ["a", "ñ"]}
    vocabulary = Vocabulary.from_json(json.dumps(content))
    assert vocabulary.cleaning is None
    expected = json.dumps(["word", ["a", "ñ"]], ensure_ascii=False)
    assert vocabulary.fingerprint == hashlib.sha256(expected.encode()).hexdigest()


def test_fingerprint_tells_vocabularies_apart():
    fingerprints = {
        Vocabulary(tokens, tokenizer, cleaning=cleaning).fingerprint
        for tokens, tokenizer, cleaning in (
            (["a", "b"], "word", None),
            (["b", "a"], "word", None),
            (["a", "b"], "char", None),
            (["a", "b", "c"], "word", None),
            (['a", "b'], "word", None),
            (["a", "b"], "word", Cleaning()),
            (["a", "b"], "word", Cleaning(lower=True)),
        )
    }
    assert len(fingerprints) == 7
    assert Vocabulary(["a", "b"]).fingerprint == Vocabulary(["a", "b"]).fingerprint


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "[" * 100_000,
        '{"tokenizer": "word", "tokens": ["a", 1]}',
        '{"tokenizer": "word", "tokens": ["a"], "cleaning": []}',
        '{"tokenizer": "word", "tokens": ["a"], "cleaning": {"lower": true}}',
        '{"tokenizer": "word", "tokens": ["a"], "cleaning": '
        '{"lower": 1, "keep": null, "replacement": ""}}',
        "  ",
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused_by_name(tmp_path, content):
    path = tmp_path / "v.json"
    path.write_text(content)
    with pytest.raises(InputError, match="v.json"):
        Vocabulary.load(path)
