// Micro-benchmark of the kernels on one thread. Every array is in the second-level cache, except the largest codes of
// the scan:
//
//   bench_kernels [--json] [tier ...]        --json: one object per figure and line
//
// Cycles are the core's: a chain of dependent additions, one a cycle, is timed beside every call, so that the clock of
// the moment does not matter. Each figure is the median of many short runs.
#include <algorithm>
#include <array>

#include "xla_ffi/tests/clock.h"
#include "xla_ffi/tests/testing.h"

namespace jax_maddness::testing {
namespace {

constexpr FloatType kFloatTypes[] = {FloatType::kF32, FloatType::kBF16, FloatType::kF16};

struct Arrays {
  int64_t rows, features, codebooks, outputs;
  std::vector<float> x, thresholds, scale, offset, y;
  std::vector<int32_t> indices, sums;
  std::vector<uint8_t> codes, values;
  std::vector<uint16_t> halves;  // x in 16 bits: bf16, or as good as any f16
  AlignedBytes scratch;

  Arrays(const Tier& tier, int64_t n, int64_t d, int64_t c, int64_t m)
      : rows(n),
        features(d),
        codebooks(c),
        outputs(m),
        x(n * d),
        thresholds(c * kNodes),
        scale(m),
        offset(m),
        y(n * m),
        indices(c * kLevels),
        sums(n * m),
        codes(n * c),
        values(m * c * kLeaves),
        scratch(tier.scratch_bytes(d, c)) {
    Random random(1);
    for (auto& v : x) v = random.normal();
    for (const float v : x) {
      uint16_t words[2];
      std::memcpy(words, &v, sizeof v);
      halves.push_back(words[1]);
    }
    for (auto& v : thresholds) v = random.normal();
    for (auto& v : scale) v = random.normal();
    for (auto& v : codes) v = static_cast<uint8_t>(random.below(16));
    for (auto& v : values) v = static_cast<uint8_t>(random.below(256));
    for (int64_t i = 0; i < c * kLevels; ++i) {  // features of the codebook's own share, as the paper's learner picks
      const int64_t first = i / kLevels * d / c, share = std::max<int64_t>(1, d / c);
      indices[static_cast<size_t>(i)] = static_cast<int32_t>(first + random.below(share));
    }
  }

  Rows as_rows(FloatType type) const {
    if (type == FloatType::kF32) return {x.data(), type, rows, features};
    return {halves.data(), type, rows, features};
  }
  Trees as_trees() const { return {indices.data(), thresholds.data(), codebooks}; }
  Tables as_tables() const { return {values.data(), scale.data(), offset.data(), outputs, codebooks}; }
};

void bench_encode(const Tier& tier, bool json) {
  if (!json) {
    std::printf("%-8s encode, cycles/encoding\n%10s%10s%10s%10s%10s%10s\n", tier.name, "rows", "D", "C", "f32", "bf16",
                "f16");
  }
  for (const auto& [rows, d, c] : {std::array<int64_t, 3>{128, 512, 64},
                                   {64, 1024, 64},
                                   {32, 2048, 64},
                                   {64, 64, 4},
                                   {8, 512, 64},
                                   {8, 512, 512}}) {
    Arrays a(tier, rows, d, c, 1);
    double cycles[3];
    for (const FloatType type : kFloatTypes) {
      cycles[static_cast<int>(type)] =
          median_cycles([&] { tier.encode(a.as_rows(type), a.as_trees(), a.codes.data(), a.scratch.data()); }) /
          static_cast<double>(rows * c);
    }
    std::printf(
        json ? "{\"tier\": \"%s\", \"kernel\": \"encode\", \"rows\": %ld, \"features\": %ld, \"codebooks\": %ld, "
               "\"cycles_f32\": %.3f, \"cycles_bf16\": %.3f, \"cycles_f16\": %.3f}\n"
             : "%.0s%10ld%10ld%10ld%10.2f%10.2f%10.2f\n",
        tier.name, long(rows), long(d), long(c), cycles[0], cycles[1], cycles[2]);
  }
}

// Groups of features that follow each other: a codebook's own, or four times as many, centered on them.
struct ObliqueArrays {
  int64_t codebooks, width;
  std::vector<int32_t> features, thresholds;
  std::vector<int8_t> projections;
  std::vector<float> center, scale;

