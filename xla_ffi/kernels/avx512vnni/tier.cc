// AVX-512 VBMI + VNNI tier (Ice Lake, Sapphire Rapids, Zen 4, and later).
// clang-format off: columns
//   encode     codes[n, c] = the leaf of tree c that row n reaches                       (layout.h draws the arrays)
//   aggregate  sums[n, m]  = sum over c of tables[m, c, codes[n, c]]
//   amm        y[n, m]     = fma(scale[m], sums[n, m], offset[m])
// clang-format on
//
// One register holds the tables of four codebooks for one output: 64 bytes, contiguous in `tables`. Another holds the
// codes of 16 rows x 4 codebooks, each byte being (c % 4) * 16 + code. vpermb looks all 64 up, and vpdpbusd, with ones,
// adds each row's four straight into its int32: two instructions per 64 exact look-ups, one of them on port 5. Limit:
// 64 look-ups/cycle.
//
// Rows are encoded 64 or 256 at a time into this packed order, where they stay in the cache, then meet all outputs, 64
// at a time (avx512/output.inc).
//   codes, packed   [rows / 16][codebooks / 4][16 rows][4 bytes], rounded up
#include "xla_ffi/kernels/avx512/prelude.inc"

namespace jax_maddness {
namespace {

// clang-format off: in this order
#include "xla_ffi/kernels/shared/plain.inc"
#include "xla_ffi/kernels/avx512/common.inc"
#include "xla_ffi/kernels/avx512vnni/bytes.inc"
#include "xla_ffi/kernels/avx512/encode.inc"
#include "xla_ffi/kernels/avx512/oblique.inc"
#include "xla_ffi/kernels/avx512/pack.inc"
#include "xla_ffi/kernels/avx512/output.inc"
#include "xla_ffi/kernels/avx512vnni/look_up.inc"
#include "xla_ffi/kernels/avx512/aggregate.inc"
#include "xla_ffi/kernels/avx512vnni/blocks.inc"
// clang-format on

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
}

// clang-format off: in this order
#include "xla_ffi/kernels/avx512/ops.inc"
#include "xla_ffi/kernels/avx512/by_output.inc"
#include "xla_ffi/kernels/shared/by_feature.inc"
#include "xla_ffi/kernels/shared/small_batch.inc"
#include "xla_ffi/kernels/avx512vnni/factors.inc"
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

extern const Tier avx512vnni_tier;
constexpr Tier avx512vnni_tier = make_tier("avx512vnni");

}  // namespace jax_maddness
