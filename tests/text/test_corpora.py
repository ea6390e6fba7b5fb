"""Reading texts: Penn Treebank folders, single files, Python's language reference."""

import errno
from pathlib import Path

import pytest
import torch

from rnnfast.text import (
    EOD,
    EOS,
    SPANISH,
    SPLITS,
    UNK,
    Cleaning,
    Corpus,
    InputError,
    Vocabulary,
    corpora,
    load_ptb,
    load_pydoc,
    load_text,
    read_text,
    strip_gutenberg,
    write_atomically,
)

DATA = Path(__file__).parents[3] / "shared" / "data"
PTB = DATA / "ptb"
QUIJOTE = DATA / "quijote"


def write_folder(folder, **texts):
    for split in SPLITS:
        (folder / f"ptb.{split}.txt").write_text(texts.get(split, " a b \n"))
    return folder


def test_ptb_folder_is_read_as_the_tutorial_does(tmp_path):
    corpus = load_ptb(
        write_folder(
            tmp_path, train=" the cat \n the <unk> sat \n", valid=" cat \n", test="the sat"
        )
    )
    assert corpus.vocabulary.tokens == (EOS, "the", UNK, "cat", "sat")
    assert corpus.train.tolist() == [1, 3, 0, 1, 2, 4, 0]
    assert corpus.valid.tolist() == [3, 0]
    assert corpus.test.tolist() == [1, 4]


@pytest.mark.skipif(not PTB.is_dir(), reason="../shared/data/ptb is not there")
def test_penn_treebank_has_its_published_counts():
    corpus = load_ptb(PTB)
    assert [len(corpus.split(split)) for split in SPLITS] == [929_589, 73_760, 82_430]
    assert len(corpus.vocabulary) == 10_000
    # the, <unk> and <eos> occur 50,770, 45,020 and 42,068 times.
    assert corpus.vocabulary.tokens[:3] == ("the", UNK, EOS)
    assert corpus.train.bincount().tolist()[:3] == [50_770, 45_020, 42_068]


def test_ptb_folder_is_read_by_character(tmp_path):
    for split in SPLITS:
        (tmp_path / f"ptb.char.{split}.txt").write_text(" t h e _ c a t \n t h e \n")
    corpus = load_ptb(tmp_path, level="char")
    assert corpus.vocabulary.tokens == ("t", EOS, "e", "h", "_", "a", "c")
    assert corpus.vocabulary.level == "char"
    assert corpus.valid.tolist() == [0, 3, 2, 4, 6, 5, 0, 1, 0, 3, 2, 1]
    assert corpus.vocabulary.decode_text(corpus.test) == "the cat\nthe\n"
    assert corpus.vocabulary.encode_text("the cat\nthe\n").equal(corpus.test)
    with pytest.raises(InputError, match="unknown level 'subword': expected word or char"):
        load_ptb(tmp_path, level="subword")
    with pytest.raises(InputError, match="ptb.train.txt: No such file"):
        load_ptb(tmp_path)


@pytest.mark.skipif(not PTB.is_dir(), reason="../shared/data/ptb is not there")
def test_penn_treebank_by_character_has_its_counts_and_its_words():
    corpus = load_ptb(PTB, level="char")
    assert [len(corpus.split(split)) for split in SPLITS] == [5_017_482, 393_042, 442_423]
    assert len(corpus.vocabulary) == 50
    lines = [" ".join(line.split()) for line in read_text(PTB / "ptb.valid.txt").splitlines()]
    assert corpus.vocabulary.decode_text(corpus.valid) == "\n".join(lines) + "\n"


def test_missing_or_unusable_ptb_files_are_named(tmp_path):
    with pytest.raises(InputError, match="nowhere is not a folder"):
        load_ptb(tmp_path / "nowhere")
    write_folder(tmp_path)
    (tmp_path / "ptb.valid.txt").unlink()
    with pytest.raises(InputError, match="ptb.valid.txt: No such file"):
        load_ptb(tmp_path)
    (tmp_path / "ptb.valid.txt").write_text(" \n\n")
    with pytest.raises(InputError, match="ptb.valid.txt is empty"):
        load_ptb(tmp_path)
    (tmp_path / "ptb.valid.txt").write_text(" a dog \n")
    with pytest.raises(InputError, match="ptb.valid.txt: 'dog' is not in the vocabulary"):
        load_ptb(tmp_path)


