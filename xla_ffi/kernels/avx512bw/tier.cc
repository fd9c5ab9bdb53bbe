// AVX-512 BW tier: Skylake-X and -SP, Cascade Lake, Cooper Lake, which lack VBMI.
// clang-format off: columns
//   encode     codes[n, c] = the leaf of tree c that row n reaches                       (layout.h draws the arrays)
//   aggregate  sums[n, m]  = sum over c of tables[m, c, codes[n, c]]
//   amm        y[n, m]     = fma(scale[m], sums[n, m], offset[m])
// clang-format on
//
// Rows are encoded, and sums become lines of y, as on the other AVX-512 tier (avx512/*.inc); but projections of oblique
// trees take six instructions where vpdpbusd is one (bytes.inc). Between the two, bytes are added up exactly as on the
// AVX2 tier: a residue modulo 256 and a tree of averages, two instructions per 64 entries (look_up.inc). Entries come
// from either of
//
// clang-format off: columns
//   loads      of a row's 64 outputs, after tables are reordered (loads.inc): for many rows. Limit: 64
//              look-ups/cycle on two vector ports; llvm-mca 14 predicts 53 on Skylake-X, all loads hitting its
//              first-level cache: four instructions a cycle are the bound there.
//   shuffles   of 64 rows of an output, or 16 rows of four codebooks: vpshufb makes it three instructions. Limit: 41.
// clang-format on
//
// Look-ups/cycle of aggregate by bench_kernels, on a Xeon that has VBMI too (Golden Cove), 2026-11-24:
// clang-format off: columns
//   rows x M, C   256 x 64, 16   256 x 128, 16   1024 x 128, 16   256 x 256, 64   256 x 64, 256   32 x 256, 64
//   avx512bw           16             20               23               28              30              17
//   avx2               13             16               16               24              24              21
// clang-format on
// The whole amm takes 0.6 to 0.9 times as long as on the AVX2 tier there, and as long with 32 rows or fewer. No Skylake
// was at hand: it has the same two ports for 512 bits (vpshufb on port 5 alone, vpavgb on port 0 alone), but a
// first-level cache of 32 KB instead of 48, and it lowers its clock: to add and shuffle bytes is "light" use of 512
// bits (licence 1, that of dense AVX2 arithmetic), some per cents of the clock on one busy core, up to 15 on all.
#include "xla_ffi/kernels/avx512/prelude.inc"

namespace jax_maddness {
namespace {

// clang-format off: in this order
#include "xla_ffi/kernels/shared/plain.inc"
#include "xla_ffi/kernels/avx512/common.inc"
#include "xla_ffi/kernels/avx512bw/bytes.inc"
#include "xla_ffi/kernels/avx512/encode.inc"
#include "xla_ffi/kernels/avx512/oblique.inc"
#include "xla_ffi/kernels/avx512/pack.inc"
#include "xla_ffi/kernels/avx512/output.inc"
#include "xla_ffi/kernels/avx512bw/look_up.inc"
#include "xla_ffi/kernels/avx512/aggregate.inc"
#include "xla_ffi/kernels/avx512bw/loads.inc"
// clang-format on

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

// Rows encoded before the tables are read: not more than fill a quarter of the second-level cache.
int64_t most_rows(int64_t codebooks) {
  return min(kMostRows, max(kManyRows, (int64_t{1} << 18) / codebooks / kFewRows * kFewRows));
}

int64_t rows_at_once(const Tables& tables) { return most_rows(tables.codebooks); }

// The scratch memory, in this order: Workspace, packed codes, codes, lines, memory of the encoder.
struct Scratch {
  Workspace* work;
  uint8_t* packed;
  uint8_t* codes;  // [rows][codebooks], multiplied by 16; or 64 rows of codes as `arrange` leaves them
  uint8_t* lines;  // [codebooks][16][64 outputs], unless there are too many codebooks for loads
  char* of_encoder;

  static int64_t codes_bytes(int64_t codebooks) { return most_rows(codebooks) * round_up(codebooks, kGroup); }
  static int64_t packed_bytes(int64_t codebooks) {
    return codes_bytes(codebooks) + kTurned * kLine;  // unpack reads up to kTurned - 1 lines too many
  }
  static int64_t lines_bytes(int64_t codebooks) {
    return loads_pay(most_rows(codebooks), codebooks) ? codebooks * kLeaves * kLine : 0;
  }
  static int64_t bytes(int64_t codebooks) {
    return int64_t{sizeof(Workspace)} + packed_bytes(codebooks) + codes_bytes(codebooks) + lines_bytes(codebooks);
  }

