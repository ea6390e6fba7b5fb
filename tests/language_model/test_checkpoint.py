"""Runs on disk: what is written comes back, and what is damaged is refused."""

import dataclasses
import logging
import math
import resource
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rnnfast.language_model import (
    Checkpoint,
    CheckpointError,
    EpochResult,
    LanguageModel,
    Run,
    fit,
    new_optimizer,
)
from rnnfast.language_model.checkpoint import _content_fingerprint
from rnnfast.text import Vocabulary, write_atomically

FILES = {"config.toml", "vocabulary.json", "best.safetensors", "last.safetensors", ".lock"}


def result(epoch: int, valid_perplexity: float = 12.5) -> EpochResult:
    valid_loss = math.log(valid_perplexity)
    return EpochResult(epoch, 1.0, 10.0, valid_perplexity, 1000.0, math.log(10), valid_loss, 0.1)


def checkpoint_of(model, *results, window=0, optimizer=None) -> Checkpoint:
    """A checkpoint whose best weights are the present ones."""
    weights = model.state_dict()
    return Checkpoint(
        weights=weights,
        best_weights={name: value.clone() for name, value in weights.items()} if results else {},
        optimizer=(optimizer or torch.optim.SGD(model.parameters())).state_dict(),
        state={"layers.0.h": torch.rand(1, 4, 16), "layers.0.c": torch.rand(1, 4, 16)},
        generators={"cpu": torch.get_rng_state()[None]},
        results=results,
        window=window,
        nats=torch.tensor([1 / 3], dtype=torch.float64),
        num_tokens=40,
        seconds=0.1,
    )


@pytest.fixture
def model(config, corpus) -> LanguageModel:
    return LanguageModel(len(corpus.vocabulary), config.model, seed=5)


@pytest.fixture
def run(tmp_path, config, corpus, model) -> Run:
    run = Run.create(tmp_path / "runs" / "first", config, corpus.vocabulary)
    run.begin()
    run.save(checkpoint_of(model, result(1)), is_best=True)
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
    before = checkpoint_of(model, result(1))
    with torch.no_grad():
        model.output.bias.fill_(7.0)
    after = dataclasses.replace(before, weights=model.state_dict())
    run.save(dataclasses.replace(after, results=(result(1), result(2, 13.0))), is_best=False)
    opened = Run.open(run.path)
    assert opened.load_model("last").output.bias.eq(7).all()
    assert not opened.load_model().output.bias.eq(7).any()
    with safe_open(run.path / "best.safetensors", framework="pt") as file:
        assert file.metadata()["epoch"] == "1"
        assert float(file.metadata()["valid_perplexity"]) == 12.5
    with pytest.raises(CheckpointError, match="unknown weights 'first'"):
        opened.load_model("first")


