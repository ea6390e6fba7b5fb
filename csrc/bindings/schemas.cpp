// The schema of every op, once. Fake kernels and autograd formulas: rnnfast/ops.py.
//
// Of the cells: one layer, one direction. Shapes as in ../lstm.h, ../gru.h, ../rnn.h; a sequence is
// [seq_len, batch, features], or [batch, seq_len, features] with batch_first, or
// [rows, features] where batch_sizes says how rows are packed. Gradients that are not needed come
// back empty. What forward keeps for backward (cells, gates, states) is float where the other
// tensors are of a half type; `states` are h_t of every step then, which backward takes as its
// `output`, and else empty.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(rnnfast, m) {
  m.def(
      "lstm(Tensor input, Tensor h_0, Tensor c_0, Tensor weight_ih, Tensor weight_hh, "
      "Tensor? bias_ih, Tensor? bias_hh, Tensor? weight_hr=None, *, Tensor? batch_sizes=None, "
      "bool batch_first=False, bool reverse=False, str precision=\"fp32\") -> "
      "(Tensor output, Tensor h_n, Tensor c_n, Tensor cells, Tensor gates, Tensor states)");
  m.def(
      "lstm_inference(Tensor input, Tensor h_0, Tensor c_0, Tensor weight_ih, Tensor weight_hh, "
      "Tensor? bias_ih, Tensor? bias_hh, Tensor? weight_hr=None, *, Tensor? batch_sizes=None, "
      "bool batch_first=False, bool reverse=False, str precision=\"fp32\", int packed_weights=0) "
      "-> "
      "(Tensor output, Tensor h_n, Tensor c_n)");
  m.def(
      "lstm_cells(Tensor input, Tensor h_0, Tensor c_0, Tensor weight_ih, Tensor weight_hh, "
      "Tensor? bias_ih, Tensor? bias_hh, Tensor? weight_hr=None, *, Tensor? batch_sizes=None, "
      "bool batch_first=False, bool reverse=False, str precision=\"fp32\") -> "
      "(Tensor output, Tensor h_n, Tensor c_n, Tensor cells)");
  m.def(
      "lstm_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, "
      "Tensor? grad_cells, Tensor input, Tensor h_0, Tensor c_0, Tensor weight_ih, Tensor "
      "weight_hh, Tensor? weight_hr, "
      "Tensor output, Tensor cells, Tensor gates, *, Tensor? batch_sizes=None, "
      "bool batch_first=False, bool reverse=False, str precision=\"fp32\", bool need_input=True, "
      "bool need_weights=True, bool need_bias=True) -> (Tensor grad_input, Tensor grad_h_0, "
      "Tensor grad_c_0, Tensor grad_weight_ih, Tensor grad_weight_hh, Tensor grad_bias, "
      "Tensor grad_weight_hr)");

  m.def(
      "gru(Tensor input, Tensor h_0, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, "
      "Tensor? bias_hh, *, Tensor? batch_sizes=None, bool reset_after=True, "
      "bool batch_first=False, bool reverse=False, str precision=\"fp32\") -> "
      "(Tensor output, Tensor h_n, Tensor gates, Tensor states)");
  m.def(
      "gru_inference(Tensor input, Tensor h_0, Tensor weight_ih, Tensor weight_hh, "
      "Tensor? bias_ih, Tensor? bias_hh, *, Tensor? batch_sizes=None, "
      "bool reset_after=True, bool batch_first=False, bool reverse=False, str precision=\"fp32\", "
      "int packed_weights=0) "
      "-> "
      "(Tensor output, Tensor h_n)");
  m.def(
      "gru_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor input, Tensor h_0, "
      "Tensor weight_ih, Tensor weight_hh, Tensor output, Tensor gates, *, Tensor? "
      "batch_sizes=None, bool reset_after=True, "
      "bool batch_first=False, "
      "bool reverse=False, str precision=\"fp32\", bool need_input=True, "
      "bool need_weights=True, bool need_bias=True) -> "
      "(Tensor grad_input, Tensor grad_h_0, Tensor grad_weight_ih, Tensor grad_weight_hh, "
      "Tensor grad_bias_ih, Tensor grad_bias_hh)");

  m.def(
      "rnn(Tensor input, Tensor h_0, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, "
      "Tensor? bias_hh, *, Tensor? batch_sizes=None, str nonlinearity=\"tanh\", "
      "bool batch_first=False, bool reverse=False, str precision=\"fp32\") -> "
      "(Tensor output, Tensor h_n, Tensor states)");
  m.def(
      "rnn_inference(Tensor input, Tensor h_0, Tensor weight_ih, Tensor weight_hh, "
      "Tensor? bias_ih, Tensor? bias_hh, *, Tensor? batch_sizes=None, str nonlinearity=\"tanh\", "
      "bool batch_first=False, bool reverse=False, str precision=\"fp32\", int packed_weights=0) "
      "-> "
      "(Tensor output, Tensor h_n)");
  m.def(
      "rnn_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor input, Tensor h_0, "
      "Tensor weight_ih, Tensor weight_hh, Tensor output, *, Tensor? batch_sizes=None, "
      "str nonlinearity=\"tanh\", bool batch_first=False, bool reverse=False, str "
      "precision=\"fp32\", "
      "bool need_input=True, bool need_weights=True, bool need_bias=True) -> (Tensor grad_input, "
      "Tensor grad_h_0, Tensor grad_weight_ih, Tensor grad_weight_hh, Tensor grad_bias)");

  // Several layers or directions that do not need each other, of one batch and hidden_size, at
  // once: for every cell, on CUDA. mode is that of torch.nn.RNNBase; GRU resets after the product.
  // Lists have an element for each; c_0, grad_c_n, cells and gates are empty where the cell has
  // none. Results follow one another, those of a recurrence in the order of the cell's own ops: of
  // `concurrent` all, of the others output and final states, or the gradients (but for weight_hr).
  // concurrent_at_once says how many of `count` recurrences the device of `like` would advance at
  // once.
  m.def(
      "concurrent(Tensor[] input, Tensor[] h_0, Tensor[] c_0, Tensor[] weight_ih, "
      "Tensor[] weight_hh, Tensor?[] bias_ih, Tensor?[] bias_hh, *, str mode, "
      "bool batch_first=False, bool[] reverse, str precision=\"fp32\") "
      "-> Tensor[]");
  m.def(
      "concurrent_inference(Tensor[] input, Tensor[] h_0, Tensor[] c_0, Tensor[] weight_ih, "
      "Tensor[] weight_hh, Tensor?[] bias_ih, Tensor?[] bias_hh, *, str mode, "
      "bool batch_first=False, bool[] reverse, str precision=\"fp32\") "
      "-> Tensor[]");
  m.def(
      "concurrent_backward(Tensor?[] grad_output, Tensor?[] grad_h_n, Tensor?[] grad_c_n, "
      "Tensor[] input, Tensor[] h_0, Tensor[] c_0, Tensor[] weight_ih, Tensor[] weight_hh, "
      "Tensor[] output, Tensor[] cells, Tensor[] gates, *, str mode, "
      "bool batch_first=False, bool[] reverse, str precision=\"fp32\", bool[] need_input, "
      "bool need_weights=True, bool need_bias=True) -> Tensor[]");
  m.def(
      "concurrent_at_once(Tensor like, int count, int batch, int hidden_size, str mode, "
      "str precision, bool backward) -> int");

  // int8 weights, for every cell: mode is that of torch.nn.RNNBase. c_0 and c_n are LSTM's; the c_n
  // of others is empty.
  m.def(
      "quantized(Tensor input, Tensor h_0, Tensor? c_0, Tensor weight_ih, Tensor weight_hh, "
      "Tensor scale_ih, Tensor scale_hh, Tensor? bias_ih, Tensor? bias_hh, *, str mode, "
      "Tensor? batch_sizes=None, bool reset_after=True, bool batch_first=False, "
      "bool reverse=False) -> (Tensor output, Tensor h_n, Tensor c_n)");

  m.def(
      "linear_cross_entropy(Tensor input, Tensor weight, Tensor? bias, Tensor target, *, "
      "int ignore_index=-100, str reduction=\"mean\", str precision=\"fp32\", bool "
      "need_input=True, "
      "bool need_weight=True, bool need_bias=True) -> "
      "(Tensor loss, Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
}