  Scratch(void* memory, int64_t codebooks) {
    auto* const begin = static_cast<char*>(memory);
    work = reinterpret_cast<Workspace*>(begin);
    packed = reinterpret_cast<uint8_t*>(begin + sizeof(Workspace));
    codes = packed + packed_bytes(codebooks);
    lines = codes + codes_bytes(codebooks);
    of_encoder = begin + bytes(codebooks);
  }
};

// Computes the first outputs, in whole lines, by loading; returns their number.
template <typename Result>
int64_t aggregate_by_loading(const Scratch& scratch, int64_t rows, const Tables& tables, const Destination& to) {
  const int64_t codebooks = tables.codebooks, groups = divide_up(codebooks, kGroup);
  if (!loads_pay(rows, codebooks) || tables.outputs < kFewestOutputs) return 0;
  for (int64_t n = 0; n < rows; n += kVector) {
    unpack<4>(scratch.packed + n / kVector * groups * kLine, min(kVector, rows - n), codebooks,
              scratch.codes + n * codebooks);
  }
  const bool streams = to.streams && (to.stride | reinterpret_cast<intptr_t>(to.data)) % kLine == 0;
  const auto aggregate = streams ? aggregate_lines<Result, true> : aggregate_lines<Result, false>;
  int64_t m = 0;
  for (; tables.outputs - m >= kFewestOutputs; m += kLineOutputs) {
    aggregate(scratch.codes, rows, tables, m, to, scratch.lines);
  }
  return min(m, tables.outputs);
}

// Arranges packed codes for shuffling, block by block: use(n, rows, codes).
template <typename Use>
INLINE void in_blocks(const Scratch& scratch, int64_t rows, int64_t groups, const Use& use) {
  for (int64_t n = 0; n < rows; n += kFewRows) {
    const int64_t count = min(kFewRows, rows - n);
    arrange(scratch.packed + n / kVector * groups * kLine, divide_up(count, kVector), groups, scratch.codes);
    use(n, count, scratch.codes);
  }
}

// Computes the other outputs, or all if rows are few, by shuffling.
template <typename Result>
void aggregate_packed(const Scratch& scratch, int64_t rows, const Tables& tables, const Destination& to) {
  const int64_t codebooks = tables.codebooks, groups = divide_up(codebooks, kGroup);
  const int64_t m = aggregate_by_loading<Result>(scratch, rows, tables, to);
  if (m == tables.outputs) return;
  const Tables by_shuffling = {tables.values + m * codebooks * kLeaves,
                               tables.scale == nullptr ? nullptr : tables.scale + m,
                               tables.offset == nullptr ? nullptr : tables.offset + m, tables.outputs - m, codebooks};
  in_blocks(scratch, rows, groups, [&](int64_t n, int64_t count, const uint8_t* codes) INLINE_LAMBDA {
    const Destination place = {to.data + n * to.stride + m * Result::kWidth, to.stride, to.streams};
    aggregate_block<Result>(codes, count, by_shuffling, place, *scratch.work);
  });
}

// clang-format off: in this order
#include "xla_ffi/kernels/avx512/ops.inc"
#include "xla_ffi/kernels/avx512/by_output.inc"
#include "xla_ffi/kernels/shared/by_feature.inc"
#include "xla_ffi/kernels/shared/small_batch.inc"
#include "xla_ffi/kernels/avx512bw/factors.inc"
#include "xla_ffi/kernels/avx512/no_tiles.inc"
#include "xla_ffi/kernels/avx512/table_sums.inc"
#include "xla_ffi/kernels/shared/factors.inc"
#include "xla_ffi/kernels/shared/epilogue.inc"
#include "xla_ffi/kernels/avx512/scan.inc"
#include "xla_ffi/kernels/shared/scan.inc"
#include "xla_ffi/kernels/shared/scan_lists.inc"
#include "xla_ffi/kernels/avx512/rescore.inc"
#include "xla_ffi/kernels/shared/greatest.inc"
#include "xla_ffi/kernels/shared/rescore.inc"
#include "xla_ffi/kernels/shared/floats.inc"
#include "xla_ffi/kernels/shared/tier_table.inc"
// clang-format on

}  // namespace

extern const Tier avx512bw_tier;
constexpr Tier avx512bw_tier = make_tier("avx512bw");

}  // namespace jax_maddness
