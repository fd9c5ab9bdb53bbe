// The definition of integer factors (layout.h) in plain loops, written independently of the kernels; random factors.
#ifndef JAX_MADDNESS_TESTS_FACTORS_H_
#define JAX_MADDNESS_TESTS_FACTORS_H_

#include "xla_ffi/tests/definition.h"

namespace jax_maddness::testing {

// rint, half to even, in double: exact for floats.
inline int64_t rounded(float steps) {
  if (std::isnan(steps) || steps < -127) return -127;
  return steps > 127 ? 127 : std::lrint(std::nearbyint(static_cast<double>(steps)));
}

struct IntegerFactors {
  int64_t features, rank, outputs;  // rank 0: the int8 product
  bool by_row = false;
  std::vector<float> center, feature_scale, steps, scale, offset;
  std::vector<int8_t> down, up;  // [groups of features][rank][4], [groups of rank][outputs][4]
  std::vector<uint8_t> shift;

  int64_t inner() const { return rank == 0 ? features : rank; }

  float step(const float* x, int64_t d) const {
    const float difference = x[d] - center[static_cast<size_t>(d)];
    return difference * feature_scale[static_cast<size_t>(d)];
  }

  // By row; the caller flushes denormals.
  float greatest_step(const float* x) const {
    float most = 0;
    for (int64_t d = 0; d < features; ++d) {
      const float magnitude = std::fabs(step(x, d));
      if (is_nan(magnitude) || magnitude > most) most = magnitude;
      if (is_nan(most)) return most;
    }
    return most;
  }

  static int64_t product(const std::vector<int8_t>& matrix, int64_t outputs, int64_t m, const std::vector<int64_t>& v) {
    int64_t sum = 0;
    for (size_t i = 0; i < v.size(); ++i) {
      const int64_t k = static_cast<int64_t>(i);
      sum += v[i] * matrix[static_cast<size_t>((k / 4 * outputs + m) * 4 + k % 4)];
    }
    return sum;
  }

  // What is multiplied with `up`.
  std::vector<int64_t> u(const float* x) const {
    std::vector<int64_t> q;
    const float most = by_row ? greatest_step(x) : 0;
    const float inverse = most >= 0x1p-100f ? 127 / most : 0;
    for (int64_t d = 0; d < features; ++d) q.push_back(rounded(by_row ? step(x, d) * inverse : step(x, d)));
    if (rank == 0) return q;
    std::vector<int64_t> result;
    for (int64_t j = 0; j < rank; ++j) {
      const auto sum = static_cast<int32_t>(product(down, rank, j, q));
      result.push_back(rounded(static_cast<float>(sum) * steps[static_cast<size_t>(j)]));
    }
    return result;
  }

  // The sum that is rescaled, modulo 2^32.
  int32_t sum(const std::vector<int64_t>& of_row, int64_t m, int64_t of_tables) const {
    const int64_t shifted = of_tables * (int64_t{1} << (shift.empty() ? 0 : shift[static_cast<size_t>(m)]));
    return static_cast<int32_t>(static_cast<uint32_t>(shifted + product(up, outputs, m, of_row)));
  }
};

inline std::vector<int8_t> random_matrix(Random& random, int64_t inner, int64_t outputs) {
  const int64_t kind = random.below(4);  // all at an end of the range, or anywhere in it
  std::vector<int8_t> matrix;
  for (int64_t i = 0; i < (inner + 3) / 4 * outputs * 4; ++i) {
    const int64_t value = kind == 0 ? 127 : kind == 1 ? -127 : random.below(255) - 127;
    matrix.push_back(static_cast<int8_t>(value));  // places past the last inner index are not zeros
  }
  return matrix;
}

inline IntegerFactors random_factors(Random& random, int64_t features, int64_t rank, int64_t outputs, bool by_row) {
  IntegerFactors f{features, rank, outputs, by_row, {}, {}, {}, {}, {}, {}, {}, {}};
  const float centers[] = {0.0f, -0.0f, 1e-40f, 3e38f, -3e38f, 1.0f};
  const float scales[] = {0.0f, 0.5f, 1.0f, 0x1p-100f, 0x1p100f, 127.0f};
  for (int64_t d = 0; d < features; ++d) {
    f.center.push_back(random.below(8) == 0 ? centers[random.below(6)] : random.normal());
    f.feature_scale.push_back(random.below(8) == 0 ? scales[random.below(6)] : 40 * std::fabs(random.normal()));
  }
  const float typical = 100.0f / (40.0f * 74.0f * std::sqrt(static_cast<float>(features)));
  for (int64_t j = 0; j < rank; ++j) {
    const float awkward[] = {0.0f, -1.0f, kInfinity, std::nanf(""), 0.5f, 1e-38f};
    f.steps.push_back(random.below(16) == 0 ? awkward[random.below(6)] : typical * std::fabs(random.normal()));
  }
  if (rank > 0) f.down = random_matrix(random, features, rank);
  f.up = random_matrix(random, f.inner(), outputs);
  for (int64_t m = 0; m < outputs; ++m) {
    f.shift.push_back(static_cast<uint8_t>(random.below(16)));
    f.scale.push_back(random.normal() * 0.01f);
    f.offset.push_back(random.normal());
  }
  return f;
}

}  // namespace jax_maddness::testing

#endif  // JAX_MADDNESS_TESTS_FACTORS_H_
