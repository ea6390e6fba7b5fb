"""Runs on disk: what is written comes back, and what is damaged is refused."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rnnfast.language_model import CheckpointError, EpochResult, LanguageModel, Run
from rnnfast.text import Vocabulary

FILES = {"config.json", "vocabulary.json", "best.safetensors", "last.safetensors"}


def result(epoch: int) -> EpochResult:
    return EpochResult(epoch, 1.0, 10.0, 12.5, 1000.0)


@pytest.fixture
def model(config, corpus) -> LanguageModel:
    return LanguageModel(len(corpus.vocabulary), config.model, seed=5)


@pytest.fixture
def run(tmp_path, config, corpus, model) -> Run:
    run = Run.create(tmp_path / "runs" / "first", config, corpus.vocabulary)
    run.begin()
    run.save(model, result(1), is_best=True)
    return run


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_round_trip(run, config, corpus, model):
    assert {path.name for path in run.path.iterdir()} == FILES
    opened = Run.open(run.path)
    assert opened.config == config
    assert opened.vocabulary == corpus.vocabulary
    loaded = opened.load_model()
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert value.equal(loaded.state_dict()[name])


def test_best_and_last_weights(run, model):
    with torch.no_grad():
        model.output.bias.fill_(7.0)
    run.save(model, result(2), is_best=False)
    opened = Run.open(run.path)
    assert opened.load_model("last").output.bias.eq(7).all()
    assert not opened.load_model().output.bias.eq(7).any()
    for name, epoch in (("best", "1"), ("last", "2")):
        with safe_open(run.path / f"{name}.safetensors", framework="pt") as file:
            assert file.metadata()["epoch"] == epoch
            assert float(file.metadata()["valid_perplexity"]) == 12.5
    with pytest.raises(CheckpointError, match="unknown weights 'first'"):
        opened.load_model("first")


def test_weights_of_one_backend_run_on_the_other(run, model):
    loaded = Run.open(run.path).load_model(backend="rnnfast")
    input = torch.randint(model.vocab_size, (6, 2))
    torch.testing.assert_close(loaded(input)[0], model(input)[0])


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(run, config, corpus):
    before = contents(run.path)
    with pytest.raises(CheckpointError, match="already holds a run"):
        Run.create(run.path, config, corpus.vocabulary)
    assert contents(run.path) == before


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path, config, corpus):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        Run.create(tmp_path / "file", config, corpus.vocabulary, overwrite=True)
    with pytest.raises(CheckpointError, match="cannot write to"):
        Run.create(tmp_path / "file" / "run", config, corpus.vocabulary).begin()


def test_a_run_is_replaced_only_when_the_new_one_is_saved(run, config, corpus, model):
    run.save(model, result(2), is_best=False)
    before = contents(run.path)
    new_config = config.replace(seed=9)
    new = Run.create(run.path, new_config, corpus.vocabulary, overwrite=True)
    new.begin()
    assert contents(run.path) == before
    new.save(model, result(1), is_best=True)
    opened = Run.open(run.path)
    assert opened.config == new_config
    opened.load_model("best")
    opened.load_model("last")


def test_missing_files_are_named(run, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere is not a folder"):
        Run.open(tmp_path / "nowhere")
    (run.path / "best.safetensors").unlink()
    with pytest.raises(CheckpointError, match="best.safetensors is missing"):
        Run.open(run.path).load_model()
    (run.path / "vocabulary.json").unlink()
    with pytest.raises(CheckpointError, match="vocabulary.json is missing"):
        Run.open(run.path)
    (run.path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="config.json is missing"):
        Run.open(run.path)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.02, 0.5, 0.99])
def test_truncated_weights_are_refused(run, kept):
    path = run.path / "best.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match="best.safetensors is truncated or damaged"):
        Run.open(run.path).load_model()


def test_weights_with_one_wrong_bit_are_refused(run):
    path = run.path / "best.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="best.safetensors is damaged"):
        Run.open(run.path).load_model()


@pytest.mark.parametrize("name", ["config.json", "vocabulary.json"])
def test_truncated_json_is_refused(run, name):
    path = run.path / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        Run.open(run.path)


def test_vocabulary_of_another_run_is_refused(run, corpus):
    tokens = list(corpus.vocabulary.tokens)
    tokens[0], tokens[1] = tokens[1], tokens[0]
    Vocabulary(tokens).save(run.path / "vocabulary.json")
    with pytest.raises(CheckpointError, match="was not trained with .*vocabulary.json"):
        Run.open(run.path).load_model()


def test_settings_of_another_run_are_refused(run):
    path = run.path / "config.json"
    settings = json.loads(path.read_text())
    settings["model"]["hidden_size"] = 32
    path.write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="was not trained with .*config.json"):
        Run.open(run.path).load_model()


def rewrite(path, change):
    """Write a weights file that is sound in itself but for what ``change`` does to it."""
    from rnnfast.language_model.checkpoint import _weights_fingerprint

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {**metadata, "weights": _weights_fingerprint(weights)})


def test_weights_of_other_shapes_are_refused(run):
    path = run.path / "best.safetensors"
    rewrite(path, lambda weights: weights.update({"output.bias": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=r"output.bias is of shape \(3,\), expected of shape"):
        Run.open(run.path).load_model()


def test_missing_and_unknown_weights_are_refused(run):
    path = run.path / "best.safetensors"
    rewrite(path, lambda weights: weights.pop("output.bias"))
    with pytest.raises(CheckpointError, match="output.bias is missing"):
        Run.open(run.path).load_model()
    rewrite(path, lambda weights: weights.update({"output.bias": torch.zeros(14)}))
    rewrite(path, lambda weights: weights.update({"extra": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=r"extra is of shape \(3,\), expected missing"):
        Run.open(run.path).load_model()


def test_weights_without_metadata_are_refused(run):
    path = run.path / "best.safetensors"
    save_file(load_file(path), path)
    with pytest.raises(CheckpointError, match="best.safetensors is damaged"):
        Run.open(run.path).load_model()
