// Micro-benchmark of what follows sums, on one thread: epilogues, and the greatest sums over rows. Arrays are in the
// second-level cache:
//
//   bench_outputs [--json] [tier ...]        --json: one object per figure and line
//
// Cycles are counted as in bench_kernels (clock.h).
#include "xla_ffi/tests/clock.h"
#include "xla_ffi/tests/testing.h"

namespace jax_maddness::testing {
namespace {

void bench_epilogue(const Tier& tier, bool json) {
  constexpr int64_t kRows = 64, kOutputs = 768;
  constexpr std::pair<const char*, Activation> kActivations[] = {{"relu", Activation::kRelu},
                                                                 {"gelu", Activation::kGelu},
                                                                 {"exact gelu", Activation::kExactGelu},
                                                                 {"silu", Activation::kSilu},
                                                                 {"tanh", Activation::kTanh}};
  if (!json) std::printf("%-8s epilogue, cycles for 16 outputs\n%20s%10s%10s\n", tier.name, "", "f32", "bf16");
  std::vector<float> z, y(kRows * kOutputs);
  Random random(4);
  for (int64_t i = 0; i < kRows * kOutputs; ++i) z.push_back(random.normal());
  for (const auto& [name, activation] : kActivations) {
    double cycles[2];
    for (const FloatType type : {FloatType::kF32, FloatType::kBF16}) {
      const Output to = {y.data(), type, kOutputs};
      cycles[static_cast<int>(type)] =
          median_cycles([&] { tier.epilogue(z.data(), kOutputs, kRows, kOutputs, {activation, nullptr, 0}, to); }) /
          (kRows * kOutputs / 16);
    }
    std::printf(json ? "{\"tier\": \"%s\", \"kernel\": \"epilogue\", \"activation\": \"%s\", "
                       "\"cycles_f32\": %.2f, \"cycles_bf16\": %.2f}\n"
                     : "%.0s%20s%10.1f%10.1f\n",
                tier.name, name, cycles[0], cycles[1]);
  }
}

// Sums of 64 rows, as a convolution has positions; packed with the numbers of their rows, or not.
void bench_greatest(const Tier& tier, bool json) {
  constexpr int64_t kRows = 64, kOutputs = 256;
  if (!json) std::printf("%-8s greatest, cycles for 16 sums\n%20s%10s%10s\n", tier.name, "k", "packed", "apart");
  std::vector<int32_t> sums, best(kMaxGreatest * kOutputs), positions(kMaxGreatest * kOutputs);
  const std::vector<uint8_t> skipped(kRows);
  Random random(5);
  for (int64_t i = 0; i < kRows * kOutputs; ++i) sums.push_back(static_cast<int32_t>(random.below(8000)));
  for (const int64_t k : {1, 4, 5, 8, 16}) {
    double cycles[2];
    for (const bool packed : {true, false}) {
      std::fill(best.begin(), best.end(), INT32_MIN);
      std::fill(positions.begin(), positions.end(), -1);
      const Greatest to = {best.data(), positions.data(), k, kOutputs, packed ? 6 : 0};
      const auto run = [&] { tier.keep_greatest(sums.data(), kOutputs, {skipped.data(), 0, kRows}, kOutputs, to); };
      cycles[packed ? 0 : 1] = median_cycles(run) / (kRows * kOutputs / 16);
    }
    std::printf(json ? "{\"tier\": \"%s\", \"kernel\": \"greatest\", \"k\": %ld, \"packed_cycles\": %.1f, "
                       "\"apart_cycles\": %.1f}\n"
                     : "%.0s%20ld%10.1f%10.1f\n",
                tier.name, long(k), cycles[0], cycles[1]);
  }
}

}  // namespace
}  // namespace jax_maddness::testing

int main(int argc, char** argv) {
  using namespace jax_maddness::testing;
  const Asked asked(argc, argv);
  for (const jax_maddness::Tier* tier : asked.tiers) {
    bench_epilogue(*tier, asked.json);
    bench_greatest(*tier, asked.json);
  }
}
