"""The model: its parts, its initial weights, what drops and what resets."""

import math

import pytest
import torch
from torch import nn

import rnnfast
from rnnfast import _C
from rnnfast.language_model import Hidden, LanguageModel, ModelConfig, State, sequence_loss
from rnnfast.language_model.config import BACKENDS, CELLS, INITS
from rnnfast.text import InputError

V = 30
CELL_OPTIONS = {
    "lstm": {"cell": "lstm"},
    "gru": {"cell": "gru"},
    "rnn": {"cell": "rnn"},
    "relu": {"cell": "rnn", "nonlinearity": "relu"},
}
SOFTMAXES = {
    "full": {},
    "tied": {"tied": True, "embedding_size": 16},
    "one hot": {"embedding": "one_hot"},
    "adaptive": {"softmax": "adaptive", "cutoffs": (10,)},
}
SIZES = {"one layer": 16, "equal": (16, 16), "unequal": (24, 16)}


def window(steps: int = 7, batch: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(V, (steps, batch)), torch.randint(V, (steps, batch))


def trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


# Parts.


def test_parameters_are_those_of_the_tutorials_model():
    model = LanguageModel(50, ModelConfig(hidden_size=8, num_layers=2, backend="torch"))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes == {
        "embedding.weight": (50, 8),
        "layers.0.weight_ih_l0": (32, 8),
        "layers.0.weight_hh_l0": (32, 8),
        "layers.0.bias_ih_l0": (32,),
        "layers.0.bias_hh_l0": (32,),
        "layers.1.weight_ih_l0": (32, 8),
        "layers.1.weight_hh_l0": (32, 8),
        "layers.1.bias_ih_l0": (32,),
        "layers.1.bias_hh_l0": (32,),
        "output.weight": (50, 8),
        "output.bias": (50,),
    }


@pytest.mark.parametrize("cell", CELLS)
def test_backend_is_whose_layers_run(cell):
    for backend, package in (("torch", nn), ("rnnfast", rnnfast)):
        model = LanguageModel(5, ModelConfig(2, cell=cell, backend=backend))
        assert type(model.layers[0]) is getattr(package, cell.upper())


def test_layers_have_sizes_of_their_own():
    model = LanguageModel(V, ModelConfig((6, 4, 5), embedding_size=3))
    assert [(layer.input_size, layer.hidden_size) for layer in model.layers] == [
        (3, 6),
        (6, 4),
        (4, 5),
    ]
    logits, state = model(window()[0])
    assert logits.shape == (7, 5, V)
    assert [h.shape for h, _ in state.layers] == [(1, 5, 6), (1, 5, 4), (1, 5, 5)]


def test_keras_model_has_the_weights_of_its_summary():
    config = ModelConfig(1024, embedding_size=256, single_bias=True)
    model = LanguageModel(65, config)
    assert trainable(model.layers) == 5_246_976
    assert trainable(model.embedding) == 65 * 256
    assert trainable(model.output) == 1025 * 65


def test_the_second_bias_stays_zero_with_a_single_one():
    model = LanguageModel(V, ModelConfig(8, 2, single_bias=True))
    loss, _ = model.loss(*window())
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    for layer in model.layers:
        assert layer.bias_ih_l0.grad.any()
        assert not layer.bias_hh_l0.any()


@pytest.mark.parametrize("init", ["uniform", "normal", "torch", "embeddings"])
def test_a_single_bias_starts_at_zero_but_for_the_forget_gate(init):
    model = LanguageModel(V, ModelConfig(8, single_bias=True, init=init, forget_bias=1.0))
    (layer,) = model.layers
    assert layer.bias_ih_l0.tolist() == [0.0] * 8 + [1.0] * 8 + [0.0] * 16
    assert not layer.bias_hh_l0.any()


def test_tied_softmax_has_the_embeddings_weights_and_a_bias():
    model = LanguageModel(V, ModelConfig((24, 16), embedding_size=16, tied=True))
    assert model.output.weight is model.embedding.weight
    assert model.output.bias.shape == (V,)
    again = LanguageModel(V, ModelConfig((24, 16), embedding_size=16, tied=True), seed=1)
    again.load_state_dict(model.state_dict())
    assert again.output.weight is again.embedding.weight
    assert again.output.weight.equal(model.output.weight)


def test_one_hot_vectors_select_a_column_of_the_first_weight():
    model = LanguageModel(V, ModelConfig(8, cell="rnn", embedding="one_hot")).double()
    assert not list(model.embedding.parameters())
    vectors = model.embedding(torch.tensor([[3, 0], [29, 3]]))
    assert vectors.dtype == torch.float64
    assert vectors.equal(torch.eye(V, dtype=torch.float64)[torch.tensor([[3, 0], [29, 3]])])
    layer = model.layers[0]
    output, _ = layer(vectors)
    bias = layer.bias_ih_l0 + layer.bias_hh_l0
    torch.testing.assert_close(output[0, 0], (layer.weight_ih_l0[:, 3] + bias).tanh())


def test_original_gru_is_another_function_than_torchs():
    input, _ = window()
    results = [
        LanguageModel(V, ModelConfig(8, cell="gru", reset_after=form), seed=1)(input)[0]
        for form in (True, False)
    ]
    assert not results[0].allclose(results[1])


def test_repr_tells_the_shape():
    text = repr(LanguageModel(V, ModelConfig((24, 16), embedding_size=16, tied=True)))
    for part in ("LSTM(16, 24)", "LSTM(24, 16)", "backend='rnnfast'", "tied=True"):
        assert part in text


# Initial weights.


def assert_uniform(values: torch.Tensor, scale: float) -> None:
    """Of a uniform distribution on [-s, s]: mean 0, standard deviation s / sqrt(3)."""
    values = values.detach().flatten()
    assert 0.95 * scale < values.abs().max() <= scale
    assert abs(values.mean()) < 5 * scale / math.sqrt(3 * len(values))
    assert values.std().item() == pytest.approx(scale / math.sqrt(3), rel=0.05)


def assert_normal(values: torch.Tensor, scale: float) -> None:
    values = values.detach().flatten()
    assert abs(values.mean()) < 5 * scale / math.sqrt(len(values))
    assert values.std().item() == pytest.approx(scale, rel=0.05)
    # A third of them is farther than that from the mean.
    assert (values.abs() > scale).float().mean().item() == pytest.approx(0.317, abs=0.02)


def test_uniform_weights_and_biases():
    model = LanguageModel(100, ModelConfig(hidden_size=40, init_scale=0.05))
    for parameter in model.parameters():
        assert parameter.abs().max() <= 0.05
    assert_uniform(nn.utils.parameters_to_vector(model.parameters()), 0.05)


def test_normal_weights_and_zero_biases():
    config = ModelConfig(hidden_size=40, init="normal", init_scale=0.01)
    model = LanguageModel(100, config)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            assert not parameter.any(), name
        else:
            assert_normal(parameter, 0.01)


def test_torchs_weights_are_distributed_as_torchs():
    model = LanguageModel(300, ModelConfig(100, embedding_size=50, init="torch"), seed=1)
    assert_normal(model.embedding.weight, 1.0)
    assert_uniform(nn.utils.parameters_to_vector(model.layers.parameters()), 0.1)
    assert_uniform(model.output.weight, 0.1)
    assert_uniform(model.output.bias, 0.1)


def test_torchs_recurrent_weights_beside_scaled_embeddings():
    model = LanguageModel(300, ModelConfig(100, 2, init="embeddings", init_scale=0.05))
    assert_uniform(model.embedding.weight, 0.05)
    assert_uniform(nn.utils.parameters_to_vector(model.layers.parameters()), 0.1)
    assert_uniform(model.output.weight, 0.05)
    assert not model.output.bias.any()


def test_adaptive_softmax_starts_as_torchs():
    options = SOFTMAXES["adaptive"]
    model = LanguageModel(900, ModelConfig(256, init="torch", **options))
    clusters = model.output.clusters
    assert_uniform(clusters.head.weight, 1 / 16)
    projection, cluster = clusters.tail[0]
    assert_uniform(projection.weight, 1 / 16)
    assert_uniform(cluster.weight, 1 / math.sqrt(256 / 4))


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("cell", CELLS)
def test_weights_come_from_the_seed_alone(init, cell):
    config = ModelConfig((8, 6), cell=cell, init=init, backend="torch")
    model = LanguageModel(V, config, seed=3)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = LanguageModel(V, config, seed=3)
    assert torch.get_rng_state().equal(before)
    ours = LanguageModel(V, ModelConfig((8, 6), cell=cell, init=init), seed=3)
    other = LanguageModel(V, config, seed=4)
    for name, value in model.state_dict().items():
        assert value.equal(again.state_dict()[name])
        assert value.equal(ours.state_dict()[name])
        assert not value.equal(other.state_dict()[name]) or not value.any()
    other.reset_parameters(3)
    assert nn.utils.parameters_to_vector(other.parameters()).equal(
        nn.utils.parameters_to_vector(model.parameters())
    )


def test_forget_bias_is_added_once_to_the_forget_gate():
    plain = LanguageModel(V, ModelConfig((8, 6)), seed=2).state_dict()
    model = LanguageModel(V, ModelConfig((8, 6), forget_bias=1.5), seed=2)
    for name, value in model.state_dict().items():
        expected = plain[name].clone()
        if name.endswith("bias_ih_l0"):
            size = len(expected) // 4
            expected[size : 2 * size] += 1.5
        assert value.equal(expected), name


# Both backends, in every shape.


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("softmax", SOFTMAXES)
@pytest.mark.parametrize("cell", CELL_OPTIONS)
def test_backends_agree_on_outputs_and_gradients_from_the_same_seed(cell, softmax, size):
    input, target = window()
    reset = torch.rand(input.shape) < 0.1
    options = {"hidden_size": SIZES[size], **CELL_OPTIONS[cell], **SOFTMAXES[softmax]}
    results = {}
    for backend in BACKENDS:
        model = LanguageModel(V, ModelConfig(**options, backend=backend), seed=2).double()
        _, state = model(input)
        logits, after = model(input, state, reset)
        loss, _ = model.loss(input, target, state, reset)
        torch.testing.assert_close(loss, sequence_loss(logits, target))
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results[backend] = logits, after.layers, gradients
    torch.testing.assert_close(results["rnnfast"], results["torch"])


DROPOUTS = {
    "ordinary": {"dropout": 0.5},
    "locked": {"dropout": 0.5, "locked_dropout": True},
    "all": {
        "input_dropout": 0.3,
        "hidden_dropout": 0.4,
        "output_dropout": 0.5,
        "embedding_dropout": 0.2,
        "weight_dropout": 0.5,
        "locked_dropout": True,
    },
}


@pytest.mark.parametrize("dropouts", DROPOUTS)
def test_backends_agree_with_what_is_dropped_from_the_same_seed(dropouts):
    input, target = window()
    results = {}
    for backend in BACKENDS:
        config = ModelConfig((24, 16), **DROPOUTS[dropouts], backend=backend)
        model = LanguageModel(V, config, seed=2).double()
        torch.manual_seed(5)
        loss, state = model.loss(input, target)
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results[backend] = loss, state.layers, gradients
    torch.testing.assert_close(results["rnnfast"], results["torch"])


def test_sparse_gradient_of_the_embedding_is_the_dense_one():
    config = ModelConfig(16, embedding_dropout=0.3)
    input, target = window()
    gradients = []
    for sparse in (False, True):
        model = LanguageModel(V, config)
        model.embedding.sparse = sparse
        torch.manual_seed(1)
        model.loss(input, target)[0].backward()
        assert model.embedding.weight.grad.is_sparse == sparse
        gradients.append(model.embedding.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1].to_dense())


