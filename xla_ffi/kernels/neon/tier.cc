// NEON tier: every 64-bit ARM CPU.
// clang-format off: columns
//   encode     codes[n, c] = the leaf of tree c that row n reaches                       (layout.h draws the arrays)
//   aggregate  sums[n, m]  = sum over c of tables[m, c, codes[n, c]]
//   amm        y[n, m]     = fma(scale[m], sums[n, m], offset[m])
// clang-format on
//
// Two registers hold the tables of two codebooks for one output: 32 bytes, contiguous in `tables`. A third holds the
// codes of 8 rows x 2 codebooks, each byte being (c % 2) * 16 + code. tbl looks all 16 up, and uadalp adds each row's
// two to its 16 bits: two instructions per 16 exact look-ups, each of them one micro-op. Limit: 16 look-ups/cycle on
// Neoverse N1 (two vector pipes, of which one has uadalp), 32 on Apple M1 (four alike). Not measured: no machine yet.
//
// Not better, by the same count (a tbl of one or two registers is one micro-op there, of four it is three):
//   tbl of four registers, udot with ones    4 micro-ops per 16 look-ups: 8 per cycle on N1, 16 on M1
//   tbl of one register, uaddw, uaddw2       3 micro-ops: 10.7 and 21.3
// So the tier does not need the dot product extension, and runs on the first ARMv8 CPUs, too.
//
// Rows are encoded up to 256 at a time into the packed order, where they stay in the cache, then meet all outputs, 16
// at a time: one line of f32.
//   codes, packed   [rows / 8][codebooks / 2][8 rows][2 bytes], rounded up
#include <arm_neon.h>

#include <cstring>

#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "xla_ffi/kernels/kernels.h"
#include "xla_ffi/kernels/shared/denormals.h"
#include "xla_ffi/kernels/shared/integers.h"
#include "xla_ffi/kernels/shared/panels.h"

#define INLINE inline __attribute__((always_inline))

namespace jax_maddness {
namespace {

constexpr int64_t kPair = 2;       // codebooks whose codes for 8 rows fill a register
constexpr int64_t kVector = 8;     // rows of such a register
constexpr int64_t kRegister = 16;  // bytes

// Codes in the order of look-ups. A code of a pair's second codebook has bit 4 set, even if that codebook is missing.
struct Packed {
  uint8_t* codes;
  int64_t pairs;

