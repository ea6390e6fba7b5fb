"""Tokens as vectors that are not learned."""

import torch
from torch import Tensor, nn


class OneHot(nn.Module):
    """A token as its place in the vocabulary: zeros, and a 1 at its id.

    Args:
        vocab_size: number of tokens ``V``.

    Shape:
        - input: ``(seq_len, batch)``, int64, in ``[0, V)``.
        - Output: ``(seq_len, batch, V)``, in the dtype that the module was moved to.
    """

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        # Follows the model to another dtype or device.
        self.register_buffer("one", torch.ones(()), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        vectors = self.one.new_zeros(*input.shape, self.vocab_size)
        return vectors.scatter_(-1, input.unsqueeze(-1), 1.0)

    def extra_repr(self) -> str:
        return str(self.vocab_size)
