// AVX2 tier.
// clang-format off: columns
//   encode     codes[n, c] = the leaf of tree c that row n reaches                       (layout.h draws the arrays)
//   aggregate  sums[n, m]  = sum over c of tables[m, c, codes[n, c]]
//   amm        y[n, m]     = fma(scale[m], sums[n, m], offset[m])
// clang-format on
//
// vpshufb looks 32 rows up in one codebook's 16 bytes, broadcast to both lanes; two more instructions, or three where
// codebooks are few, add the bytes up exactly (look_up.inc). Limits on three vector ports (Intel): 31 and 24
// look-ups/cycle. Measured on Golden Cove, 2026-11-24, arrays in the second-level cache: 24-25 at C >= 64, 17-18 at
// C = 16, where outputs take a third of the time. (On Zen 3, whose four ports bound the latter to 32, and where vpavgb
// shares a port with vpshufb, prototypes of the two came to 28 and 30.)
// Rows are encoded 256 at a time into a packed order that stays in the cache, then meet all outputs, a strip at a time.
#include <immintrin.h>

#include <cstring>

#include "xla_ffi/kernels/kernels.h"
#include "xla_ffi/kernels/shared/denormals.h"
#include "xla_ffi/kernels/shared/integers.h"
#include "xla_ffi/kernels/shared/panels.h"

#define INLINE inline __attribute__((always_inline))

