// rnnfast._C's encoders and counters, the native half of rnnfast.text's token files.
#pragma once

#include <pybind11/pybind11.h>

namespace rnnfast {

void bind_text(pybind11::module_& m);

}  // namespace rnnfast
