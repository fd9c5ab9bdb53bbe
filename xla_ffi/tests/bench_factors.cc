// Micro-benchmark of integer factors on one thread:
//
//   bench_factors [--json] [tier ...]        --json: one object per figure and line
//
// Multiplications per cycle, of the whole computation from f32 rows to f32 outputs: rank * (features + outputs) for
// each row, or features * outputs in the int8 product. bench_kernels has look-ups; both count cycles alike (clock.h).
#include <array>

#include "xla_ffi/tests/clock.h"
#include "xla_ffi/tests/testing.h"

namespace jax_maddness::testing {
namespace {

struct FactorArrays {
  int64_t rows, features, rank, outputs;  // rank 0: the int8 product
  std::vector<float> x, center, feature_scale, steps, scale, offset;
  AlignedBytes y;
  std::vector<int8_t> down, up;
  AlignedBytes scratch;

  FactorArrays(const Tier& tier, int64_t n, int64_t d, int64_t r, int64_t m)
      : rows(n),
        features(d),
        rank(r),
        outputs(m),
        x(n * d),
        center(d),
        feature_scale(d, 21.0f),
        steps(r, 1e-3f),
        scale(m, 1e-3f),
        offset(m),
        y(static_cast<size_t>(n * m) * sizeof(float)),
        down((d + 3) / 4 * 4 * r),
        up((inner() + 3) / 4 * 4 * m),
        scratch(tier.factor_scratch_bytes(d, inner(), 0)) {
    Random random(1);
    for (auto& v : x) v = random.normal();
    for (auto& v : down) v = static_cast<int8_t>(random.below(255) - 127);
    for (auto& v : up) v = static_cast<int8_t>(random.below(255) - 127);
    std::memset(y.data(), 0, static_cast<size_t>(n * m) * sizeof(float));
  }

  int64_t inner() const { return rank == 0 ? features : rank; }
  double products() const {
    return static_cast<double>(rows) *
           static_cast<double>(rank == 0 ? features * outputs : rank * (features + outputs));
  }

  double cycles(const Tier& tier, bool by_row) const {
    Down from_x = {center.data(), feature_scale.data(), nullptr, nullptr, 0, by_row};
    if (rank > 0) from_x = {center.data(), feature_scale.data(), down.data(), steps.data(), rank};
    const Up to_y = {up.data(), nullptr, scale.data(), offset.data(), inner(), outputs, outputs};
    const Output out = {y.data(), FloatType::kF32, outputs, rows * outputs * 4 >= 6 << 20};  // as handlers decide
    return median_cycles(
        [&] { tier.factors({x.data(), FloatType::kF32, rows, features}, {from_x, to_y}, out, scratch.data()); });
  }
};

void bench(const Tier& tier, bool json) {
  if (!json) {
    std::printf("%-8s factors, products/cycle\n%10s%10s%10s%10s%10s%10s\n", tier.name, "rows", "D", "rank", "M",
                "factors", "by row");
  }
  for (const auto& [n, d, rank, m] : {std::array<int64_t, 4>{8192, 1024, 64, 1024},
                                      {5000, 384, 32, 1152},
                                      {1000, 768, 48, 3072},
                                      {10'000, 512, 32, 100},
                                      {25'088, 288, 16, 64},
                                      {16'000, 84, 8, 12},
                                      {3840, 32, 8, 64},
                                      {288, 48, 0, 16},
                                      {1, 1024, 64, 1024},
                                      {8, 1024, 64, 1024},
                                      {2048, 1024, 0, 1024},
                                      {1000, 768, 0, 3072},
                                      {1, 1024, 0, 1024},
                                      {8, 1024, 0, 1024}}) {
    const FactorArrays a(tier, n, d, rank, m);
    const double factors = a.products() / a.cycles(tier, false),
                 by_row = rank > 0 ? 0 : a.products() / a.cycles(tier, true);
    std::printf(json ? "{\"tier\": \"%s\", \"kernel\": \"factors\", \"rows\": %ld, \"features\": %ld, \"rank\": %ld, "
                       "\"outputs\": %ld, \"products_per_cycle\": %.2f, \"by_row_products_per_cycle\": %.2f}\n"
                     : "%.0s%10ld%10ld%10ld%10ld%10.1f%10.1f\n",
                tier.name, long(n), long(d), long(rank), long(m), factors, by_row);
  }
}

}  // namespace
}  // namespace jax_maddness::testing

int main(int argc, char** argv) {
  using namespace jax_maddness::testing;
  const Asked asked(argc, argv);
  for (const jax_maddness::Tier* tier : asked.tiers) {
    bench(*tier, asked.json);
  }
}
