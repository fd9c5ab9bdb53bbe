// Every tier's integer factors, alone and beside codes, against the definition (factors.h), bit for bit, at sizes on
// and beside block edges, in all three types.
#include "xla_ffi/tests/factor_run.h"

namespace jax_maddness::testing {
namespace {

void test_sizes() {
  Random random(1);
  const int64_t rows[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 63, 64, 65, 129};
  const int64_t features[] = {1, 2, 3, 4, 5, 15, 16, 17, 31, 33, 64, 127, 250};
  const int64_t ranks[] = {4, 8, 12, 16, 20, 48, 64, 100, 300};
  const int64_t outputs[] = {0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 47, 48, 49, 64, 96, 97, 130};
  const auto pick = [&](const auto& list) { return list[random.below(sizeof list / sizeof *list)]; };
  const auto type = [&] { return kTypes[random.below(3)]; };
  for (const Tier* tier : tested_tiers()) {
    const auto check = [&](int64_t n, int64_t d, int64_t rank, int64_t m) {
      check_random_factors(*tier, random, {n, d, rank, m, 1 + random.below(9)}, type());
    };
    for (const int64_t n : rows) check(n, pick(features), pick(ranks), pick(outputs));
    for (const int64_t d : features) check(pick(rows), d, pick(ranks), pick(outputs));
    for (const int64_t rank : ranks) check(pick(rows), pick(features), rank, pick(outputs));
    for (const int64_t m : outputs) {
      check(pick(rows), pick(features), pick(ranks), m);
      check(1 + random.below(4), pick(features), pick(ranks), m);
    }
    for (const bool by_row : {false, true}) {
      for (const int64_t d : features) {
        check_random_factors(*tier, random, {pick(rows), d, 0, pick(outputs), 1}, type(), by_row);
      }
      for (const int64_t m : outputs) {
        check_random_factors(*tier, random, {pick(rows), pick(features), 0, m, 1}, type(), by_row);
      }
    }
  }
}

// Blocks of rows, parts of panels and of outputs: all of them more than one.
void test_large() {
  Random random(2);
  for (const Tier* tier : tested_tiers()) {
    for (const FloatType type : kTypes) check_random_factors(*tier, random, {300, 40, 16, 200, 3}, type);
    check_random_factors(*tier, random, {9, 2100, 8, 50, 2}, FloatType::kF32);
    check_random_factors(*tier, random, {9, 9, 2100, 50, 2}, FloatType::kF32);
    check_random_factors(*tier, random, {70, 2500, 0, 50, 1}, FloatType::kF32);
    check_random_factors(*tier, random, {3, 300, 0, 6200, 1}, FloatType::kBF16, true);
    check_random_factors(*tier, random, {2, 20, 80, 13000, 2}, FloatType::kF16);
    check_random_factors(*tier, random, {130, 20, 8, 1000, 2}, FloatType::kF32);
    check_random_factors(*tier, random, {70, 20, 8, 1024, 2}, FloatType::kF32);
    check_random_factors(*tier, random, {9, 4200, 1024, 20, 1}, FloatType::kF32);
  }
}

// Rows by which rounding, by row, is put to the test: all equal, tiny, infinite, NaN, and none of it.
void test_rows() {
  const float values[] = {0.0f,      -0.0f, 1e-40f, -1e-40f, 0x1p-126f, 0x1p-100f,  0x1.fffffep-101f,
                          -0x1p-99f, 1.0f,  3e38f,  -3e38f,  kInfinity, -kInfinity, std::nanf("")};
  constexpr int64_t kValues = sizeof values / sizeof *values;
  Random random(3);
  for (const Tier* tier : tested_tiers()) {
    for (const float scale : {1.0f, 0x1p-100f, 0x1p100f}) {
      Problem p = random_problem(random, kValues * kValues, 19, 1, 17, FloatType::kF32);
      for (int64_t i = 0; i < p.rows * p.features; ++i) {
        const int64_t n = i / p.features;
        p.x[static_cast<size_t>(i)] = i % p.features == n % p.features ? values[n / kValues] : values[n % kValues];
      }
      IntegerFactors f = random_factors(random, p.features, 0, p.outputs, true);
      f.center.assign(f.center.size(), 0);
      f.feature_scale.assign(f.feature_scale.size(), scale);
      f.offset.assign(f.offset.size(), 0);  // beside an offset, outputs of tiny rows would not show
      check_factors(*tier, p, f, random);
    }
  }
}

// Sums of u on every tie between two integers, and beside it.
void test_ties() {
  Random random(4);
  for (const Tier* tier : tested_tiers()) {
    Problem p = random_problem(random, 255, 4, 1, 9, FloatType::kF32);
    IntegerFactors f = random_factors(random, 4, 32, p.outputs, false);
    for (int64_t n = 0; n < p.rows; ++n) {
      for (int64_t d = 0; d < 4; ++d) p.x[static_cast<size_t>(n * 4 + d)] = d == 0 ? static_cast<float>(n - 127) : 0;
    }
    f.center.assign(4, 0);
    f.feature_scale.assign(4, 1);
    for (size_t i = 0; i < f.down.size(); ++i) f.down[i] = static_cast<int8_t>(i % 4 == 0 ? i / 8 + 1 : 0);
    for (int64_t j = 0; j < 32; ++j) {
      const float step[] = {0.5f, 0.25f, 1.0f, std::nextafterf(0.5f, 1)};
      f.steps[static_cast<size_t>(j)] = step[j % 4];
    }
    check_factors(*tier, p, f, random);
  }
}

// Sums beyond 2^24, where f32 rounds, up to the largest there are, and beyond 2^31, where they wrap around.
void test_largest_sums() {
  Random random(5);
  for (const Tier* tier : tested_tiers()) {
    Problem p = random_problem(random, 3, 5000, 20, 9, FloatType::kF32);
    for (float& x : p.x) x = 1e9f;
    IntegerFactors f = random_factors(random, 5000, 2000, p.outputs, false);
    f.center.assign(5000, 0);
    f.feature_scale.assign(5000, 1);
    f.down.assign(f.down.size(), 127);
    f.up.assign(f.up.size(), -127);
    for (float& step : f.steps) step = 1.6e-6f * std::fabs(random.normal());
    p.values.assign(p.values.size(), 255);
    f.shift.assign(f.shift.size(), 15);
    check_factors(*tier, p, f, random);
  }
}

// Whole, cut and few tiles of AMX: 16 or 32 rows x 64 features or directions x 16, 32 or 48 outputs.
void test_tiles() {
  Random random(7);
  for (const Tier* tier : tested_tiers()) {
    for (const int64_t rows : {9, 16, 17, 31, 32, 33, 49}) {
      for (const int64_t outputs : {16, 48, 70, 130}) {
        const int64_t inner = 60 + 4 * random.below(20);
        check_random_factors(*tier, random, {rows, inner + 1, 64, outputs, 1}, FloatType::kF32);
        check_random_factors(*tier, random, {rows, 129, inner, outputs, 1}, FloatType::kBF16);
        check_random_factors(*tier, random, {rows, inner + random.below(4), 0, outputs, 1}, FloatType::kF32, true);
      }
    }
  }
}

// -128 in u, which no kernel computes, or in `up`.
void test_least() {
  Random random(6);
  for (const Tier* tier : tested_tiers()) {
    for (const bool in_u : {false, true}) {
      const Problem p = random_problem(random, 37, 3, 2, 50, FloatType::kF32);
      IntegerFactors f = random_factors(random, 3, 24, p.outputs, false);
      for (size_t i = 0; i < f.up.size() && !in_u; i += 3) f.up[i] = -128;
      std::vector<std::vector<int64_t>> u(static_cast<size_t>(p.rows));
      std::vector<int8_t> flat;
      for (auto& row : u) {
        for (int64_t j = 0; j < 24; ++j) {
          row.push_back(in_u && random.below(4) == 0 ? -128 : random.below(255) - 127);
          flat.push_back(static_cast<int8_t>(row.back()));
        }
      }
      const FactorRun run(*tier, p, f);
      check_outputs(run, "factors_of", run.factors_of<uint32_t>(Input<int8_t>(flat), p.outputs), u, {});
    }
  }
}

}  // namespace
}  // namespace jax_maddness::testing

int main(int argc, char** argv) {
  using namespace jax_maddness::testing;
  return run_on_tiers("factors", argc, argv, [] {
    test_sizes();
    test_large();
    test_rows();
    test_ties();
    test_largest_sums();
    test_tiles();
    test_least();
  });
}
