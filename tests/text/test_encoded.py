"""A text made ready in a folder: the same corpus as from memory, and what is refused."""

import pytest
import torch

from rnnfast.text import (
    SPANISH,
    Cleaning,
    InputError,
    encode_corpus,
    load_encoded,
    load_text,
)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("El ingenioso hidalgo don Quijote\nde la Mancha, 1605\n" * 30)
    return path


@pytest.mark.parametrize("cleaning", [None, Cleaning(lower=True, keep=SPANISH)])
def test_characters_are_those_of_load_text(tmp_path, text, cleaning):
    folder = encode_corpus(text, tmp_path / "encoded", "char", cleaning=cleaning)
    splits = ((0, 0.5), (0.5, 0.75), (0.75, 1.0))
    ours, theirs = (
        load_encoded(folder, splits),
        load_text(text, "char", cleaning=cleaning, splits=splits),
    )
    assert ours.vocabulary == theirs.vocabulary
    for split in ("train", "valid", "test"):
        assert ours.split(split).dtype == torch.uint8
        assert ours.split(split).tolist() == theirs.split(split).tolist()


def test_words_below_a_count_are_unknown(tmp_path, text):
    text.write_text(text.read_text() + "una vez\n")
    vocabulary = load_encoded(encode_corpus(text, tmp_path / "e", min_count=2)).vocabulary
    assert "una" not in vocabulary and "Mancha," in vocabulary and "<unk>" in vocabulary
    small = load_encoded(encode_corpus(text, tmp_path / "f", max_size=4)).vocabulary
    assert len(small) == 4


def test_files_that_do_not_belong_together_are_refused(tmp_path, text):
    folder = encode_corpus(text, tmp_path / "encoded")
    other = encode_corpus(text, tmp_path / "other", "char")
    (folder / "vocabulary.json").write_bytes((other / "vocabulary.json").read_bytes())
    with pytest.raises(InputError, match="made with another vocabulary"):
        load_encoded(folder)
    with pytest.raises(InputError, match="cannot read .*vocabulary.json"):
        load_encoded(tmp_path / "nowhere")
    with pytest.raises(InputError, match="cannot write to"):
        encode_corpus(text, text)


def test_a_run_keeps_its_vocabulary(tmp_path, text):
    (tmp_path / "config.toml").touch()
    with pytest.raises(InputError, match="holds a run, whose vocabulary would be lost"):
        encode_corpus(text, tmp_path)
    assert not (tmp_path / "vocabulary.json").exists()
