// Every tier against the definition (definition.h) on bf16 and f16: every value there is as a feature, and every way to
// round to them.
#include <cmath>

#include "xla_ffi/tests/definition.h"

namespace jax_maddness::testing {
namespace {

// All 65536 patterns of a 16-bit type as features, against thresholds at and beside each: one row of one feature each.
void test_every_half() {
  for (const Tier* tier : tested_tiers()) {
    for (const FloatType type : {FloatType::kBF16, FloatType::kF16}) {
      for (const int64_t features : {1, 2}) {
        Problem p{65536 / features, features, 8 * features, 0, type, {}, {}, {}, {}, {}, {}};
        for (uint32_t bits = 0; bits < 65536; ++bits) p.x.push_back(widen(bits, type));
        for (int64_t c = 0; c < p.codebooks; ++c) {
          for (int64_t level = 0; level < 4; ++level) p.indices.push_back(static_cast<int32_t>(c % features));
          for (int64_t j = 0; j < 15; ++j)
            p.thresholds.push_back(widen(static_cast<uint32_t>((c * 15 + j) * 557 % 65536), type));
        }
        const std::vector<uint8_t> wanted = p.codes();
        const Run run(*tier, p);
        flush_denormals(true);
        const std::vector<uint8_t> got = run.codes();
        flush_denormals(false);
        for (size_t i = 0; i < wanted.size(); ++i) {
          CHECK(got[i] == wanted[i], "tier %s, %s, code %zu is %d, not %d", tier->name, name(type), i, got[i],
                wanted[i]);
        }
      }
    }
  }
}

// Outputs around every value of a 16-bit type: the value, the tie with its neighbour, and beside the tie. scale 0 makes
// y the offset.
void test_rounding() {
  for (const Tier* tier : tested_tiers()) {
    for (const FloatType type : {FloatType::kBF16, FloatType::kF16}) {
      Problem p{1, 2, 1, 0, type, {0.0f, 0.0f}, {0, 0, 0, 0}, std::vector<float>(15), {}, {}, {}};
      for (uint32_t bits = 0; bits < 65536; ++bits) {
        const float value = widen(bits, type), next = widen(bits ^ 1, type);
        if (is_nan(value) || is_nan(next)) continue;
        const auto middle = static_cast<float>((static_cast<double>(value) + static_cast<double>(next)) / 2);
        for (const float y : {value, middle, std::nextafterf(middle, kInfinity), std::nextafterf(middle, -kInfinity)}) {
          if (!is_nan(y)) p.offset.push_back(y);
        }
      }
      for (const float y : {65519.9f, 65520.0f, 65535.0f, 1e5f, 3.4e38f, 1e-40f, -1e-8f, 2.98e-8f})
        p.offset.push_back(y);
      p.outputs = static_cast<int64_t>(p.offset.size());
      p.scale.assign(p.offset.size(), 0.0f);
      p.values.assign(p.offset.size() * 16, 0);
      const Run run(*tier, p);
      check_amm<uint16_t>(run, p.sums(), p.outputs);
      // NaN comes out as some NaN, never as infinity.
      for (const uint32_t nan : {0x7fc00000u, 0x7f800001u, 0xffffffffu, 0x7fffffffu}) {
        Problem q{1,
                  2,
                  1,
                  1,
                  type,
                  {0.0f, 0.0f},
                  {0, 0, 0, 0},
                  std::vector<float>(15),
                  {1.0f},
                  {float_of(nan)},
                  std::vector<uint8_t>(16)};
        const uint16_t got = Run(*tier, q).amm<uint16_t>(1)[0];
        CHECK(is_nan(widen(got, type)), "tier %s, %s: NaN %x became %x", tier->name, name(type), nan, got);
      }
    }
  }
}

}  // namespace
}  // namespace jax_maddness::testing

int main(int argc, char** argv) {
  using namespace jax_maddness::testing;
  return run_on_tiers("halves", argc, argv, [] {
    test_every_half();
    test_rounding();
  });
}
