"""What LSTM, GRU and RNN share: which calls the kernels take, and the walk through the layers."""

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

from rnnfast import backend


class Recurrent(nn.RNNBase):
    """Base of the recurrent layers.

    Parameters, their names, order and initialisation, and the attributes are those of
    :class:`torch.nn.RNNBase`. What the kernels do not take, wrong input included, goes to the
    forward of torch's module, which serves it or raises torch's error.

    It does not derive from :class:`torch.nn.LSTM` and its kin because ``torch.compile`` refuses
    every instance of these.
    """

    # How many states each layer has.
    _num_states = 1
    # Whether the equations are ones that torch's operators do not have.
    _kernels_only = False

    def _run_layer(
        self, input: Tensor, states: list[Tensor], weights: list[Tensor], reverse: bool
    ) -> tuple[Tensor, ...]:
        """One layer in one direction: output, then the final states."""
        raise NotImplementedError

    def _run(
        self, input: Tensor | PackedSequence, states: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, ...] | None:
        """Output, then the final states; or ``None`` where the call is left to torch's forward."""
        if not backend.use_kernels(
            type(self).__name__, input, proj_size=self.proj_size, required=self._kernels_only
        ):
            return None
        weights = self._current_weights()
        first = weights[0][0]
        shape = input.shape
        batched = len(shape) == 3
        batch_dim = 0 if self.batch_first else 1
        if (
            (not batched and len(shape) != 2)
            or shape[-1] != self.input_size
            or first.dtype != input.dtype
            or not first.is_cpu
        ):
            return None
        seq_len, batch = (shape[1 - batch_dim], shape[batch_dim]) if batched else (shape[0], 1)
        if seq_len == 0:
            return None
        if states is not None:
            size = (len(weights), batch, self.hidden_size)
            if not batched:
                size = (len(weights), self.hidden_size)
            for state in states:
                if state.shape != size or state.dtype != input.dtype or not state.is_cpu:
                    return None
        if not self._kernels_only and backend.auto_prefers_torch(
            self.mode, input.dtype, batch, seq_len, self.input_size, self.hidden_size
        ):
            return None

        if batched:
            return self._run_layers(input, states, weights, batch)
        if states is not None:
            states = tuple(state.unsqueeze(1) for state in states)
        output, *states = self._run_layers(input.unsqueeze(batch_dim), states, weights, batch)
        return output.squeeze(batch_dim), *(state.squeeze(1) for state in states)

    def _current_weights(self) -> list[list[Tensor]]:
        """The weights of each layer and direction.

        Looked up at each call, for they may have been replaced since the last (assignment,
        ``functional_call``, parametrizations); in the dictionary first, since ``getattr`` of a
        module costs ten times as much.
        """
        parameters = self._parameters
        weights = []
        for names in self._all_weights:
            found = [parameters.get(name) for name in names]
            for index, weight in enumerate(found):
                if weight is None:
                    found[index] = getattr(self, names[index])
            weights.append(found)
        return weights

    def _run_layers(
        self,
        input: Tensor,
        states: tuple[Tensor, ...] | None,
        weights: list[list[Tensor]],
        batch: int,
    ) -> tuple[Tensor, ...]:
        if states is None:
            zeros = input.new_zeros(batch, self.hidden_size)
            initial = [[zeros] * self._num_states] * len(weights)
        else:
            initial = list(zip(*(state.unbind(0) for state in states), strict=True))
        directions = 2 if self.bidirectional else 1
        final = []
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout > 0 and self.training:
                input = self._drop(input)
            outputs = []
            for direction in range(directions):
                index = layer * directions + direction
                output, *last = self._run_layer(
                    input, initial[index], weights[index], direction == 1
                )
                outputs.append(output)
                final.append(last)
            input = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
        if len(final) == 1:
            return input, *(state.unsqueeze(0) for state in final[0])
        return input, *(torch.stack(layers) for layers in zip(*final, strict=True))

    def _drop(self, output: Tensor) -> Tensor:
        """Dropout between layers, with the mask that torch's modules draw from the same seed."""
        if not self.batch_first:
            return dropout(output, self.dropout)
        # torch draws it in time-major order.
        mask = dropout(output.new_ones(output.transpose(0, 1).shape), self.dropout)
        return output * mask.transpose(0, 1)