  ObliqueArrays(int64_t d, int64_t c, int64_t w)
      : codebooks(c), width(w), thresholds(c * kNodes), projections(c * kLevels * w), center(d, 0.0f), scale(d, 21.0f) {
    Random random(2);
    for (auto& v : thresholds) v = static_cast<int32_t>(random.below(4000) - 2000);
    for (auto& v : projections) v = static_cast<int8_t>(random.below(255) - 127);
    for (int64_t i = 0; i < c * w; ++i) {
      features.push_back(static_cast<int32_t>(((i / w * 2 + 1) * d / c / 2 - w / 2 + i % w + d) % d));
    }
  }

  ObliqueTrees as_trees() const {
    return {features.data(), projections.data(), thresholds.data(), center.data(), scale.data(), codebooks, width};
  }
};

void bench_encode_oblique(const Tier& tier, bool json) {
  if (!json) {
    std::printf("%-8s encode with oblique trees, cycles/encoding\n%10s%10s%10s%10s%10s%10s%10s\n", tier.name, "rows",
                "D", "C", "W", "f32", "bf16", "f16");
  }
  for (const auto& [rows, d, c, w] : {std::array<int64_t, 4>{128, 512, 64, 8},
                                      {64, 1024, 64, 16},
                                      {64, 1024, 64, 64},
                                      {32, 2048, 64, 32},
                                      {64, 64, 4, 16},
                                      {8, 512, 64, 8}}) {
    Arrays a(tier, rows, d, c, 1);
    const ObliqueArrays oblique(d, c, w);
    double cycles[3];
    for (const FloatType type : kFloatTypes) {
      const Rows x = a.as_rows(type);
      cycles[static_cast<int>(type)] =
          median_cycles([&] { tier.encode_oblique(x, oblique.as_trees(), a.codes.data(), a.scratch.data()); }) /
          static_cast<double>(rows * c);
    }
    std::printf(json ? "{\"tier\": \"%s\", \"kernel\": \"encode_oblique\", \"rows\": %ld, \"features\": %ld, "
                       "\"codebooks\": %ld, \"width\": %ld, \"cycles_f32\": %.3f, \"cycles_bf16\": %.3f, "
                       "\"cycles_f16\": %.3f}\n"
                     : "%.0s%10ld%10ld%10ld%10ld%10.2f%10.2f%10.2f\n",
                tier.name, long(rows), long(d), long(c), long(w), cycles[0], cycles[1], cycles[2]);
  }
}

void bench_aggregate(const Tier& tier, bool json) {
  if (!json) {
    std::printf("%-8s aggregate and amm (D = 16 C), look-ups/cycle\n%10s%10s%10s%10s%10s\n", tier.name, "rows", "M",
                "C", "aggregate", "amm f32");
  }
  for (const auto& [rows, m, c] : {std::array<int64_t, 3>{256, 64, 16},
                                   {256, 128, 16},
                                   {1024, 128, 16},
                                   {256, 64, 64},
                                   {256, 256, 64},
                                   {256, 65, 64},
                                   {256, 64, 256},
                                   {32, 256, 64},
                                   {1, 256, 64}}) {
    Arrays a(tier, rows, 16 * c, c, m);
    const double lookups = static_cast<double>(rows * m * c);
    const double aggregate =
        median_cycles([&] { tier.aggregate(a.codes.data(), rows, a.as_tables(), a.sums.data(), m, a.scratch.data()); });
    const double amm = median_cycles([&] {
      tier.amm(a.as_rows(FloatType::kF32), a.as_trees(), a.as_tables(), {a.y.data(), FloatType::kF32, m},
               a.scratch.data());
    });
    std::printf(
        json ? "{\"tier\": \"%s\", \"kernel\": \"aggregate\", \"rows\": %ld, \"outputs\": %ld, \"codebooks\": %ld, "
               "\"lookups_per_cycle\": %.2f, \"amm_lookups_per_cycle\": %.2f}\n"
             : "%.0s%10ld%10ld%10ld%10.1f%10.1f\n",
        tier.name, long(rows), long(m), long(c), lookups / aggregate, lookups / amm);
  }
}

// A scan of random codes, with tables whose sums are distributed like inner products.
struct ScanArrays {
  Database database;
  int64_t queries, codebooks, k;
  AlignedBytes codes;
  std::vector<uint8_t> tables;
  std::vector<int32_t> sums, positions;
  AlignedBytes scratch;

