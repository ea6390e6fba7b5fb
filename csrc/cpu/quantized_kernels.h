// Recurrent layers with int8 weights on the CPU: the one body of ../quantized.h, for each ISA.
//
// A tile is a few rows of int16 activations times all gates of one vector of units. Lanes are
// units: for every two k, a pair of activations is broadcast and multiplied with the two weights of
// each lane, the sum of both added to the lane's int32. AVX-512 CPUs with VNNI do it in one
// instruction, other x86-64 ones in two.
//
// What a step multiplies with is a quarter of its float32 size, so that the recurrent weights of a
// larger layer stay in the cores' caches, from where one row can read them in time. Threads share
// units: one reads the same weights at every step.
#pragma once

#include "cpu/activations.h"
#include "cpu/sequence.h"
#include "pointwise.h"
#include "quantized.h"

namespace rnnfast {
namespace {

typedef int16_t VecInt16 __attribute__((vector_size(kVectorBytes)));
typedef int16_t HalfInt16 __attribute__((vector_size(kVectorBytes / 2)));
typedef int8_t HalfInt8 __attribute__((vector_size(kVectorBytes / 2)));

// Units of a tile of weights; what its depth is a multiple of; bytes of a gate's weights for two k.
constexpr int64_t kTileUnits = 16, kTileDepth = 16, kPairBytes = 2 * kTileUnits;
// Rows of a tile: with four gates, half the registers hold sums.
constexpr int kQuantizedRows = kVectorRegisters / 8;

RNNFAST_INLINE int64_t padded_depth(int64_t depth) {
  return ceil_div(depth, kTileDepth) * kTileDepth;
}

// The range of the whole numbers that stand for activations.
RNNFAST_INLINE float activation_limit(int64_t depth) {
  return static_cast<float>(min_of(32767, INT32_MAX / (127 * max_of(depth, 1))));
}

// q = x as whole numbers, zeros behind them up to padded_depth(count). Returns the scale.
inline float quantize_row(const float* x, int64_t count, float limit, int16_t* q) {
  constexpr int width = Vector<float>::width;
  const VecInt32 magnitude = VecInt32{} + 0x7fffffff;
  // As integers, magnitudes have the same order, and infinity and NaN are the largest.
  VecInt32 most{};
  for (int64_t k = 0; k < count; k += width) {
    const VecInt32 bits = (VecInt32)load_first(x + k, count - k) & magnitude;
    most = bits > most ? bits : most;
  }
  int32_t largest = 0;
  for (int i = 0; i < width; ++i) largest = most[i] > largest ? most[i] : largest;
  float max;
  memcpy(&max, &largest, sizeof max);

  const bool finite = max < __builtin_inff(), zero = max < 0x1p-100f;
  const VecFloat inverse = broadcast(finite && !zero ? limit / max : 0);
  const VecFloat round = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  for (int64_t k = 0; k < padded_depth(count); k += width) {
    const VecFloat scaled = load_first(x + k, max_of(0, min_of(count - k, width))) * inverse;
    const VecInt32 whole = (VecInt32)(scaled + round) - (VecInt32)round;
    const HalfInt16 narrow = finite ? __builtin_convertvector(whole, HalfInt16) : HalfInt16{};
    memcpy(q + k, &narrow, sizeof narrow);
  }
  return !finite ? __builtin_nanf("") : zero ? 0 : max / limit;
}

RNNFAST_INLINE VecInt16 load_widened(const int8_t* p) {
  HalfInt8 narrow;
  memcpy(&narrow, p, sizeof narrow);
  // GCC 12 makes four instructions of the conversion where the ISA has one.
#if defined(__AVX512F__)
  return (VecInt16)_mm512_cvtepi8_epi16((__m256i)narrow);
#elif defined(__AVX2__)
  return (VecInt16)_mm256_cvtepi8_epi16((__m128i)narrow);
#else
  return __builtin_convertvector(narrow, VecInt16);
#endif
}

// sum + the sum of the two products in each lane.
template <bool vnni>
RNNFAST_INLINE VecInt32 add_products(VecInt32 sum, VecInt16 a, VecInt16 b) {
#if defined(__AVX512F__)
  // Not the intrinsic: it wants all of its callers compiled for VNNI.
  if constexpr (vnni) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
  }
  return sum + (VecInt32)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return sum + (VecInt32)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return sum + (VecInt32)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  const VecInt32 low = ((VecInt32)a << 16 >> 16) * ((VecInt32)b << 16 >> 16);
  return sum + low + ((VecInt32)a >> 16) * ((VecInt32)b >> 16);
#endif
}

// sums[m][gate] = one vector of units of `rows` rows of activations times a weight. `weight` points
// to the units in their tile; the next two k stand `pair` bytes behind.
template <bool vnni, int gates, int rows>
RNNFAST_INLINE void multiply_quantized(const int8_t* weight, int64_t pair, const int16_t* a,
                                       int64_t row, int64_t depth, VecInt32 (&sums)[rows][gates]) {
  // Sums of the same element taken side by side, so that an addition need not wait for the last.
  constexpr int ahead = gates * rows >= 8 ? 1 : gates * rows >= 3 ? 2 : 4;
  VecInt32 parts[ahead][rows][gates] = {};
  for (int64_t k = 0; k < depth; k += 2 * ahead) {
#pragma GCC unroll 4
    for (int i = 0; i < ahead; ++i, weight += pair) {
      VecInt16 w[gates];
#pragma GCC unroll 4
      for (int gate = 0; gate < gates; ++gate) w[gate] = load_widened(weight + gate * kPairBytes);
#pragma GCC unroll 4
      for (int m = 0; m < rows; ++m) {
        int32_t two;
        memcpy(&two, a + m * row + k + 2 * i, sizeof two);
        const VecInt16 activations = (VecInt16)(VecInt32{} + two);
#pragma GCC unroll 4
        for (int gate = 0; gate < gates; ++gate)
          parts[i][m][gate] = add_products<vnni>(parts[i][m][gate], w[gate], activations);
      }
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 4
    for (int gate = 0; gate < gates; ++gate) {
      sums[m][gate] = parts[0][m][gate];
#pragma GCC unroll 4
      for (int i = 1; i < ahead; ++i) sums[m][gate] = sums[m][gate] + parts[i][m][gate];
    }
}

// A weight of `all_gates` gates as the kernels read it.
struct QuantizedWeight {
  const int8_t* tiles;
  const float* scale;
  const float* bias;  // may be null
  int64_t depth, all_gates, hidden_size;

  int64_t pair() const { return all_gates * kPairBytes; }
  const int8_t* units(int64_t unit) const {
    return tiles + unit / kTileUnits * (padded_depth(depth) / 2) * pair() + unit % kTileUnits * 2;
  }
};

// Rows of activations as whole numbers.
struct QuantizedRows {
  int16_t* values;
  float* scales;
  int64_t row;

  QuantizedRows(const Runtime& runtime, int64_t rows, int64_t depth)
      : values(allocate<int16_t>(runtime, rows * padded_depth(depth))),
        scales(allocate<float>(runtime, rows)),
        row(padded_depth(depth)) {}
};

// For each of the rows [0, rows) and each of the vectors of units that begin at [unit, unit_end):
// epilogue(n, unit, valid, product), where product[gate] is that of gate first + gate, bias added.
template <bool vnni, int gates, class Epilogue>
void multiply_quantized(const QuantizedWeight& weight, int first, const QuantizedRows& a,
                        int64_t rows, int64_t unit, int64_t unit_end, const Epilogue& epilogue) {
  constexpr int width = Vector<float>::width;
  for (; unit < unit_end; unit += width) {
    const int64_t valid = min_of(width, weight.hidden_size - unit);
    const int8_t* units = weight.units(unit) + first * kPairBytes;
    VecFloat scale[gates], bias[gates];
    for (int gate = 0; gate < gates; ++gate) {
      const int64_t row = (first + gate) * weight.hidden_size + unit;
      scale[gate] = load_first(weight.scale + row, valid);
      bias[gate] = weight.bias ? load_first(weight.bias + row, valid) : VecFloat{};
    }
    const auto finish = [&](const VecInt32(&sums)[gates], int64_t n) {
      VecFloat product[gates];
#pragma GCC unroll 4
      for (int gate = 0; gate < gates; ++gate)
        product[gate] =
            __builtin_convertvector(sums[gate], VecFloat) * (scale[gate] * a.scales[n]) +
            bias[gate];
      epilogue(n, unit, valid, product);
    };
    int64_t n = 0;
    for (; n + kQuantizedRows <= rows; n += kQuantizedRows) {
      VecInt32 sums[kQuantizedRows][gates];
      multiply_quantized<vnni, gates, kQuantizedRows>(units, weight.pair(), a.values + n * a.row,
                                                      a.row, a.row, sums);
      for (int m = 0; m < kQuantizedRows; ++m) finish(sums[m], n + m);
    }
    for (; n < rows; ++n) {
      VecInt32 sums[1][gates];
      multiply_quantized<vnni, gates, 1>(units, weight.pair(), a.values + n * a.row, a.row, a.row,
                                         sums);
      finish(sums[0], n);
    }
  }
}

// A vector of units of one row in one step, as the rest of a cell gets it.
struct QuantizedUnits {
  float* x;             // the input product of each gate, a vector each
  const float* h_prev;  // h_{t-1}
  float* h;             // h_t, to be set
  int64_t at, valid;    // where the units stand in [N, H], and how many they are

  VecFloat gate_x(int gate) const { return load<float>(x + gate * Vector<float>::width); }
};

// The steps of a call, one after another. update(units, product) is given the recurrent product of
// each gate, but for `late` of them, the last: these multiply not h_{t-1} but the rows of `reset`,
// which update sets for late_update(units, product) to go on.
template <bool vnni, int gates, int late, class Update, class LateUpdate>
void walk_quantized(const Runtime& runtime, const QuantizedForward& a, const float* reset,
                    const Update& update, const LateUpdate& late_update) {
  constexpr int width = Vector<float>::width;
  constexpr int64_t kChunkRows = 96;
  const int64_t batch = a.batch, inputs = a.input_size, hidden = a.hidden_size;
  const Steps steps = steps_of(runtime, a);
  const Sequence<const float> input(a.input, a.input_time, a.input_row, steps, a.reverse != 0);
  const Rows<const float> x = input.all_rows(runtime, steps);
  const Sequence<float> h = like_output<float>(a, steps, a.output, hidden, hidden);
  const PreviousRows<float> h_before(
      runtime, steps, like_output<const float>(a, steps, a.output, hidden, hidden), a.h_0, hidden);
  const QuantizedWeight weight_ih{a.weight_ih, a.scale_ih, a.bias_ih, inputs, gates, hidden};
  const QuantizedWeight weight_hh{a.weight_hh, a.scale_hh, a.bias_hh, hidden, gates, hidden};

  // The input products of some steps are taken ahead, so that several rows share the weights.
  const int64_t chunk = max_of(1, min_of(steps.count, kChunkRows / max_of(batch, 1)));
  const int64_t groups = ceil_div(hidden, kTileUnits), gates_row = groups * kTileUnits * gates;
  const QuantizedRows x_rows(runtime, chunk * batch, inputs), h_rows(runtime, batch, hidden);
  float* gates_x = allocate<float>(runtime, chunk * batch * gates_row);
  const auto quantize = [](const Rows<const float>& from, int64_t begin, int64_t end, int64_t depth,
                           const QuantizedRows& to, int64_t to_begin) {
    const float limit = activation_limit(depth);
    for (int64_t n = begin; n < end; ++n, ++to_begin)
      to.scales[to_begin] = quantize_row(from[n], depth, limit, to.values + to_begin * to.row);
  };

  // The phases of a step: rows are quantized, then multiplied, and so once more with `reset`. The
  // first step of a chunk does all the chunk's input.
  constexpr int64_t phases = late > 0 ? 4 : 2;
  const auto rows_ahead = [&](int64_t s) {
    return s % chunk ? 0 : steps.first(min_of(s + chunk, steps.count)) - steps.first(s);
  };
  const auto tasks = [&](int64_t turn) {
    const int64_t s = turn / phases, phase = turn % phases;
    return phase % 2 ? groups : steps.rows(s) + (phase == 0 ? rows_ahead(s) : 0);
  };
  const auto body = [&](int64_t turn, int64_t begin, int64_t end) {
    const int64_t s = turn / phases, phase = turn % phases;
    const int64_t first = steps.first(s - s % chunk), rows = steps.rows(s), ahead = rows_ahead(s);
    const Rows<const float> h_prev = h_before.of_step(s);
    const Rows<float> states = h.step_rows(s);
    if (phase == 0) {
      const int64_t reached = min_of(end, ahead);
      quantize(x, first + begin, first + reached, inputs, x_rows, begin);
      begin = max_of(begin - ahead, 0);
      return quantize(h_prev, begin, end - ahead, hidden, h_rows, begin);
    }
    if (phase == 2) return quantize(matrix_rows(reset, hidden), begin, end, hidden, h_rows, begin);

    const auto x_at = [&](int64_t row, int64_t unit) {
      return gates_x + row * gates_row + unit * gates;
    };
    const auto units_at = [&](int64_t n, int64_t unit, int64_t valid) {
      return QuantizedUnits{x_at(steps.first(s) - first + n, unit), h_prev[n] + unit,
                            states[n] + unit, n * hidden + unit, valid};
    };
    const int64_t unit = begin * kTileUnits, unit_end = min_of(end * kTileUnits, hidden);
    if constexpr (late > 0) {
      if (phase == 3)
        return multiply_quantized<vnni, late>(
            weight_hh, gates - late, h_rows, rows, unit, unit_end,
            [&](int64_t n, int64_t unit, int64_t valid, const VecFloat(&product)[late]) {
              late_update(units_at(n, unit, valid), product);
            });
    }
    multiply_quantized<vnni, gates>(
        weight_ih, 0, x_rows, ahead, unit, unit_end,
        [&](int64_t row, int64_t unit, int64_t, const VecFloat(&product)[gates]) {
          for (int gate = 0; gate < gates; ++gate)
            store(x_at(row, unit) + gate * width, product[gate]);
        });
    multiply_quantized<vnni, gates - late>(
        weight_hh, 0, h_rows, rows, unit, unit_end,
        [&](int64_t n, int64_t unit, int64_t valid, const VecFloat(&product)[gates - late]) {
          update(units_at(n, unit, valid), product);
        });
  };
  // Multiply-adds of int8 weights take half the time of float32 ones.
  const int64_t work = product_work(batch, inputs + hidden, gates * hidden) / 2;
  for_each_phase(runtime, steps.count * phases, work / phases, tasks, body);
  copy_last_states(steps, h, a.h_0, a.h_n, hidden);
}

template <bool vnni, int gates, class Update>
void walk_quantized(const Runtime& runtime, const QuantizedForward& a, const Update& update) {
  walk_quantized<vnni, gates, 0>(runtime, a, nullptr, update, nullptr);
}

template <bool vnni>
void quantized_forward_of(const Runtime& runtime, const QuantizedForward& a) {
  typedef QuantizedUnits Units;
  const size_t states = static_cast<size_t>(a.batch * a.hidden_size);
  if (a.cell == QuantizedLstm) {
    memcpy(a.c_n, a.c_0, sizeof(float) * states);
    walk_quantized<vnni, 4>(runtime, a, [&](const Units& units, const VecFloat(&h)[4]) {
      LstmGates<VecFloat> gate{units.gate_x(0) + h[0], units.gate_x(1) + h[1],
                               units.gate_x(2) + h[2], units.gate_x(3) + h[3]};
      VecFloat c_t, h_t;
      lstm_pointwise(gate, load_first<float>(a.c_n + units.at, units.valid), c_t, h_t);
      store_first(a.c_n + units.at, c_t, units.valid);
      store_first(units.h, h_t, units.valid);
    });
  } else if (a.cell == QuantizedGru && a.reset_after) {
    walk_quantized<vnni, 3>(runtime, a, [&](const Units& units, const VecFloat(&h)[3]) {
      const VecFloat r = sigmoid(units.gate_x(0) + h[0]), z = sigmoid(units.gate_x(1) + h[1]);
      const VecFloat n = tanh(units.gate_x(2) + r * h[2]);
      store_first(units.h, gru_blend(z, n, load_first(units.h_prev, units.valid)), units.valid);
    });
  } else if (a.cell == QuantizedGru) {
    float* reset = allocate<float>(runtime, a.batch * a.hidden_size);  // r * h_{t-1}
    walk_quantized<vnni, 3, 1>(
        runtime, a, reset,
        [&](const Units& units, const VecFloat(&h)[2]) {
          const VecFloat r = sigmoid(units.gate_x(0) + h[0]), z = sigmoid(units.gate_x(1) + h[1]);
          store(units.x, z);
          store_first(reset + units.at, r * load_first(units.h_prev, units.valid), units.valid);
        },
        [&](const Units& units, const VecFloat(&h)[1]) {
          const VecFloat z = units.gate_x(0), n = tanh(units.gate_x(2) + h[0]);
          store_first(units.h, gru_blend(z, n, load_first(units.h_prev, units.valid)), units.valid);
        });
  } else {
    walk_quantized<vnni, 1>(runtime, a, [&](const Units& units, const VecFloat(&h)[1]) {
      const VecFloat pre = units.gate_x(0) + h[0];
      // Written so that NaN, for which every comparison is false, stays.
      const VecFloat rectified = pre <= VecFloat{} ? VecFloat{} : pre;
      store_first(units.h, a.cell == QuantizedRelu ? rectified : tanh(pre), units.valid);
    });
  }
}

inline void quantized_forward(const Runtime& runtime, const QuantizedForward& a) {
#if defined(__AVX512F__)
  if (__builtin_cpu_supports("avx512vnni")) return quantized_forward_of<true>(runtime, a);
#endif
  quantized_forward_of<false>(runtime, a);
}

}  // namespace
}  // namespace rnnfast
