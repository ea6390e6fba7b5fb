"""Text to tokens and back: characters, words, sub-words."""

import json
import sys
from pydoc_data.topics import topics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnfast.text import EOS, InputError, SubwordTokenizer, Vocabulary, get_tokenizer

TEXT = "\n".join(topics[name] for name in sorted(topics))[:60_000]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def subwords(request):
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    return SubwordTokenizer.train([TEXT], size=400, specials=("<eod>", "<ñ>"), model=request.param)


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


def test_characters_of_the_penn_treebank():
    tokenizer = get_tokenizer("ptb_char")
    tokens = tokenizer.tokenize("a cat\n")
    assert tokens == ["a", "_", "c", "a", "t", EOS]
    assert tokenizer.detokenize(tokens) == "a cat\n"


def test_subwords_beyond_any_memory_are_refused():
    with pytest.raises(InputError, match="size must be at most 16777216, got 2147483647"):
        SubwordTokenizer.train([TEXT], size=2**31 - 1)
    assert len(SubwordTokenizer.train([TEXT], min_count=10**30).tokens) == 256


def test_a_definition_that_cuts_fills_and_opens_texts_gives_them_back_exactly(subwords):
    opened = {"Sequence": {"id": "A", "type_id": 0}}
    mark = {"SpecialToken": {"id": "<eod>", "type_id": 0}}
    definition = subwords.definition | {
        "truncation": {
            "max_length": 3,
            "stride": 0,
            "strategy": "LongestFirst",
            "direction": "Right",
        },
        "padding": {
            "strategy": {"Fixed": 8},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<eod>",
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [mark, opened],
            "pair": [opened, opened],
            "special_tokens": {"<eod>": {"id": "<eod>", "ids": [0], "tokens": ["<eod>"]}},
        },
    }
    tokenizer = SubwordTokenizer(definition)
    for text in ("a", TEXT):
        assert tokenizer.tokenize(text) == subwords.tokenize(text)


def test_subwords_are_the_bytes_and_what_is_frequent(subwords):
    assert subwords.tokens[:2] == ("<eod>", "<ñ>")
    assert len(subwords.tokens) == len(set(subwords.tokens)) == 400
    assert {"Ġ", "Ċ", "a"} < set(subwords.tokens)
    assert "Ġthe" in subwords.tokens
    assert len(subwords.tokenize(TEXT)) < 0.6 * len(TEXT)
    assert subwords.tokenize("a<eod>b") == ["a", "<eod>", "b"]
    assert subwords.tokenize("") == []


@given(text=ANY_TEXT)
def test_subwords_spell_any_text(subwords, text):
    tokens = subwords.tokenize(text)
    assert set(tokens) <= set(subwords.tokens)
    assert subwords.detokenize(tokens) == text


@pytest.mark.parametrize("text", ["<eod><ñ>x<ñ>", "é<eod>é", "\0\x85\u2028\r\n", " \n \n\n a"])
def test_subwords_spell_specials_and_line_ends(subwords, text):
    assert subwords.detokenize(subwords.tokenize(text)) == text


@given(text=st.text(st.sampled_from("ab \n\t\x1c\x85é'")))
def test_long_texts_are_split_as_short_ones(subwords, text):
    whole = subwords.tokenize(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rnnfast.text.subword._PIECE", 1)
        assert subwords.tokenize(text) == whole


def test_part_of_a_character_is_read_as_the_replacement_character(subwords):
    tokens = subwords.tokenize("日")
    assert len(tokens) == 3
    assert set(subwords.detokenize(tokens[:2])) == {"\ufffd"}


def test_subword_vocabulary_is_whole_in_its_file(subwords, tmp_path):
    vocabulary = Vocabulary(subwords.tokens, subwords)
    vocabulary.save(tmp_path / "v.json")
    loaded = Vocabulary.load(tmp_path / "v.json")
    assert loaded == vocabulary and hash(loaded) == hash(vocabulary)
    assert loaded.fingerprint == vocabulary.fingerprint
    assert (loaded.level, loaded.tokenizer_name, len(loaded)) == ("subword", "subword", 400)
    reordered = json.dumps(json.loads(vocabulary.to_json()), sort_keys=True)
    assert Vocabulary.from_json(reordered).fingerprint == vocabulary.fingerprint
    assert loaded.id_of("<eod>") == 0
    assert loaded.tokens[loaded.line_end] == "Ċ"
    ids = loaded.encode_text("the ¿hat?\n")
    assert ids.tolist() == vocabulary.encode_text("the ¿hat?\n").tolist()
    assert loaded.decode_text(ids) == "the ¿hat?\n"
    other = SubwordTokenizer.train([TEXT], size=399, specials=("<eod>", "<ñ>"))
    assert Vocabulary(other.tokens, other) != vocabulary
    with pytest.raises(InputError, match="are those of its tokenizer"):
        Vocabulary(other.tokens, subwords)


def test_subword_vocabulary_of_a_text():
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    vocabulary = Vocabulary.from_text(TEXT, "subword", max_size=260, specials=("<eod>",))
    assert len(vocabulary) == 260 and vocabulary.tokens[0] == "<eod>"
    assert vocabulary.decode_text(vocabulary.encode_text(TEXT)) == TEXT
    assert 256 < len(Vocabulary.from_text("the cat the cat\n", "subword")) < 270


def test_subwords_that_cannot_be_are_refused(subwords):
    for options, message in (
        ({"size": 256, "specials": ("<eod>",)}, "size must be at least 257, .* got 256"),
        ({"size": 300, "min_count": 0}, "min_count must be at least 1, got 0"),
        ({"size": 300, "model": "words"}, "unknown model 'words': expected one of bpe, unigram"),
    ):
        with pytest.raises(InputError, match=message):
            SubwordTokenizer.train([TEXT], **options)
    with pytest.raises(InputError, match="cannot split 'a"):
        subwords.tokenize("a\ud800")


@pytest.mark.parametrize("definition", ["null", "[]", "{}", '{"model": {"type": "BPE"}}'])
def test_file_without_a_subword_tokenizer_is_refused(definition):
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    content = f'{{"tokenizer": "subword", "tokens": ["a"], "subword": {definition}}}'
    with pytest.raises(InputError, match="sub-word tokenizer"):
        Vocabulary.from_json(content)


def test_subwords_without_their_package_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"sub-words need tokenizers: pip install .*\[subword\]"):
        Vocabulary.from_text(TEXT, "subword")


def test_vocabulary_names_its_tokenizers():
    with pytest.raises(InputError, match="unknown tokenizer 'syllable'.*char, word, ptb, ptb_char"):
        get_tokenizer("syllable")
