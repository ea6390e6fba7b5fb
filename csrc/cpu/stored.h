// Tensors as a caller has them: elements of T or, where T is float, of a half type (storage.h) that
// is read and written as float, rounded to nearest with ties to even.
#pragma once

#include "cpu/operand.h"
#include "cpu/work.h"
#include "storage.h"

namespace rnnfast {
namespace {

// IEEE 754 binary16.
struct Float16 {
  uint16_t bits;
};

RNNFAST_INLINE VecWords widened(VecHalf x) { return __builtin_convertvector(x, VecWords); }
RNNFAST_INLINE VecHalf narrowed(VecWords x) { return __builtin_convertvector(x, VecHalf); }

RNNFAST_INLINE VecFloat float_of(VecHalf x, Bf16) { return (VecFloat)(widened(x) << 16); }

RNNFAST_INLINE VecHalf half_of(VecFloat x, Bf16) {
  const VecWords bits = (VecWords)x;
  const VecWords rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return narrowed(x == x ? rounded : VecWords{} + 0x7fc0u);
}

RNNFAST_INLINE VecFloat float_of(VecHalf x, Float16) {
#if defined(__AVX512F__)
  return (VecFloat)_mm512_maskz_cvtph_ps((__mmask16)-1, (__m256i)x);
#elif defined(__F16C__)
  return (VecFloat)_mm256_cvtph_ps((__m128i)x);
#elif defined(__aarch64__)
  return (VecFloat)vcvt_f32_f16((float16x4_t)x);
#else
  const VecWords bits = widened(x), magnitude = bits & 0x7fffu;
  // Exponent and fraction at their places in a float are the number times 2^-112; what is subnormal
  // here gets its own exponent by the product.
  const VecFloat scaled = (VecFloat)(magnitude << 13) * broadcast(0x1p112f);
  const VecWords special = (VecWords)(magnitude >= 0x7c00u) & 0x7f800000u;
  return (VecFloat)((VecWords)scaled | special | (bits & 0x8000u) << 16);
#endif
}

RNNFAST_INLINE VecHalf half_of(VecFloat x, Float16) {
#if defined(__AVX512F__)
  return (VecHalf)_mm512_maskz_cvtps_ph((__mmask16)-1, (__m512)x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
  return (VecHalf)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
  return (VecHalf)vcvt_f16_f32((float32x4_t)x);
#else
  const VecWords bits = (VecWords)x, magnitude = bits & 0x7fffffffu;
  // A carry out of the fraction goes into the exponent, and out of the largest makes infinity.
  const VecWords normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  // Added to a half, what is below 2^-14 leaves its multiples of 2^-24 in the last bits.
  const VecWords subnormal =
      (VecWords)((VecFloat)magnitude + broadcast(0.5f)) - (VecWords)broadcast(0.5f);
  VecWords result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x47800000u ? VecWords{} + 0x7c00u : result;
  result = magnitude > 0x7f800000u ? VecWords{} + 0x7e00u : result;
  return narrowed(result | (bits >> 16 & 0x8000u));
#endif
}

// As load_first() and store_first() of T.
template <class S>
RNNFAST_INLINE auto load_first(const S* p, int64_t n) -> decltype(float_of(VecHalf{}, S{})) {
  return float_of(load_half(&p->bits, n), S{});
}
template <class S>
RNNFAST_INLINE auto store_first(S* p, VecFloat x, int64_t n) -> decltype((void)half_of(x, S{})) {
  store_half(&p->bits, half_of(x, S{}), n);
}

// Calls body(data as a pointer to the type of its elements); T: that of the kernels.
template <class T, class Body>
RNNFAST_INLINE void as_stored(Storage type, const void* data, const Body& body) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (type == Storage::float16) return body(static_cast<const Float16*>(data));
    if (type == Storage::bfloat16) return body(static_cast<const Bf16*>(data));
  }
  body(static_cast<const T*>(data));
}

template <class T>
constexpr int64_t element_bytes(Storage type) {
  return type == Storage::own ? sizeof(T) : 2;
}

// Elements [at, at + n) of a tensor, zeros behind them.
template <class T>
RNNFAST_INLINE Vec<T> load_stored(Storage type, const void* data, int64_t at, int64_t n) {
  Vec<T> x{};
  as_stored<T>(type, data, [&](const auto* from) __attribute__((always_inline)) {
    x = load_first(from + at, n);
  });
  return x;
}

template <class S>
RNNFAST_INLINE S* writable(const S* p) {
  return const_cast<S*>(p);
}

template <class T>
RNNFAST_INLINE void store_stored(Storage type, void* data, int64_t at, Vec<T> x, int64_t n) {
  as_stored<T>(type, data, [&](const auto* to) __attribute__((always_inline)) {
    store_first(writable(to) + at, x, n);
  });
}

// To E, as which T or operands of products are held.
template <class E>
void read_row(Storage type, const void* from, E* to, int64_t count) {
  typedef Sum<E> T;
  constexpr int width = Vector<T>::width;
  for (int64_t k = 0; k < count; k += width) {
    const int64_t n = min_of(width, count - k);
    store_operand(to + k, load_stored<T>(type, from, k, n), n);
  }
}

template <class T>
void write_row(const T* from, Storage type, void* to, int64_t count) {
  constexpr int width = Vector<T>::width;
  for (int64_t k = 0; k < count; k += width) {
    const int64_t n = min_of(width, count - k);
    store_stored<T>(type, to, k, load_first(from + k, n), n);
  }
}

// A contiguous tensor; null where it was not given.
template <class T>
struct Stored {
  const void* data;
  Storage type;

  Stored(const void* data_, Storage type_ = Storage::own) : data(data_), type(type_) {}
  Stored from(int64_t at) const {
    return {data ? static_cast<const char*>(data) + at * element_bytes<T>(type) : nullptr, type};
  }
  Vec<T> load(int64_t at, int64_t n) const { return load_stored<T>(type, data, at, n); }

  // Its elements as T: themselves, or a copy.
  const T* values(const Runtime& runtime, int64_t count) const {
    if (type == Storage::own || !data) return static_cast<const T*>(data);
    T* copy = allocate<T>(runtime, count);
    read_row(type, data, copy, count);
    return copy;
  }
};

// What a contiguous tensor is to hold, while it is computed: the tensor's memory, or other memory
// from which write() fills it. Null where it is not wanted.
template <class T>
struct Result {
  void* data;
  Storage type;
  int64_t count;
  T* values;

  Result(const Runtime& runtime, void* data_, Storage type_, int64_t count_)
      : data(data_), type(type_), count(count_), values(static_cast<T*>(data_)) {
    if (data && type != Storage::own) values = allocate<T>(runtime, count);
  }
  void write() const {
    if (data && type != Storage::own) write_row(values, type, data, count);
  }
};

}  // namespace
}  // namespace rnnfast
