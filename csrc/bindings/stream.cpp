#include "bindings/stream.h"

#include <pybind11/stl.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/host.h"
#include "cpu_kernels.h"

namespace py = pybind11;

namespace rnnfast {
namespace {

// Of tensors that rnnfast.Stream has checked; it keeps those that a step needs.
using Address = uintptr_t;
// weight_ih, weight_hh, bias_ih, bias_hh, weight_hr; 0 for what a layer has not.
using Weights = std::array<Address, 5>;

StreamCell cell_of(const std::string& name) {
  if (name == "LSTM") return kStreamLstm;
  if (name == "GRU") return kStreamGru;
  if (name == "GRU_RESET_BEFORE") return kStreamGruResetBefore;
  if (name == "RNN_TANH") return kStreamRnnTanh;
  if (name == "RNN_RELU") return kStreamRnnRelu;
  throw py::value_error("cell must be that of a stream, but got '" + name + "'");
}

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// A step allocates nothing: all that it needs was allocated with the packed weights.
void* refuse(const Runtime*, size_t) {
  throw std::logic_error("step: a kernel asked for scratch memory");
}

// A stack of packed layers, and where the states of its rows are.
class Stream {
 public:
  Stream(const std::string& cell, bool float64, int64_t batch, int64_t input_size,
         int64_t hidden_size, int64_t proj_size, const std::vector<Weights>& weights,
         Address embedding, int64_t num_embeddings, Address h, Address c, Address output)
      : batch_(batch),
        num_embeddings_(num_embeddings),
        output_(output),
        kernels_(float64 ? &cpu_isa()->float64 : &cpu_isa()->float32) {
    const int64_t element = float64 ? sizeof(double) : sizeof(float);
    const int64_t state_size = proj_size ? proj_size : hidden_size;
    output_bytes_ = static_cast<size_t>(element * batch * state_size);
    input_bytes_ = static_cast<size_t>(batch) *
                   (num_embeddings ? sizeof(int64_t) : static_cast<size_t>(element * input_size));
    input_ = aligned_block(input_bytes_);
    const Host host;
    const Runtime keeping = memory_.runtime(*host.runtime());
    StreamLayer layer{};
    layer.cell = cell_of(cell);
    layer.batch = batch;
    layer.input_size = input_size;
    layer.hidden_size = hidden_size;
    layer.proj_size = proj_size;
    layer.num_embeddings = num_embeddings;
    layer.embedding = at<void>(embedding);
    for (const auto& [weight_ih, weight_hh, bias_ih, bias_hh, weight_hr] : weights) {
      layer.weight_ih = at<void>(weight_ih);
      layer.weight_hh = at<void>(weight_hh);
      layer.bias_ih = at<void>(bias_ih);
      layer.bias_hh = at<void>(bias_hh);
      layer.weight_hr = at<void>(weight_hr);
      const void* below = steps_.empty() ? nullptr : steps_.back().h;
      steps_.push_back({kernels_->stream_layer(&keeping, host.runtime(), &layer), below,
                        at<void>(h), at<void>(c), at<void>(output), false});
      layer.input_size = state_size;
      layer.num_embeddings = 0;
      layer.embedding = nullptr;
      h += static_cast<Address>(element * batch * state_size);
      if (c) c += static_cast<Address>(element * batch * hidden_size);
    }
    // About the multiply-adds of a step: each packed weight serves every row once.
    long_step_ = static_cast<int64_t>(memory_.bytes()) / element * batch >= kLongStep;
  }

  void step(Address x) {
    if (busy_.test_and_set(std::memory_order_acquire))
      throw std::runtime_error(
          "step: another thread is in a step of this stream, which serves one thread at a time");
    const std::unique_ptr<std::atomic_flag, void (*)(std::atomic_flag*)> in_use(
        &busy_, [](std::atomic_flag* busy) { busy->clear(std::memory_order_release); });
    // What an earlier step gave may be the input of this one, which writes there as it reads.
    if (x - output_ < output_bytes_) {
      std::memcpy(input_.get(), at<void>(x), input_bytes_);
      x = reinterpret_cast<Address>(input_.get());
    }
    if (num_embeddings_) check_ids(at<const int64_t>(x));
    std::optional<py::gil_scoped_release> released;
    if (long_step_) released.emplace();
    const Host host;
    Runtime runtime = *host.runtime();
    runtime.allocate = refuse;
    steps_.front().input = at<void>(x);
    for (StreamStep& step : steps_) {
      kernels_->stream_step(&runtime, &step);
      step.backwards = !step.backwards;
    }
  }

 private:
  // Multiply-adds, about half a millisecond of them, from which a step lets other Python threads
  // run. To get the lock back may take until they give it up, 5 milliseconds by default: a short
  // step would be late for no one's good.
  static constexpr int64_t kLongStep = 1 << 23;

  void check_ids(const int64_t* ids) const {
    for (int64_t n = 0; n < batch_; ++n)
      if (ids[n] < 0 || ids[n] >= num_embeddings_)
        throw py::index_error("x must be in [0, " + std::to_string(num_embeddings_) + "), got " +
                              std::to_string(ids[n]));
  }

  int64_t batch_, num_embeddings_;  // none: 0
  Address output_;
  size_t output_bytes_, input_bytes_;
  Block input_;  // a copy of x where it stands in output
  // Of the ISA in use when the weights were packed: another has vectors of another width.
  const CpuKernels* kernels_;
  KeptMemory memory_;
  std::vector<StreamStep> steps_;  // of each layer
  bool long_step_ = false;
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
};

}  // namespace

void bind_stream(py::module_& m) {
  py::class_<Stream>(m, "Stream", "The native half of rnnfast.Stream, which checks its arguments.")
      .def(py::init<const std::string&, bool, int64_t, int64_t, int64_t, int64_t,
                    const std::vector<Weights>&, Address, int64_t, Address, Address, Address>(),
           py::kw_only(), py::arg("cell"), py::arg("float64"), py::arg("batch"),
           py::arg("input_size"), py::arg("hidden_size"), py::arg("proj_size"), py::arg("weights"),
           py::arg("embedding"), py::arg("num_embeddings"), py::arg("h"), py::arg("c"),
           py::arg("output"))
      .def("step", &Stream::step, py::arg("x"), "One step from the input at this address.");
}

}  // namespace rnnfast
