// Shared by the kernel tests: runs a tier on a problem, and compares it with the definition (problem.h). Codes, sums
// and outputs must be equal bit for bit, whether the caller flushes denormals or not. Inputs end where memory ends, and
// the bytes around an output must not change.
#ifndef JAX_MADDNESS_TESTS_DEFINITION_H_
#define JAX_MADDNESS_TESTS_DEFINITION_H_

#include <string>

#include "xla_ffi/tests/problem.h"

namespace jax_maddness::testing {

// ---- Running a tier, every array being guarded ----

struct Run {
  const Tier& tier;
  const Problem& p;
  Input<char> x, by_feature;
  Input<int32_t> indices;
  Input<float> thresholds, scale, offset;
  Input<uint8_t> values, by_code;
  Input<int32_t> projected_features;
  Input<int8_t> projections;
  Input<int32_t> projected_thresholds;
  Input<float> center, feature_scale;
  AlignedBytes scratch;

  Run(const Tier& tier, const Problem& p)
      : tier(tier),
        p(p),
        x(in_type(p.x, p.type)),
        by_feature(in_type(p.by_feature(), p.type)),
        indices(p.indices),
        thresholds(p.thresholds),
        scale(p.scale),
        offset(p.offset),
        values(p.values),
        by_code(p.by_code()),
        projected_features(p.oblique.features),
        projections(p.oblique.projections),
        projected_thresholds(p.oblique.thresholds),
        center(p.oblique.center),
        feature_scale(p.oblique.scale),
        scratch(tier.scratch_bytes(p.features, p.codebooks)) {}

  Rows rows() const { return {x.data(), p.type, p.rows, p.features}; }
  Trees trees() const { return {indices.data(), thresholds.data(), p.codebooks}; }
  ObliqueTrees oblique_trees() const {
    return {projected_features.data(),
            projections.data(),
            projected_thresholds.data(),
            center.data(),
            feature_scale.data(),
            p.codebooks,
            p.oblique.width};
  }

  // As if this were one of several tasks.
  std::vector<uint8_t> codes_by_feature() const {
    Result<uint8_t> out(p.rows, p.codebooks, p.codebooks);
    const char* const first = by_feature.data() + p.rows_before() * (p.type == FloatType::kF32 ? 4 : 2);
    tier.encode_by_feature({first, p.type, p.rows, p.rows + p.rows_before()}, trees(), out.data());
    return out.values();
  }

  std::vector<uint8_t> codes() const {
    Result<uint8_t> out(p.rows, p.codebooks, p.codebooks);
    p.is_oblique() ? tier.encode_oblique(rows(), oblique_trees(), out.data(), scratch.data())
                   : tier.encode(rows(), trees(), out.data(), scratch.data());
    return out.values();
  }

  // The upper four bits of codes are noise, which kernels ignore.
  static Input<uint8_t> noisy(std::vector<uint8_t> codes, Random& random) {
    for (uint8_t& code : codes) code = static_cast<uint8_t>(code | random.below(16) << 4);
    return Input<uint8_t>(codes);
  }

  std::vector<int32_t> sums(const std::vector<uint8_t>& codes, Random& random, int64_t stride) const {
    const Input<uint8_t> in = noisy(codes, random);
    Result<int32_t> out(p.rows, p.outputs, stride);
    const Tables tables{values.data(), nullptr, nullptr, p.outputs, p.codebooks};
    tier.aggregate(in.data(), p.rows, tables, out.data(), stride, scratch.data());
    return out.values();
  }

  template <typename T>
  std::vector<T> amm_of_codes(const std::vector<uint8_t>& codes, int64_t stride) const {
    Random random(5);
    const Input<uint8_t> in = noisy(codes, random);
    Result<T> out(p.rows, p.outputs, stride);
    const Tables tables{values.data(), scale.data(), offset.data(), p.outputs, p.codebooks};
    const Output y{out.data(), p.type, stride, stride % 2 == 0};
    tier.amm_of_codes(in.data(), p.rows, tables, y, scratch.data());
    return out.values();
  }

  // From output by output to row by row.
  template <typename T>
  std::vector<T> amm_by_output(const std::vector<uint8_t>& codes, int64_t stride) const {
    Random random(6);
    const Input<uint8_t> in = noisy(codes, random);
    const int64_t apart = p.rows + stride - p.outputs;
    Result<T> out(p.outputs, p.rows, apart);
    const Tables tables{values.data(), scale.data(), offset.data(), p.outputs, p.codebooks};
    tier.amm_of_codes_by_output(in.data(), p.rows, tables, {out.data(), p.type, apart}, scratch.data());
    const std::vector<T> by_output = out.values();
    std::vector<T> y(by_output.size());
    for (int64_t i = 0; i < p.rows * p.outputs; ++i) y[i] = by_output[i % p.outputs * p.rows + i / p.outputs];
    return y;
  }

  template <typename T>
  std::vector<T> amm_by_code(int64_t stride) const {
    return amm_by_code_in<T>(p.type, stride);
  }

  template <typename T>
  std::vector<T> amm_by_code_in(FloatType type, int64_t stride) const {
    Result<T> out(p.rows, p.outputs, stride);
    const int64_t third = p.outputs / 3;
    for (const auto& [begin, count] : {std::pair{int64_t{0}, third}, {third, p.outputs - third}}) {  // as two tasks
      const Tables tables{
          by_code.data() + begin, scale.data() + begin, offset.data() + begin, count, p.codebooks, p.outputs};
      const Output y{out.data() + begin, type, stride};
      p.is_oblique() ? tier.amm_oblique_by_code(rows(), oblique_trees(), tables, y, scratch.data())
                     : tier.amm_by_code(rows(), trees(), tables, y, scratch.data());
    }
    return out.values();
  }

