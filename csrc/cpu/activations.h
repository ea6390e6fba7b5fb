// Vectorised sigmoid and tanh, float and double.
//
// Both rest on expm1 of a non-positive argument: a = n ln2 + r with |r| <= ln2 / 2 (Cody & Waite:
// ln2 in two parts), expm1(r) by its Taylor polynomial, and powers of two put into the exponent
// bits. Where a vector holds a table of 16 floats, n counts sixteenths, and the polynomial is half
// as long (Tang 1989).
//
//   sigmoid(x) = (x < 0 ? e : 1) / (1 + e)   with e = exp(-|x|)
//   tanh(x)    = sign(x) * -m / (2 + m)      with m = expm1(-2|x|), in double
//   tanh(x)    = x + x^3 P(x^2) where |x| < 1, sign(x) * (1 - 2e / (1 + e)) elsewhere, with
//                e = exp(-2|x|), in float, where torch's tanh is almost correctly rounded
//
// so nothing overflows, tails go to 0 and 1 through the subnormals, tanh keeps the sign of zero,
// and NaN passes through every step. Largest error over all finite arguments, on every ISA: sigmoid
// 3 ULP in float, 4 in double; tanh 1.1 ULP in float, 4 in double (tests/core/test_activations.py).
#pragma once

#include "cpu/vec.h"

