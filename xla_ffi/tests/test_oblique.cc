// Every tier against the definition (oblique.h) with oblique trees, at sizes on and beside block edges, with special
// values, in all three types.
#include <algorithm>

#include "xla_ffi/tests/definition.h"

namespace jax_maddness::testing {
namespace {

Problem random_oblique_problem(Random& random, int64_t n, int64_t d, int64_t c, int64_t m, FloatType type,
                               int64_t width) {
  Problem p = random_problem(random, n, d, c, m, type);
  p.indices.clear();
  p.thresholds.clear();
  p.oblique = random_oblique(random, p.x, n, d, c, width);
  return p;
}

void test_sizes() {
  Random random(1);
  const int64_t rows[] = {0, 1, 2, 7, 8, 9, 15, 16, 17, 24, 25, 31, 32, 33, 63, 64, 65, 257};
  const int64_t codebooks[] = {1, 2, 3, 4, 5, 7, 16, 17, 33, 65};
  const int64_t features[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 40, 257};
  const int64_t widths[] = {1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 130};
  const int64_t outputs[] = {0, 1, 9, 17, 33};
  const auto pick = [&](const auto& list) { return list[random.below(sizeof list / sizeof *list)]; };
  for (const Tier* tier : tested_tiers()) {
    const auto check = [&](int64_t n, int64_t d, int64_t c, FloatType type, int64_t width) {
      check_tier(*tier, random_oblique_problem(random, n, d, c, pick(outputs), type, width), random);
    };
    for (const int64_t n : rows) {
      for (int i = 0; i < 3; ++i) check(n, pick(features), pick(codebooks), kTypes[i], pick(widths));
    }
    for (const int64_t d : features) {
      for (const FloatType type : kTypes) check(37, d, pick(codebooks), type, pick(widths));
    }
    for (const int64_t c : codebooks) check(19, pick(features), c, kTypes[random.below(3)], pick(widths));
    for (const int64_t w : widths) check(21, pick(features), pick(codebooks), kTypes[random.below(3)], w);
  }
}

// Sums as large as they may be: nothing overflows, and thresholds beside them decide.
void test_largest_sums() {
  constexpr int64_t kMost = 127 * 127 * kMaxWidth;
  static_assert(kMost < INT32_MAX);
  for (const Tier* tier : tested_tiers()) {
    for (const int64_t side : {-1, 1}) {
      Random random(2);
      Problem p = random_problem(random, 3, 2, 1, 1, FloatType::kF32);
      p.x = {1e9f, 1e9f, -kInfinity, -1e9f, std::nanf(""), std::nanf("")};
      p.oblique.width = kMaxWidth;
      p.oblique.features.assign(kMaxWidth, 1);
      p.oblique.projections.assign(4 * kMaxWidth, 127);
      for (int64_t i = 0; i < 15; ++i) {
        p.oblique.thresholds.push_back(static_cast<int32_t>(side * kMost - (i % 2)));
      }
      p.oblique.center.assign(2, 0);
      p.oblique.scale.assign(2, 1);
      check_tier(*tier, p, random);
    }
  }
}

// Features on every tie between two integers, and beside it; thresholds at every integer.
void test_rounding() {
  Random random(3);
  for (const Tier* tier : tested_tiers()) {
    Problem p = random_problem(random, 0, 1, 256, 0, FloatType::kF32);
    for (int i = -130; i < 130; ++i) {
      const float tie = static_cast<float>(i) + 0.5f;
      for (const float x : {tie, std::nextafterf(tie, kInfinity), std::nextafterf(tie, -kInfinity)}) p.x.push_back(x);
    }
    for (const float x : {kInfinity, -kInfinity, std::nanf(""), -std::nanf(""), 1e-40f, 3e38f, -3e38f}) {
      p.x.push_back(x);
    }
    p.rows = static_cast<int64_t>(p.x.size());
    p.oblique.width = 1;
    p.oblique.features.assign(256, 0);
    p.oblique.projections.assign(4 * 256, 1);
    for (int i = 0; i < 256 * 15; ++i) p.oblique.thresholds.push_back(i / 15 - 128);
    p.oblique.center.assign(1, 0);
    p.oblique.scale.assign(1, 1);
    check_tier(*tier, p, random);
  }
}

void test_random_shapes() {
  Random random(4);
  for (int i = 0; i < 150; ++i) {
    const int64_t n = random.below(100), d = 1 + random.below(70), c = 1 + random.below(20), m = random.below(20);
    const Problem p = random_oblique_problem(random, n, d, c, m, kTypes[random.below(3)], 1 + random.below(80));
    for (const Tier* tier : tested_tiers()) check_tier(*tier, p, random);
  }
}

}  // namespace
}  // namespace jax_maddness::testing

int main(int argc, char** argv) {
  using namespace jax_maddness::testing;
  return run_on_tiers("oblique", argc, argv, [] {
    test_sizes();
    test_largest_sums();
    test_rounding();
    test_random_shapes();
  });
}