# The state.


@pytest.mark.parametrize("cell", CELLS)
def test_a_text_in_two_windows_gives_what_it_gives_in_one(cell):
    model = LanguageModel(V, ModelConfig((8, 6), cell=cell))
    input, _ = window(9, 3)
    whole, final = model(input)
    first, state = model(input[:4])
    assert isinstance(state, State)
    assert [len(layer) for layer in state.layers] == [2 if cell == "lstm" else 1] * 2
    second, state = model(input[4:], state.detach())
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(state, final)


@pytest.mark.parametrize("cell", CELLS)
def test_a_reset_row_forgets_what_was_before(cell):
    model = LanguageModel(V, ModelConfig((8, 6), cell=cell))
    input, _ = window(9, 3)
    _, state = model(window(4, 3)[0])
    reset = torch.zeros(9, 3, dtype=torch.bool)
    reset[4, 1] = reset[0, 2] = True
    logits, final = model(input, state, reset)

    undisturbed, undisturbed_final = model(input, state)
    torch.testing.assert_close(logits[:, 0], undisturbed[:, 0])
    torch.testing.assert_close(logits[:4, 1], undisturbed[:4, 1])
    from_step_4, final_from_step_4 = model(input[4:, 1:2])
    torch.testing.assert_close(logits[4:, 1:2], from_step_4)
    from_zeros, final_from_zeros = model(input[:, 2:])
    torch.testing.assert_close(logits[:, 2:], from_zeros)
    for row, expected in enumerate(
        (undisturbed_final.select(torch.tensor([0])), final_from_step_4, final_from_zeros)
    ):
        torch.testing.assert_close(final.select(torch.tensor([row])), expected)