  Packed(void* memory, int64_t codebooks) : codes(static_cast<uint8_t*>(memory)), pairs(divide_up(codebooks, kPair)) {}
  INLINE uint8_t* at(int64_t n, int64_t pair) const { return codes + (n / kVector * pairs + pair) * kRegister; }
};

// clang-format off: in this order
#include "xla_ffi/kernels/shared/plain.inc"
#include "xla_ffi/kernels/neon/encode.inc"
#include "xla_ffi/kernels/neon/oblique.inc"
#include "xla_ffi/kernels/neon/aggregate.inc"
// clang-format on

// ---- Conversions between packed codes and codes in memory ----

// Transposes rows and codebooks: 8 x 8 pairs of codes, by three rounds of interleaving one half with the other. It is
// its own inverse.
INLINE void turn(uint16x8_t (&a)[8]) {
  for (int round = 0; round < 3; ++round) {
    uint16x8_t b[8];
    for (int i = 0; i < 4; ++i) {
      b[2 * i] = vzip1q_u16(a[i], a[i + 4]);
      b[2 * i + 1] = vzip2q_u16(a[i], a[i + 4]);
    }
    std::memcpy(a, b, sizeof b);
  }
}

// Loads the first `count` bytes; the others are zeros.
INLINE uint8x16_t load_part(const uint8_t* p, int64_t count) {
  if (count >= kRegister) return vld1q_u8(p);
  uint8_t bytes[kRegister] = {};
  std::memcpy(bytes, p, static_cast<size_t>(count));
  return vld1q_u8(bytes);
}

INLINE void store_part(uint8_t* p, int64_t count, uint8x16_t v) {
  if (count >= kRegister) return vst1q_u8(p, v);
  uint8_t bytes[kRegister];
  vst1q_u8(bytes, v);
  std::memcpy(p, bytes, static_cast<size_t>(count));
}

// The upper 4 bits of a code are ignored. Rows are filled up to a multiple of 8 with the last one.
void pack(const uint8_t* codes, int64_t rows, int64_t codebooks, const Packed& packed) {
  const uint8x16_t nibble = vdupq_n_u8(15), second = vreinterpretq_u8_u16(vdupq_n_u16(0x1000));
  for (int64_t n = 0; n < rows; n += kVector) {
    for (int64_t c = 0; c < codebooks; c += kRegister) {
      uint16x8_t square[8];
      for (int64_t r = 0; r < kVector; ++r) {
        const uint8_t* row = codes + min(n + r, rows - 1) * codebooks;
        const uint8x16_t code = vandq_u8(load_part(row + c, codebooks - c), nibble);
        square[r] = vreinterpretq_u16_u8(vorrq_u8(code, second));
      }
      turn(square);
      for (int64_t i = 0; i < 8 && c / kPair + i < packed.pairs; ++i) {
        vst1q_u8(packed.at(n, c / kPair + i), vreinterpretq_u8_u16(square[i]));
      }
    }
  }
}

// The reverse, for at most 8 rows.
void unpack(const Packed& packed, int64_t rows, int64_t codebooks, uint8_t* codes) {
  for (int64_t c = 0; c < codebooks; c += kRegister) {
    uint16x8_t square[8];
    for (int64_t i = 0; i < 8; ++i) {
      square[i] = vreinterpretq_u16_u8(vld1q_u8(packed.at(0, min(c / kPair + i, packed.pairs - 1))));
    }
    turn(square);
    for (int64_t r = 0; r < rows; ++r) {
      const uint8x16_t code = vandq_u8(vreinterpretq_u8_u16(square[r]), vdupq_n_u8(15));
      store_part(codes + r * codebooks + c, codebooks - c, code);
    }
  }
}

// ---- The tier ----

// Rows encoded before the tables are read: many, so that large tables are read seldom, but not more than 512 KB of
// codes.
int64_t rows_at_once(int64_t codebooks) { return codebooks <= 2048 ? 8 * kBlock : kBlock; }

bool supported() { return true; }

// The scratch memory, in this order: Sums, packed codes, memory of encode_eight.
struct Scratch {
  Sums& work;
  Packed packed;
  void* of_encode;

