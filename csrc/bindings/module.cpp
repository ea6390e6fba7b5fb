// rnnfast._C: what is no tensor op. Which ISA runs, how the extension was built, and the
// activations by themselves, so that tests can measure their error.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "bindings/host.h"
#include "bindings/kernel_access.h"
#include "bindings/packed_weights.h"
#include "bindings/prepacking.h"
#include "bindings/stream.h"
#include "bindings/text.h"
#include "cpu_kernels.h"

namespace py = pybind11;

namespace {

constexpr const char* kIsas[] = {"baseline", "avx2", "avx512"};

py::list available_isas() {
  py::list names;
  for (int i = 0; i < rnnfast::cpu_isa_count(); ++i) names.append(rnnfast::cpu_isa_at(i)->name);
  return names;
}

void set_isa(const std::string& name) {
  if (!rnnfast::set_cpu_isa(name.c_str()))
    throw py::value_error("name must be one of " + py::repr(available_isas()).cast<std::string>() +
                          " on this machine, but got '" + name + "'");
}

void check_environment() {
  const char* cap = std::getenv("RNNFAST_ISA");
  if (!cap) return;
  for (const char* isa : kIsas)
    if (std::strcmp(cap, isa) == 0) return;
  throw py::import_error(
      "environment variable RNNFAST_ISA must be 'baseline', 'avx2' or 'avx512', "
      "but is '" +
      std::string(cap) + "'");
}

py::dict build_info() {
  py::dict info;
  info["version"] = RNNFAST_VERSION;
  info["compiler"] = __VERSION__;
  info["torch"] = RNNFAST_TORCH;
  info["torch_stable_abi"] = "2.10";
  info["cpu_isas"] = available_isas();
  return info;
}

py::dict kernel_calls() {
  py::dict calls;
  for (int i = 0; i < rnnfast::cpu_isa_count(); ++i) {
    const CpuIsa* isa = rnnfast::cpu_isa_at(i);
    calls[isa->name] = isa->calls();
    if (isa->bfloat16) calls[py::str(std::string(isa->name) + "bf16")] = isa->bfloat16->calls();
  }
  return calls;
}

const rnnfast::KernelAccess kKernels = {rnnfast::cpu_isa,
                                        [](void (*body)(const Runtime*, void*), void* context) {
                                          const rnnfast::Host host;
                                          body(host.runtime(), context);
                                        },
                                        rnnfast::packed_if_same};

template <class T>
py::array map(void (*activation)(const void*, void*, int64_t),
              const py::array_t<T, py::array::c_style | py::array::forcecast>& x) {
  py::array_t<T> y(x.request().shape);
  activation(x.data(), y.mutable_data(), x.size());
  return y;
}

py::array activation(const std::string& name, const py::array& x) {
  if (name != "sigmoid" && name != "tanh")
    throw py::value_error("name must be 'sigmoid' or 'tanh', but got '" + name + "'");
  const CpuIsa* isa = rnnfast::cpu_isa();
  const bool sigmoid = name == "sigmoid";
  if (py::isinstance<py::array_t<float>>(x))
    return map<float>(sigmoid ? isa->float32.sigmoid : isa->float32.tanh, x);
  if (py::isinstance<py::array_t<double>>(x))
    return map<double>(sigmoid ? isa->float64.sigmoid : isa->float64.tanh, x);
  throw py::type_error("x must be a float32 or float64 array, but got " +
                       py::str(x.dtype()).cast<std::string>());
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  check_environment();
  m.doc() = "Compiled part of rnnfast; importing it registers the ops in torch.ops.rnnfast.";
  m.def("cpu_isas", available_isas, "ISAs that this machine can run, weakest first.");
  m.def("cpu_isa", [] { return rnnfast::cpu_isa()->name; }, "The ISA in use.");
  m.def("set_cpu_isa", set_isa, py::arg("name"), "Uses this ISA from now on.");
  m.def("build_info", build_info, "How the extension was built.");
  m.attr("_kernel_access") = py::capsule(&kKernels, rnnfast::kKernelAccess);
  m.def("kernel_calls", kernel_calls,
        "Kernel calls so far, by ISA; those with products in bfloat16 apart.");
  m.def(
      "activation", activation, py::arg("name"), py::arg("x"),
      "Elementwise 'sigmoid' or 'tanh' of a float32 or float64 array, as the kernels compute it.");
  rnnfast::bind_prepacking(m);
  rnnfast::bind_stream(m);
  rnnfast::bind_text(m);
}
