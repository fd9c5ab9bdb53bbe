// All tiers beside each other on one thread, on calls from one row to hundreds:
//
//   bench_tiers [--json] [tier ...]        --json: one object per call and line
//
// Microseconds of each tier, in turns, so that neither the clock nor the load of the moment decides; then the first
// tier, which is the one that runs, over the quickest. Every array stays in cache.
#include <array>

#include "xla_ffi/tests/clock.h"
#include "xla_ffi/tests/testing.h"

namespace jax_maddness::testing {
namespace {

constexpr int kRounds = 31;
constexpr double kSecondsOfARun = 50e-6;  // repeated for as long, so that reading the time does not count

using Tiers = std::vector<const Tier*>;

struct Call {
  int64_t rows, features, codebooks, outputs;
};

// The arrays of any kind of op of the size of a call.
struct Arrays {
  Call size;
  int64_t width;
  std::vector<float> x, thresholds, center, feature_scale, steps, scale, offset, y;
  std::vector<int32_t> split_features, features, oblique_thresholds;
  std::vector<int8_t> projections, down, up;
  std::vector<uint8_t> values;
  AlignedBytes scratch;

  Arrays(const Tiers& tiers, const Call& call)
      : size(call),
        width(call.features / call.codebooks),
        x(call.rows * call.features),
        thresholds(call.codebooks * kNodes),
        center(call.features),
        feature_scale(call.features, 21.0f),
        steps(call.codebooks, 1e-3f),
        scale(call.outputs, 1e-3f),
        offset(call.outputs),
        y(call.rows * call.outputs),
        split_features(call.codebooks * kLevels),
        features(call.codebooks * width),
        oblique_thresholds(call.codebooks * kNodes),
        projections(call.codebooks * kLevels * width),
        down((call.features + 3) / 4 * 4 * call.codebooks),
        up((call.codebooks + 3) / 4 * 4 * call.outputs),
        values(call.outputs * call.codebooks * kLeaves),
        scratch(bytes(tiers, call)) {
    Random random(1);
    for (auto& v : x) v = random.normal();
    for (auto& v : thresholds) v = random.normal();
    for (auto& v : oblique_thresholds) v = static_cast<int32_t>(random.below(4000) - 2000);
    for (auto* array : {&projections, &down, &up}) {
      for (auto& v : *array) v = static_cast<int8_t>(random.below(255) - 127);
    }
    for (auto& v : values) v = static_cast<uint8_t>(random.below(256));
    for (size_t i = 0; i < features.size(); ++i) features[i] = static_cast<int32_t>(i);
    for (size_t i = 0; i < split_features.size(); ++i) {
      split_features[i] = static_cast<int32_t>(static_cast<int64_t>(i) / kLevels * width + random.below(width));
    }
  }

  static size_t bytes(const Tiers& tiers, const Call& call) {
    size_t most = 0;
    for (const Tier* tier : tiers) {
      most = std::max({most, tier->scratch_bytes(call.features, call.codebooks),
                       tier->factor_scratch_bytes(call.features, call.codebooks, 0)});
    }
    return most;
  }

  Rows rows() const { return {x.data(), FloatType::kF32, size.rows, size.features}; }
  Trees split() const { return {split_features.data(), thresholds.data(), size.codebooks}; }
  ObliqueTrees oblique() const {
    return {features.data(),
            projections.data(),
            oblique_thresholds.data(),
            center.data(),
            feature_scale.data(),
            size.codebooks,
            width};
  }
  Tables tables() const { return {values.data(), scale.data(), offset.data(), size.outputs, size.codebooks}; }
  Factors factors() const {
    return {{center.data(), feature_scale.data(), down.data(), steps.data(), size.codebooks},
            {up.data(), nullptr, scale.data(), offset.data(), size.codebooks, size.outputs, size.outputs}};
  }
  Output output() { return {y.data(), FloatType::kF32, size.outputs}; }
};

// Median microseconds of run(tier) of each tier.
template <typename Run>
std::vector<double> in_turns(const Tiers& tiers, const Run& run) {
  int repeats = 1;
  const auto time = [&](const Tier& tier) {
    const auto begin = Clock::now();
    for (int i = 0; i < repeats; ++i) run(tier);
    return seconds_since(begin);
  };
  while (time(*tiers.front()) < kSecondsOfARun) repeats *= 2;
  std::vector<std::vector<double>> times(tiers.size());
  for (int round = 0; round < kRounds; ++round) {
    for (size_t i = 0; i < tiers.size(); ++i) times[i].push_back(1e6 * time(*tiers[i]) / repeats);
  }
  std::vector<double> medians;
  for (auto& of_tier : times) {
    std::nth_element(of_tier.begin(), of_tier.begin() + kRounds / 2, of_tier.end());
    medians.push_back(of_tier[kRounds / 2]);
  }
  return medians;
}

void print(const char* kernel, const Call& call, const Tiers& tiers, const std::vector<double>& times, bool json) {
  const double ratio = times.front() / *std::min_element(times.begin(), times.end());
  std::printf(json ? "{\"kernel\": \"%s\", \"rows\": %ld, \"features\": %ld, \"codebooks\": %ld, \"outputs\": %ld"
                   : "%-14s%7ld%7ld%7ld%7ld",
              kernel, long(call.rows), long(call.features), long(call.codebooks), long(call.outputs));
  for (size_t i = 0; i < tiers.size(); ++i) {
    std::printf(json ? ", \"%s\": %.3f" : "%.0s%12.2f", tiers[i]->name, times[i]);
  }
  std::printf(json ? "}\n" : "%10.2f\n", ratio);
}

void bench(const Tiers& tiers, const Call& call, bool json) {
  Arrays a(tiers, call);
  const auto row = [&](const char* kernel, const auto& run) { print(kernel, call, tiers, in_turns(tiers, run), json); };
  void* const scratch = a.scratch.data();
  row("split", [&](const Tier& t) { t.amm(a.rows(), a.split(), a.tables(), a.output(), scratch); });
  row("split by code", [&](const Tier& t) { t.amm_by_code(a.rows(), a.split(), a.tables(), a.output(), scratch); });
  row("oblique", [&](const Tier& t) { t.amm_oblique(a.rows(), a.oblique(), a.tables(), a.output(), scratch); });
  row("factors", [&](const Tier& t) { t.factors(a.rows(), a.factors(), a.output(), scratch); });
}

}  // namespace
}  // namespace jax_maddness::testing

int main(int argc, char** argv) {
  using namespace jax_maddness::testing;
  const Asked asked(argc, argv);
  const Tiers& tiers = asked.tiers;
  if (!asked.json) {
    std::printf("%-14s%7s%7s%7s%7s", "", "rows", "D", "C", "M");
    for (const auto* tier : tiers) std::printf("%12s", tier->name);
    std::printf("%10s\n", "1st/best");
  }
  for (const auto& [d, c, m] : {std::array<int64_t, 3>{64, 4, 10},
                                {64, 16, 64},
                                {128, 8, 128},
                                {384, 24, 96},
                                {512, 32, 512},
                                {768, 48, 768},
                                {1024, 64, 64}}) {
    for (const int64_t rows : {1, 2, 4, 8, 16, 32, 64, 256}) bench(tiers, {rows, d, c, m}, asked.json);
  }
}