namespace jax_maddness {
namespace {

constexpr int64_t kBlock = 64;             // rows of a packed block: two registers of codes
constexpr int64_t kFewRows = 16;           // rows of the only block of so few: two codebooks share a register
constexpr int64_t kManyRows = 4 * kBlock;  // encoded before the tables are read
constexpr int64_t kTile = 16;              // outputs that are transposed together
constexpr int64_t kStrip = 128;            // outputs that are looked up before rows are written
constexpr int64_t kChunk = 256;            // codebooks whose sum fits in 16 bits
constexpr int64_t kLine = 64;              // bytes of a cache line

INLINE __m128i load_128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
INLINE __m256i load_256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
INLINE void store_128(void* p, __m128i v) { _mm_storeu_si128(static_cast<__m128i*>(p), v); }
INLINE void store_256(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

// Codes in the order of look-ups: [blocks][codebooks][width rows].
struct Packed {
  uint8_t* codes;
  int64_t codebooks, width;

  Packed(void* codes, int64_t rows, int64_t codebooks)
      : codes(static_cast<uint8_t*>(codes)), codebooks(codebooks), width(rows <= kFewRows ? kFewRows : kBlock) {}
  INLINE uint8_t* at(int64_t n, int64_t c) const {
    return codes + n / width * width * codebooks + c * width + n % width;
  }
};

// clang-format off: in this order
#include "xla_ffi/kernels/shared/plain.inc"
#include "xla_ffi/kernels/avx2/aggregate.inc"
#include "xla_ffi/kernels/avx2/encode.inc"
#include "xla_ffi/kernels/avx2/oblique.inc"
// clang-format on

// Rows encoded before the tables are read: many, so that large tables are read seldom, but not more than 512 KB of
// codes.
int64_t rows_at_once(int64_t codebooks) { return codebooks <= 2048 ? kManyRows : kBlock; }

// Transposes 16 rows of 16 codes, `stride` bytes apart, of which the low 4 bits count, by four rounds of interleaving
// one half with the other. Stores the first `count` columns.
INLINE void pack_square(const uint8_t* codes, int64_t stride, int64_t count, uint8_t* packed, int64_t width) {
  __m128i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm_and_si128(load_128(codes + i * stride), _mm_set1_epi8(15));
  for (int round = 0; round < 4; ++round) {
    for (int i = 0; i < 8; ++i) {
      b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
      b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
    }
    for (int i = 0; i < 16; ++i) a[i] = b[i];
  }
  for (int i = 0; i < 16; ++i) {
    if (i < count) store_128(packed + i * width, a[i]);
  }
}

// Packs codes in squares of 16 x 16. Squares that would read past the last code are read from a copy.
void pack(const uint8_t* codes, int64_t rows, const Packed packed) {
  const int64_t codebooks = packed.codebooks, end = rows * codebooks;
  for (int64_t n = 0; n < rows; n += 16) {
    for (int64_t c = 0; c < codebooks; c += 16) {
      const int64_t first = codebooks < 16 ? 0 : min(c, codebooks - 16), count = min(codebooks, 16);
      const uint8_t* square = codes + n * codebooks + first;
      uint8_t* const to = packed.at(n, first);
      if (n + 16 <= rows && (n + 15) * codebooks + first + 16 <= end) {
        pack_square(square, codebooks, count, to, packed.width);
      } else {
        uint8_t copy[16 * 16] = {};
        for (int64_t i = 0; i < min(rows - n, 16); ++i) {
          std::memcpy(copy + i * 16, square + i * codebooks, static_cast<size_t>(count));
        }
        pack_square(copy, 16, count, to, packed.width);
      }
    }
  }
}

bool supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

// The scratch memory, in this order: Workspace, memory of encode_rows, packed codes.
int64_t bytes_of_encode(int64_t features) { return divide_up(features, 2) * 2 * kObliqueRows; }

struct Scratch {
  Workspace& work;
  char* of_encode;
  char* packed;

  Scratch(void* memory, int64_t features)
      : work(*static_cast<Workspace*>(memory)),
        of_encode(static_cast<char*>(memory) + sizeof(Workspace)),
        packed(of_encode + bytes_of_encode(features)) {}
};

size_t scratch_bytes(int64_t features, int64_t codebooks) {
  return sizeof(Workspace) + static_cast<size_t>(bytes_of_encode(features) + rows_at_once(codebooks) * codebooks +
                                                 Codes::scratch_bytes(codebooks));
}

// Rows [begin, end) of any type.
template <typename AnyTrees, typename To>
void encode_any_rows(const Rows& x, int64_t begin, int64_t end, const AnyTrees& trees, const To& to, char* scratch) {
  switch (x.type) {
    case FloatType::kF32:
      return encode_rows<FloatType::kF32>(x, begin, end, trees, to, scratch);
    case FloatType::kBF16:
      return encode_rows<FloatType::kBF16>(x, begin, end, trees, to, scratch);
    case FloatType::kF16:
      return encode_rows<FloatType::kF16>(x, begin, end, trees, to, scratch);
  }
}

template <typename AnyTrees>
void encode(const Rows& x, const AnyTrees& trees, uint8_t* codes, void* memory) noexcept {
  const CountDenormals guard;
  encode_any_rows(x, 0, x.count, trees, RowMajor{codes, trees.codebooks}, Scratch(memory, x.features).of_encode);
}

template <typename Sink>
void aggregate_to(const uint8_t* codes, int64_t rows, const Tables& tables, const Output& y, void* memory) {
  const Scratch scratch(memory, 0);
  const int64_t step = rows_at_once(tables.codebooks), stride = y.stride * Sink::kWidth;
  for (int64_t n = 0; n < rows; n += step) {
    const int64_t count = min(rows - n, step);
    const Packed packed(scratch.packed, count, tables.codebooks);
    pack(codes + n * tables.codebooks, count, packed);
    aggregate_blocks<Sink>(packed, count, tables, static_cast<char*>(y.data) + n * stride, stride, y.streams,
                           scratch.work);
  }
  if (y.streams) _mm_sfence();  // before the caller tells other threads that y is there
}

void aggregate(const uint8_t* codes, int64_t rows, const Tables& tables, int32_t* sums, int64_t stride,
               void* memory) noexcept {
  aggregate_to<SumSink>(codes, rows, tables, {sums, FloatType::kF32, stride}, memory);
}

void amm_of_codes(const uint8_t* codes, int64_t rows, const Tables& tables, const Output& y, void* memory) noexcept {
  const CountDenormals guard;
  switch (y.type) {
    case FloatType::kF32:
      return aggregate_to<RescaledSink<FloatType::kF32>>(codes, rows, tables, y, memory);
    case FloatType::kBF16:
      return aggregate_to<RescaledSink<FloatType::kBF16>>(codes, rows, tables, y, memory);
    case FloatType::kF16:
      return aggregate_to<RescaledSink<FloatType::kF16>>(codes, rows, tables, y, memory);
  }
}

template <FloatType kResult, typename AnyTrees>
void amm_to(const Rows& x, const AnyTrees& trees, const Tables& tables, const Output& y, void* memory) {
  using Sink = RescaledSink<kResult>;
  const Scratch scratch(memory, x.features);
  const int64_t step = rows_at_once(trees.codebooks), stride = y.stride * Sink::kWidth;
  for (int64_t n = 0; n < x.count; n += step) {
    const int64_t count = min(x.count - n, step);
    const PackedCodes packed{{scratch.packed, count, trees.codebooks}};
    encode_any_rows(x, n, n + count, trees, packed, scratch.of_encode);
    aggregate_blocks<Sink>(packed, count, tables, static_cast<char*>(y.data) + n * stride, stride, y.streams,
                           scratch.work);
  }
  if (y.streams) _mm_sfence();  // before the caller tells other threads that y is there
}

template <typename AnyTrees>
void amm(const Rows& x, const AnyTrees& trees, const Tables& tables, const Output& y, void* memory) noexcept {
  const CountDenormals guard;
  switch (y.type) {
    case FloatType::kF32:
      return amm_to<FloatType::kF32>(x, trees, tables, y, memory);
    case FloatType::kBF16:
      return amm_to<FloatType::kBF16>(x, trees, tables, y, memory);
    case FloatType::kF16:
      return amm_to<FloatType::kF16>(x, trees, tables, y, memory);
  }
}

// clang-format off: in this order
#include "xla_ffi/kernels/avx2/by_output.inc"
#include "xla_ffi/kernels/shared/by_feature.inc"
#include "xla_ffi/kernels/shared/small_batch.inc"
#include "xla_ffi/kernels/avx2/factors.inc"
#include "xla_ffi/kernels/avx2/table_sums.inc"
#include "xla_ffi/kernels/shared/factors.inc"
#include "xla_ffi/kernels/shared/epilogue.inc"
#include "xla_ffi/kernels/avx2/scan.inc"
#include "xla_ffi/kernels/shared/scan.inc"
#include "xla_ffi/kernels/shared/scan_lists.inc"
#include "xla_ffi/kernels/avx2/rescore.inc"
#include "xla_ffi/kernels/shared/greatest.inc"
#include "xla_ffi/kernels/shared/rescore.inc"
#include "xla_ffi/kernels/shared/floats.inc"
#include "xla_ffi/kernels/shared/tier_table.inc"
// clang-format on

}  // namespace

extern const Tier avx2_tier;
constexpr Tier avx2_tier = make_tier("avx2");

}  // namespace jax_maddness
