"""The examples, as they stand, on a tiny text and with the presets' sizes made tiny."""

import io
import runpy
import sys
import tokenize
from pathlib import Path

import pytest

from rnnfast.language_model import PRESETS

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("penn_treebank", "don_quijote", "keras_text_generation")
TEXT = "en un lugar de la mancha , de cuyo nombre no quiero acordarme ,\nno ha mucho tiempo\n" * 30
SIZES = {"hidden_size": 12, "batch_size": 8, "num_steps": 6, "epochs": 2}


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example with arguments and gives what it prints."""
    for name in ("small", "keras", *(f"quijote-{cell}" for cell in ("rnn", "lstm", "gru"))):
        sizes = {**SIZES, "embedding_size": 8} if name == "keras" else SIZES
        config = PRESETS[name].replace(**sizes)
        if name.startswith("quijote"):
            # The tutorial's parts are longer than the text. A window begins at each letter.
            config = config.replace(splits=None, batch_size=100)
        monkeypatch.setitem(PRESETS, name, config)

    def run(name: str, *arguments: object) -> str:
        path = str(EXAMPLES / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_penn_treebank(run, tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"ptb.{split}.txt").write_text(TEXT)
    printed = run("penn_treebank", tmp_path)
    assert "LSTM(12, 12)" in printed
    assert "perplexity: valid " in printed and "accuracy: " in printed
    sampled = printed.split("%\n")[-1]
    assert len(sampled.split()) > 20 and set(sampled.split()) <= set(TEXT.split())


def test_don_quijote(run, text, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.chdir(tmp_path)
    printed = run("don_quijote", text)
    for cell in ("rnn", "lstm", "gru"):
        assert f"{cell}: perplexity " in printed
    sampled = printed.splitlines()[1]
    assert len(sampled) == 106 and sampled.startswith("en un ")
    assert (tmp_path / "don_quijote.png").read_bytes().startswith(b"\x89PNG")


def test_keras_text_generation(run, text):
    printed = run("keras_text_generation", text)
    assert "bits per character" in printed
    cold, warm = printed.split("temperature 0.5:\n")[1].split("\ntemperature 1.0:\n")
    assert len(cold) == len(warm) == 500 and cold != warm
    assert set(cold + warm) <= set(TEXT)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_has_at_most_15_lines_of_code(name):
    source = (EXAMPLES / f"{name}.py").read_text()
    ignored = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER)
    tokens = [
        token
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in ignored and token.string.strip()
    ]
    docstring = tokens.pop(0)
    assert docstring.type == tokenize.STRING
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    assert 5 < len(lines) <= 15
