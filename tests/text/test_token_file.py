"""Texts of any size: counted and encoded a chunk at a time, and read from a mapped file."""

import os
import random
import struct
import tracemalloc
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnfast._extension import _C
from rnnfast.text import (
    EOS,
    SPANISH,
    UNK,
    Cleaning,
    ContinuousBatches,
    InputError,
    TokenFile,
    Vocabulary,
    count_tokens,
    encode_file,
    get_tokenizer,
    read_text,
    scanning,
)
from rnnfast.text.scanning import encode_chunks

DATA = Path(__file__).parents[3] / "shared" / "data"

TOKENIZERS = ("char", "ptb_char", "ptb", "word")
CLEANINGS = (
    None,
    Cleaning(lower=True),
    Cleaning(lower=True, keep=SPANISH),
    Cleaning(keep="aeiou \n", replacement="--"),
)
# Every kind of line end and blank, letters of one to four bytes, one that needs two code points,
# the sigma whose lower case depends on what follows, and words of one length with one beginning.
HARD = (
    "The cat\r\nsat  on\tit.\r\r\n\n ñandú n\u0303u\u00a0日本 語😀\u2028\x85x\x1cy\x00z "
    "ΟΔΟΣ Σ\r--- don't <unk> e.g. <eos> _ beginning1 beginning2 beginning12 begin len()\n ...\r"
)


def whole(vocabulary, path):
    """The way of small files."""
    return vocabulary.encode_text(read_text(path))


def in_chunks(vocabulary, path, chunk_size):
    """The ids of all chunks, which are valid only until the next."""
    chunks = encode_chunks(path, vocabulary, np.dtype(np.int32), chunk_size)
    return torch.cat([torch.from_numpy(ids.astype(np.int64)) for ids in chunks])


def vocabulary_of(path, tokenizer, cleaning=None):
    counts = count_tokens(path, tokenizer, cleaning=cleaning)
    return Vocabulary.from_counts(counts, tokenizer=tokenizer, cleaning=cleaning)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(HARD.encode())
    return path


@pytest.mark.parametrize("cleaning", CLEANINGS)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_chunk_may_end_at_any_byte(text, tokenizer, cleaning):
    vocabulary = vocabulary_of(text, tokenizer, cleaning)
    expected = whole(vocabulary, text)
    counts = Counter(vocabulary.decode(expected))
    for chunk_size in range(1, text.stat().st_size + 2):
        assert torch.equal(in_chunks(vocabulary, text, chunk_size), expected)
        assert count_tokens(text, tokenizer, cleaning=cleaning, chunk_size=chunk_size) == counts


@settings(max_examples=150, deadline=None)
@given(
    st.text(
        st.sampled_from("\n\r \t\u3000aΣñ\u0303é-.<>") | st.characters(exclude_categories=["Cs"])
    ),
    st.sampled_from(TOKENIZERS),
    st.sampled_from(CLEANINGS),
    st.integers(1, 12),
)
def test_any_text_gives_what_it_gives_whole(tmp_path_factory, content, tokenizer, cleaning, size):
    path = tmp_path_factory.mktemp("any") / "text.txt"
    path.write_bytes(b"some " + content.encode())
    vocabulary = vocabulary_of(path, tokenizer, cleaning)
    expected = whole(vocabulary, path)
    assert torch.equal(in_chunks(vocabulary, path, size), expected)
    counts = count_tokens(path, tokenizer, cleaning=cleaning, chunk_size=size)
    assert counts == Counter(vocabulary.decode(expected))


def test_subwords_in_chunks(tmp_path):
    pytest.importorskip("tokenizers")
    path = tmp_path / "text.txt"
    path.write_bytes(HARD.encode() * 3 + b"\n \n\n  cats sat \n" + HARD.encode())
    for cleaning in (None, Cleaning(lower=True)):
        vocabulary = Vocabulary.from_text(
            read_text(path), "subword", max_size=300, cleaning=cleaning
        )
        expected = whole(vocabulary, path)
        for chunk_size in range(1, 200, 3):
            assert torch.equal(in_chunks(vocabulary, path, chunk_size), expected)


@pytest.mark.parametrize("tokenizer", ["char", "ptb"])
def test_code_points(tmp_path, tokenizer):
    """All of the first planes' blanks are among them, each between letters, and both ends."""
    path = tmp_path / "text.txt"
    codes = [*range(0x3100), *range(0x3100, 0xD800, 97), 0xD7FF, *range(0xE000, 0x110000, 97)]
    codes += [0xFFFF, 0x10000, 0x10FFFF]
    assert {code for code in range(0x110000) if chr(code).isspace()} < set(codes)
    path.write_bytes("x".join(map(chr, codes)).encode())
    counts = count_tokens(path, tokenizer)
    assert counts == Counter(get_tokenizer(tokenizer).tokenize(read_text(path)))
    vocabulary = Vocabulary.from_counts(counts, tokenizer=tokenizer)
    assert torch.equal(in_chunks(vocabulary, path, 1 << 16), whole(vocabulary, path))


