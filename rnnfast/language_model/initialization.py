"""The weights that a model starts with, drawn from a generator of its own."""

import math

import torch
from torch import Generator, Tensor, nn

from .config import ModelConfig


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Draw all weights of a language model; torch's own generator is left alone.

    Args:
        model: has ``layers``, recurrent ones of a single layer each; all its other modules with
            weights are embeddings and linear layers.
        config: its settings, of which ``init``, ``init_scale``, ``forget_bias``, ``single_bias``
            and ``tied`` count here.
        seed: seeds the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: set[Tensor] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in drawn:
                drawn.add(parameter)
                _draw(module, name, parameter, config, generator)
    for layer in model.layers:
        if config.single_bias:
            layer.bias_ih_l0.zero_()
            layer.bias_hh_l0.zero_()
        if config.forget_bias:
            forget = slice(layer.hidden_size, 2 * layer.hidden_size)
            layer.bias_ih_l0[forget] += config.forget_bias


def _draw(
    module: nn.Module, name: str, parameter: Tensor, config: ModelConfig, generator: Generator
) -> None:
    recurrent = isinstance(module, nn.RNNBase)
    init, scale = config.init, config.init_scale
    if init == "embeddings" and recurrent:
        init = "torch"
    # On the CPU, whose generator it is: the same weights on every device.
    drawn = torch.empty_like(parameter, device="cpu")
    if init in ("normal", "embeddings") and name.startswith("bias"):
        drawn.zero_()
    elif init == "torch" and isinstance(module, nn.Embedding):
        drawn.normal_(generator=generator)
    elif init == "normal":
        drawn.normal_(0, scale, generator=generator)
    else:
        if init == "torch":
            scale = 1 / math.sqrt(module.hidden_size if recurrent else module.in_features)
        drawn.uniform_(-scale, scale, generator=generator)
    parameter.copy_(drawn)
