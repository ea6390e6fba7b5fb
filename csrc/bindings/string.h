// A string among the arguments of an op.
#pragma once

#include <torch/csrc/stable/library.h>

#include <string>

namespace rnnfast {

// In place of std::string, whose conversion in torch (2.10 to 2.13) leaks one in every call.
struct String : std::string {
  using std::string::string;
};

}  // namespace rnnfast

template <>
struct torch::stable::detail::ToImpl<rnnfast::String> {
  // Takes over the string behind the value, as a conversion has to.
  static rnnfast::String call(StableIValue value, uint64_t, bool) {
    const StringHandle handle = to<StringHandle>(value);
    size_t length;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    const char* data;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    rnnfast::String string(data, length);
    STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return string;
  }
};