  ScanArrays(const Tier& tier, int64_t vectors, int64_t q, int64_t c, int64_t best)
      : database{nullptr, c / 2, 0, vectors},
        queries(q),
        codebooks(c),
        k(best),
        codes(bytes()),
        sums(q * best),
        positions(q * best),
        scratch(tier.scan_scratch_bytes(vectors, q, c, best)) {
    Random random(3);
    for (size_t i = 0; i < bytes(); i += 8) {
      const uint64_t eight = random.engine();
      std::memcpy(codes.data() + i, &eight, sizeof eight);
    }
    database.codes = reinterpret_cast<const uint8_t*>(codes.data());
    for (int64_t i = 0; i < q * c * kLeaves; ++i) tables.push_back(static_cast<uint8_t>(random.below(128)));
  }

  size_t bytes() const { return static_cast<size_t>((database.count + 63) / 64 * 64 * database.pairs); }
  void run(const Tier& tier) {
    tier.scan(database, {tables.data(), queries, codebooks}, {sums.data(), positions.data(), k}, scratch.data());
  }
};

// The time to read the codes alone.
double read_all(const ScanArrays& a) {
  return median_cycles([&] {
    uint64_t b = 0, c = 0, d = 0, e = 0;
    const auto* const words = reinterpret_cast<const uint64_t*>(a.codes.data());
    for (size_t i = 0; i < a.bytes() / sizeof *words; i += 8) {
      b += words[i] + words[i + 4];
      c += words[i + 1] + words[i + 5];
      d += words[i + 2] + words[i + 6];
      e += words[i + 3] + words[i + 7];
    }
    asm volatile("" ::"r"(b + c + d + e));
  });
}

void bench_scan(const Tier& tier, bool json) {
  if (!json) {
    std::printf("%-8s scan: look-ups/cycle; bytes/cycle, and those of reading alone\n%10s%10s%10s%10s%10s%10s%10s\n",
                tier.name, "vectors", "queries", "C", "k", "look-ups", "bytes", "read");
  }
  for (const auto& [vectors, q, c, k] : {std::array<int64_t, 4>{32'768, 1, 48, 10},
                                         {32'768, 1, 48, 64},
                                         {32'768, 1, 96, 64},
                                         {32'768, 64, 48, 64},
                                         {1'000'000, 1, 48, 64},
                                         {1'000'000, 1, 48, 1000},
                                         {16'000'000, 1, 48, 64},
                                         {1'000'000, 64, 48, 64}}) {
    ScanArrays a(tier, vectors, q, c, k);
    const double cycles = median_cycles([&] { a.run(tier); });
    const double lookups = static_cast<double>(vectors * q * c) / cycles;
    const auto bytes = static_cast<double>(a.bytes());
    const double read = bytes / read_all(a);
    std::printf(
        json ? "{\"tier\": \"%s\", \"kernel\": \"scan\", \"vectors\": %ld, \"queries\": %ld, \"codebooks\": %ld, "
               "\"k\": %ld, \"lookups_per_cycle\": %.2f, \"bytes_per_cycle\": %.2f, "
               "\"read_bytes_per_cycle\": %.2f}\n"
             : "%.0s%10ld%10ld%10ld%10ld%10.1f%10.2f%10.2f\n",
        tier.name, long(vectors), long(q), long(c), long(k), lookups, bytes / cycles, read);
  }
}

}  // namespace
}  // namespace jax_maddness::testing

int main(int argc, char** argv) {
  using namespace jax_maddness::testing;
  const Asked asked(argc, argv);
  for (const jax_maddness::Tier* tier : asked.tiers) {
    bench_encode(*tier, asked.json);
    bench_encode_oblique(*tier, asked.json);
    bench_aggregate(*tier, asked.json);
    bench_scan(*tier, asked.json);
  }
}