def test_a_reset_of_nothing_is_none():
    model = LanguageModel(V, ModelConfig(8))
    input, _ = window()
    nowhere = torch.zeros(7, 5, dtype=torch.bool)
    assert model(input, None, nowhere)[0].equal(model(input)[0])


def test_hidden_gives_what_the_softmax_reads():
    model = LanguageModel(V, ModelConfig((8, 6), output_dropout=0.5))
    input, target = window()
    raw, output, state = hidden = model.hidden(input)
    assert isinstance(hidden, Hidden)
    assert raw.shape == (7, 5, 6)
    torch.testing.assert_close(raw[-1:], state.layers[1][0])
    kept = output != 0
    assert kept.any() and not kept.all()
    torch.testing.assert_close(output[kept], 2 * raw[kept])
    torch.testing.assert_close(
        model.loss_of(output, target), sequence_loss(model.output(output), target)
    )
    model.eval()
    hidden = model.hidden(input)
    assert hidden.output is hidden.raw


# What is dropped.


def seen_by(module: nn.Module) -> list[torch.Tensor]:
    """What the module will have been called with."""
    seen: list[torch.Tensor] = []
    module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    return seen


def test_each_dropout_acts_in_its_place():
    almost_all = 1 - 1e-7
    nothing = {"input_dropout": 0, "hidden_dropout": 0, "output_dropout": 0}
    for name, place in (("input_dropout", 0), ("hidden_dropout", 1), ("output_dropout", 2)):
        for locked in (False, True):
            options = {**nothing, name: almost_all, "locked_dropout": locked}
            model = LanguageModel(V, ModelConfig(6, 2, **options))
            read = [seen_by(module) for module in (*model.layers, model.output)]
            model(window()[0])
            assert [bool(x[0].any()) for x in read] == [index != place for index in range(3)], name