namespace rnnfast {
namespace {

template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  // 1 / k! from the highest power down to k = 2; the first power left out is below 2^-26 of r.
  static constexpr float taylor[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120,
                                     1.0f / 24,   1.0f / 6,   1.0f / 2};
  static constexpr float log2e = 1.44269504088896341f;
  static constexpr float ln2_high = 0.693359375f;  // 9 bits: exact times any n used here
  static constexpr float ln2_low = -2.12194440054690583e-4f;
  static constexpr float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float lowest = -104.0f;  // exp of it rounds to 0
  static constexpr float saturated = -40.0f;
  static constexpr int lift = 32;  // keeps 2^(n + lift) normal
};

// P of tanh(x) = x + x^3 P(x^2) on |x| < 1, highest power first: minimax, relative error 4.7e-9
// (Lawson's iteratively reweighted least squares on 400 Chebyshev nodes).
constexpr float kTanhNear[] = {-0.00035845194f, 0.0023013644f, -0.0079461057f, 0.021486657f,
                               -0.053879801f,   0.13332345f,   -0.33333296f};

template <>
struct ExpConstants<double> {
  static constexpr double taylor[] = {
      1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
      1.0 / 5040,       1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      1.0 / 2};
  static constexpr double log2e = 1.44269504088896340736;
  static constexpr double ln2_high = 0x1.62e42fee00000p-1;
  static constexpr double ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double lowest = -746.0;
  static constexpr double saturated = -80.0;
  static constexpr int lift = 64;
};

// exp(a) = 2^n * (1 + p) with a whole n, for a <= 0.
template <class T>
struct Exp {
  Vec<T> p, n;
  Vec<T> rounded;  // n + C::round, whose low bits are n as an integer
};

template <class T>
RNNFAST_INLINE Exp<T> reduce_exp(Vec<T> a) {
  typedef ExpConstants<T> C;
  Exp<T> e;
  const Vec<T> magic = broadcast(C::round);
  e.rounded = fma(a, broadcast(C::log2e), magic);
  e.n = e.rounded - magic;
  Vec<T> r = fma(e.n, broadcast(-C::ln2_high), a);
  r = fma(e.n, broadcast(-C::ln2_low), r);
  Vec<T> q = broadcast(C::taylor[0]);
#pragma GCC unroll 16
  for (unsigned i = 1; i < sizeof C::taylor / sizeof(T); ++i)
    q = fma(q, r, broadcast(C::taylor[i]));
  e.p = fma(q * r, r, r);
  return e;
}

// 2^(n + lift), where that is a normal number.
template <class T>
RNNFAST_INLINE Vec<T> power_of_two(const Exp<T>& e, int lift = 0) {
  typedef ExpConstants<T> C;
  typedef typename Vector<T>::bits Bits;
  const Bits exponent = (Bits)e.rounded - (Bits)broadcast(C::round) + lift;
  return (Vec<T>)((exponent + C::bias) << C::mantissa);
}

// exp(a), through the subnormals.
template <class T>
RNNFAST_INLINE Vec<T> exp_of(const Exp<T>& e) {
#if defined(__AVX512F__)
  return scale_by_power(e.p + T(1), e.n);
#else
  typedef ExpConstants<T> C;
  typedef typename Vector<T>::bits Bits;
  const Vec<T> scale = power_of_two(e, C::lift);
  return fma(scale, e.p, scale) * (Vec<T>)((Bits{} - C::lift + C::bias) << C::mantissa);
#endif
}

#if defined(__AVX512F__)
// 2^(i / 16).
alignas(64) constexpr float kRootsOfTwo[] = {
    1.0f,          1.0442737340f, 1.0905077457f, 1.1387885808f, 1.1892070770f, 1.2418577671f,
    1.2968395948f, 1.3542555570f, 1.4142135381f, 1.4768261909f, 1.5422108173f, 1.6104903221f,
    1.6817928552f, 1.7562521696f, 1.8340080976f, 1.9152065515f};
// expm1(r) = r + r^2 (P[1] + P[0] r) on |r| <= ln2 / 32: minimax, error 1.6e-9.
constexpr float kExpNear[] = {0.16667031f, 0.5000162f};

// exp(a) for a <= 0, through the subnormals.
RNNFAST_INLINE VecFloat exp_of(VecFloat a) {
  typedef ExpConstants<float> C;
  const VecFloat magic = broadcast(C::round / 16);  // adding it rounds to sixteenths
  const VecFloat rounded = fma(a, broadcast(C::log2e), magic);
  const VecFloat n = rounded - magic;
  VecFloat r = fma(n, broadcast(-C::ln2_high), a);
  r = fma(n, broadcast(-C::ln2_low), r);
  const VecFloat q = fma(broadcast(kExpNear[0]), r, broadcast(kExpNear[1]));
  const VecFloat root = lookup(kRootsOfTwo, rounded);
  return scale_by_power(fma(root, fma(q * r, r, r), root), n);
}
#else
RNNFAST_INLINE VecFloat exp_of(VecFloat a) { return exp_of(reduce_exp<float>(a)); }
#endif
RNNFAST_INLINE VecDouble exp_of(VecDouble a) { return exp_of(reduce_exp<double>(a)); }

template <class T>
RNNFAST_INLINE Vec<T> sigmoid_of(Vec<T> x) {
  typedef ExpConstants<T> C;
  typedef typename Vector<T>::bits Bits;
  const Vec<T> lowest = broadcast(C::lowest);
  Vec<T> a = (Vec<T>)((Bits)x | (Bits)broadcast(T(-0.0)));  // -|x|
  a = a < lowest ? lowest : a;
  const Vec<T> e = exp_of(a);
  const Vec<T> one = broadcast(T(1));
  return (x < Vec<T>{} ? e : one) / (one + e);
}

template <class T>
RNNFAST_INLINE Vec<T> tanh_of(Vec<T> x) {
  typedef ExpConstants<T> C;
  typedef typename Vector<T>::bits Bits;
  const Bits sign = (Bits)broadcast(T(-0.0));
  const Vec<T> saturated = broadcast(C::saturated);
  const Vec<T> one = broadcast(T(1));
  Vec<T> a = (Vec<T>)((Bits)x | sign);  // -|x|
  a = a + a;
  a = a < saturated ? saturated : a;
  Vec<T> magnitude;
  if constexpr (sizeof(T) == 4) {
    const Vec<T> e = exp_of(a);
    magnitude = one - (e + e) / (one + e);
    const Vec<T> square = x * x;
    Vec<T> q = broadcast(kTanhNear[0]);
#pragma GCC unroll 8
    for (int i = 1; i < 7; ++i) q = fma(q, square, broadcast(kTanhNear[i]));
    magnitude = square < one ? fma(x * square, q, x) : magnitude;
  } else {
    const Exp<T> reduced = reduce_exp<T>(a);
    const Vec<T> scale = power_of_two(reduced);
    const Vec<T> m = fma(scale, reduced.p, scale - one);
    magnitude = -m / (m + T(2));
  }
  return (Vec<T>)(((Bits)magnitude & ~sign) | ((Bits)x & sign));
}

RNNFAST_INLINE VecFloat sigmoid(VecFloat x) { return sigmoid_of<float>(x); }
RNNFAST_INLINE VecDouble sigmoid(VecDouble x) { return sigmoid_of<double>(x); }
RNNFAST_INLINE VecFloat tanh(VecFloat x) { return tanh_of<float>(x); }
RNNFAST_INLINE VecDouble tanh(VecDouble x) { return tanh_of<double>(x); }

}  // namespace
}  // namespace rnnfast
