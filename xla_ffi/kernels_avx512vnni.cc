// AVX-512 VBMI + VNNI tier (Ice Lake, Sapphire Rapids, Zen 4, and later).
//   encode     codes[n, c] = the leaf of tree c that row n reaches                       (layout.h draws the arrays)
//   aggregate  sums[n, m]  = sum over c of tables[m, c, codes[n, c]]
//   amm        y[n, m]     = fma(scale[m], sums[n, m], offset[m])
//
// One register holds the tables of four codebooks for one output: 64 bytes, contiguous in `tables`. Another holds the
// codes of 16 rows x 4 codebooks, each byte being (c % 4) * 16 + code. vpermb looks all 64 up, and vpdpbusd, with ones,
// adds each row's four straight into its int32: two instructions per 64 exact look-ups, one of them on port 5. Limit:
// 64 look-ups/cycle.
//
// Rows are encoded 64 or 256 at a time into this packed order, where they stay in the cache, then meet all outputs, 16
// at a time: one line of f32.
//   codes, packed   [rows / 16][codebooks / 4][16 rows][4 bytes], rounded up
#include <immintrin.h>

#include <cstring>

#include "count_denormals.h"
#include "kernels.h"

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 finds it in its own intrinsics (its bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

namespace jax_maddness {
namespace {

// clang-format off: in this order
#include "plain.inc"
#include "avx512vnni_common.inc"
#include "avx512vnni_encode.inc"
#include "avx512vnni_oblique.inc"
#include "avx512vnni_aggregate.inc"
// clang-format on

// ---- between packed codes and codes in memory ----

constexpr int64_t kTurned = 16;  // groups transposed together: 64 codes of 16 rows

INLINE __mmask64 first_codes(int64_t count) { return count < 64 ? (uint64_t{1} << count) - 1 : ~uint64_t{0}; }

// At most 16 rows of codes; a code beyond 15 counts modulo 16.
void pack(const uint8_t* codes, int64_t rows, int64_t codebooks, uint8_t* packed) {
  alignas(64) uint8_t lines[kVector * kLine] = {};
  const int64_t groups = divide_up(codebooks, kGroup);
  const Bytes nibble = _mm512_set1_epi8(15), tables = repeat(0x30201000);
  for (int64_t g = 0; g < groups; g += kTurned) {
    const int64_t c = g * kGroup;
    for (int64_t n = 0; n < rows; ++n) {
      const Bytes some = _mm512_maskz_loadu_epi8(first_codes(codebooks - c), codes + n * codebooks + c);
      store(lines + n * kLine, _mm512_or_si512(_mm512_and_si512(some, nibble), tables));
    }
    transpose(lines, kLine, [&](int64_t i, Dwords v) INLINE_LAMBDA {
      if (g + i < groups) store(packed + (g + i) * kLine, v);
    });
  }
}

// The reverse. Reads whole lots of kTurned groups of `packed`.
void unpack(const uint8_t* packed, int64_t rows, int64_t codebooks, uint8_t* codes) {
  const Bytes nibble = _mm512_set1_epi8(15);
  for (int64_t c = 0; c < codebooks; c += kTurned * kGroup) {
    const __mmask64 present = first_codes(codebooks - c);
    transpose(packed + c / kGroup * kLine, kLine, [&](int64_t n, Dwords v) INLINE_LAMBDA {
      if (n < rows) _mm512_mask_storeu_epi8(codes + n * codebooks + c, present, _mm512_and_si512(v, nibble));
    });
  }
}

// ---- the tier ----

// What fills packed codes from rows: made by encoder_for, called as encoder(n, rows, packed) for at most 16 rows.
AxisEncoder encoder_for(const Rows& x, const Trees& trees, char* scratch) { return {x, trees, scratch}; }
ObliqueEncoder encoder_for(const Rows& x, const ObliqueTrees& trees, char* scratch) { return {x, trees, scratch}; }

// Scratch, in this order: Workspace, packed codes, what the encoder needs.
struct Scratch {
  Workspace* work;
  uint8_t* packed;
  char* of_encoder;

  static int64_t count(int64_t codebooks) { return divide_up(codebooks, kGroup); }
  static int64_t packed_bytes(int64_t codebooks) {
    return (kManyRows / kVector * count(codebooks) + kTurned) * kLine;  // unpack reads up to kTurned - 1 lines too many
  }

  Scratch(void* memory, int64_t codebooks) {
    auto* bytes = static_cast<char*>(memory);
    work = reinterpret_cast<Workspace*>(bytes);
    packed = reinterpret_cast<uint8_t*>(bytes += sizeof(Workspace));
    of_encoder = bytes + packed_bytes(codebooks);
  }
};

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
}

size_t scratch_bytes(int64_t features, int64_t codebooks) {
  const int64_t of_encoder =
      max(AxisEncoder::scratch_bytes(codebooks), ObliqueEncoder::scratch_bytes(features, codebooks));
  return sizeof(Workspace) +
         static_cast<size_t>(Scratch::packed_bytes(codebooks) + of_encoder + Codes::scratch_bytes(codebooks));
}

template <typename AnyTrees>
void encode(const Rows& x, const AnyTrees& trees, uint8_t* codes, void* memory) noexcept {
  const CountDenormals guard;
  const Scratch scratch(memory, trees.codebooks);
  const auto encoder = encoder_for(x, trees, scratch.of_encoder);
  for (int64_t n = 0; n < x.count; n += kVector) {
    const int64_t rows = min(kVector, x.count - n);
    encoder(n, rows, scratch.packed);
    unpack(scratch.packed, rows, trees.codebooks, codes + n * trees.codebooks);
  }
}

// Fills the packed codes of each block by fill(n, rows, packed), 16 rows at a time, then aggregates it. A row is made
// from `row_bytes` bytes at `x`.
template <typename Result, typename Fill>
INLINE void run_blocks(int64_t rows, const void* x, int64_t row_bytes, const Tables& tables, const Output& y,
                       const Scratch& scratch, const Fill& fill) {
  const int64_t groups = Scratch::count(tables.codebooks), step = block_rows(tables);
  const int64_t stride = y.stride * Result::kWidth;
  for (int64_t begin = 0; begin < rows; begin += step) {
    const int64_t end = min(rows, begin + step);
    for (int64_t n = begin; n < end; n += kVector) {
      fill(n, min(kVector, end - n), scratch.packed + (n - begin) / kVector * groups * kLine);
    }
    const Destination to = {static_cast<char*>(y.data) + begin * stride, stride, y.streams};
    const int64_t next = tables.outputs < kAheadOutputs ? 0 : min(step, rows - end) * row_bytes;
    const Ahead ahead(static_cast<const char*>(x) + end * row_bytes, next, divide_up(tables.outputs, 4));
    aggregate_block<Result>(scratch.packed, end - begin, tables, to, *scratch.work, ahead);
  }
  if (y.streams) _mm_sfence();  // before the caller tells other threads that y is there
}

void aggregate(const uint8_t* codes, int64_t rows, const Tables& tables, int32_t* sums, int64_t stride,
               void* memory) noexcept {
  const int64_t codebooks = tables.codebooks;
  run_blocks<Sums>(
      rows, codes, codebooks, tables, {sums, FloatType::kF32, stride}, Scratch(memory, codebooks),
      [=](int64_t n, int64_t count, uint8_t* packed) { pack(codes + n * codebooks, count, codebooks, packed); });
}

template <typename Result, typename AnyTrees>
void amm_to(const Rows& x, const AnyTrees& trees, const Tables& tables, const Output& y, void* memory) {
  const Scratch scratch(memory, trees.codebooks);
  const auto encoder = encoder_for(x, trees, scratch.of_encoder);
  const int64_t row_bytes = x.features * (x.type == FloatType::kF32 ? 4 : 2);
  run_blocks<Result>(x.count, x.data, row_bytes, tables, y, scratch, encoder);
}

template <typename AnyTrees>
void amm(const Rows& x, const AnyTrees& trees, const Tables& tables, const Output& y, void* memory) noexcept {
  const CountDenormals guard;
  switch (y.type) {
    case FloatType::kF32:
      return amm_to<Rescaled<FloatType::kF32>>(x, trees, tables, y, memory);
    case FloatType::kBF16:
      return amm_to<Rescaled<FloatType::kBF16>>(x, trees, tables, y, memory);
    case FloatType::kF16:
      return amm_to<Rescaled<FloatType::kF16>>(x, trees, tables, y, memory);
  }
}

#include "few_rows.inc"

}  // namespace

extern const Tier avx512vnni_tier;
const Tier avx512vnni_tier = {"avx512vnni", supported,   scratch_bytes, encode, aggregate,
                              amm,          amm_by_code, encode,        amm,    amm_oblique_by_code};

}  // namespace jax_maddness