def test_dropout_is_the_default_of_three():
    model = LanguageModel(V, ModelConfig(6, 2, dropout=0.25, hidden_dropout=0.5))
    probabilities = [
        module.p for module in (model.input_dropout, model.hidden_dropout, model.output_dropout)
    ]
    assert probabilities == [0.25, 0.5, 0.25]


def test_locked_dropout_lasts_a_window_and_no_longer():
    model = LanguageModel(V, ModelConfig(16, 2, dropout=0.5, locked_dropout=True))
    read = [seen_by(module) for module in (*model.layers, model.output)]
    input, _ = window()
    model(input)
    model(input)
    for first, second in read:
        gone = first == 0
        assert gone.any() and not gone.all()
        assert gone.equal(gone[:1].expand_as(gone))
        assert not gone.equal(second == 0)


def test_embedding_dropout_drops_words():
    model = LanguageModel(V, ModelConfig(16, embedding_dropout=0.5))
    read = seen_by(model.layers[0])
    input, _ = window(20, 10)
    model(input)
    gone = (read[0] == 0).all(-1)
    assert gone.any() and not gone.all()
    assert not set(input[gone].tolist()) & set(input[~gone].tolist())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dropouts", DROPOUTS)
def test_dropout_acts_in_training_only(dropouts, backend):
    config = ModelConfig((8, 6), **DROPOUTS[dropouts], backend=backend)
    plain = LanguageModel(V, ModelConfig((8, 6), backend=backend), seed=1)
    model = LanguageModel(V, config, seed=1)
    input, _ = window()
    assert not model(input)[0].equal(model(input)[0])
    model.eval()
    assert model(input)[0].equal(plain(input)[0])
    # What is dropped leaves no trace among the weights.
    assert model.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(model.state_dict())


