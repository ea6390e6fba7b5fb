// The native half of rnnfast.prepack, for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace rnnfast {

void bind_prepacking(pybind11::module_& m);

}  // namespace rnnfast
