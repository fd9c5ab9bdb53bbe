// Scalar tier: the definition of layout.h in plain loops, for every CPU, and the answer that other tiers must give.
// Nothing here is meant to be fast: one look-up is a load and an add.
#include <cstring>

#include "xla_ffi/kernels/kernels.h"
#include "xla_ffi/kernels/shared/denormals.h"
#include "xla_ffi/kernels/shared/integers.h"
#include "xla_ffi/kernels/shared/panels.h"

namespace jax_maddness {
namespace {

#include "xla_ffi/kernels/shared/plain.inc"

// Modulo 2^32 beyond 2^23 codebooks, where an int32 sum could overflow.
int32_t sum(const uint8_t* codes, const Tables& tables, int64_t m) {
  const uint8_t* values = tables.values + m * tables.codebooks * kLeaves;
  uint32_t sum = 0;
  for (int64_t c = 0; c < tables.codebooks; ++c) sum += values[c * kLeaves + (codes[c] & 15)];
  return static_cast<int32_t>(sum);
}

bool supported() { return true; }

size_t scratch_bytes(int64_t /*features*/, int64_t codebooks) {
  return static_cast<size_t>(Codes::scratch_bytes(codebooks));
}

void encode_row(const Rows& x, int64_t n, const ObliqueTrees& trees, uint8_t* codes) {
  for (int64_t c = 0; c < trees.codebooks; ++c) {
    int32_t sums[kLevels] = {};
    for (int64_t w = 0; w < trees.width; ++w) {
      const int32_t d = trees.features[c * trees.width + w];
      const int32_t rounded =
          round_feature(load_float(x.data, x.type, n * x.features + d), trees.center[d], trees.scale[d]);
      const int8_t* const projections = trees.projections + c * kLevels * trees.width + w;
      for (int64_t level = 0; level < kLevels; ++level) sums[level] += projections[level * trees.width] * rounded;
    }
    const int32_t* const thresholds = trees.thresholds + c * kNodes;
    int64_t node = 0;
    for (const int32_t sum : sums) node = 2 * node + 1 + (sum > thresholds[node]);
    codes[c] = static_cast<uint8_t>(node - kNodes);
  }
}

template <typename AnyTrees>
void encode(const Rows& x, const AnyTrees& trees, uint8_t* codes, void* /*scratch*/) noexcept {
  const CountDenormals guard;
  for (int64_t n = 0; n < x.count; ++n) encode_row(x, n, trees, codes + n * trees.codebooks);
}

void aggregate(const uint8_t* codes, int64_t rows, const Tables& tables, int32_t* sums, int64_t stride,
               void* /*scratch*/) noexcept {
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t m = 0; m < tables.outputs; ++m) {
      sums[n * stride + m] = sum(codes + n * tables.codebooks, tables, m);
    }
  }
}

template <typename AnyTrees>
void amm(const Rows& x, const AnyTrees& trees, const Tables& tables, const Output& y, void* scratch) noexcept {
  const CountDenormals guard;
  auto* codes = static_cast<uint8_t*>(scratch);
  for (int64_t n = 0; n < x.count; ++n) {
    encode_row(x, n, trees, codes);
    for (int64_t m = 0; m < tables.outputs; ++m) {
      const int32_t total = sum(codes, tables, m);
      rescale(&total, tables, m, 1, y, n);
    }
  }
}

void amm_of_codes(const uint8_t* codes, int64_t rows, const Tables& tables, const Output& y,
                  void* /*scratch*/) noexcept {
  const CountDenormals guard;
  for (int64_t n = 0; n < rows; ++n, codes += tables.codebooks) {
    for (int64_t m = 0; m < tables.outputs; ++m) {
      const int32_t total = sum(codes, tables, m);
      rescale(&total, tables, m, 1, y, n);
    }
  }
}

void amm_of_codes_by_output(const uint8_t* codes, int64_t rows, const Tables& tables, const Output& y,
                            void* /*scratch*/) noexcept {
  const CountDenormals guard;
  for (int64_t m = 0; m < tables.outputs; ++m) {
    for (int64_t n = 0; n < rows; ++n) {
      const float total = static_cast<float>(sum(codes + n * tables.codebooks, tables, m));
      store_float(y.data, y.type, m * y.stride + n, __builtin_fmaf(tables.scale[m], total, tables.offset[m]));
    }
  }
}

// For shared/scan.inc.
struct BlockSums {
  uint16_t of[kSideBySide];

  bool any_above(int32_t threshold) const {
    for (const int32_t sum : of) {
      if (sum > threshold) return true;
    }
    return false;
  }

  uint64_t above(int32_t threshold, uint16_t* sums) const {
    uint64_t bits = 0;
    for (int i = 0; i < kSideBySide; ++i) bits |= uint64_t{of[i] > threshold} << i;
    std::memcpy(sums, of, sizeof of);
    return bits;
  }
};

template <int kQueries>
void add_up(const uint8_t* codes, int64_t pairs, const uint8_t* tables, BlockSums (&sums)[kQueries]) {
  for (BlockSums& of_query : sums) {
    std::memset(of_query.of, 0, sizeof of_query.of);
    for (int64_t p = 0; p < pairs; ++p, tables += 2 * kLeaves) {
      for (int i = 0; i < kSideBySide; ++i) {
        const uint8_t both = codes[p * kSideBySide + i];
        of_query.of[i] = static_cast<uint16_t>(of_query.of[i] + tables[both & 15] + tables[kLeaves + (both >> 4)]);
      }
    }
  }
}

// clang-format off: in this order
#include "xla_ffi/kernels/shared/by_feature.inc"
#include "xla_ffi/kernels/shared/small_batch.inc"
#include "xla_ffi/kernels/scalar/factors.inc"
#include "xla_ffi/kernels/scalar/table_sums.inc"
#include "xla_ffi/kernels/shared/factors.inc"
#include "xla_ffi/kernels/shared/epilogue.inc"
#include "xla_ffi/kernels/shared/scan.inc"
#include "xla_ffi/kernels/shared/scan_lists.inc"
// clang-format on

// For shared/rescore.inc.
constexpr int64_t kLanes = 1;
using Lanes = float;
Lanes no_lanes() { return 0; }
Lanes multiply_add(Lanes a, Lanes b, Lanes sum) { return sum + a * b; }
Lanes add(Lanes a, Lanes b) { return a + b; }
Lanes total(Lanes v) { return v; }

template <FloatType kType>
Lanes load_lanes_of(const char* x, int64_t d) {
  return load_float(x, kType, d);
}

// clang-format off: in this order
#include "xla_ffi/kernels/shared/greatest.inc"
#include "xla_ffi/kernels/shared/rescore.inc"
#include "xla_ffi/kernels/shared/floats.inc"
#include "xla_ffi/kernels/shared/tier_table.inc"
// clang-format on

}  // namespace

extern const Tier scalar_tier;
constexpr Tier scalar_tier = make_tier("scalar");

}  // namespace jax_maddness
