"""Reading texts: Penn Treebank folders, single files, Python's language reference."""

from pathlib import Path

import pytest

from rnnfast.text import (
    EOS,
    SPLITS,
    UNK,
    InputError,
    load_ptb,
    load_pydoc,
    load_text,
    read_text,
    write_atomically,
)

PTB = Path(__file__).parents[3] / "shared" / "data" / "ptb"


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


def test_text_options_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("some text")
    with pytest.raises(InputError, match="unknown level 'line'"):
        load_text(path, level="line")
    with pytest.raises(InputError, match="min_count is for words"):
        load_text(path, level="char", min_count=2)


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
        raise OSError("the disk is full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_atomically(path, b"half")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
