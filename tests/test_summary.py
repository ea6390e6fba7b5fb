"""The table of layers: its counts against the parameters themselves, its shapes, its look."""

import importlib

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_sequence

import rnnfast
from rnnfast import summary
from rnnfast.language_model import LanguageModel, preset


class Keras(nn.Module):
    """The character model of Keras' text generation."""

    def __init__(self, vocab_size: int = 65) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, 256)
        self.lstm = rnnfast.LSTM(256, 1024)
        # Keras' LSTM has one bias.
        nn.init.zeros_(self.lstm.bias_hh_l0.requires_grad_(False))
        self.dropout = nn.Dropout(0.25)
        self.dense = nn.Linear(1024, vocab_size)

    def forward(self, input):
        return self.dense(self.dropout(self.lstm(self.embedding(input))[0]))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.layers = nn.ModuleList([nn.GRU(8, 8), nn.GRU(8, 8, num_layers=2)])
        self.output = nn.Linear(8, 50)
        self.output.weight = self.embedding.weight

    def forward(self, input, *, scale=1.0):
        x = self.embedding(input) * scale
        for layer in self.layers:
            x, _ = layer(x)
        return {"logits": self.output(x), "hidden": x}


def by_name(table) -> dict:
    return {row.name: row for row in table.rows}


def test_the_table_of_keras_character_model():
    example = torch.zeros(10, 4, dtype=torch.int64)
    table = summary(Keras(), example)
    assert str(table) == (
        "Keras\n"
        "layer      type                output shape   trainable  fixed\n"
        "--------------------------------------------------------------\n"
        "embedding  Embedding(65, 256)  (10, 4, 256)      16,640      0\n"
        "lstm       LSTM(256, 1024)     (10, 4, 1024)  5,246,976  4,096\n"
        "dropout    Dropout(p=0.25)     (10, 4, 1024)          0      0\n"
        "dense      Linear(1024, 65)    (10, 4, 65)       66,625      0\n"
        "--------------------------------------------------------------\n"
        "total                                         5,330,241  4,096\n"
        "\n"
        "5,334,337 in all, 21,337,348 bytes of float32"
    )
    assert repr(table) == str(table)
    assert (table.trainable, table.fixed, table.total) == (5_330_241, 4_096, 5_334_337)


def test_shared_weights_count_once_and_are_marked():
    model = Tied()
    table = summary(model)
    output = by_name(table)["output"]
    assert (output.trainable, output.shared) == (50, {"weight": "embedding.weight"})
    assert table.total == sum(p.numel() for p in model.parameters())
    lines = str(table).splitlines()
    assert [line.endswith("*") for line in lines].count(True) == 1
    assert "* output shares weight with embedding.weight: counted there" in lines


def test_output_shapes_come_from_an_example():
    example = torch.zeros(7, 3, dtype=torch.int64)
    table = summary(Tied(), example, scale=2.0)
    assert [row.output_shape for row in table.rows] == [(7, 3, 8)] * 3 + [(7, 3, 50)]
    assert all(row.output_shape is None for row in summary(Tied()).rows)
    assert [row.type for row in table.rows] == [
        "Embedding(50, 8)",
        "GRU(8, 8)",
        "GRU(8, 8, num_layers=2)",
        "Linear(8, 50)",
    ]
    packed = pack_sequence([torch.zeros(3, 5), torch.zeros(2, 5)])
    (row,) = summary(nn.LSTM(5, 4), packed).rows
    assert (row.name, row.output_shape) == ("(root)", (5, 4))