  static int64_t packed_bytes(int64_t codebooks) {
    return rows_at_once(codebooks) * divide_up(codebooks, kPair) * kPair;
  }
  Scratch(void* memory, int64_t codebooks)
      : work(*static_cast<Sums*>(memory)),
        packed(&work + 1, codebooks),
        of_encode(packed.codes + packed_bytes(codebooks)) {}
};

size_t scratch_bytes(int64_t features, int64_t codebooks) {
  return sizeof(Sums) +
         static_cast<size_t>(Scratch::packed_bytes(codebooks) + features * kVector + Codes::scratch_bytes(codebooks));
}

template <FloatType kType, typename AnyTrees>
void encode_as(const Rows& x, const AnyTrees& trees, uint8_t* codes, void* memory) {
  const Scratch scratch(memory, trees.codebooks);
  for (int64_t n = 0; n < x.count; n += kVector) {
    encode_eight<kType>(x, n, trees, scratch.packed.at(0, 0), scratch.of_encode);
    unpack(scratch.packed, min(x.count - n, kVector), trees.codebooks, codes + n * trees.codebooks);
  }
}

template <typename AnyTrees>
void encode(const Rows& x, const AnyTrees& trees, uint8_t* codes, void* scratch) noexcept {
  const CountDenormals guard;
  switch (x.type) {
    case FloatType::kF32:
      return encode_as<FloatType::kF32>(x, trees, codes, scratch);
    case FloatType::kBF16:
      return encode_as<FloatType::kBF16>(x, trees, codes, scratch);
    case FloatType::kF16:
      return encode_as<FloatType::kF16>(x, trees, codes, scratch);
  }
}

template <typename Result>
void aggregate_to(const uint8_t* codes, int64_t rows, const Tables& tables, const Output& y, void* memory) {
  const Scratch scratch(memory, tables.codebooks);
  const int64_t step = rows_at_once(tables.codebooks);
  for (int64_t n = 0; n < rows; n += step) {
    const int64_t count = min(rows - n, step);
    pack(codes + n * tables.codebooks, count, tables.codebooks, scratch.packed);
    char* const out = static_cast<char*>(y.data) + n * y.stride * Result::kWidth;
    aggregate_rows<Result>(scratch.packed, count, tables, out, y.stride, scratch.work);
  }
}

void aggregate(const uint8_t* codes, int64_t rows, const Tables& tables, int32_t* sums, int64_t stride,
               void* memory) noexcept {
  aggregate_to<AsTheyAre>(codes, rows, tables, {sums, FloatType::kF32, stride}, memory);
}

void amm_of_codes(const uint8_t* codes, int64_t rows, const Tables& tables, const Output& y, void* memory) noexcept {
  const CountDenormals guard;
  switch (y.type) {
    case FloatType::kF32:
      return aggregate_to<Rescaled<FloatType::kF32>>(codes, rows, tables, y, memory);
    case FloatType::kBF16:
      return aggregate_to<Rescaled<FloatType::kBF16>>(codes, rows, tables, y, memory);
    case FloatType::kF16:
      return aggregate_to<Rescaled<FloatType::kF16>>(codes, rows, tables, y, memory);
  }
}

// Rows of any type.
template <typename AnyTrees>
void encode_any_eight(const Rows& x, int64_t n, const AnyTrees& trees, uint8_t* packed, void* scratch) {
  switch (x.type) {
    case FloatType::kF32:
      return encode_eight<FloatType::kF32>(x, n, trees, packed, scratch);
    case FloatType::kBF16:
      return encode_eight<FloatType::kBF16>(x, n, trees, packed, scratch);
    case FloatType::kF16:
      return encode_eight<FloatType::kF16>(x, n, trees, packed, scratch);
  }
}

template <FloatType kResult, typename AnyTrees>
void amm_to(const Rows& x, const AnyTrees& trees, const Tables& tables, const Output& y, void* memory) {
  using Result = Rescaled<kResult>;
  const Scratch scratch(memory, tables.codebooks);
  const int64_t step = rows_at_once(tables.codebooks);
  for (int64_t n = 0; n < x.count; n += step) {
    const int64_t count = min(x.count - n, step);
    for (int64_t r = 0; r < count; r += kVector) {
      encode_any_eight(x, n + r, trees, scratch.packed.at(r, 0), scratch.of_encode);
    }
    char* out = static_cast<char*>(y.data) + n * y.stride * Result::kWidth;
    aggregate_rows<Result>(scratch.packed, count, tables, out, y.stride, scratch.work);
  }
}

// y.streams is ignored: ARM has only a hint for such stores.
template <typename AnyTrees>
void amm(const Rows& x, const AnyTrees& trees, const Tables& tables, const Output& y, void* scratch) noexcept {
  const CountDenormals guard;
  switch (y.type) {
    case FloatType::kF32:
      return amm_to<FloatType::kF32>(x, trees, tables, y, scratch);
    case FloatType::kBF16:
      return amm_to<FloatType::kBF16>(x, trees, tables, y, scratch);
    case FloatType::kF16:
      return amm_to<FloatType::kF16>(x, trees, tables, y, scratch);
  }
}

// clang-format off: in this order
#include "xla_ffi/kernels/neon/by_output.inc"
#include "xla_ffi/kernels/shared/by_feature.inc"
#include "xla_ffi/kernels/shared/small_batch.inc"
#include "xla_ffi/kernels/neon/factors.inc"
#include "xla_ffi/kernels/neon/table_sums.inc"
#include "xla_ffi/kernels/shared/factors.inc"
#include "xla_ffi/kernels/shared/epilogue.inc"
#include "xla_ffi/kernels/neon/scan.inc"
#include "xla_ffi/kernels/shared/scan.inc"
#include "xla_ffi/kernels/shared/scan_lists.inc"
#include "xla_ffi/kernels/neon/rescore.inc"
#include "xla_ffi/kernels/shared/greatest.inc"
#include "xla_ffi/kernels/shared/rescore.inc"
#include "xla_ffi/kernels/shared/floats.inc"
#include "xla_ffi/kernels/shared/tier_table.inc"
// clang-format on

}  // namespace

extern const Tier neon_tier;
constexpr Tier neon_tier = make_tier("neon");

}  // namespace jax_maddness
