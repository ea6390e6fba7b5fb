// How the operands of a product are held: as what they are, or rounded to bfloat16.
//
// P is the type of an operand, float, double or Bf16, and Sum<P> that of sums and of all else. A
// lane of a packed matrix holds kGroup<P> neighbours over k: one element, or two in bfloat16, which
// the CPU multiplies at once and adds to a float, first the second, then the first. What a depth
// that is no whole number of groups lacks is zero.
#pragma once

#include "cpu/vec.h"

namespace rnnfast {
namespace {

// The upper half of a float: 8 bits of precision, the range of a float.
struct Bf16 {
  uint16_t bits;
};

template <class P>
struct Operand {
  typedef P Sum;
  static constexpr int group = 1;
};
template <>
struct Operand<Bf16> {
  typedef float Sum;
  static constexpr int group = 2;
};
template <class P>
using Sum = typename Operand<P>::Sum;
template <class P>
constexpr int kGroup = Operand<P>::group;

// Lanes that hold so many k.
template <class P>
constexpr int64_t groups(int64_t depth) {
  return (depth + kGroup<P> - 1) / kGroup<P>;
}

// All lanes the group at p.
template <class T>
RNNFAST_INLINE Vec<T> broadcast_group(const T* p) {
  return broadcast(*p);
}

// sum + the products of two lanes' groups.
template <class P>
RNNFAST_INLINE Vec<Sum<P>> multiply_add(Vec<Sum<P>> a, Vec<Sum<P>> b, Vec<Sum<P>> sum) {
  return fma(a, b, sum);
}

// Neighbouring lanes hold neighbouring elements, first those of `low`.
template <class P>
RNNFAST_INLINE Vec<Sum<P>> join_groups(Vec<Sum<P>> low, Vec<Sum<P>> high);

// Each lane holds its elements of the kGroup<P> vectors of x.
template <class P>
RNNFAST_INLINE Vec<Sum<P>> join(const Vec<Sum<P>>* x) {
  return *x;
}

// Element i of a lane.
template <class P>
RNNFAST_INLINE Sum<P> element(Sum<P> lane, int) {
  return lane;
}

template <class T>
RNNFAST_INLINE void store_operand(T* p, Vec<T> x, int64_t n) {
  store_first(p, x, n);
}

#if defined(__AVX512BF16__)
// To nearest, ties to even; infinities and NaN stay, what is subnormal becomes zero.
RNNFAST_INLINE VecHalf round_to_bf16(VecFloat x) { return (VecHalf)_mm512_cvtneps_pbh((__m512)x); }

RNNFAST_INLINE VecFloat broadcast_group(const Bf16* p) {
  int32_t pair;
  memcpy(&pair, p, sizeof pair);
  return (VecFloat)_mm512_set1_epi32(pair);
}

// All lanes a group of *p and zero.
RNNFAST_INLINE VecFloat broadcast_last(const Bf16* p) {
  uint16_t bits;
  memcpy(&bits, p, sizeof bits);
  return (VecFloat)_mm512_set1_epi32(bits);
}

template <>
RNNFAST_INLINE VecFloat multiply_add<Bf16>(VecFloat a, VecFloat b, VecFloat sum) {
  return (VecFloat)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

template <>
RNNFAST_INLINE VecFloat join_groups<Bf16>(VecFloat low, VecFloat high) {
  return (VecFloat)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}

template <>
RNNFAST_INLINE VecFloat join<Bf16>(const VecFloat* x) {
  const VecWords low = __builtin_convertvector(round_to_bf16(x[0]), VecWords);
  const VecWords high = __builtin_convertvector(round_to_bf16(x[1]), VecWords);
  return (VecFloat)(low | high << 16);
}

template <>
RNNFAST_INLINE float element<Bf16>(float lane, int i) {
  uint32_t bits;
  memcpy(&bits, &lane, sizeof bits);
  bits = i == 0 ? bits << 16 : bits & 0xffff0000u;
  memcpy(&lane, &bits, sizeof lane);
  return lane;
}

RNNFAST_INLINE void store_operand(Bf16* p, VecFloat x, int64_t n) {
  store_half(&p->bits, round_to_bf16(x), n);
}
#endif

}  // namespace
}  // namespace rnnfast
