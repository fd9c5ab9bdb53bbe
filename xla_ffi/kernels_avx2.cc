// AVX2 tier.
//   encode     codes[n, c] = the leaf of tree c that row n reaches                       (layout.h draws the arrays)
//   aggregate  sums[n, m]  = sum over c of tables[m, c, codes[n, c]]
//   amm        y[n, m]     = fma(scale[m], sums[n, m], offset[m])
//
// vpshufb looks 32 rows up in one codebook's 16 bytes, broadcast to both lanes; three more instructions add the bytes
// up exactly in 16 bits (avx2_aggregate.inc). Four vector instructions per 32 look-ups: limit 32 look-ups/cycle on four
// ports (Zen), 24 on three (Intel). Rows are encoded 256 at a time into a packed order that stays in the cache, then
// meet all outputs, 16 at a time: one cache line of f32.
//
// Tried, and not better on Zen 3: the sum modulo 256 (one vpaddb per look-up) beside an estimate from trees of vpavgb
// whose error is bounded by 255, which fixes the exact sum with 3.1 instructions instead of 4. vpavgb shares a port
// with vpshufb there (28 look-ups/cycle against 30); on Intel it might pay.
#include <immintrin.h>

#include <cstring>

#include "count_denormals.h"
#include "kernels.h"

#define INLINE inline __attribute__((always_inline))

namespace jax_maddness {
namespace {

constexpr int64_t kBlock = 64;   // rows of a packed block: two registers of codes
constexpr int64_t kTile = 16;    // outputs of a tile
constexpr int64_t kChunk = 256;  // codebooks whose sum fits in 16 bits

INLINE __m128i load_128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
INLINE __m256i load_256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
INLINE void store_128(void* p, __m128i v) { _mm_storeu_si128(static_cast<__m128i*>(p), v); }
INLINE void store_256(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

#include "avx2_aggregate.inc"
#include "avx2_encode.inc"

// Rows encoded before the tables are read: many, so that large tables are read seldom, but not more than 512 KB of
// codes.
int64_t rows_at_once(int64_t codebooks) { return codebooks <= 2048 ? 4 * kBlock : kBlock; }

// Rows of codes to the packed order, low 4 bits only.
void pack(const uint8_t* codes, int64_t rows, int64_t codebooks, uint8_t* packed) {
  for (int64_t n = 0; n < rows; ++n) {
    uint8_t* column = packed + n / kBlock * kBlock * codebooks + n % kBlock;
    for (int64_t c = 0; c < codebooks; ++c) column[c * kBlock] = codes[n * codebooks + c] & 15;
  }
}

bool supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

size_t scratch_bytes(int64_t /*features*/, int64_t codebooks) {
  return sizeof(Workspace) + static_cast<size_t>(rows_at_once(codebooks) * codebooks);
}

void encode(const Rows& x, const Trees& trees, uint8_t* codes, void* /*scratch*/) noexcept {
  const CountDenormals guard;
  encode_any(x, trees, RowMajor{codes, trees.codebooks});
}

void aggregate(const uint8_t* codes, int64_t rows, const Tables& tables, int32_t* sums, int64_t stride,
               void* scratch) noexcept {
  auto& work = *static_cast<Workspace*>(scratch);
  auto* packed = static_cast<uint8_t*>(scratch) + sizeof(Workspace);
  const int64_t step = rows_at_once(tables.codebooks);
  for (int64_t n = 0; n < rows; n += step) {
    const int64_t count = rows - n < step ? rows - n : step;
    pack(codes + n * tables.codebooks, count, tables.codebooks, packed);
    aggregate_blocks<SumSink>(packed, count, tables, reinterpret_cast<char*>(sums + n * stride), stride, work);
  }
}

template <FloatType kType>
void amm_as(const Rows& x, const Trees& trees, const Tables& tables, const Output& y, void* scratch) {
  using Sink = RescaledSink<kType>;
  auto& work = *static_cast<Workspace*>(scratch);
  auto* packed = static_cast<uint8_t*>(scratch) + sizeof(Workspace);
  const int64_t step = rows_at_once(trees.codebooks);
  for (int64_t n = 0; n < x.count; n += step) {
    Rows rows = x;
    rows.data = static_cast<const char*>(x.data) + n * x.features * Sink::kWidth;
    rows.count = x.count - n < step ? x.count - n : step;
    encode_rows<kType>(rows, trees, Packed{packed, trees.codebooks});
    char* out = static_cast<char*>(y.data) + n * y.stride * Sink::kWidth;
    aggregate_blocks<Sink>(packed, rows.count, tables, out, y.stride, work);
  }
}

// x and y have one type: the handler has seen to it.
void amm(const Rows& x, const Trees& trees, const Tables& tables, const Output& y, void* scratch) noexcept {
  const CountDenormals guard;
  switch (x.type) {
    case FloatType::kF32:
      return amm_as<FloatType::kF32>(x, trees, tables, y, scratch);
    case FloatType::kBF16:
      return amm_as<FloatType::kBF16>(x, trees, tables, y, scratch);
    case FloatType::kF16:
      return amm_as<FloatType::kF16>(x, trees, tables, y, scratch);
  }
}

}  // namespace

extern const Tier avx2_tier;
const Tier avx2_tier = {"avx2", supported, scratch_bytes, encode, aggregate, amm};

}  // namespace jax_maddness
