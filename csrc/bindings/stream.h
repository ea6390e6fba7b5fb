// rnnfast._C.Stream, the native half of rnnfast.Stream.
#pragma once

#include <pybind11/pybind11.h>

namespace rnnfast {

void bind_stream(pybind11::module_& m);

}  // namespace rnnfast
