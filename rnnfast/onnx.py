r"""ONNX: the operators of this package as the operators LSTM, GRU and RNN of the ONNX standard.

Each layer and direction becomes one node, whose batch and length may be dynamic::

    torch.onnx.export(
        model.eval(), (input,), "model.onnx", dynamo=True,
        custom_translation_table=rnnfast.onnx.translations(),
    )

Source: https://onnx.ai/onnx/operators/onnx__LSTM.html (likewise GRU, RNN), versions of opset 14.
"""

from collections.abc import Callable

import torch

__all__ = ["translations"]

# The place of each of the standard's gates among torch's: i o f c of i f g o, z r h of r z n.
_LSTM_GATES = (0, 3, 1, 2)
_GRU_GATES = (1, 0, 2)
_RNN_GATES = (0,)


def translations() -> dict[Callable, Callable]:
    """The table that :func:`torch.onnx.export` takes as ``custom_translation_table``.

    Nodes compute in full precision, whatever :func:`rnnfast.set_precision` said.
    The standard has no projections, takes no packed sequences, and gives no cell states but the
    last: ``proj_size``, a PackedSequence or `lengths`, and ``return_states=True`` of an LSTM make
    the export fail.

    Raises:
        ImportError: if ``onnxscript``, which torch's exporter needs as well, is not installed.
    """
    from onnxscript import ir
    from onnxscript import opset18 as op

    def reordered(rows, gates: tuple[int, ...]):
        """A weight or bias, of which the gates are blocks of rows, with these blocks reordered."""
        if len(gates) == 1:
            return rows
        size = rows.shape[0] // len(gates)
        return op.Gather(rows, [gate * size + row for gate in gates for row in range(size)], axis=0)

    def sequence(
        operator, gates, input, states, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes,
        batch_first, reverse, **attributes,
    ):  # fmt: skip
        """One layer in one direction: output and final states."""
        if batch_sizes is not None:
            raise ValueError(
                "batch_sizes must be None: ONNX has no packed sequences; call the module on a "
                "padded tensor"
            )
        half = input.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

        def widened(tensor):
            """In float32: as the kernels compute, and as runtimes alone do."""
            return op.Cast(tensor, to=ir.DataType.FLOAT) if half else tensor

        biases = [
            op.CastLike(op.ConstantOfShape([weight_hh.shape[0]]), weight_hh)
            if bias is None
            else reordered(bias, gates)
            for bias in (bias_ih, bias_hh)
        ]
        # The standard's layout=1 is batch_first, which runtimes do not implement.
        output, *final = operator(
            widened(op.Transpose(input, perm=[1, 0, 2]) if batch_first else input),
            widened(op.Unsqueeze(reordered(weight_ih, gates), [0])),
            widened(op.Unsqueeze(reordered(weight_hh, gates), [0])),
            widened(op.Unsqueeze(op.Concat(*biases, axis=0), [0])),
            None,  # lengths
            *(widened(op.Unsqueeze(state, [0])) for state in states),
            direction="reverse" if reverse else "forward",
            hidden_size=weight_hh.shape[1],
            **attributes,
        )
        output = op.Squeeze(output, [1])
        if batch_first:
            output = op.Transpose(output, perm=[1, 0, 2])
        results = (output, *(op.Squeeze(state, [0]) for state in final))
        return tuple(op.CastLike(r, input) for r in results) if half else results

    def lstm(
        input, h_0, c_0, weight_ih, weight_hh, bias_ih=None, bias_hh=None, weight_hr=None,
        *, batch_sizes=None, batch_first=False, reverse=False, precision="fp32",
    ):  # fmt: skip
        if weight_hr is not None:
            raise ValueError("proj_size must be 0: ONNX's LSTM has no projection")
        return sequence(
            op.LSTM, _LSTM_GATES, input, (h_0, c_0), weight_ih, weight_hh, bias_ih, bias_hh,
            batch_sizes, batch_first, reverse,
        )  # fmt: skip

    def gru(
        input, h_0, weight_ih, weight_hh, bias_ih=None, bias_hh=None,
        *, batch_sizes=None, reset_after=True, batch_first=False, reverse=False, precision="fp32",
    ):  # fmt: skip
        return sequence(
            op.GRU, _GRU_GATES, input, (h_0,), weight_ih, weight_hh, bias_ih, bias_hh,
            batch_sizes, batch_first, reverse, linear_before_reset=int(reset_after),
        )  # fmt: skip

    def rnn(
        input, h_0, weight_ih, weight_hh, bias_ih=None, bias_hh=None,
        *, batch_sizes=None, nonlinearity="tanh", batch_first=False, reverse=False,
        precision="fp32",
    ):  # fmt: skip
        return sequence(
            op.RNN, _RNN_GATES, input, (h_0,), weight_ih, weight_hh, bias_ih, bias_hh,
            batch_sizes, batch_first, reverse, activations=[nonlinearity.capitalize()],
        )  # fmt: skip

    ops = torch.ops.rnnfast
    return {
        ops.lstm.default: lstm,
        ops.lstm_inference.default: lstm,
        ops.gru.default: gru,
        ops.gru_inference.default: gru,
        ops.rnn.default: rnn,
        ops.rnn_inference.default: rnn,
    }