  template <typename T>
  std::vector<T> amm(int64_t stride) const {
    return amm_in<T>(p.type, stride);
  }

  // The result may be of another type than the rows: an epilogue takes it in f32.
  template <typename T>
  std::vector<T> amm_in(FloatType type, int64_t stride) const {
    Result<T> out(p.rows, p.outputs, stride);
    const Tables tables{values.data(), scale.data(), offset.data(), p.outputs, p.codebooks};
    const Output y{out.data(), type, stride, stride % 2 == 0};
    p.is_oblique() ? tier.amm_oblique(rows(), oblique_trees(), tables, y, scratch.data())
                   : tier.amm(rows(), trees(), tables, y, scratch.data());
    return out.values();
  }
};

// Set by the argument "bochs", for tools/avx512-under-bochs: Bochs 2.7 rounds ties up when it converts to f16, and is
// slow, so that f16 outputs at ties are not compared, and only the best tier runs.
inline bool on_bochs = false;

inline std::vector<const Tier*> tested_tiers() {
  const std::vector<const Tier*> tiers = supported_tiers();
  return on_bochs ? std::vector<const Tier*>{tiers.front()} : tiers;
}

inline bool is_excused(float exact, FloatType type) {
  return on_bochs && type == FloatType::kF16 &&
         round_to(std::nextafterf(exact, kInfinity), type) != round_to(std::nextafterf(exact, -kInfinity), type);
}

template <typename T>
void check_amm(const Run& run, const std::vector<int32_t>& sums, int64_t stride) {
  const Problem& p = run.p;
  const std::vector<T> y = run.amm<T>(stride);
  CHECK(on_bochs || y == run.amm_of_codes<T>(p.codes(), stride), "tier %s: amm_of_codes differs from amm",
        run.tier.name);
  CHECK(on_bochs || y == run.amm_by_output<T>(p.codes(), stride), "tier %s: amm_of_codes_by_output differs from amm",
        run.tier.name);
  CHECK(on_bochs || y == run.amm_by_code<T>(stride), "tier %s: amm_by_code differs from amm", run.tier.name);
  const std::vector<float> z = run.amm_in<float>(FloatType::kF32, stride),
                           few = run.amm_by_code_in<float>(FloatType::kF32, stride);
  for (size_t i = 0; i < y.size(); ++i) {
    const size_t m = i % static_cast<size_t>(p.outputs);
    const float exact = std::fma(p.scale[m], static_cast<float>(sums[i]), p.offset[m]);
    CHECK(bits_of(z[i]) == bits_of(exact) && bits_of(few[i]) == bits_of(exact),
          "tier %s, %s rows, f32 output %zu: %g or %g, not %g", run.tier.name, name(p.type), i, double{z[i]},
          double{few[i]}, double{exact});
    const uint32_t wanted = round_to(exact, p.type);
    uint32_t got = 0;
    std::memcpy(&got, &y[i], sizeof(T));
    CHECK(got == wanted || is_excused(exact, p.type), "tier %s, %s, output %zu: %x, not %x", run.tier.name,
          name(p.type), i, got, wanted);
  }
}

inline void check_tier(const Tier& tier, const Problem& p, Random& random) {
  const std::vector<uint8_t> codes = p.codes();
  const std::vector<int32_t> sums = p.sums();
  const Run run(tier, p);
  const int64_t stride = p.outputs + random.below(3);
  for (const bool flushed : {false, true}) {
    flush_denormals(flushed);
    const std::vector<uint8_t> got = run.codes();
    CHECK(p.is_oblique() || run.codes_by_feature() == got, "tier %s: codes by feature differ", tier.name);
    const bool kept = denormals_are_flushed() == flushed;
    flush_denormals(false);
    CHECK(kept || !flushed, "tier %s changes its caller's floating-point settings", tier.name);
    for (size_t i = 0; i < codes.size(); ++i) {
      CHECK(got[i] == codes[i], "tier %s, %s, %ld x %ld, C = %ld, W = %ld, flushed = %d: code %zu is %d, not %d",
            tier.name, name(p.type), long(p.rows), long(p.features), long(p.codebooks), long(p.oblique.width), flushed,
            i, got[i], codes[i]);
    }
    flush_denormals(flushed);
    p.type == FloatType::kF32 ? check_amm<uint32_t>(run, sums, stride) : check_amm<uint16_t>(run, sums, stride);
    flush_denormals(false);
  }
  const std::vector<int32_t> got = run.sums(codes, random, stride);
  for (size_t i = 0; i < sums.size(); ++i) {
    CHECK(got[i] == sums[i], "tier %s, %ld rows, M = %ld, C = %ld: sum %zu is %d, not %d", tier.name, long(p.rows),
          long(p.outputs), long(p.codebooks), i, got[i], sums[i]);
  }
}

// Runs `test`, and prints the tiers that it ran on.
template <typename Test>
int run_on_tiers(const char* what, int argc, char** argv, const Test& test) {
  on_bochs = argc > 1 && std::strcmp(argv[1], "bochs") == 0;
  test();
  std::string names;
  for (const Tier* tier : tested_tiers()) names += (names.empty() ? "" : ", ") + std::string(tier->name);
  std::printf("%s: as defined on the tiers %s\n", what, names.c_str());
  return 0;
}

}  // namespace jax_maddness::testing

#endif  // JAX_MADDNESS_TESTS_DEFINITION_H_
