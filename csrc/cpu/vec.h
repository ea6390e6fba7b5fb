// A thin vector of T as wide as the ISA this file is compiled for.
//
// GCC/Clang vector extensions give arithmetic, comparison and selection; here stand only the few
// operations they lack. -ffp-contract=off holds in every file that includes this, so a product and
// a sum are fused exactly where fma() says so, and results depend on nothing the compiler decides.
// No C++ standard-library header: an inline function of it compiled with wide instructions could be
// the copy that the linker keeps for a machine without them.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace rnnfast {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 32;
#else
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
#endif

#define RNNFAST_INLINE inline __attribute__((always_inline))

typedef float VecFloat __attribute__((vector_size(kVectorBytes)));
typedef double VecDouble __attribute__((vector_size(kVectorBytes)));
typedef int32_t VecInt32 __attribute__((vector_size(kVectorBytes)));
typedef int64_t VecInt64 __attribute__((vector_size(kVectorBytes)));
// As many elements of 16 bits as VecFloat has of 32, and the same widened.
typedef uint16_t VecHalf __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t VecWords __attribute__((vector_size(kVectorBytes)));

template <class T>
struct Vector;
template <>
struct Vector<float> {
  typedef VecFloat type;
  typedef VecInt32 bits;
  static constexpr int width = kVectorBytes / 4;
};
template <>
struct Vector<double> {
  typedef VecDouble type;
  typedef VecInt64 bits;
  static constexpr int width = kVectorBytes / 8;
};
template <class T>
using Vec = typename Vector<T>::type;

template <class T>
RNNFAST_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
RNNFAST_INLINE void store(T* p, Vec<T> v) {
  memcpy(p, &v, sizeof v);
}

template <class T>
RNNFAST_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}

// The first n elements at p, zeros behind them; 0 <= n <= width.
template <class T>
RNNFAST_INLINE Vec<T> load_first(const T* p, int64_t n) {
  if (n >= Vector<T>::width) return load(p);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
  if constexpr (sizeof(T) == 8) return (Vec<T>)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
#else
  T x[Vector<T>::width] = {};
  for (int64_t i = 0; i < n; ++i) x[i] = p[i];
  return load(x);
#endif
}

template <class T>
RNNFAST_INLINE void store_first(T* p, Vec<T> v, int64_t n) {
  if (n >= Vector<T>::width) return store(p, v);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
  if constexpr (sizeof(T) == 8) _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
#else
  T x[Vector<T>::width];
  store(x, v);
  for (int64_t i = 0; i < n; ++i) p[i] = x[i];
#endif
}

// The same of elements of 16 bits.
RNNFAST_INLINE VecHalf load_half(const uint16_t* p, int64_t n) {
  VecHalf x = {};
  if (n >= Vector<float>::width) {
    memcpy(&x, p, sizeof x);
    return x;
  }
#if defined(__AVX512F__)
  return (VecHalf)_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
#else
  uint16_t lanes[Vector<float>::width] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  memcpy(&x, lanes, sizeof x);
  return x;
#endif
}

RNNFAST_INLINE void store_half(uint16_t* p, VecHalf x, int64_t n) {
  if (n >= Vector<float>::width) {
    memcpy(p, &x, sizeof x);
    return;
  }
#if defined(__AVX512F__)
  _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), (__m256i)x);
#else
  uint16_t lanes[Vector<float>::width];
  memcpy(lanes, &x, sizeof x);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
#endif
}

