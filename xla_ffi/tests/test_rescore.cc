// Every tier's inner products of queries with vectors at positions against sums in double, in all pairs of types.
#include "xla_ffi/tests/definition.h"

namespace jax_maddness::testing {
namespace {

std::vector<float> random_values(Random& random, int64_t count, FloatType type) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(widen(round_to(random.normal(), type), type));
  return values;
}

// Floats that are added in any order are off by at most half a unit in the last place of the sum of magnitudes for each
// of them, and each product once more.
// Queries are as long as `run` vectors in a row.
void check_rescore(const Tier& tier, Random& random, int64_t q, int64_t v, int64_t k, int64_t d, FloatType query_type,
                   FloatType type, int64_t run = 1) {
  const int64_t whole = v - run + 1, step = d / run;  // positions that have so many; from one to the next
  const std::vector<float> queries = random_values(random, q * d, query_type);
  const std::vector<float> vectors = random_values(random, v * step, type);
  std::vector<int32_t> positions;
  for (int64_t i = 0; i < q * k; ++i) positions.push_back(static_cast<int32_t>(random.below(v + 2) - 1));
  if (!positions.empty()) positions[0] = INT32_MIN, positions.back() = INT32_MAX;
  const Input<char> query_bytes(in_type(queries, query_type)), vector_bytes(in_type(vectors, type));
  const Input<int32_t> in(positions);
  const Result<char> scratch(1, d * 4, 0);
  const Result<float> out(q, k, k);
  for (const auto& [begin, count] : {std::pair{int64_t{0}, k / 3}, {k / 3, k - k / 3}}) {  // as two tasks
    tier.rescore({query_bytes.data(), query_type, q, d}, {vector_bytes.data(), type, v, step},
                 {in.data() + begin, out.data() + begin, count, k}, scratch.data());
  }
  const std::vector<float> scores = out.values();
  for (int64_t i = 0; i < q * k; ++i) {
    const int64_t n = positions[static_cast<size_t>(i)];
    double wanted = 0, magnitude = 0;
    for (int64_t j = 0; n >= 0 && n < whole && j < d; ++j) {
      const double product =
          double{queries[static_cast<size_t>(i / k * d + j)]} * vectors[static_cast<size_t>(n * step + j)];
      wanted += product;
      magnitude += std::fabs(product);
    }
    const float got = scores[static_cast<size_t>(i)];
    const bool close = n < 0 || n >= whole
                           ? got == -kInfinity
                           : std::fabs(got - wanted) <= magnitude * static_cast<double>(d + 1) * 0x1p-24;
    CHECK(close, "tier %s, %s and %s, D = %ld: score %ld at %ld is %g, not %g", tier.name, name(query_type), name(type),
          long(d), long(i), long(n), static_cast<double>(got), wanted);
  }
}

void test_sizes() {
  Random random(1);
  for (const Tier* tier : tested_tiers()) {
    for (const int64_t d : {0, 1, 3, 4, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 384, 1000}) {
      for (const FloatType query_type : kTypes) {
        for (const FloatType type : kTypes) {
          check_rescore(*tier, random, random.below(4), 1 + random.below(40), random.below(20), d, query_type, type);
        }
      }
    }
    check_rescore(*tier, random, 2, 0, 5, 16, FloatType::kF32, FloatType::kF32);
    for (const int64_t run : {2, 3, 5}) {
      for (const int64_t v : {run - 1, run, run + 7}) {
        check_rescore(*tier, random, 2, v, 9, run * 24, FloatType::kF32, FloatType::kBF16, run);
      }
    }
  }
}

}  // namespace
}  // namespace jax_maddness::testing

int main(int argc, char** argv) {
  using namespace jax_maddness::testing;
  return run_on_tiers("rescore", argc, argv, test_sizes);
}