def test_what_is_utf8_is_what_python_says():
    """All sequences of up to four bytes at the bounds of what Unicode's table of them allows."""
    bounds = [0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC2, 0xE1, 0xFF]
    tails = [b"", *(bytes([a]) for a in bounds)]
    tails += [bytes([a, b]) for a in bounds for b in bounds]
    tails += [bytes([a, b, c]) for a in bounds for b in bounds for c in bounds[3:9]]
    counters = (_C.CharacterCounter(), _C.WordCounter())
    wrong = 0
    for lead in range(0x80, 0x100):
        for tail in tails:
            content = b"a" + bytes([lead]) + tail
            try:
                content.decode()
                expected = (len(content), None)
            except UnicodeDecodeError as error:
                expected = (error.start, content[error.start : error.start + 1])
                wrong += 1
            assert [counter.count(content, True) for counter in counters] == [expected] * 2
    assert wrong > 100_000


def test_many_words(tmp_path):
    """The table grows; words differ in length, in their first eight bytes or only after them."""
    draw = random.Random(0)
    words = {"".join(draw.choices("abé", k=draw.randint(1, 12))) for _ in range(40_000)}
    words |= {f"beginning{number}" for number in range(20_000)} | {"a\0", "a\0\0"}
    words = sorted(words)
    order = draw.choices(words, k=100_000)
    path = tmp_path / "text.txt"
    path.write_text(" ".join(order))
    counts = count_tokens(path, "ptb")
    assert counts == Counter(order) and len(counts) > 30_000
    file = encode_file(path, Vocabulary(words, "ptb"), tmp_path / "tokens")
    assert [words[index] for index in file.tokens.tolist()] == order


@pytest.mark.parametrize(
    ("name", "tokenizer", "tokens", "types", "dtype"),
    [
        ("ptb/ptb.train.txt", "ptb", 929_589, 10_000, torch.uint16),
        ("quijote/quijote.txt", "char", None, None, torch.uint8),
        ("ptb/ptb.char.valid.txt", "ptb", None, None, torch.uint8),
    ],
)
def test_real_texts(tmp_path, name, tokenizer, tokens, types, dtype):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"../shared/data/{name} is not there")
    expected = get_tokenizer(tokenizer).tokenize(read_text(path))
    counts = count_tokens(path, tokenizer)
    assert counts == Counter(expected)
    vocabulary = Vocabulary.from_counts(counts, tokenizer=tokenizer)
    file = encode_file(path, vocabulary, tmp_path / "tokens")
    assert file.tokens.dtype == dtype
    assert torch.equal(file.tokens.to(torch.int64), vocabulary.encode(expected))
    assert (len(file), len(vocabulary)) == (tokens or len(expected), types or len(counts))


def test_byte_order_mark(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffa\ufeff\n".encode())
    for chunk_size in (1, 2, 3, 4, 100):
        assert count_tokens(path, "char", chunk_size=chunk_size) == {"a": 1, "\ufeff": 1, "\n": 1}


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        (256, torch.uint8),
        (257, torch.uint16),
        (65_536, torch.uint16),
        (65_537, torch.int32),
    ],
)
def test_ids_are_of_the_smallest_type_that_holds_them(tmp_path, size, dtype):
    path = tmp_path / "text.txt"
    path.write_text(f"w0 w{size - 1} w1")
    vocabulary = Vocabulary([f"w{index}" for index in range(size)], "ptb")
    file = encode_file(path, vocabulary, tmp_path / "tokens")
    assert file.tokens.dtype == dtype
    assert file.tokens.tolist() == [0, size - 1, 1]
    assert (tmp_path / "tokens").stat().st_size == 64 + 3 * dtype.itemsize


