// TF32 as a type of operands: a float that keeps 10 bits of its mantissa, as tensor cores read it.
//
// Its range and its 4 bytes are those of float; the 13 bits that are lost are zero. A type of its
// own tells templates apart that otherwise take float.
#pragma once

namespace rnnfast {

struct Tf32 {
  float value;
};

}  // namespace rnnfast
