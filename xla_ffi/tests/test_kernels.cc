// Every tier against the definition (definition.h) at sizes on and beside block edges, with special values, in all
// three types.
#include <algorithm>

#include "xla_ffi/tests/definition.h"

namespace jax_maddness::testing {
namespace {

void test_sizes() {
  Random random(1);
  const int64_t rows[] = {0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 255, 256, 257, 300};
  const int64_t codebooks[] = {1, 2, 3, 4, 5, 15, 16, 17, 31, 33, 64, 127, 130};
  const int64_t outputs[] = {0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 48, 65};
  const int64_t features[] = {1, 2, 3, 8, 15, 16, 17, 40, 257};
  const auto pick = [&](const auto& list) { return list[random.below(sizeof list / sizeof *list)]; };
  for (const Tier* tier : tested_tiers()) {
    for (const int64_t n : rows) {
      for (const int64_t c : codebooks) {
        check_tier(*tier, random_problem(random, n, pick(features), c, pick(outputs), kTypes[random.below(3)]), random);
      }
      for (const int64_t m : outputs) {
        check_tier(*tier, random_problem(random, n, pick(features), pick(codebooks), m, kTypes[random.below(3)]),
                   random);
      }
    }
    for (const int64_t d : features) {
      for (const FloatType type : kTypes) check_tier(*tier, random_problem(random, 13, d, 6, 5, type), random);
    }
  }
}

// Sums beyond what 8, 9 and 16 bits hold, and codebooks beside the edges where kernels change accumulators.
void test_many_codebooks() {
  Random random(2);
  for (const Tier* tier : tested_tiers()) {
    for (const int64_t c : {255, 256, 257, 258, 511, 513, 1100, 2049}) {
      for (const int64_t n : {1, 16, 33, 65}) {
        Problem p = random_problem(random, n, 9, c, 3, FloatType::kF32);
        std::fill(p.values.begin(), p.values.begin() + c * 16, 255);
        check_tier(*tier, p, random);
      }
    }
  }
}

// Tables and outputs beyond the sizes at which kernels choose larger blocks, staging, or stores past the cache; outputs
// on cache lines and beside them; features so far apart that they are gathered.
void test_large() {
  struct Shape {
    int64_t n, d, c, m;
    FloatType type;
  };
  Random random(4);
  for (const Shape& s : {Shape{520, 5, 2, 1024, FloatType::kF32}, Shape{520, 5, 2, 1023, FloatType::kF32},
                         Shape{520, 5, 2, 2048, FloatType::kF16}, Shape{300, 70, 64, 1100, FloatType::kF32},
                         Shape{300, 70, 65, 1104, FloatType::kBF16}, Shape{600, 33, 66, 1056, FloatType::kF32},
                         Shape{1100, 9, 256, 50, FloatType::kF32}, Shape{20, 1000, 5, 3, FloatType::kF32},
                         Shape{17, 1000, 9, 17, FloatType::kBF16}, Shape{33, 4999, 7, 3, FloatType::kF32},
                         Shape{19, 5000, 6, 2, FloatType::kF16}}) {
    const Problem p = random_problem(random, s.n, s.d, s.c, s.m, s.type);
    for (const Tier* tier : tested_tiers()) check_tier(*tier, p, random);
  }
}

void test_random_shapes() {
  Random random(3);
  for (int i = 0; i < 300; ++i) {
    const int64_t n = random.below(150), d = 1 + random.below(70), c = 1 + random.below(40), m = random.below(50);
    const Problem p = random_problem(random, n, d, c, m, kTypes[random.below(3)]);
    for (const Tier* tier : tested_tiers()) check_tier(*tier, p, random);
  }
}

}  // namespace
}  // namespace jax_maddness::testing

int main(int argc, char** argv) {
  using namespace jax_maddness::testing;
  return run_on_tiers("kernels", argc, argv, [] {
    test_sizes();
    test_many_codebooks();
    test_large();
    test_random_shapes();
  });
}
