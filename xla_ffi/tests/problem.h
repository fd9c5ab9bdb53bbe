// The definition of layout.h in plain loops, written independently of the kernels, and random problems for it.
#ifndef JAX_MADDNESS_TESTS_PROBLEM_H_
#define JAX_MADDNESS_TESTS_PROBLEM_H_

#include <cmath>
#include <limits>
#include <string>

#include "xla_ffi/tests/guarded.h"
#include "xla_ffi/tests/oblique.h"
#include "xla_ffi/tests/testing.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace jax_maddness::testing {

constexpr FloatType kTypes[] = {FloatType::kF32, FloatType::kBF16, FloatType::kF16};
constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline const char* name(FloatType type) {
  return type == FloatType::kF32 ? "f32" : type == FloatType::kBF16 ? "bf16" : "f16";
}

// The settings of XLA's threads: denormals are read as zero, and results are flushed to zero.
#if defined(__x86_64__)
constexpr uint64_t kFlush = 0x8040;  // DAZ and FTZ of MXCSR
inline uint64_t float_settings() { return _mm_getcsr(); }
inline void set_float_settings(uint64_t settings) { _mm_setcsr(static_cast<uint32_t>(settings)); }
#elif defined(__aarch64__)
constexpr uint64_t kFlush = uint64_t{1} << 24;  // FZ of FPCR
inline uint64_t float_settings() {
  uint64_t settings;
  asm volatile("mrs %0, fpcr" : "=r"(settings));
  return settings;
}
inline void set_float_settings(uint64_t settings) { asm volatile("msr fpcr, %0" ::"r"(settings) : "memory"); }
#else
constexpr uint64_t kFlush = 0;
inline uint64_t float_settings() { return 0; }
inline void set_float_settings(uint64_t) {}
#endif

inline void flush_denormals(bool on) {
  set_float_settings(on ? float_settings() | kFlush : float_settings() & ~kFlush);
}
inline bool denormals_are_flushed() { return (float_settings() & kFlush) == kFlush; }

// ---- The definition ----

// A total order of the floats but NaN, in integers, so that no setting of the processor matters: -0 and +0 are one.
inline int64_t order(float value) {
  const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffff;
  return bits >> 31 ? -int64_t{magnitude} : int64_t{magnitude};
}

inline bool is_nan(float value) { return (bits_of(value) & 0x7fffffff) > 0x7f800000; }

inline bool greater(float a, float b) { return !is_nan(a) && !is_nan(b) && order(a) > order(b); }

struct Problem {
  int64_t rows, features, codebooks, outputs;
  FloatType type;
  std::vector<float> x;  // as f32; representable in `type`
  std::vector<int32_t> indices;
  std::vector<float> thresholds, scale, offset;
  std::vector<uint8_t> values;
  Oblique oblique = {};  // in place of indices and thresholds where it has a width

  bool is_oblique() const { return oblique.width > 0; }

  std::vector<uint8_t> codes() const {
    std::vector<uint8_t> result;
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t c = 0; c < codebooks; ++c) {
        if (is_oblique()) {
          result.push_back(oblique.code(&x[n * features], c));
          continue;
        }
        int64_t j = 0;
        for (int64_t level = 0; level < 4; ++level) {
          const float feature = x[n * features + indices[c * 4 + level]];
          j = 2 * j + greater(feature, thresholds[c * 15 + (1 << level) - 1 + j]);
        }
        result.push_back(static_cast<uint8_t>(j));
      }
    }
    return result;
  }

  // The rows feature by feature, with rows of another task before them.
  int64_t rows_before() const { return rows % 3; }
  std::vector<float> by_feature() const {
    std::vector<float> result;
    for (int64_t d = 0; d < features; ++d) {
      result.resize(result.size() + rows_before());
      for (int64_t n = 0; n < rows; ++n) result.push_back(x[n * features + d]);
    }
    return result;
  }

  // The tables in their other order.
  std::vector<uint8_t> by_code() const {
    std::vector<uint8_t> result(values.size());
    for (int64_t m = 0; m < outputs; ++m) {
      for (int64_t i = 0; i < codebooks * 16; ++i) result[i * outputs + m] = values[m * codebooks * 16 + i];
    }
    return result;
  }

  std::vector<int32_t> sums() const {
    const std::vector<uint8_t> all = codes();
    std::vector<int32_t> result;
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t m = 0; m < outputs; ++m) {
        int32_t sum = 0;
        for (int64_t c = 0; c < codebooks; ++c) sum += values[(m * codebooks + c) * 16 + all[n * codebooks + c]];
        result.push_back(sum);
      }
    }
    return result;
  }
};

// Thresholds are half the time a feature of some row, or a neighbour of one; now and then NaN or an infinity.
inline Problem random_problem(Random& random, int64_t n, int64_t d, int64_t c, int64_t m, FloatType type) {
  Problem p{n, d, c, m, type, {}, {}, {}, {}, {}, {}};
  const float special[] = {0.0f, -0.0f, kInfinity, -kInfinity, std::nanf(""), 1e-40f, -1e-40f, 3e-45f, 65504.0f, 3e38f};
  const auto value = [&] {
    return random.below(8) == 0 ? special[random.below(sizeof special / sizeof *special)] : random.normal();
  };
  for (int64_t i = 0; i < n * d; ++i) p.x.push_back(widen(round_to(value(), type), type));
  for (int64_t i = 0; i < c * 4; ++i) p.indices.push_back(static_cast<int32_t>(random.below(d)));
  for (int64_t i = 0; i < c * 15; ++i) {
    float t = value();
    if (n > 0 && random.below(2) == 0) {
      t = p.x[random.below(n * d)];
      if (random.below(2) == 0) t = std::nextafterf(t, random.below(2) == 0 ? kInfinity : -kInfinity);
    }
    p.thresholds.push_back(t);
  }
  for (int64_t i = 0; i < m * c * 16; ++i)
    p.values.push_back(static_cast<uint8_t>(random.below(2) ? random.below(256) : 255));
  for (int64_t i = 0; i < m; ++i) p.scale.push_back(random.normal() * 0.01f);
  for (int64_t i = 0; i < m; ++i) p.offset.push_back(random.normal());
  return p;
}

}  // namespace jax_maddness::testing

#endif  // JAX_MADDNESS_TESTS_PROBLEM_H_
