// rnnfast._eager: the short way from a module to the kernels.
//
// A module's forward in Python looks at every kind of call, then goes through torch's dispatcher:
// twenty microseconds, many times the arithmetic of a short call. Here the common kind is served: a
// batch of whole sequences, or a cell's batch of rows, in the dtype of the weights, all of them
// plain contiguous CPU tensors, and nothing that watches or transforms operators. Any other call
// gets None back, and takes the long way, which serves it or raises its error.
//
// Where no gradient is recorded the kernel is called at once; else the op, as on the long way.
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <ATen/record_function.h>
#include <c10/core/impl/PythonDispatcherTLS.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/extension.h>

#include <array>
#include <optional>
#include <vector>

#include "bindings/eager/autograd.h"
#include "bindings/kernel_access.h"
#include "bindings/storage_of.h"

namespace rnnfast {
namespace {

using c10::IValue;
using torch::jit::Stack;

const KernelAccess* kernel_access = nullptr;
PyObject* composite = nullptr;  // rnnfast.ops: gradients that can be differentiated again

// A name that is looked up in dictionaries.
PyObject* name_of(const char* text) { return PyUnicode_InternFromString(text); }

struct Names {
  PyObject* parameters = name_of("_parameters");
  PyObject* all_weights = name_of("_all_weights");
  PyObject* flat_weights = name_of("_flat_weights");
  PyObject* hidden_size = name_of("hidden_size");
  PyObject* num_layers = name_of("num_layers");
  PyObject* bidirectional = name_of("bidirectional");
  PyObject* batch_first = name_of("batch_first");
  PyObject* dropout = name_of("dropout");
  PyObject* training = name_of("training");
  PyObject* proj_size = name_of("proj_size");
  PyObject* memory = name_of("memory");
  PyObject* return_states = name_of("return_states");
  PyObject* learn_initial_state = name_of("learn_initial_state");
  PyObject* mode = name_of("mode");
  PyObject* reset_after = name_of("reset_after");
  PyObject* nonlinearity = name_of("nonlinearity");
  PyObject* packed_layers = name_of("_packed_layers");
  PyObject* ids = name_of("ids");
  std::array<PyObject*, 4> cell = {name_of("weight_ih"), name_of("weight_hh"), name_of("bias_ih"),
                                   name_of("bias_hh")};
};

const Names& names() {
  static const Names instance;
  return instance;
}

// What the two ways of a cell, layer or step, have in common.
struct Kind {
  enum Cell { lstm, gru, rnn } cell;
  bool option;  // reset_after of GRU; relu of RNN
  bool bf16 = false;

