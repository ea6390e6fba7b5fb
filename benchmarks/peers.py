"""The peers of the layer benchmark beside torch.nn as it is: torch.compile and ONNX Runtime."""

import importlib.metadata

import torch
from torch import Tensor, nn

from rnnfast.benchmark import measure
from rnnfast.benchmark.layers import TORCH, Peer, step

# The place of each of the standard's gates among torch's: i o f c of i f g o, z r h of r z n.
_ONNX_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}


def _compiled(module: nn.Module, input: Tensor, grad_output: Tensor | None) -> measure.Call:
    """Compiles at the first call, for minutes where seq_len is long: it unrolls the time steps."""
    torch._dynamo.config.allow_rnn = True
    torch._inductor.config.cpp.threads = torch.get_num_threads()
    return step(torch.compile(module), input, grad_output)


def onnx_model(module: nn.Module) -> bytes:
    """A module of torch.nn as ONNX: for each layer one node LSTM, GRU or RNN.

    Inputs: ``input``. Outputs: output and the final states, stacked as torch's.

    Source: https://onnx.ai/onnx/operators/onnx__LSTM.html (likewise GRU, RNN), opset 14.
    """
    import onnx
    from onnx import helper, numpy_helper

    cell = module.mode.removesuffix("_TANH")
    gates = _ONNX_GATES[cell]
    attributes = {"linear_before_reset": 1} if cell == "GRU" else {}
    states = ("h_n", "c_n") if cell == "LSTM" else ("h_n",)
    nodes, constants = [], [numpy_helper.from_array(torch.tensor([1]).numpy(), "direction")]

    def constant(name: str, value: Tensor) -> str:
        constants.append(numpy_helper.from_array(value.numpy(), name))
        return name

    def reordered(rows: Tensor) -> Tensor:
        blocks = rows.detach().chunk(len(gates))
        return torch.cat([blocks[gate] for gate in gates])[None]

    layer_input = "input"
    for layer, (weight_ih, weight_hh, bias_ih, bias_hh) in enumerate(module.all_weights):
        bias = torch.cat([reordered(bias_ih), reordered(bias_hh)], dim=1)
        inputs = [
            layer_input,
            constant(f"W{layer}", reordered(weight_ih)),
            constant(f"R{layer}", reordered(weight_hh)),
            constant(f"B{layer}", bias),
        ]
        outputs = [f"Y{layer}", *(f"{name}{layer}" for name in states)]
        nodes.append(
            helper.make_node(cell, inputs, outputs, hidden_size=module.hidden_size, **attributes)
        )
        layer_input = "output" if layer == module.num_layers - 1 else f"output{layer}"
        nodes.append(helper.make_node("Squeeze", [f"Y{layer}", "direction"], [layer_input]))
    for name in states:
        last = [f"{name}{layer}" for layer in range(module.num_layers)]
        nodes.append(helper.make_node("Concat", last, [name], axis=0))
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        cell,
        [helper.make_tensor_value_info("input", float32, None)],
        [helper.make_tensor_value_info(name, float32, None) for name in ("output", *states)],
        constants,
    )
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def _onnxruntime(module: nn.Module, input: Tensor, grad_output: Tensor | None) -> measure.Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Its threads spin within a run and not after it, in the time of others. What a run takes did
    # not change by that.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        onnx_model(module), options, providers=["CPUExecutionProvider"]
    )
    array = input.numpy()
    return lambda: session.run(None, {"input": array})


def available() -> dict[str, Peer]:
    """By name, the peers whose packages are installed here."""
    peers = {**TORCH, "torch.compile": Peer(torch.__version__, _compiled)}
    try:
        version = importlib.metadata.version("onnxruntime")
        importlib.metadata.version("onnx")
    except importlib.metadata.PackageNotFoundError:
        return peers
    return peers | {
        "onnxruntime": Peer(version, _onnxruntime, modes=("inference",), own_threads=True)
    }