def test_text_file_by_character_is_split_in_order_and_keeps_every_character(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("abcdefghijklmnopqr\nñ".encode())
    corpus = load_text(path, level="char")
    decoded = {split: corpus.vocabulary.decode_text(corpus.split(split)) for split in SPLITS}
    assert decoded == {"train": "abcdefghijklmnop", "valid": "qr", "test": "\nñ"}


def test_text_file_by_word_learns_its_words_from_the_training_part(tmp_path):
    path = tmp_path / "text.txt"
    # 40 tokens, the first 32 of which train: "rare" once, "new" never.
    path.write_text("a b rare a\n" + "a b b a\n" * 6 + "a new b b\n")
    corpus = load_text(path)
    assert corpus.vocabulary.tokens == ("a", "b", EOS, UNK)
    assert corpus.train.tolist() == [0, 1, 3, 0, 2, *[0, 1, 1, 0, 2] * 5, 0, 1]
    assert corpus.valid.tolist() == [1, 0, 2, 0]
    assert corpus.test.tolist() == [3, 1, 1, 2]


def test_text_file_by_word_without_rare_words_still_reads_new_ones(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a b\n" * 9 + "new b\n")
    assert load_text(path).test.tolist() == [3, 2, 0]
    assert load_text(path).vocabulary.tokens == (EOS, "a", "b", UNK)


def test_text_file_by_word_with_all_its_words(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a b\n" * 9 + "new b\n")
    corpus = load_text(path, min_count=1)
    assert corpus.vocabulary.tokens == (EOS, "b", "a", "new")
    assert corpus.vocabulary.decode(corpus.test) == ["new", "b", EOS]


def test_text_with_a_vocabulary_of_limited_size(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a b a c a d\n" * 10)
    assert load_text(path, max_size=3).vocabulary.tokens == (UNK, "a", EOS)
    assert load_text(path, "char", max_size=3).vocabulary.tokens == (" ", UNK, "a")


def test_parts_of_a_text_are_where_splits_says(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abcdefghij")

    def parts(*splits):
        corpus = load_text(path, "char", splits=splits)
        assert sorted(corpus.vocabulary.tokens) == list("abcdefghij")
        return [corpus.vocabulary.decode_text(corpus.split(split)) for split in SPLITS]

    assert parts((0, 4), (3, 6), (6, 10)) == ["abcd", "def", "ghij"]
    assert parts((0.0, 0.5), (0.5, 0.7), (0.29, 1.0)) == ["abcde", "fg", "cdefghij"]
    assert parts([0, 0.55], [5, 1.0], [2, 2]) == ["abcde", "fghij", ""]


def test_fractions_of_a_text_are_those_that_are_written(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("x" * 100)
    for percent in range(101):
        split = (0.0, float(f"{percent / 100}"))
        assert len(load_text(path, "char", splits=(split,) * 3).train) == percent


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (((0, 1), (1, 2)), r"splits must be three pairs \(start, end\), got"),
        (((0, 1), (1, 2), (3,)), "splits must be three pairs"),
        (0.8, "splits must be three pairs"),
        (((0, 5), (5, 9), (9, 11)), "splits: the text has 10 tokens, got place 11"),
        (((-1, 5), (5, 9), (9, 10)), "splits: the text has 10 tokens, got place -1"),
        (((0, 5), (5, 9), (0.9, 1.5)), "a fraction from 0.0 to 1.0, got 1.5"),
        (((0, 5), (5, 9), (0.9, float("nan"))), "a fraction from 0.0 to 1.0, got nan"),
        (((0, 5), (5, 9), ("0", True)), "got '0'"),
        (((0, 5), (5, 9), (0.9, 1)), "the test split ends before it starts: 0.9 to 1 .* 9 to 1"),
    ],
)
def test_splits_that_cannot_be_are_refused(tmp_path, splits, message):
    path = tmp_path / "text.txt"
    path.write_text("abcdefghij")
    with pytest.raises(InputError, match=message):
        load_text(path, "char", splits=splits)


def test_text_is_cleaned_and_so_are_prompts(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("¡Ñu! an\u0303o, 3 AÑOS.\n")
    cleaning = Cleaning(lower=True, keep=SPANISH)
    corpus = load_text(path, "char", cleaning=cleaning, splits=((0.0, 1.0),) * 3)
    assert corpus.vocabulary.decode_text(corpus.train) == " ñu año años "
    assert corpus.vocabulary.cleaning == cleaning
    assert corpus.vocabulary.encode_text("Ñ?").tolist() == [
        corpus.vocabulary.id_of("ñ"),
        corpus.vocabulary.id_of(" "),
    ]
    with pytest.raises(InputError, match="text.txt is empty once it is cleaned"):
        load_text(path, "char", cleaning=Cleaning(keep="z"))


def test_folder_of_texts_is_read_in_order_each_text_opened_by_a_mark(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.txt").write_text("two")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "c.txt").write_text("three")
    (tmp_path / "notes.md").write_text("not read")
    whole = ((0.0, 1.0),) * 3
    corpus = load_text(tmp_path, "char", splits=whole)
    assert corpus.vocabulary.decode(corpus.train) == [EOD, *"one", EOD, *"two", EOD, *"three"]
    assert corpus.vocabulary.id_of(EOD) == 0
    corpus = load_text(tmp_path, splits=whole, min_count=4)
    assert corpus.vocabulary.decode(corpus.train) == [EOD, UNK] * 3
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    corpus = load_text(tmp_path, "subword", splits=whole)
    assert corpus.vocabulary.decode_text(corpus.train) == "<eod>one<eod>two<eod>three"
    assert (corpus.train == corpus.vocabulary.id_of(EOD)).sum() == 3


def test_folder_without_texts_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no text: expected \*.txt files"):
        load_text(tmp_path)
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(InputError, match="a.txt is empty"):
        load_text(tmp_path)


def test_header_and_licence_of_project_gutenberg_are_left_out(tmp_path):
    book = (
        "The Project Gutenberg eBook of X\n\nTitle: X\n\n"
        "*** START OF THE PROJECT GUTENBERG EBOOK X*Y\nAND MORE ***\n\n\n  One *** two\n\n"
        "Three\n\n\n*** END OF THE PROJECT GUTENBERG EBOOK X\nAND MORE ***\n\nLicence\n"
    )
    old = "Etext\n***START OF THIS PROJECT GUTENBERG EBOOK Y***\nFour\n"
    assert strip_gutenberg(book) == "  One *** two\n\nThree\n"
    assert strip_gutenberg(old) == "Four\n"
    assert strip_gutenberg(book + old) == "  One *** two\n\nThree\n\nFour\n"
    quoted = "He wrote *** START OF THE PROJECT GUTENBERG EBOOK Z *** and went.\n\n"
    assert strip_gutenberg(quoted) == quoted
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbf" + book.replace("\n", "\r\n").encode())
    corpus = load_text(path, "char", splits=((0.0, 1.0),) * 3)
    assert corpus.vocabulary.decode_text(corpus.train) == "  One *** two\n\nThree\n"


@pytest.mark.skipif(not QUIJOTE.is_dir(), reason="../shared/data/quijote is not there")
def test_don_quijote_as_published_is_the_text_itself():
    text = read_text(QUIJOTE / "quijote.txt")
    assert strip_gutenberg(read_text(QUIJOTE / "pg2000.txt")) == text
    assert strip_gutenberg(text) == text


@pytest.mark.skipif(not QUIJOTE.is_dir(), reason="../shared/data/quijote is not there")
def test_don_quijote_as_its_tutorial_reads_it():
    splits = ((0, 20_512), (20_480, 25_632), (20_480, 25_632))
    cleaning = Cleaning(lower=True, keep=SPANISH)
    corpus = load_text(QUIJOTE / "pg2000.txt", "char", cleaning=cleaning, splits=splits)
    # Every Spanish letter but k, and the blank.
    assert set(corpus.vocabulary.tokens) == {" ", *SPANISH} - {"k"}
    assert [len(corpus.split(split)) for split in SPLITS] == [20_512, 5_152, 5_152]
    assert corpus.train[20_480:].equal(corpus.valid[:32])
    text = corpus.vocabulary.decode_text(corpus.train)
    assert text.startswith("el ingenioso hidalgo don quijote de la mancha por miguel de cervantes")
    assert "  " not in text


@pytest.mark.skipif(not QUIJOTE.is_dir(), reason="../shared/data/quijote is not there")
def test_don_quijote_by_subword_is_given_back_exactly(tmp_path):
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    text = read_text(QUIJOTE / "quijote.txt")[:300_000]
    path = tmp_path / "text.txt"
    path.write_text(text)
    corpus = load_text(path, "subword", max_size=1_000)
    assert len(corpus.vocabulary) == 1_000
    ids = [index for split in SPLITS for index in corpus.split(split).tolist()]
    assert corpus.vocabulary.decode_text(ids) == text
    assert len(ids) < 0.5 * len(text)


def test_text_options_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("some text")
    with pytest.raises(InputError, match="unknown level 'line'"):
        load_text(path, level="line")
    with pytest.raises(InputError, match="min_count is for words"):
        load_text(path, level="char", min_count=2)


@pytest.mark.parametrize("size", [10, 5000])
def test_fingerprint_tells_texts_apart(size):
    def corpus(**changed: torch.Tensor) -> Corpus:
        parts = {split: torch.arange(size) for split in ("train", "valid", "test")}
        return Corpus("numbers", Vocabulary(["a"], tokenizer="char"), **parts | changed)

    others = [
        corpus(test=torch.arange(size - 1)),
        corpus(valid=torch.arange(size).index_fill(0, torch.tensor([size - 1]), 0)),
        corpus(train=torch.arange(size).roll(1)),
    ]
    assert len({other.fingerprint for other in [corpus(), *others]}) == 4
    assert corpus().fingerprint == corpus().fingerprint


def test_fingerprint_of_a_long_text_is_of_places_all_over_it(monkeypatch):
    monkeypatch.setattr(corpora, "_HASHED_TOKENS", 32)
    monkeypatch.setattr(corpora, "_HASHED_PLACES", 8)
    tokens = torch.zeros(1000, dtype=torch.int64)

    def fingerprint(start: int, end: int) -> str:
        train = tokens.clone()
        train[start:end] = 1
        return Corpus("a", Vocabulary(["a"], tokenizer="char"), train, tokens, tokens).fingerprint

    same = fingerprint(0, 0)
    assert all(fingerprint(start, start + 125) != same for start in range(0, 1000, 125))
    assert fingerprint(4, 125) == same


def test_pydoc_is_prose_split_in_three():
    corpus = load_pydoc()
    sizes = [len(corpus.split(split)) for split in SPLITS]
    assert sizes[0] > 20_000
    for size in sizes[1:]:
        assert 0.05 < size / sum(sizes) < 0.2
    train = corpus.vocabulary.decode(corpus.train)
    assert train.count(EOS) > 500
    assert train.count("the") > 1_000
    assert "::=" not in "".join(train) and ">>>" not in train
    assert train.count(UNK) < 0.1 * len(train)


def test_pydoc_parts_share_no_long_passage():
    corpus = load_pydoc(min_count=1)
    lines = {
        split: {
            line
            for line in corpus.vocabulary.decode_text(corpus.split(split)).split("\n")
            if len(line.split()) > 15
        }
        for split in SPLITS
    }
    for split in ("valid", "test"):
        assert len(lines[split] & lines["train"]) < 0.05 * len(lines[split])


def test_pydoc_is_the_same_each_time():
    first, second = load_pydoc(), load_pydoc()
    assert first.vocabulary == second.vocabulary
    for split in SPLITS:
        assert first.split(split).equal(second.split(split))
    with pytest.raises(InputError, match="unknown split 'dev'"):
        first.split("dev")


def test_text_files_of_other_systems_are_read(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffone\r\ntwo\rthree\n".encode())
    assert read_text(path) == "one\ntwo\nthree\n"


def test_files_that_are_no_text_are_refused_by_name(tmp_path):
    path = tmp_path / "text.txt"
    for content, message in (
        (b"", "text.txt is empty"),
        (b" \r\n\t", "text.txt is empty"),
        (b"abc\xff", "text.txt is not UTF-8 text: byte 0xff at 3"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_text(path)
    with pytest.raises(InputError, match="cannot read"):
        read_text(tmp_path)


def test_write_replaces_a_file_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"

    def fail(_):
        raise OSError(errno.ENOSPC, "the disk is full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_atomically(path, b"half")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