def assert_equal(value, expected):
    """Bit for bit, types too."""
    assert type(value) is type(expected)
    if isinstance(value, dict):
        assert value.keys() == expected.keys()
        for key in value:
            assert_equal(value[key], expected[key])
    elif isinstance(value, (list, tuple)):
        assert len(value) == len(expected)
        for one, other in zip(value, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(value, torch.Tensor):
        assert value.dtype == expected.dtype
        assert value.equal(expected)
    else:
        assert value == expected


@pytest.mark.parametrize("name", ["sgd", "adadelta", "adam", "adamw", "asgd"])
def test_a_checkpoint_comes_back_as_it_was(run, config, model, name):
    settings = config.replace(optimizer=name, weight_decay=0.1).training
    optimizer = new_optimizer(model, settings)
    if name == "asgd":
        optimizer.start_averaging()
    for _ in range(2):
        optimizer.zero_grad()
        model.loss(torch.ones(3, 2, dtype=torch.int64), torch.zeros(3, 2, dtype=torch.int64))[
            0
        ].backward()
        optimizer.step()
    results = (result(1), dataclasses.replace(result(2, 13.1), valid_accuracy=0.25))
    saved = checkpoint_of(model, *results, window=3, optimizer=optimizer)
    run.save(saved, is_best=False)
    read = Run.open(run.path).checkpoint()
    for field in dataclasses.fields(Checkpoint):
        value, expected = getattr(read, field.name), getattr(saved, field.name)
        assert_equal(
            dict(value) if isinstance(expected, dict) else value,
            (dict(expected) if isinstance(expected, dict) else expected),
        )


def test_tied_weights_come_back_tied(tmp_path, config, corpus):
    config = config.replace(tied=True)
    model = LanguageModel(len(corpus.vocabulary), config.model, seed=5)
    run = Run.create(tmp_path / "tied", config, corpus.vocabulary)
    run.begin()
    run.save(checkpoint_of(model, result(1)), is_best=True)
    for name in ("best", "last"):
        loaded = run.load_model(name)
        assert loaded.output.weight is loaded.embedding.weight
        assert loaded.output.weight.equal(model.output.weight)


def test_a_run_without_a_checkpoint_starts_from_nothing(tmp_path, config, corpus):
    run = Run.create(tmp_path / "run", config, corpus.vocabulary)
    run.begin()
    assert Run.open(run.path).checkpoint() is None


def damage(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_used(run, model, caplog):
    second = checkpoint_of(model, result(1), window=2)
    run.save(second, is_best=False)
    damage(run.path / "last.safetensors")
    opened = Run.open(run.path)
    with caplog.at_level(logging.WARNING):
        assert opened.checkpoint().window == 0
    (message,) = caplog.messages
    assert "last.safetensors is damaged" in message
    assert message.endswith(f"going on from {run.path / 'previous.safetensors'}")

    # What is damaged does not take the place of what is not.
    opened.begin()
    previous = (run.path / "previous.safetensors").read_bytes()
    opened.save(checkpoint_of(model, result(1), window=1), is_best=False)
    assert (run.path / "previous.safetensors").read_bytes() == previous
    assert Run.open(run.path).checkpoint().window == 1
    opened.save(second, is_best=False)
    damage(run.path / "last.safetensors")
    assert Run.open(run.path).checkpoint().window == 1

    damage(run.path / "previous.safetensors")
    with pytest.raises(CheckpointError, match="last.safetensors is damaged.*; .*previous.safeten"):
        Run.open(run.path).checkpoint()


def test_a_kill_between_the_renames_leaves_the_checkpoint_before(run, model, caplog):
    (run.path / "last.safetensors").rename(run.path / "previous.safetensors")
    (run.path / ".last.safetensors.tmp").write_bytes(b"half of a checkpoint")
    opened = Run.open(run.path)
    assert opened.checkpoint().results == (result(1),)
    assert caplog.messages == []
    opened.begin()
    opened.save(checkpoint_of(model, result(1), window=1), is_best=False)
    assert Run.open(run.path).checkpoint().window == 1
    assert not (run.path / ".last.safetensors.tmp").exists()


def test_best_weights_that_are_damaged_are_written_anew(run, model, caplog):
    damage(run.path / "best.safetensors")
    Run.open(run.path).checkpoint()
    (message,) = caplog.messages
    assert "best.safetensors is damaged" in message
    loaded = Run.open(run.path).load_model()
    assert_equal(dict(loaded.state_dict()), dict(model.state_dict()))


def test_a_run_without_its_checkpoints_is_refused(run):
    (run.path / "last.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has weights, but no checkpoint to go on from"):
        Run.open(run.path).checkpoint()


def test_training_from_the_start_does_not_replace_a_run_that_was_opened(run, config, corpus, model):
    before = contents(run.path)
    with pytest.raises(CheckpointError, match=r"start=run.checkpoint\(\) goes on with it"):
        fit(model, corpus, config.training, recorder=Run.open(run.path), show_progress=False)
    assert contents(run.path) == before


def test_settings_that_a_later_version_adds_have_their_default(tmp_path, config, corpus, model):
    run = Run.create(tmp_path / "run", config, corpus.vocabulary)
    del run._tables["training"]["non_monotone"]
    run.begin()
    run.save(checkpoint_of(model, result(1)), is_best=True)
    for epochs in (None, 9):
        opened = Run.open(run.path, epochs=epochs)
        assert opened.config.training.non_monotone == 5
        opened.load_model()
        opened.checkpoint()
        opened.begin()
    opened.save(checkpoint_of(model, result(1), window=1), is_best=False)
    Run.open(run.path).load_model()
    assert Run.open(run.path).checkpoint().window == 1


def test_two_processes_do_not_train_in_one_folder(run):
    code = f"""
import fcntl, sys
file = open({str(run.path / ".lock")!r}, "w")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("locked", flush=True)
sys.stdin.read()
"""
    del run._locked  # this process holds it
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"locked\n"
        opened = Run.open(run.path)
        opened.checkpoint()
        with pytest.raises(CheckpointError, match="another process is training in .*first"):
            opened.begin()
        other.kill()
        other.wait()
        opened.begin()


def test_epochs_are_no_part_of_what_must_agree(run):
    opened = Run.open(run.path, epochs=9)
    assert opened.config.training.epochs == 9
    assert opened.checkpoint().results == (result(1),)
    assert Run.open(run.path).config.training.epochs == 3
    opened.begin()
    assert Run.open(run.path).config.training.epochs == 9


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


def test_a_run_is_replaced_when_the_training_begins(run, config, corpus, model):
    before = contents(run.path)
    new_config = config.replace(seed=9)
    new = Run.create(run.path, new_config, corpus.vocabulary, overwrite=True)
    assert contents(run.path) == before
    new.begin()
    opened = Run.open(run.path)
    assert opened.config == new_config
    assert opened.checkpoint() is None
    new.save(checkpoint_of(model, result(1)), is_best=True)
    opened.load_model("best")
    opened.load_model("last")


def test_a_replaced_run_leaves_no_table_of_its_epochs(run, config, corpus):
    (run.path / "log.csv").write_text("epoch\n1\n")
    Run.create(run.path, config, corpus.vocabulary, overwrite=True).begin()
    assert not (run.path / "log.csv").exists()


def test_a_run_that_was_trained_since_is_not_replaced(tmp_path, config, corpus, model):
    first, second = (Run.create(tmp_path / "x", config, corpus.vocabulary) for _ in range(2))
    first.begin()
    first.save(checkpoint_of(model, result(1)), is_best=True)
    before = contents(first.path)
    with pytest.raises(CheckpointError, match="already holds a run"):
        second.begin()
    assert contents(first.path) == before


def test_missing_files_are_named(run, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere is not a folder"):
        Run.open(tmp_path / "nowhere")
    (run.path / "best.safetensors").unlink()
    with pytest.raises(CheckpointError, match="best.safetensors is missing"):
        Run.open(run.path).load_model()
    (run.path / "vocabulary.json").unlink()
    with pytest.raises(CheckpointError, match="vocabulary.json is missing"):
        Run.open(run.path)
    (run.path / "config.toml").unlink()
    with pytest.raises(CheckpointError, match="config.toml is missing"):
        Run.open(run.path)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.02, 0.5, 0.99])
def test_truncated_weights_are_refused(run, kept):
    path = run.path / "best.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match="best.safetensors is truncated or damaged"):
        Run.open(run.path).load_model()


def test_weights_with_one_wrong_bit_are_refused(run):
    damage(run.path / "best.safetensors")
    with pytest.raises(CheckpointError, match="best.safetensors is damaged"):
        Run.open(run.path).load_model()


@pytest.mark.parametrize("name", ["config.toml", "vocabulary.json"])
def test_truncated_settings_are_refused(run, name):
    path = run.path / name
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"=") + 1] if b"=" in content else content[:-20])
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        Run.open(run.path)


