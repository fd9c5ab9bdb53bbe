// Every tier against the definition in plain loops, written here anew from layout.h: codes and sums bit for bit, at
// sizes on and beside block edges, with special values, with denormals flushed by the caller or not, and with guards:
// inputs end where memory ends, and what stands around an output must not change.
#include <algorithm>
#include <cmath>
#include <limits>

#include "guarded.h"
#include "testing.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace jax_maddness::testing {
namespace {

constexpr FloatType kTypes[] = {FloatType::kF32, FloatType::kBF16, FloatType::kF16};
constexpr float kInfinity = std::numeric_limits<float>::infinity();

const char* name(FloatType type) { return type == FloatType::kF32 ? "f32" : type == FloatType::kBF16 ? "bf16" : "f16"; }

// What XLA does to its threads: denormals are read as zero, and results flushed to zero.
void flush_denormals(bool on) {
#if defined(__x86_64__)
  _mm_setcsr(on ? _mm_getcsr() | 0x8040 : _mm_getcsr() & ~0x8040u);
#else
  (void)on;
#endif
}

bool denormals_are_flushed() {
#if defined(__x86_64__)
  return (_mm_getcsr() & 0x8040) == 0x8040;
#else
  return false;
#endif
}

// ---- The definition ----

// A total order of the floats but NaN, in integers, so that no setting of the processor matters: -0 and +0 are one.
int64_t order(float value) {
  const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffff;
  return bits >> 31 ? -int64_t{magnitude} : int64_t{magnitude};
}

bool is_nan(float value) { return (bits_of(value) & 0x7fffffff) > 0x7f800000; }

bool greater(float a, float b) { return !is_nan(a) && !is_nan(b) && order(a) > order(b); }

struct Problem {
  int64_t rows, features, codebooks, outputs;
  FloatType type;
  std::vector<float> x;  // as f32; representable in `type`
  std::vector<int32_t> indices;
  std::vector<float> thresholds, scale, offset;
  std::vector<uint8_t> values;

  std::vector<uint8_t> codes() const {
    std::vector<uint8_t> result;
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t c = 0; c < codebooks; ++c) {
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
Problem random_problem(Random& random, int64_t n, int64_t d, int64_t c, int64_t m, FloatType type) {
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
  Input<uint8_t> values;
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
        scratch(tier.scratch_bytes(p.features, p.codebooks)) {}

  Rows rows() const { return {x.data(), p.type, p.rows, p.features}; }
  Trees trees() const { return {indices.data(), thresholds.data(), p.codebooks}; }

  std::vector<uint8_t> codes() const {
    Result<uint8_t> out(p.rows, p.codebooks, p.codebooks);
    tier.encode(rows(), trees(), out.data(), scratch.data());
    return out.values();
  }

  // The upper four bits of codes are noise, which kernels ignore.
  std::vector<int32_t> sums(std::vector<uint8_t> codes, Random& random, int64_t stride) const {
    for (uint8_t& code : codes) code = static_cast<uint8_t>(code | random.below(16) << 4);
    const Input<uint8_t> in(codes);
    Result<int32_t> out(p.rows, p.outputs, stride);
    const Tables tables{values.data(), nullptr, nullptr, p.outputs, p.codebooks};
    tier.aggregate(in.data(), p.rows, tables, out.data(), stride, scratch.data());
    return out.values();
  }

  template <typename T>
  std::vector<T> amm(int64_t stride) const {
    Result<T> out(p.rows, p.outputs, stride);
    const Tables tables{values.data(), scale.data(), offset.data(), p.outputs, p.codebooks};
    tier.amm(rows(), trees(), tables, {out.data(), p.type, stride}, scratch.data());
    return out.values();
  }
};

// Set by the argument "bochs", for tools/avx512-under-bochs: Bochs 2.7 rounds ties up when it converts to f16, and is
// slow, so that f16 outputs at ties are not compared, and only the best tier runs.
bool on_bochs = false;

std::vector<const Tier*> tested_tiers() {
  const std::vector<const Tier*> tiers = supported_tiers();
  return on_bochs ? std::vector<const Tier*>{tiers.front()} : tiers;
}

bool is_excused(float exact, FloatType type) {
  return on_bochs && type == FloatType::kF16 &&
         round_to(std::nextafterf(exact, kInfinity), type) != round_to(std::nextafterf(exact, -kInfinity), type);
}

template <typename T>
void check_amm(const Run& run, const std::vector<int32_t>& sums, int64_t stride) {
  const Problem& p = run.p;
  const std::vector<T> y = run.amm<T>(stride);
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

void check_tier(const Tier& tier, const Problem& p, Random& random) {
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
      CHECK(got[i] == codes[i], "tier %s, %s, %ld x %ld, C = %ld, flushed = %d: code %zu is %d, not %d", tier.name,
            name(p.type), long(p.rows), long(p.features), long(p.codebooks), flushed, i, got[i], codes[i]);
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

// ---- Cases ----

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

// All 65536 patterns of a 16-bit type as features, against thresholds at and beside each: one row of one feature each.
void test_every_half() {
  for (const Tier* tier : tested_tiers()) {
    for (const FloatType type : {FloatType::kBF16, FloatType::kF16}) {
      for (const int64_t features : {1, 2}) {
        Problem p{65536 / features, features, 8 * features, 1, type, {}, {}, {}, {}, {}, {}};
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
                         Shape{20, 1000, 5, 3, FloatType::kF32}, Shape{17, 1000, 9, 17, FloatType::kBF16},
                         Shape{33, 4999, 7, 3, FloatType::kF32}, Shape{19, 5000, 6, 2, FloatType::kF16}}) {
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
  on_bochs = argc > 1 && std::strcmp(argv[1], "bochs") == 0;
  test_sizes();
  test_many_codebooks();
  test_every_half();
  test_rounding();
  test_large();
  test_random_shapes();
  std::string names;
  for (const jax_maddness::Tier* tier : tested_tiers()) names += (names.empty() ? "" : ", ") + std::string(tier->name);
  std::printf("kernels: as defined on the tiers %s\n", names.c_str());
}