@pytest.mark.parametrize("backend", BACKENDS)
def test_weight_dropout_drops_recurrent_weights_once_a_window(backend):
    """Without any input but the state, one step shows the weights that were used."""
    config = ModelConfig(16, cell="rnn", nonlinearity="relu", weight_dropout=0.5, backend=backend)
    model = LanguageModel(V, config, seed=1)
    layer = model.layers[0]
    with torch.no_grad():
        layer.weight_hh_l0.fill_(0.5)
        for weight in (layer.weight_ih_l0, layer.bias_ih_l0, layer.bias_hh_l0):
            weight.zero_()
    input = torch.zeros(1, 16, dtype=torch.int64)
    units = State(((torch.eye(16).unsqueeze(0),),))
    used = model.hidden(input, units).raw[0].T
    assert set(used.unique().tolist()) == {0.0, 1.0}
    assert not model.hidden(input, units).raw[0].T.equal(used)
    # With a reset in the window, too, all of it has the same weights.
    reset = torch.zeros(2, 16, dtype=torch.bool)
    reset[1, 0] = True
    first, second = model.hidden(input.expand(2, 16), units, reset).raw
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert not second[0].any()
    torch.testing.assert_close(second[1:], (first @ first)[1:])
    model.eval()
    assert model.hidden(input, units).raw[0].eq(0.5).all()


# Precision.


def test_precision_is_the_models_own():
    options = {"hidden_size": (64, 48), "softmax": "full"}
    coarse = LanguageModel(V, ModelConfig(**options, precision="bf16"), seed=1)
    fine = LanguageModel(V, ModelConfig(**options), seed=1)
    input, target = window(20, 20)
    during = []
    coarse.layers[1].register_forward_hook(lambda *_: during.append(rnnfast.get_precision()))
    losses, gradients = [], []
    for model in (fine, coarse, fine):
        model.zero_grad()
        loss, _ = model.loss(input, target)
        assert rnnfast.get_precision() == "fp32"
        loss.backward()
        losses.append(loss)
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert during == ["bf16"]
    assert losses[2].equal(losses[0])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-2, atol=0)
    for exact, rounded in zip(gradients[0], gradients[1], strict=True):
        assert (rounded - exact).abs().max() <= 0.03 * exact.abs().max()
    if "avx512bf16" in _C.kernel_calls():
        assert not losses[1].equal(losses[0])
        assert not gradients[1][0].equal(gradients[0][0])


def test_precision_is_put_back_after_an_error():
    model = LanguageModel(V, ModelConfig(16, precision="bf16"))
    input, target = window()
    with pytest.raises(InputError, match="target must hold ids"):
        model.loss(input, target + V)
    assert rnnfast.get_precision() == "fp32"