def test_a_model_may_bring_its_example():
    model = Tied()
    model.example_input_array = torch.zeros(2, 1, dtype=torch.int64)
    assert by_name(summary(model))["output"].output_shape == (2, 1, 50)
    model.example_input_array = {"input": torch.zeros(4, 1, dtype=torch.int64), "scale": 1.0}
    assert by_name(summary(model))["output"].output_shape == (4, 1, 50)
    bilinear = nn.Bilinear(2, 3, 4)
    bilinear.example_input_array = (torch.zeros(6, 2), torch.zeros(6, 3))
    assert summary(bilinear).rows[0].output_shape == (6, 4)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    summary(model, torch.randn(5, 3, generator=torch.Generator().manual_seed(1)))
    assert model.training and not model[1].training and model[2].training
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert torch.get_rng_state().equal(state)
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(RuntimeError):
        summary(model, torch.zeros(5, 7))
    assert model.training and not any(module._forward_hooks for module in model.modules())


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_scripted_part_has_no_shape():
    """It takes no hook; nor does any stay on the others."""
    model = nn.Sequential(nn.Linear(3, 4), torch.jit.script(nn.Linear(4, 5)))
    table = summary(model, torch.zeros(2, 3))
    assert [row.output_shape for row in table.rows] == [(2, 4), None]
    assert [row.trainable for row in table.rows] == [16, 25]
    assert not model[0]._forward_hooks


def test_fixed_weights_are_frozen_ones_and_buffers():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
    model[0].weight.requires_grad_(False)
    model[2].register_buffer("scratch", torch.zeros(100), persistent=False)
    rows = by_name(summary(model))
    assert (rows["0"].trainable, rows["0"].fixed) == (4, 12)
    # Weight and bias; mean, variance and the number of batches.
    assert (rows["1"].trainable, rows["1"].fixed) == (8, 9)
    assert (rows["2"].trainable, rows["2"].fixed) == (0, 0)
    assert summary(model).bytes == {torch.float32: 4 * 32, torch.int64: 8}


def test_parametrized_and_quantized_layers_are_one_row():
    lstm = parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")
    (row,) = summary(lstm, torch.zeros(5, 2, 3)).rows
    assert (row.type, row.output_shape) == ("LSTM(3, 4)", (5, 2, 4))
    assert row.trainable == sum(p.numel() for p in lstm.parameters())
    quantized = rnnfast.quantize_dynamic(nn.Sequential(nn.LSTM(16, 16)))
    table = summary(quantized, torch.zeros(5, 2, 16))
    assert set(table.bytes) == {torch.int8, torch.float32}
    assert table.trainable == 0
    assert table.fixed == sum(buffer.numel() for buffer in quantized.buffers())


def test_a_module_with_weights_of_its_own_and_modules_inside():
    attention = nn.MultiheadAttention(8, 2)
    rows = by_name(summary(attention))
    assert set(rows) == {"(root)", "out_proj"}
    total = sum(parameter.numel() for parameter in attention.parameters())
    assert rows["(root)"].trainable + rows["out_proj"].trainable == total


def test_lazy_modules_need_an_example():
    with pytest.raises(ValueError, match=r"1\.weight has no shape yet: summary needs an example"):
        summary(nn.Sequential(nn.ReLU(), nn.LazyLinear(4)))
    table = summary(nn.Sequential(nn.ReLU(), nn.LazyLinear(4)), torch.zeros(2, 3))
    assert table.rows[1].type == "Linear(3, 4)"
    assert table.trainable == 16


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got dict"):
        summary({})


def test_the_function_is_not_hidden_by_its_file():
    importlib.import_module("rnnfast.summary")
    assert rnnfast.summary is summary and callable(summary)


def test_language_models_bring_their_example():
    model = LanguageModel(65, preset("keras").model)
    rows = by_name(summary(model))
    assert (rows["layers.0"].type, rows["layers.0"].trainable) == ("LSTM(256, 1024)", 5_246_976)
    assert rows["output"].output_shape == (1, 1, 65)
    # Its dropouts drop nothing.
    assert list(rows) == ["embedding", "layers.0", "output"]
    assert summary(model).trainable == 5_330_241
    assert "hidden_dropout" in by_name(summary(LanguageModel(65, preset("medium").model)))
