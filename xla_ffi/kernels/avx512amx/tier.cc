// AVX-512 VBMI + VNNI + AMX tier (Sapphire Rapids and later Xeons): the tier avx512vnni, but for the products of
// integer factors, which tiles multiply (factors.inc).
//
// No machine with AMX was at hand: no time in this folder is measured.
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

// Asks Linux for the state of tiles, 8 KB a thread, which a process has to do once before it uses them. Linux refuses
// where it, or the CPU, has none, and where a signal stack of the process is too small for it.
bool ask_for_tiles() {
#if defined(__linux__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

bool supported() {
  // These look at what the operating system saves (XCR0) too.
  static const bool is_supported = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                                   __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
                                   __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") &&
                                   ask_for_tiles();
  return is_supported;
}

// clang-format off: in this order
#include "xla_ffi/kernels/avx512/ops.inc"
#include "xla_ffi/kernels/avx512/by_output.inc"
#include "xla_ffi/kernels/shared/by_feature.inc"
#include "xla_ffi/kernels/shared/small_batch.inc"
#include "xla_ffi/kernels/avx512vnni/factors.inc"
#include "xla_ffi/kernels/avx512amx/factors.inc"
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

extern const Tier avx512amx_tier;
constexpr Tier avx512amx_tier = make_tier("avx512amx");

}  // namespace jax_maddness
