// What one thread makes of this machine at best: multiply-adds of vectors in registers, and
// reading.
#include <cstdint>
#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kWidth = kBytes / 4;
typedef float Vector __attribute__((vector_size(kBytes)));

Vector load(const float* p) {
  Vector x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

float total(const Vector* x, int count) {
  float sum = 0;
  for (int i = 0; i < count; ++i)
    for (int lane = 0; lane < kWidth; ++lane) sum += x[i][lane];
  return sum;
}

}  // namespace

extern "C" {

// `rounds` times as many multiply-adds as are in flight at once; how many operations these are.
// `sink` keeps the compiler from leaving them out.
int64_t multiply_add(int64_t rounds, float* sink) {
  constexpr int kInFlight = 12;
  Vector sum[kInFlight], a = Vector{} + 0.5f, b = Vector{} + 1e-3f;
  // Unlike each other: of equal ones the compiler would compute one.
  for (int j = 0; j < kInFlight; ++j) sum[j] = Vector{} + static_cast<float>(j);
  for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 12
    for (int j = 0; j < kInFlight; ++j) sum[j] = sum[j] * a + b;
  *sink = total(sum, kInFlight);
  return rounds * kInFlight * kWidth * 2;
}

// Reads `count` floats `passes` times, every other time from the last to the first, as a walk over
// steps does; count is a multiple of 512.
void read(const float* p, int64_t count, int64_t passes, float* sink) {
  constexpr int kInFlight = 8;
  Vector sum[kInFlight] = {};
  for (int64_t pass = 0; pass < passes; ++pass)
    for (int64_t block = 0; block < count; block += 512) {
      const float* from = p + (pass % 2 ? count - 512 - block : block);
      for (int k = 0; k < 512; k += kInFlight * kWidth)
#pragma GCC unroll 8
        for (int j = 0; j < kInFlight; ++j) sum[j] += load(from + k + j * kWidth);
    }
  *sink = total(sum, kInFlight);
}
}
