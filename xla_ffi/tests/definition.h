// Shared by the kernel tests: the definition of layout.h in plain loops, written independently of the kernels, and the
// comparison of a tier with it. Codes, sums and outputs must be equal bit for bit, whether the caller flushes denormals
// or not. Inputs end where memory ends, and the bytes around an output must not change.
#ifndef JAX_MADDNESS_TESTS_DEFINITION_H_
#define JAX_MADDNESS_TESTS_DEFINITION_H_

#include <cmath>
#include <limits>
#include <string>

#include "xla_ffi/tests/guarded.h"
#include "xla_ffi/tests/oblique.h"
#include "xla_ffi/tests/testing.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace jax_maddness::testing {

constexpr FloatType kTypes[] = {FloatType::kF32, FloatType::kBF16, FloatType::kF16};
constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline const char* name(FloatType type) {
  return type == FloatType::kF32 ? "f32" : type == FloatType::kBF16 ? "bf16" : "f16";
}

// The settings of XLA's threads: denormals are read as zero, and results are flushed to zero.
#if defined(__x86_64__)
constexpr uint64_t kFlush = 0x8040;  // DAZ and FTZ of MXCSR
inline uint64_t float_settings() { return _mm_getcsr(); }
inline void set_float_settings(uint64_t settings) { _mm_setcsr(static_cast<uint32_t>(settings)); }
#elif defined(__aarch64__)
constexpr uint64_t kFlush = uint64_t{1} << 24;  // FZ of FPCR
inline uint64_t float_settings() {
  uint64_t settings;
  asm volatile("mrs %0, fpcr" : "=r"(settings));
  return settings;
}
inline void set_float_settings(uint64_t settings) { asm volatile("msr fpcr, %0" ::"r"(settings) : "memory"); }
#else
constexpr uint64_t kFlush = 0;
inline uint64_t float_settings() { return 0; }
inline void set_float_settings(uint64_t) {}
#endif

inline void flush_denormals(bool on) {
  set_float_settings(on ? float_settings() | kFlush : float_settings() & ~kFlush);
}
inline bool denormals_are_flushed() { return (float_settings() & kFlush) == kFlush; }

// ---- The definition ----

// A total order of the floats but NaN, in integers, so that no setting of the processor matters: -0 and +0 are one.
inline int64_t order(float value) {
  const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffff;
  return bits >> 31 ? -int64_t{magnitude} : int64_t{magnitude};
}

inline bool is_nan(float value) { return (bits_of(value) & 0x7fffffff) > 0x7f800000; }

inline bool greater(float a, float b) { return !is_nan(a) && !is_nan(b) && order(a) > order(b); }

struct Problem {
  int64_t rows, features, codebooks, outputs;
  FloatType type;
  std::vector<float> x;  // as f32; representable in `type`
  std::vector<int32_t> indices;
  std::vector<float> thresholds, scale, offset;
  std::vector<uint8_t> values;
  Oblique oblique = {};  // in place of indices and thresholds where it has a width

  bool is_oblique() const { return oblique.width > 0; }

  std::vector<uint8_t> codes() const {
    std::vector<uint8_t> result;
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t c = 0; c < codebooks; ++c) {
        if (is_oblique()) {
          result.push_back(oblique.code(&x[n * features], c));
          continue;
        }
        int64_t j = 0;
        for (int64_t level = 0; level < 4; ++level) {
          const float feature = x[n * features + indices[c * 4 + level]];
          j = 2 * j + greater(feature, thresholds[c * 15 + (1 << level) - 1 + j]);
        }
        result.push_back(static_cast<uint8_t>(j));
      }
    }
    return result;
  }

  // The tables in their other order.
  std::vector<uint8_t> by_code() const {
    std::vector<uint8_t> result(values.size());
    for (int64_t m = 0; m < outputs; ++m) {
      for (int64_t i = 0; i < codebooks * 16; ++i) result[i * outputs + m] = values[m * codebooks * 16 + i];
    }
    return result;
  }

  std::vector<int32_t> sums() const {
    const std::vector<uint8_t> all = codes();
    std::vector<int32_t> result;
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t m = 0; m < outputs; ++m) {
        int32_t sum = 0;
        for (int64_t c = 0; c < codebooks; ++c) sum += values[(m * codebooks + c) * 16 + all[n * codebooks + c]];
        result.push_back(sum);
      }
    }
    return result;
  }
};

// Thresholds are half the time a feature of some row, or a neighbour of one; now and then NaN or an infinity.
inline Problem random_problem(Random& random, int64_t n, int64_t d, int64_t c, int64_t m, FloatType type) {
  Problem p{n, d, c, m, type, {}, {}, {}, {}, {}, {}};
  const float special[] = {0.0f, -0.0f, kInfinity, -kInfinity, std::nanf(""), 1e-40f, -1e-40f, 3e-45f, 65504.0f, 3e38f};
  const auto value = [&] {
    return random.below(8) == 0 ? special[random.below(sizeof special / sizeof *special)] : random.normal();
  };
  for (int64_t i = 0; i < n * d; ++i) p.x.push_back(widen(round_to(value(), type), type));
  for (int64_t i = 0; i < c * 4; ++i) p.indices.push_back(static_cast<int32_t>(random.below(d)));
  for (int64_t i = 0; i < c * 15; ++i) {
    float t = value();
    if (n > 0 && random.below(2) == 0) {
      t = p.x[random.below(n * d)];
      if (random.below(2) == 0) t = std::nextafterf(t, random.below(2) == 0 ? kInfinity : -kInfinity);
    }
    p.thresholds.push_back(t);
  }
  for (int64_t i = 0; i < m * c * 16; ++i)
    p.values.push_back(static_cast<uint8_t>(random.below(2) ? random.below(256) : 255));
  for (int64_t i = 0; i < m; ++i) p.scale.push_back(random.normal() * 0.01f);
  for (int64_t i = 0; i < m; ++i) p.offset.push_back(random.normal());
  return p;
}

// ---- Running a tier, every array being guarded ----

struct Run {
  const Tier& tier;
  const Problem& p;
  Input<char> x;
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

  template <typename T>
  std::vector<T> amm_by_code(int64_t stride) const {
    Result<T> out(p.rows, p.outputs, stride);
    const int64_t third = p.outputs / 3;
    for (const auto& [begin, count] : {std::pair{int64_t{0}, third}, {third, p.outputs - third}}) {  // as two tasks
      const Tables tables{
          by_code.data() + begin, scale.data() + begin, offset.data() + begin, count, p.codebooks, p.outputs};
      const Output y{out.data() + begin, p.type, stride};
      p.is_oblique() ? tier.amm_oblique_by_code(rows(), oblique_trees(), tables, y, scratch.data())
                     : tier.amm_by_code(rows(), trees(), tables, y, scratch.data());
    }
    return out.values();
  }

  template <typename T>
  std::vector<T> amm(int64_t stride) const {
    Result<T> out(p.rows, p.outputs, stride);
    const Tables tables{values.data(), scale.data(), offset.data(), p.outputs, p.codebooks};
    const Output y{out.data(), p.type, stride, stride % 2 == 0};
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
  CHECK(on_bochs || y == run.amm_by_code<T>(stride), "tier %s: amm_by_code differs from amm", run.tier.name);
  for (size_t i = 0; i < y.size(); ++i) {
    const size_t m = i % static_cast<size_t>(p.outputs);
    const float exact = std::fma(p.scale[m], static_cast<float>(sums[i]), p.offset[m]);
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