// a * b + c, rounded once where the ISA can, twice elsewhere.
RNNFAST_INLINE VecFloat fma(VecFloat a, VecFloat b, VecFloat c) {
#if defined(__AVX512F__)
  return (VecFloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (VecFloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (VecFloat)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
RNNFAST_INLINE VecDouble fma(VecDouble a, VecDouble b, VecDouble c) {
#if defined(__AVX512F__)
  return (VecDouble)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__)
  return (VecDouble)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
  return (VecDouble)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

#if defined(__AVX512F__)
// a * 2^floor(n) for n of any size, with one rounding. (The unmasked form of this intrinsic, as of
// the next one, reads an uninitialised vector in GCC 12's header.)
RNNFAST_INLINE VecFloat scale_by_power(VecFloat a, VecFloat n) {
  return (VecFloat)_mm512_maskz_scalef_ps((__mmask16)-1, (__m512)a, (__m512)n);
}
RNNFAST_INLINE VecDouble scale_by_power(VecDouble a, VecDouble n) {
  return (VecDouble)_mm512_maskz_scalef_pd((__mmask8)-1, (__m512d)a, (__m512d)n);
}
// Each lane has that of a table's 16 elements which the last 4 bits of `index` name.
RNNFAST_INLINE VecFloat lookup(const float* table, VecFloat index) {
  return (VecFloat)_mm512_maskz_permutexvar_ps((__mmask16)-1, (__m512i)index, (__m512)load(table));
}
#endif

// [a0 b0 a1 b1 ...] of the lower or the upper halves of a and b.
template <bool upper, class V, class Bits>
RNNFAST_INLINE V interleave(V a, V b, Bits) {
  constexpr int width = sizeof(V) / sizeof(V{}[0]);
  constexpr int h = upper ? width / 2 : 0;
#if defined(__clang__)
  if constexpr (width == 2) return __builtin_shufflevector(a, b, h, 2 + h);
  if constexpr (width == 4) return __builtin_shufflevector(a, b, h, 4 + h, h + 1, 5 + h);
  if constexpr (width == 8)
    return __builtin_shufflevector(a, b, h, 8 + h, h + 1, 9 + h, h + 2, 10 + h, h + 3, 11 + h);
  if constexpr (width == 16)
    return __builtin_shufflevector(a, b, h, 16 + h, h + 1, 17 + h, h + 2, 18 + h, h + 3, 19 + h,
                                   h + 4, 20 + h, h + 5, 21 + h, h + 6, 22 + h, h + 7, 23 + h);
#else
  if constexpr (width == 2) return __builtin_shuffle(a, b, Bits{h, 2 + h});
  if constexpr (width == 4) return __builtin_shuffle(a, b, Bits{h, 4 + h, h + 1, 5 + h});
  if constexpr (width == 8)
    return __builtin_shuffle(a, b, Bits{h, 8 + h, h + 1, 9 + h, h + 2, 10 + h, h + 3, 11 + h});
  if constexpr (width == 16)
    return __builtin_shuffle(a, b,
                             Bits{h, 16 + h, h + 1, 17 + h, h + 2, 18 + h, h + 3, 19 + h, h + 4,
                                  20 + h, h + 5, 21 + h, h + 6, 22 + h, h + 7, 23 + h});
#endif
}

// Transposes width x width elements, x[row]: log2(width) rounds of a perfect shuffle of the rows.
template <class T>
RNNFAST_INLINE void transpose(Vec<T> (&x)[Vector<T>::width]) {
  constexpr int width = Vector<T>::width;
  typedef typename Vector<T>::bits Bits;
#pragma GCC unroll 4
  for (int round = 1; round < width; round *= 2) {
    Vec<T> y[width];
#pragma GCC unroll 8
    for (int i = 0; i < width / 2; ++i) {
      y[2 * i] = interleave<false>(x[i], x[i + width / 2], Bits{});
      y[2 * i + 1] = interleave<true>(x[i], x[i + width / 2], Bits{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < width; ++i) x[i] = y[i];
  }
}

// A vector whose lane i is the sum of the lanes of x[i]: a transpose that adds at every round.
template <class T>
RNNFAST_INLINE Vec<T> sum_lanes(const Vec<T>* x) {
  constexpr int width = Vector<T>::width;
  typedef typename Vector<T>::bits Bits;
  Vec<T> y[width];
#pragma GCC unroll 16
  for (int i = 0; i < width; ++i) y[i] = x[i];
#pragma GCC unroll 4
  for (int half = width / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i)
      y[i] = interleave<false>(y[i], y[i + half], Bits{}) +
             interleave<true>(y[i], y[i + half], Bits{});
  return y[0];
}

}  // namespace
}  // namespace rnnfast
