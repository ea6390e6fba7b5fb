#include "bindings/prepacking.h"

#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "bindings/packed_weights.h"

namespace py = pybind11;

namespace rnnfast {
namespace {

using Tensors = std::vector<std::pair<uintptr_t, int64_t>>;

PackedCell cell_of(const std::string& name) {
  if (name == "LSTM") return PackedCell::lstm;
  if (name == "GRU") return PackedCell::gru;
  if (name == "GRU_RESET_BEFORE") return PackedCell::gru_reset_before;
  if (name == "RNN") return PackedCell::rnn;
  throw py::value_error("cell must be that of a layer, but got '" + name + "'");
}

// The dtype of weights, as torch names it without its module.
struct Dtype {
  bool float64;
  Storage storage;

  explicit Dtype(const std::string& name) : float64(name == "float64"), storage(Storage::own) {
    if (name == "float16")
      storage = Storage::float16;
    else if (name == "bfloat16")
      storage = Storage::bfloat16;
    else if (name != "float32" && !float64)
      throw py::value_error("dtype must be that of a layer's weights, but got '" + name + "'");
  }
};

// Packed weights that are known as long as this lives. Addresses are of tensors that
// rnnfast.prepacking has checked; 0 for what a layer has not.
class Packed {
 public:
  Packed(const std::string& cell, const std::array<uintptr_t, 5>& weights, int64_t input_size,
         int64_t hidden_size, int64_t proj_size, const std::string& dtype, bool bf16,
         Tensors tensors) {
    std::array<const void*, 5> at;
    for (size_t i = 0; i < at.size(); ++i) at[i] = reinterpret_cast<const void*>(weights[i]);
    const Dtype type(dtype);
    id_ = pack_weights(at, input_size, hidden_size, proj_size, type.float64, type.storage, bf16,
                       {cell_of(cell), std::move(tensors)});
  }
  ~Packed() { drop_packed_weights(id_); }
  Packed(const Packed&) = delete;
  Packed& operator=(const Packed&) = delete;

  int64_t id() const { return id_; }
  bool serves(const std::string& cell, const std::string& dtype, bool bf16, Tensors tensors) const {
    const CpuKernels& kernels = kernels_of(cpu_isa(), Dtype(dtype).float64, bf16, false);
    return packed_if_same(id_, kernels, {cell_of(cell), std::move(tensors)}) != nullptr;
  }

 private:
  int64_t id_;
};

}  // namespace

void bind_prepacking(py::module_& m) {
  py::class_<Packed>(m, "PackedWeights", "Weights of one layer or cell, packed for the ISA in use.")
      .def(py::init<const std::string&, const std::array<uintptr_t, 5>&, int64_t, int64_t, int64_t,
                    const std::string&, bool, Tensors>(),
           py::kw_only(), py::arg("cell"), py::arg("weights"), py::arg("input_size"),
           py::arg("hidden_size"), py::arg("proj_size"), py::arg("dtype"), py::arg("bf16"),
           py::arg("tensors"))
      .def_property_readonly("id", &Packed::id, "What the operators know them by.")
      .def("serves", &Packed::serves, py::kw_only(), py::arg("cell"), py::arg("dtype"),
           py::arg("bf16"), py::arg("tensors"),
           "Whether they fit the kernels in use, and these tensors as they are now.");
}

}  // namespace rnnfast