  int64_t gates() const { return cell == lstm ? 4 : cell == gru ? 3 : 1; }
  size_t num_states() const { return cell == lstm ? 2 : 1; }
  PackedCell packed() const {
    return cell == lstm  ? PackedCell::lstm
           : cell == rnn ? PackedCell::rnn
           : option      ? PackedCell::gru
                         : PackedCell::gru_reset_before;
  }
};

bool is_text(PyObject* object, const char* text) {
  return object && PyUnicode_Check(object) && PyUnicode_CompareWithASCIIString(object, text) == 0;
}

// `mode`: a layer's, or a cell's class.
std::optional<Kind> kind_of(PyObject* mode, PyObject* attributes, bool bf16) {
  if (is_text(mode, "LSTM") || is_text(mode, "LSTMCell")) return Kind{Kind::lstm, false, bf16};
  if (is_text(mode, "GRU") || is_text(mode, "GRUCell"))
    return Kind{Kind::gru, PyDict_GetItem(attributes, names().reset_after) != Py_False, bf16};
  if (is_text(mode, "RNN_TANH")) return Kind{Kind::rnn, false, bf16};
  if (is_text(mode, "RNN_RELU")) return Kind{Kind::rnn, true, bf16};
  PyObject* const nonlinearity = PyDict_GetItem(attributes, names().nonlinearity);
  if (is_text(mode, "RNNCell") && (is_text(nonlinearity, "tanh") || is_text(nonlinearity, "relu")))
    return Kind{Kind::rnn, is_text(nonlinearity, "relu"), bf16};
  return std::nullopt;
}

// Whether something wants to see operators, or wants them done otherwise.
bool watched() {
  return transformed() || at::impl::torch_function_mode_enabled() ||
         c10::impl::TorchDispatchModeTLS::any_modes_set() ||
         c10::impl::PythonDispatcherTLS::get_state() != nullptr ||
         torch::jit::tracer::isTracing() || at::autocast::is_autocast_enabled(at::kCPU);
}

// The tensor of a Python object, or null where it is no plain one on the CPU of this dtype.
const at::Tensor* plain(PyObject* object, at::ScalarType dtype) {
  if (!object || !THPVariable_CheckExact(object)) return nullptr;
  const at::Tensor& tensor = THPVariable_Unpack(object);
  // Whose elements are not what stands in their memory.
  constexpr c10::DispatchKeySet wrapped(
      {c10::DispatchKey::Negative, c10::DispatchKey::ZeroTensor, c10::DispatchKey::Functionalize,
       c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper});
  const bool fits = tensor.is_cpu() && tensor.scalar_type() == dtype &&
                    tensor.layout() == at::kStrided && !tensor.key_set().has_any(wrapped);
  return fits ? &tensor : nullptr;
}

bool has_shape(const at::Tensor& tensor, at::IntArrayRef shape) {
  return tensor.sizes() == shape && tensor.is_contiguous();
}

// A layer's checked weights; biases may be undefined. Owned, for while a kernel runs without
// Python's lock a module's parameter may be replaced.
struct Weights {
  at::Tensor ih, hh, bias_ih, bias_hh;

