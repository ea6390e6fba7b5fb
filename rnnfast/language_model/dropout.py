"""The dropouts that torch.nn lacks: over time, of words, of recurrent weights."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


class LockedDropout(nn.Module):
    """Drops a unit of a sequence in all of its time steps or in none, in training.

    The variational dropout of Gal & Ghahramani (2016, https://arxiv.org/abs/1512.05287), under the
    name of AWD-LSTM (Merity et al. 2017, https://arxiv.org/abs/1708.02182). What stays is divided
    by ``1 - p``.

    Args:
        p: probability that a unit is dropped, at least 0 and below 1.

    Shape:
        - input: ``(seq_len, batch, features)``.
        - Output: the same.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return input
        return input * F.dropout(input.new_ones(input.shape[1:]), self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class EmbeddingDropout(nn.Module):
    """Drops the vectors of whole tokens, in training: wherever a token stands in a window, its
    vector is zero, or at none of these places.

    As if rows of the embedding matrix were dropped (Gal & Ghahramani 2016, section 4.2; AWD-LSTM,
    Merity et al. 2017, section 4.3). What stays is divided by ``1 - p``.

    Args:
        vocab_size: number of tokens ``V``.
        p: probability that a token is dropped, at least 0 and below 1.

    Inputs: vectors, input
        - **vectors**: of each token of the window.
        - **input**: its id.

    Shape:
        - vectors: ``(seq_len, batch, features)``.
        - input: ``(seq_len, batch)``, int64, in ``[0, V)``.
        - Output: that of vectors.
    """

    def __init__(self, vocab_size: int, p: float) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.p = p

    def forward(self, vectors: Tensor, input: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return vectors
        mask = F.dropout(vectors.new_ones(self.vocab_size), self.p)
        return vectors * mask[input].unsqueeze(-1)

    def extra_repr(self) -> str:
        return f"{self.vocab_size}, p={self.p}"


def drop_connect(layer: nn.RNNBase, p: float) -> Callable[..., tuple[Tensor, Any]]:
    """The layer's forward with weights of ``weight_hh_l0`` dropped.

    DropConnect (Wan et al. 2013) on the recurrent weights, as in AWD-LSTM (Merity et al. 2017,
    section 2). The weights that are dropped are drawn here, once for all calls of the result; what
    stays is divided by ``1 - p``. The gradient reaches the layer's own weight, which stays as it
    is.

    Args:
        layer: a recurrent layer of one layer and direction.
        p: probability that a weight is dropped, at least 0 and below 1.
    """
    weights = {"weight_hh_l0": F.dropout(layer.weight_hh_l0, p)}
    return lambda *inputs: functional_call(layer, weights, inputs)
