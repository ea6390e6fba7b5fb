// The type in which the tensors of a call stand.
#pragma once

#include <stdint.h>

// That of the kernels, or a half type, which kernels of float read and write as float: input,
// weights, biases, states, output, and the gradients of these. What forward keeps for backward is
// always of the kernels' type.
enum class Storage : int32_t { own, float16, bfloat16 };
