"""What turns the last layer's output into the probabilities of the next token."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..loss import linear_cross_entropy
from ..text import InputError


class Softmax(nn.Linear):
    """A linear layer to one logit for each token, and the loss of its softmax.

    Args:
        in_features: size of the last layer's output.
        vocab_size: number of tokens ``V``.
        fused: whether :meth:`loss` does without the logits, by
            :func:`rnnfast.loss.linear_cross_entropy`.

    Shape:
        - input: ``(seq_len, batch, in_features)``.
        - Output: ``(seq_len, batch, V)``, unnormalised log-probabilities.
    """

    def __init__(self, in_features: int, vocab_size: int, *, fused: bool) -> None:
        super().__init__(in_features, vocab_size)
        self.fused = fused

    def loss(self, input: Tensor, target: Tensor) -> Tensor:
        """:func:`sequence_loss` of the logits and the target.

        Shape:
            - input: ``(seq_len, batch, in_features)``.
            - target: ``(seq_len, batch)``, int64, in ``[0, V)``.
            - Output: scalar, in nats.
        """
        if not self.fused:
            return sequence_loss(self(input), target)
        total = linear_cross_entropy(
            input, self.weight, target, linear_bias=self.bias, reduction="sum"
        )
        return total / target.size(1)


class AdaptiveSoftmax(nn.Module):
    """A softmax that computes rare tokens' logits where a target is rare only.

    Grave et al. 2017, "Efficient softmax approximation for GPUs",
    https://arxiv.org/abs/1609.04309, by :class:`torch.nn.AdaptiveLogSoftmaxWithLoss`: the tokens
    below the first cutoff share a softmax with one entry for each cluster of rarer ones; a cluster
    has its own softmax on the input projected to a quarter of the previous one's size. Ids are
    expected in order of falling frequency, as a :class:`~rnnfast.text.Vocabulary` has them.

    Args:
        in_features: size of the last layer's output.
        vocab_size: number of tokens ``V``.
        cutoffs: ids at which clusters begin, rising, in ``[1, V)``.

    Shape:
        - input: ``(seq_len, batch, in_features)``.
        - Output: ``(seq_len, batch, V)``, log-probabilities.

    Raises:
        InputError: the cutoffs reach beyond the vocabulary, or leave a cluster no features.
    """

    def __init__(self, in_features: int, vocab_size: int, cutoffs: tuple[int, ...]) -> None:
        super().__init__()
        if cutoffs[-1] >= vocab_size:
            raise InputError(
                f"cutoffs must lie below the vocabulary's size, {vocab_size}, got {cutoffs}"
            )
        if 4 ** len(cutoffs) > in_features:
            raise InputError(
                f"cutoffs must be so few that the last cluster has a feature: {in_features} units "
                f"are divided by 4 for each, got {len(cutoffs)}"
            )
        self.clusters = nn.AdaptiveLogSoftmaxWithLoss(in_features, vocab_size, list(cutoffs))

    def forward(self, input: Tensor) -> Tensor:
        return self.clusters.log_prob(input.flatten(0, 1)).unflatten(0, input.shape[:2])

    def loss(self, input: Tensor, target: Tensor) -> Tensor:
        """:func:`sequence_loss` of the log-probabilities and the target, of which only those of the
        targets' clusters are computed.

        Shape:
            - input: ``(seq_len, batch, in_features)``.
            - target: ``(seq_len, batch)``, int64, in ``[0, V)``.
            - Output: scalar, in nats.
        """
        return -self.clusters(input.flatten(0, 1), target.flatten()).output.sum() / target.size(1)


def sequence_loss(logits: Tensor, target: Tensor) -> Tensor:
    r"""The loss that is differentiated: the sum over time of the mean over the batch.

    .. math:: L = \sum_t \frac{1}{B} \sum_b -\log p(\text{target}_{t,b})

    This is TensorFlow's convention in the PTB tutorial; with it the tutorial's learning rate 1
    and gradient norm 5 keep their meaning. Perplexity is ``exp(L / seq_len)``.

    Shape:
        - logits: ``(seq_len, batch, V)``.
        - target: ``(seq_len, batch)``, int64, in ``[0, V)``.
        - Output: scalar, in nats.
    """
    total = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
    return total / target.size(1)