# Learning, and what is refused.


@pytest.mark.parametrize("softmax", SOFTMAXES)
@pytest.mark.parametrize("cell", [*CELL_OPTIONS, "original gru"])
def test_every_variant_learns_one_batch_by_heart(cell, softmax):
    options = {"cell": "gru", "reset_after": False} if cell == "original gru" else None
    options = {**(options or CELL_OPTIONS[cell]), **SOFTMAXES[softmax]}
    model = LanguageModel(V, ModelConfig((24, 16), **options), seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(2)
    input, target = torch.randint(V, (2, 6, 4), generator=generator)
    for _ in range(120):
        loss, _ = model.loss(input, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # From chance, log(30) = 3.4 nats a token.
    assert loss.item() / 6 < 0.2


IDS = torch.zeros(3, 2, dtype=torch.int64)
OTHER = State(((torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)),) * 2)


@pytest.mark.parametrize("embedding", ["learned", "one_hot"])
@pytest.mark.parametrize("id", [-1, V])
def test_an_id_out_of_range_is_named(embedding, id):
    model = LanguageModel(V, ModelConfig(4, embedding=embedding))
    ids = IDS.clone()
    ids[1, 1] = id
    with pytest.raises(InputError, match=f"input must hold ids from 0 to 29, got .*{id}"):
        model(ids)


@pytest.mark.parametrize("softmax", [{}, {"softmax": "adaptive", "cutoffs": (3,)}])
@pytest.mark.parametrize("backend", ["rnnfast", "torch"])
def test_a_target_outside_the_vocabulary_is_told(backend, softmax):
    model = LanguageModel(V, ModelConfig(4, backend=backend, **softmax))
    target = IDS.clone()
    target[1, 1] = V
    with pytest.raises(InputError, match=f"target must hold ids from 0 to {V - 1}, got .*{V}"):
        model.loss(IDS, target)


def test_a_vocabulary_beyond_any_memory_is_refused():
    with pytest.raises(InputError, match=f"vocab_size must be .*, got {2**64}"):
        LanguageModel(2**64, ModelConfig(4))


@pytest.mark.parametrize(
    "arguments,message",
    [
        ((IDS[0],), r"input must have the shape \(seq_len, batch\), .*got \(2,\)"),
        ((IDS[:0],), r"input must have .* each at least 1, got \(0, 2\)"),
        ((IDS[:, :0],), r"input must have .* each at least 1, got \(3, 0\)"),
        ((IDS, None, IDS[1:] > 0), r"reset must be bool .*\(3, 2\), got torch.bool with \(2, 2\)"),
        ((IDS, None, IDS), r"reset must be bool .*got torch.int64"),
        ((IDS, State(())), r"state must be of 2 layers and 2 rows.*got 0 layers and 0 rows"),
        ((IDS, OTHER), r"state must be of 2 layers and 2 rows.*got 2 layers and 3 rows"),
        ((IDS, OTHER, IDS > 0), r"state must be of 2 layers and 2 rows"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, message):
    model = LanguageModel(V, ModelConfig(4, 2))
    with pytest.raises(InputError, match=message):
        model(*arguments)


def test_a_target_of_another_shape_is_named():
    model = LanguageModel(V, ModelConfig(4))
    with pytest.raises(InputError, match=r"target must have the shape of input, \(3, 2\), got"):
        model.loss(IDS, IDS.T)


def test_a_vocabulary_too_small_for_the_cutoffs_is_refused():
    with pytest.raises(InputError, match="below the vocabulary's size, 20"):
        LanguageModel(20, ModelConfig(16, softmax="adaptive", cutoffs=(5, 20)))


@pytest.mark.parametrize("size", [0, -1, 2.0, None])
def test_an_empty_vocabulary_is_refused(size):
    with pytest.raises(InputError, match=f"vocab_size must be an integer .*got {size}"):
        LanguageModel(size, ModelConfig(4))