def test_unknown_tokens_become_unk_or_are_named_with_their_place(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffthe ñu\r\nthe dog\n".encode())
    output = tmp_path / "tokens"
    known = Vocabulary(["the", UNK], "ptb")
    assert encode_file(path, known, output).tokens.tolist() == [0, 1, 1, 0, 1, 1]
    place = "text.txt, byte {}: {} is not in the vocabulary of {} tokens, which has no <unk>"
    for tokens, tokenizer, message in (
        (["the", "ñu", EOS], "ptb", place.format(16, "'dog'", 3)),
        (["the", "ñu", "dog"], "ptb", place.format(10, "'<eos>'", 3)),
        (list("the ñu\n"), "char", place.format(16, "'d'", 7)),
        (list("theñudog_"), "ptb_char", place.format(10, "'<eos>'", 9)),
        (["the", "ñu", EOS], "word", place.replace("byte", "bytes").format("3 to 18", "'dog'", 3)),
    ):
        with pytest.raises(InputError, match=message):
            encode_file(path, Vocabulary(tokens, tokenizer), output)
    path.write_text("the " + "o" * 1000)
    with pytest.raises(InputError, match=r"byte 4: 'o{59} is not in"):
        encode_file(path, Vocabulary(["the"], "ptb"), output)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("chunk_size", [1, 4, 1000])
def test_what_is_not_utf8_is_named_with_its_place(tmp_path, tokenizer, chunk_size):
    path = tmp_path / "text.txt"
    for content, place, byte in (
        (b"\xef\xbb\xbfse\xf1or y se\xc3\xb1ora", 5, 0xF1),
        (b"one two\nthr\xc3", 11, 0xC3),
        (b"one \xed\xa0\x80 two", 4, 0xED),
    ):
        path.write_bytes(content)
        message = f"text.txt, byte {place}: 0x{byte:02x} is not UTF-8 text"
        with pytest.raises(InputError, match=message):
            count_tokens(path, tokenizer, chunk_size=chunk_size)
        with pytest.raises(InputError, match=message):
            in_chunks(Vocabulary([UNK], tokenizer), path, chunk_size)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_what_is_no_text_is_refused(tmp_path, monkeypatch, tokenizer):
    path = tmp_path / "text.txt"
    output = tmp_path / "tokens"
    vocabulary = Vocabulary(["a", " ", "\n", UNK, EOS], tokenizer)
    with pytest.raises(InputError, match="cannot read .*text.txt: No such file"):
        count_tokens(path, tokenizer)
    with pytest.raises(InputError, match="cannot read .*: Is a directory"):
        encode_file(tmp_path, vocabulary, output)
    for content in (b"", b"\xef\xbb\xbf", " \n\r\n\u2003".encode()):
        path.write_bytes(content)
        with pytest.raises(InputError, match="text.txt is empty: expected text"):
            encode_file(path, vocabulary, output)
        with pytest.raises(InputError, match="text.txt is empty: expected text"):
            count_tokens(path, tokenizer)
    with pytest.raises(InputError, match="chunk_size must be at least 1, got 0"):
        count_tokens(path, tokenizer, chunk_size=0)
    path.write_text("a")
    with pytest.raises(InputError, match="cannot write .*nowhere.*: No such file"):
        encode_file(path, vocabulary, tmp_path / "nowhere" / "tokens")
    with pytest.raises(InputError, match="output must be another file than the text"):
        encode_file(path, vocabulary, path)
    assert path.read_text() == "a"
    if vocabulary.level == "word":
        monkeypatch.setattr(scanning, "LONGEST_TOKEN", 100)
        path.write_text("a " + "b" * 200)
        with pytest.raises(InputError, match="no text: from byte [12] on, 100 bytes without"):
            count_tokens(path, tokenizer, chunk_size=10)
    assert os.listdir(tmp_path) == ["text.txt"]


@pytest.mark.parametrize("tokenizer", ["word", "ptb"])
def test_no_word_is_cut_where_a_cleaning_joins_its_parts_from_afar(tmp_path, tokenizer):
    path = tmp_path / "text.txt"
    path.write_text("a" + "! " * 200 + "b\n")
    cleaning = Cleaning(keep="ab", replacement="")
    assert count_tokens(path, tokenizer, cleaning=cleaning, chunk_size=50) == {"ab": 1}


def test_a_cleaning_that_leaves_nothing(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("123")
    vocabulary = Vocabulary(["a"], "char", cleaning=Cleaning(keep="a", replacement=""))
    with pytest.raises(InputError, match="no tokens left when it is cleaned"):
        encode_file(path, vocabulary, tmp_path / "tokens")


def test_a_failure_leaves_the_old_file(text, tmp_path):
    output = tmp_path / "tokens"
    old = encode_file(text, vocabulary_of(text, "ptb"), output)
    content = output.read_bytes()
    with pytest.raises(InputError, match="not in the vocabulary"):
        encode_file(text, Vocabulary(["The", "cat", EOS], "ptb"), output, chunk_size=4)
    assert output.read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == ["text.txt", "tokens"]
    # Who has it open keeps it when it is replaced.
    tokens = old.tokens.tolist()
    encode_file(text, vocabulary_of(text, "char"), output)
    assert old.tokens.tolist() == tokens
    assert TokenFile.open(output).fingerprint != old.fingerprint


def test_tokens_are_the_pages_of_the_file(text, tmp_path):
    output = tmp_path / "tokens"
    file = encode_file(text, vocabulary_of(text, "ptb"), output)
    content = output.read_bytes()
    address = file.tokens.data_ptr()
    (line,) = (
        line for line in Path("/proc/self/maps").read_text().splitlines() if str(output) in line
    )
    begin, end = (int(bound, 16) for bound in line.split()[0].split("-"))
    assert begin + 64 == address < end
    # What is written stays in this tensor.
    first = file.tokens[0].item()
    file.tokens[0] = first + 1
    assert output.read_bytes() == content
    assert TokenFile.open(output).tokens[0] == first


def test_a_file_larger_than_memory_is_opened(text, tmp_path):
    vocabulary = vocabulary_of(text, "ptb")
    output = tmp_path / "tokens"
    encode_file(text, vocabulary, output)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count = 2 * memory
    fields = struct.pack("<8sIIQ", b"rnnfast\0", 1, 1, count) + output.read_bytes()[24:60]
    with open(output, "r+b") as file:
        file.write(fields + struct.pack("<I", zlib.crc32(fields)))
        try:
            file.truncate(64 + count)  # a hole takes no room on the disk
        except OSError as error:
            pytest.skip(f"no file of that size here: {error}")
    tokens = TokenFile.open(output, vocabulary).tokens
    assert len(tokens) == count
    assert tokens[-1] == 0
    batches = ContinuousBatches(tokens, batch_size=4, num_steps=3)
    input, target = next(iter(batches))
    assert input.tolist()[0] == [tokens[0].item(), 0, 0, 0]


def test_memory_does_not_grow_with_the_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"one two three four\n" * 500_000)
    vocabulary = Vocabulary(["one", "two", "three", "four", EOS], "ptb")
    tracemalloc.start()
    try:
        count_tokens(path, "ptb")
        encode_file(path, vocabulary, tmp_path / "tokens")
        encode_file(path, vocabulary, tmp_path / "tokens", chunk_size=1 << 12)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2e6 < path.stat().st_size / 4


def test_batches_of_a_token_file(text, tmp_path):
    vocabulary = vocabulary_of(text, "char")
    file = encode_file(text, vocabulary, tmp_path / "tokens")
    ours = ContinuousBatches(file.tokens, batch_size=3, num_steps=5)
    expected = ContinuousBatches(whole(vocabulary, text), batch_size=3, num_steps=5)
    for window, other in zip(ours, expected, strict=True):
        assert torch.equal(window[0], other[0]) and torch.equal(window[1], other[1])
        assert window[0].dtype == torch.int64


def test_open_refuses_what_is_not_the_file_expected(text, tmp_path):
    path = tmp_path / "tokens"
    vocabulary = vocabulary_of(text, "ptb")
    encode_file(text, vocabulary, path)
    content = path.read_bytes()
    assert TokenFile.open(path, vocabulary).tokens.tolist() == whole(vocabulary, text).tolist()
    with pytest.raises(InputError, match=r"tokens was made with another vocabulary: one of \d+ t"):
        TokenFile.open(path, Vocabulary(vocabulary.tokens, "word"))
    with pytest.raises(InputError, match="cannot read .*nowhere: No such file"):
        TokenFile.open(tmp_path / "nowhere")
    for changed, message in (
        (b"", "is no token file"),
        (content[:63], "is no token file"),
        (text.read_bytes(), "is no token file"),
        (content[:64], "is not whole: 64 bytes, expected"),
        (content[:-1], "is not whole"),
        (content + b"\0", "is not whole"),
        (content[:8] + b"\2" + content[9:], "is a token file of version 2, expected 1"),
    ):
        path.write_bytes(changed)
        with pytest.raises(InputError, match=f"tokens {message}"):
            TokenFile.open(path)
    for place in range(64):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(InputError):
            TokenFile.open(path)
    for itemsize, count in ((3, len(content)), (1, 0)):
        fields = struct.pack("<8sIIQ", b"rnnfast\0", 1, itemsize, count) + content[24:60]
        path.write_bytes(fields + struct.pack("<I", zlib.crc32(fields)) + content[64:])
        with pytest.raises(InputError, match="its header makes no sense"):
            TokenFile.open(path)


def test_repr(text, tmp_path):
    file = encode_file(text, vocabulary_of(text, "char"), tmp_path / "tokens")
    size, types = len(file), file.vocabulary_size
    assert repr(file).endswith(f"tokens', {size} tokens, uint8, vocabulary of {types})")
