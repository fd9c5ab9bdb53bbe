// The definition of oblique trees (layout.h) in plain loops, written independently of the kernels; random trees.
#ifndef JAX_MADDNESS_TESTS_OBLIQUE_H_
#define JAX_MADDNESS_TESTS_OBLIQUE_H_

#include <cmath>

#include "xla_ffi/tests/testing.h"

namespace jax_maddness::testing {

struct Oblique {
  int64_t width = 0;
  std::vector<int32_t> features;
  std::vector<int8_t> projections;
  std::vector<int32_t> thresholds;
  std::vector<float> center, scale;

  int64_t rounded(float x, int32_t d) const {
    const float difference = x - center[d];
    const float steps = difference * scale[d];
    if (std::isnan(steps) || steps < -127) return -127;
    return steps > 127 ? 127 : std::lrint(std::nearbyint(static_cast<double>(steps)));
  }

  // `x`: a row.
  int64_t projected(const float* x, int64_t c, int64_t level) const {
    int64_t sum = 0;
    for (int64_t w = 0; w < width; ++w) {
      const int32_t d = features[c * width + w];
      sum += projections[(c * 4 + level) * width + w] * rounded(x[d], d);
    }
    return sum;
  }

  uint8_t code(const float* x, int64_t c) const {
    int64_t j = 0;
    for (int64_t level = 0; level < 4; ++level) {
      j = 2 * j + (projected(x, c, level) > thresholds[c * 15 + (1 << level) - 1 + j]);
    }
    return static_cast<uint8_t>(j);
  }
};

// Random trees for rows x [n][d]. Groups of features overlap, and may hold a feature twice. Half of the thresholds are
// the projection of some row, or beside it; some centers and scales are awkward.
inline Oblique random_oblique(Random& random, const std::vector<float>& x, int64_t n, int64_t d, int64_t c,
                              int64_t width) {
  Oblique o;
  o.width = width;
  const float centers[] = {0.0f, -0.0f, 1e-40f, 3e38f, -3e38f, 1.0f};
  const float scales[] = {0.0f, 0.5f, 1.0f, 0x1p-100f, 0x1p100f, 127.0f};
  for (int64_t i = 0; i < d; ++i) {
    o.center.push_back(random.below(4) == 0 ? centers[random.below(6)] : random.normal());
    o.scale.push_back(random.below(4) == 0 ? scales[random.below(6)] : 60 * std::fabs(random.normal()) + 1e-3f);
  }
  const bool extreme = random.below(4) == 0;
  for (int64_t i = 0; i < c * width; ++i) o.features.push_back(static_cast<int32_t>(random.below(d)));
  for (int64_t i = 0; i < c * width * 4; ++i) {
    o.projections.push_back(static_cast<int8_t>(extreme ? 127 : random.below(255) - 127));
  }
  for (int64_t i = 0; i < c * 15; ++i) {
    int64_t threshold = random.below(40000) - 20000;
    if (n > 0 && random.below(2) == 0) {
      const auto level = static_cast<int64_t>(std::log2(static_cast<double>(i % 15 + 1)));
      threshold = o.projected(&x[random.below(n) * d], i / 15, level) + random.below(3) - 1;
    }
    if (random.below(50) == 0) threshold = random.below(2) == 0 ? INT32_MIN : INT32_MAX;
    o.thresholds.push_back(static_cast<int32_t>(threshold));
  }
  return o;
}

}  // namespace jax_maddness::testing

#endif  // JAX_MADDNESS_TESTS_OBLIQUE_H_