def test_vocabulary_of_another_run_is_refused(run, corpus):
    tokens = list(corpus.vocabulary.tokens)
    tokens[0], tokens[1] = tokens[1], tokens[0]
    Vocabulary(tokens).save(run.path / "vocabulary.json")
    with pytest.raises(CheckpointError, match="was not trained with .*vocabulary.json"):
        Run.open(run.path).load_model()


def test_settings_of_another_run_are_refused(run):
    path = run.path / "config.toml"
    path.write_text(path.read_text().replace("hidden_size = 16", "hidden_size = 32"))
    with pytest.raises(CheckpointError, match="was not trained with .*config.toml"):
        Run.open(run.path).load_model()


def rewrite(path, change):
    """Write a weights file that is sound in itself but for what ``change`` does to it."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    weights = load_file(path)
    change(weights)
    del metadata["content"]
    save_file(weights, path, {**metadata, "content": _content_fingerprint(weights, metadata)})


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


def test_weights_in_the_place_of_a_checkpoint_are_refused(run):
    """The best weights alone, copied over the last checkpoint: whole, but not what is needed."""
    (run.path / "last.safetensors").write_bytes((run.path / "best.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="last.safetensors holds weights alone"):
        Run.open(run.path).checkpoint()


def test_a_file_that_the_disk_has_no_room_for_is_named(run, model):
    before = contents(run.path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        for write in (
            lambda: run.save(checkpoint_of(model, result(1)), is_best=False),
            lambda: write_atomically(run.path / "log.csv", bytes(200)),
        ):
            with pytest.raises(OSError, match=r"File too large: '.*(last.safetensors|log.csv)"):
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    after = contents(run.path)
    assert {name: after[name] for name in before} == before