  bool record() const {
    for (const at::Tensor* weight : {&ih, &hh, &bias_ih, &bias_hh})
      if (weight->requires_grad()) return true;
    return false;
  }
};

std::optional<Weights> weights_of(PyObject* parameters, PyObject* const* keys, size_t count,
                                  at::ScalarType dtype, int64_t rows, int64_t input_size,
                                  int64_t hidden_size) {
  at::Tensor found[4];
  for (size_t i = 0; i < count; ++i) {
    const at::Tensor* weight = plain(PyDict_GetItem(parameters, keys[i]), dtype);
    if (!weight) return std::nullopt;
    found[i] = *weight;
  }
  if (!has_shape(found[0], {rows, input_size}) || !has_shape(found[1], {rows, hidden_size}))
    return std::nullopt;
  for (size_t i = 2; i < count; ++i)
    if (!has_shape(found[i], {rows})) return std::nullopt;
  return Weights{found[0], found[1], found[2], found[3]};
}

const CpuKernels& kernels_for(at::ScalarType dtype, const Kind& kind, bool single) {
  return kernels_of(kernel_access->isa(), dtype == at::kDouble, kind.bf16, single);
}

const void* data_of(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

// Of each layer and direction, its weights as rnnfast.prepack keeps them.
struct Prepacked {
  std::vector<std::shared_ptr<const void>> weights;  // null where a call packs them itself
  bool stale = false;                                // the long way has to pack them first
};

Prepacked prepacked_of(PyObject* attributes, at::ScalarType dtype, const Kind& kind, bool single,
                       const std::vector<Weights>& weights) {
  Prepacked found{std::vector<std::shared_ptr<const void>>(weights.size())};
  PyObject* const held = PyDict_GetItem(attributes, names().packed_layers);
  const CpuKernels& kernels = kernels_for(dtype, kind, single);
  // They are packed for sequences; a step with products in bfloat16 has other kernels.
  if (!held || held == Py_None || &kernels != &kernels_for(dtype, kind, false)) return found;
  const py::object ids = py::reinterpret_steal<py::object>(PyObject_GetAttr(held, names().ids));
  if (!ids) throw py::error_already_set();
  found.stale = true;
  if (!PyTuple_CheckExact(ids.ptr()) ||
      PyTuple_GET_SIZE(ids.ptr()) != static_cast<Py_ssize_t>(weights.size()))
    return found;
  for (size_t i = 0; i < weights.size(); ++i) {
    PackedFrom from{kind.packed(), {}};
    for (const at::Tensor* weight :
         {&weights[i].ih, &weights[i].hh, &weights[i].bias_ih, &weights[i].bias_hh}) {
      if (!weight->defined()) continue;
      // Tensors made in inference mode count no changes.
      from.tensors.emplace_back(reinterpret_cast<uintptr_t>(weight->const_data_ptr()),
                                weight->is_inference() ? 0 : weight->_version());
    }
    const int64_t id = PyLong_AsLongLong(PyTuple_GET_ITEM(ids.ptr(), static_cast<Py_ssize_t>(i)));
    found.weights[i] = kernel_access->packed(id, kernels, from);
    if (!found.weights[i]) return found;
  }
  found.stale = false;
  return found;
}

// One layer in one direction, or a step.
struct Call {
  Kind kind;
  bool batch_first, reverse;
  int64_t seq_len, batch, input_size, hidden_size;
  const at::Tensor& input;
  Weights weights;
  std::shared_ptr<const void> packed;  // the same, where they are kept

  // What all cells' arguments have alike.
  template <class Args>
  Args arguments(const void* h_0, void* output, void* h_n) const {
    Args args{};
    args.seq_len = seq_len;
    args.batch = batch;
    args.input_size = input_size;
    args.hidden_size = hidden_size;
    args.reverse = reverse;
    args.storage = storage_of(input.scalar_type());
    args.weight_ih = data_of(weights.ih);
    args.weight_hh = data_of(weights.hh);
    args.bias_ih = data_of(weights.bias_ih);
    args.bias_hh = data_of(weights.bias_hh);
    args.input = input.const_data_ptr();
    args.input_time = input.stride(batch_first ? 1 : 0);
    args.input_row = input.stride(batch_first ? 0 : 1);
    args.h_0 = h_0;
    args.output = output;
    args.output_time = batch_first ? hidden_size : batch * hidden_size;
    args.output_row = batch_first ? seq_len * hidden_size : hidden_size;
    args.h_n = h_n;
    args.packed = packed.get();
    return args;
  }

  // Computes output and final states where nothing need be kept.
  void infer(const void* const* initial, void* output, void* const* final) const {
    const CpuKernels& kernels = kernels_for(input.scalar_type(), kind, seq_len == 1);
    if (kind.cell == Kind::lstm) {
      auto args = arguments<LstmForward>(initial[0], output, final[0]);
      args.c_0 = initial[1];
      args.c_n = final[1];
      run(kernels.lstm_forward, args);
    } else if (kind.cell == Kind::gru) {
      auto args = arguments<GruForward>(initial[0], output, final[0]);
      args.reset_after = kind.option;
      run(kernels.gru_forward, args);
    } else {
      auto args = arguments<RnnForward>(initial[0], output, final[0]);
      args.relu = kind.option;
      run(kernels.rnn_forward, args);
    }
  }

  // Output and final states by the op, which autograd sees.
  std::vector<at::Tensor> record(const std::vector<at::Tensor>& initial) const {
    static const c10::OperatorHandle ops[] = {op("rnnfast::lstm"), op("rnnfast::gru"),
                                              op("rnnfast::rnn")};
    Stack stack;
    stack.emplace_back(input);
    for (const at::Tensor& state : initial) stack.emplace_back(state);
    for (const at::Tensor* weight : {&weights.ih, &weights.hh, &weights.bias_ih, &weights.bias_hh})
      stack.push_back(weight->defined() ? IValue(*weight) : IValue());
    if (kind.cell == Kind::lstm) stack.emplace_back();  // weight_hr
    stack.emplace_back();                               // batch_sizes
    if (kind.cell == Kind::gru) stack.emplace_back(kind.option);
    if (kind.cell == Kind::rnn) stack.emplace_back(kind.option ? "relu" : "tanh");
    stack.emplace_back(batch_first);
    stack.emplace_back(reverse);
    stack.emplace_back(kind.bf16 ? "bf16" : "fp32");
    ops[kind.cell].callBoxed(stack);
    std::vector<at::Tensor> results;
    for (size_t i = 0; i <= kind.num_states(); ++i) results.push_back(stack[i].toTensor());
    return results;
  }

 private:
  static c10::OperatorHandle op(const char* name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  }

  template <class Args>
  void run(void (*kernel)(const Runtime*, const Args*), const Args& args) const {
    struct Bound {
      void (*kernel)(const Runtime*, const Args*);
      const Args* args;
    } bound{kernel, &args};
    py::gil_scoped_release released;
    kernel_access->with_runtime(
        [](const Runtime* runtime, void* context) {
          const Bound* call = static_cast<const Bound*>(context);
          call->kernel(runtime, call->args);
        },
        &bound);
  }
};

bool is_true(PyObject* object) { return object == Py_True; }

// The states that were given, of this shape; false where the long way has to look at them.
bool states_of(PyObject* given, size_t count, at::ScalarType dtype, at::IntArrayRef shape,
               std::vector<at::Tensor>& states) {
  if (given == Py_None) return true;
  if (!PyTuple_CheckExact(given) || PyTuple_GET_SIZE(given) != static_cast<Py_ssize_t>(count))
    return false;
  for (size_t i = 0; i < count; ++i) {
    const at::Tensor* state = plain(PyTuple_GET_ITEM(given, static_cast<Py_ssize_t>(i)), dtype);
    if (!state || !has_shape(*state, shape)) return false;
    states.push_back(*state);
  }
  return true;
}

std::optional<at::ScalarType> served_dtype(PyObject* input) {
  if (!THPVariable_CheckExact(input)) return std::nullopt;
  const at::ScalarType dtype = THPVariable_Unpack(input).scalar_type();
  if (dtype != at::kFloat && dtype != at::kDouble && dtype != at::kHalf && dtype != at::kBFloat16)
    return std::nullopt;
  return dtype;
}

// Whether products are of operands in bfloat16; `wanted` for float.
bool bf16_products(at::ScalarType dtype, bool wanted) {
  return dtype == at::kBFloat16 || (wanted && dtype == at::kFloat);
}

PyObject* tuple_of(const std::vector<at::Tensor>& tensors) {
  PyObject* tuple = PyTuple_New(static_cast<Py_ssize_t>(tensors.size()));
  for (size_t i = 0; i < tensors.size(); ++i)
    PyTuple_SET_ITEM(tuple, static_cast<Py_ssize_t>(i), THPVariable_Wrap(tensors[i]));
  return tuple;
}

char* at_row(void* base, int64_t bytes) { return static_cast<char*>(base) + bytes; }
const char* at_row(const void* base, int64_t bytes) {
  return static_cast<const char*>(base) + bytes;
}

// Layers: (output, final states), or None.
py::object layers(const py::object& module, const py::object& input_object, const py::object& given,
                  bool bf16) {
  const py::object long_way = py::none();
  const Names& n = names();
  const std::optional<at::ScalarType> dtype = served_dtype(input_object.ptr());
  if (!dtype || watched()) return long_way;
  const at::Tensor* input = plain(input_object.ptr(), *dtype);
  if (!input || input->dim() != 3 || input->numel() == 0 || input->stride(2) != 1) return long_way;

  const py::object attributes = module.attr("__dict__");
  const auto attribute = [&](PyObject* name) { return PyDict_GetItem(attributes.ptr(), name); };
  const auto number = [&](PyObject* name) {
    PyObject* value = attribute(name);
    return value && PyLong_CheckExact(value) ? PyLong_AsLongLong(value) : -1;
  };
  const std::optional<Kind> kind =
      kind_of(attribute(n.mode), attributes.ptr(), bf16_products(*dtype, bf16));
  PyObject* const parameters = attribute(n.parameters);
  PyObject* const all_weights = attribute(n.all_weights);
  PyObject* const flat_weights = attribute(n.flat_weights);
  PyObject* const memory = attribute(n.memory);
  PyObject* const dropout = attribute(n.dropout);
  const int64_t hidden = number(n.hidden_size), num_layers = number(n.num_layers);
  const int64_t directions = is_true(attribute(n.bidirectional)) ? 2 : 1;
  const bool drops = num_layers > 1 && is_true(attribute(n.training)) &&
                     !(dropout && PyFloat_Check(dropout) && PyFloat_AS_DOUBLE(dropout) == 0);
  if (!kind || !parameters || !all_weights || hidden < 1 || num_layers < 1 || drops ||
      number(n.proj_size) != 0 || is_true(attribute(n.return_states)) ||
      is_true(attribute(n.learn_initial_state)) || (memory && !is_text(memory, "full")) ||
      !PyList_CheckExact(all_weights) || !flat_weights || !PyList_CheckExact(flat_weights) ||
      PyList_GET_SIZE(all_weights) != static_cast<Py_ssize_t>(num_layers * directions))
    return long_way;

  const bool batch_first = is_true(attribute(n.batch_first));
  const int64_t seq_len = input->size(batch_first ? 1 : 0);
  const int64_t batch = input->size(batch_first ? 0 : 1);
  const size_t num_states = kind->num_states();
  std::vector<at::Tensor> states;
  if (!states_of(given.ptr(), num_states, *dtype, {num_layers * directions, batch, hidden}, states))
    return long_way;

  std::vector<Weights> weights;
  bool recorded = input->requires_grad();
  for (const at::Tensor& state : states) recorded = recorded || state.requires_grad();
  for (int64_t i = 0; i < num_layers * directions; ++i) {
    PyObject* keys = PyList_GET_ITEM(all_weights, static_cast<Py_ssize_t>(i));
    if (!PyList_CheckExact(keys)) return long_way;
    const size_t count = static_cast<size_t>(PyList_GET_SIZE(keys));
    if (count != 2 && count != 4) return long_way;
    // The long way knows when another tensor there counts in place of the parameter.
    for (size_t j = 0; j < count; ++j) {
      const auto place = static_cast<Py_ssize_t>(static_cast<size_t>(i) * count + j);
      if (place >= PyList_GET_SIZE(flat_weights) ||
          PyList_GET_ITEM(flat_weights, place) !=
              PyDict_GetItem(parameters, PyList_GET_ITEM(keys, static_cast<Py_ssize_t>(j))))
        return long_way;
    }
    const int64_t features = i < directions ? input->size(2) : hidden * directions;
    const auto found = weights_of(parameters, reinterpret_cast<PyListObject*>(keys)->ob_item, count,
                                  *dtype, kind->gates() * hidden, features, hidden);
    if (!found) return long_way;
    recorded = recorded || found->record();
    weights.push_back(*found);
  }
  recorded = recorded && at::GradMode::is_enabled();
  Prepacked prepacked;
  if (!recorded) {
    prepacked = prepacked_of(attributes.ptr(), *dtype, *kind, seq_len == 1, weights);
    if (prepacked.stale) return long_way;
  }

  at::Tensor sequence = *input;
  const at::TensorOptions like = sequence.options();
  std::vector<at::Tensor> final;
  const auto call_of = [&](int64_t i) {
    const size_t at = static_cast<size_t>(i);
    return Call{*kind,
                batch_first,
                i % directions == 1,
                seq_len,
                batch,
                sequence.size(2),
                hidden,
                sequence,
                weights[at],
                recorded ? nullptr : prepacked.weights[at]};
  };
  const auto joined = [&](const std::vector<at::Tensor>& outputs) {
    return outputs.size() == 1 ? outputs[0] : at::cat(outputs, 2);
  };
  if (recorded) {
    std::vector<std::vector<at::Tensor>> finals(num_states);
    at::Tensor zeros;
    if (states.empty()) zeros = at::zeros({batch, hidden}, like);
    for (int64_t layer = 0; layer < num_layers; ++layer) {
      std::vector<at::Tensor> outputs;
      for (int64_t i = layer * directions; i < (layer + 1) * directions; ++i) {
        std::vector<at::Tensor> initial(num_states, zeros);
        for (size_t s = 0; s < states.size(); ++s) initial[s] = states[s].select(0, i);
        std::vector<at::Tensor> results = call_of(i).record(initial);
        outputs.push_back(results[0]);
        for (size_t s = 0; s < num_states; ++s) finals[s].push_back(results[1 + s]);
      }
      sequence = joined(outputs);
    }
    for (const auto& of_layers : finals)
      final.push_back(of_layers.size() == 1 ? of_layers[0].unsqueeze(0) : at::stack(of_layers));
  } else {
    at::RecordFunction watch(at::RecordScope::FUNCTION);
    if (watch.isActive()) watch.before("rnnfast::layers");
    at::Tensor zeros;
    if (states.empty()) zeros = at::zeros({batch, hidden}, like);
    for (size_t s = 0; s < num_states; ++s)
      final.push_back(at::empty({num_layers * directions, batch, hidden}, like));
    const int64_t state_bytes = batch * hidden * static_cast<int64_t>(sequence.element_size());
    for (int64_t layer = 0; layer < num_layers; ++layer) {
      std::vector<at::Tensor> outputs;
      for (int64_t i = layer * directions; i < (layer + 1) * directions; ++i) {
        outputs.push_back(at::empty({input->size(0), input->size(1), hidden}, like));
        const void* initial[2];
        void* last[2];
        for (size_t s = 0; s < num_states; ++s) {
          initial[s] = states.empty() ? zeros.const_data_ptr()
                                      : at_row(states[s].const_data_ptr(), i * state_bytes);
          last[s] = at_row(final[s].mutable_data_ptr(), i * state_bytes);
        }
        call_of(i).infer(initial, outputs.back().mutable_data_ptr(), last);
      }
      sequence = joined(outputs);
    }
  }
  PyObject* result = PyTuple_New(2);
  PyTuple_SET_ITEM(result, 0, THPVariable_Wrap(sequence));
  PyTuple_SET_ITEM(result, 1, tuple_of(final));
  return py::reinterpret_steal<py::object>(result);
}

// A cell's step on [batch, input_size] rows: the tuple of new states, or None.
py::object step(const py::object& module, const py::object& cell, const py::object& input_object,
                const py::object& given) {
  const py::object long_way = py::none();
  const Names& n = names();
  const std::optional<at::ScalarType> dtype = served_dtype(input_object.ptr());
  if (!dtype || watched()) return long_way;
  const at::Tensor* rows = plain(input_object.ptr(), *dtype);
  if (!rows || rows->dim() != 2 || rows->numel() == 0 || rows->stride(1) != 1) return long_way;

  const py::object attributes = module.attr("__dict__");
  const std::optional<Kind> kind = kind_of(cell.ptr(), attributes.ptr(), false);
  PyObject* const parameters = PyDict_GetItem(attributes.ptr(), n.parameters);
  PyObject* const size = PyDict_GetItem(attributes.ptr(), n.hidden_size);
  if (!kind || !parameters || !size || !PyLong_CheckExact(size)) return long_way;
  const int64_t batch = rows->size(0), hidden = PyLong_AsLongLong(size);
  const size_t num_states = kind->num_states();
  std::vector<at::Tensor> states;
  if (!states_of(given.ptr(), num_states, *dtype, {batch, hidden}, states)) return long_way;
  PyObject* const bias = PyDict_GetItem(parameters, n.cell[2]);
  const auto weights = weights_of(parameters, n.cell.data(), bias && bias != Py_None ? 4 : 2,
                                  *dtype, kind->gates() * hidden, rows->size(1), hidden);
  if (!weights) return long_way;
  bool recorded = rows->requires_grad() || weights->record();
  for (const at::Tensor& state : states) recorded = recorded || state.requires_grad();
  recorded = recorded && at::GradMode::is_enabled();

  Prepacked prepacked{{nullptr}};
  if (!recorded) {
    prepacked = prepacked_of(attributes.ptr(), *dtype, *kind, true, {*weights});
    if (prepacked.stale) return long_way;
  }

  const at::Tensor sequence = rows->unsqueeze(0);
  const at::TensorOptions like = sequence.options();
  const Call call{*kind,         false,  false,    1,        batch,
                  rows->size(1), hidden, sequence, *weights, prepacked.weights[0]};
  if (states.empty()) states.assign(num_states, at::zeros({batch, hidden}, like));
  std::vector<at::Tensor> final;
  if (recorded) {
    const std::vector<at::Tensor> results = call.record(states);
    final.assign(results.begin() + 1, results.end());
  } else {
    at::RecordFunction watch(at::RecordScope::FUNCTION);
    if (watch.isActive()) watch.before("rnnfast::step");
    at::Tensor output = at::empty({batch, hidden}, like);
    const void* initial[2];
    void* last[2];
    for (size_t s = 0; s < num_states; ++s) {
      final.push_back(at::empty({batch, hidden}, like));
      initial[s] = states[s].const_data_ptr();
      last[s] = final[s].mutable_data_ptr();
    }
    call.infer(initial, output.mutable_data_ptr(), last);
  }
  return py::reinterpret_steal<py::object>(tuple_of(final));
}

}  // namespace

std::vector<at::Tensor> composite_gradients(const std::string& cell,
                                            const std::vector<std::string>& option_names,
                                            const std::vector<c10::IValue>& options,
                                            const std::vector<at::Tensor>& inputs,
                                            const std::vector<bool>& needed,
                                            const std::vector<at::Tensor>& grad_results) {
  py::gil_scoped_acquire gil;
  const auto to_python = [](const std::vector<at::Tensor>& tensors) {
    py::list list;
    for (const at::Tensor& tensor : tensors)
      list.append(tensor.defined() ? py::cast(tensor) : py::none());
    return list;
  };
  const auto option = [](const IValue& value) -> py::object {
    if (value.isTensor()) return py::cast(value.toTensor());
    if (value.isBool()) return py::bool_(value.toBool());
    if (value.isString()) return py::str(value.toStringRef());
    return py::none();
  };
  py::dict keywords;
  for (size_t i = 0; i < options.size(); ++i)
    keywords[py::str(option_names[i])] = option(options[i]);
  const py::object result = py::reinterpret_borrow<py::object>(composite)(
      cell, keywords, to_python(inputs), needed, to_python(grad_results));
  std::vector<at::Tensor> gradients;
  for (const py::handle gradient : result)
    gradients.push_back(gradient.is_none() ? at::Tensor() : gradient.cast<at::Tensor>());
  return gradients;
}

}  // namespace rnnfast

PYBIND11_MODULE(_eager, m) {
  m.doc() = "The short way from modules to kernels, and the ops' derivative in C++.";
  m.def("set_up", [](const py::capsule& access, const py::function& composite_gradients) {
    rnnfast::kernel_access = access.get_pointer<const rnnfast::KernelAccess>();
    rnnfast::composite = composite_gradients.inc_ref().ptr();
  });
  m.def("layers", torch::wrap_pybind_function(rnnfast::layers));
  m.def("step", torch::wrap_pybind_function(rnnfast::step));
}
