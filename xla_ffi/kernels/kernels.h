// The functions that a tier provides. A tier is one instruction-set variant of all kernels, in a folder of its own;
// shared/tier_table.inc makes its Tier.
#ifndef JAX_MADDNESS_KERNELS_KERNELS_H_
#define JAX_MADDNESS_KERNELS_KERNELS_H_

#include "xla_ffi/kernels/layout.h"

namespace jax_maddness {

constexpr size_t kFloatScratch = (kTileCodebooks * kLeaves + kTilePieces) * kTileOutputs * sizeof(float);

// Kernels are pure functions of their arguments: no allocation, no exception, no global state. `scratch` is 64-byte
// aligned, not shared between threads, and at least scratch_bytes(features, codebooks) long, which is never less than a
// byte per codebook. Zero rows, outputs and features are allowed wherever the arrays are consistent; codebooks >= 1.
struct Tier {
  const char* name;  // the instruction set, as the environment variable JAX_MADDNESS_TIER spells it
  bool (*supported)();

  size_t (*scratch_bytes)(int64_t features, int64_t codebooks);
  void (*encode)(const Rows& x, const Trees& trees, uint8_t* codes, void* scratch) noexcept;
  // The same for rows that stand feature by feature.
  void (*encode_by_feature)(const ByFeature& x, const Trees& trees, uint8_t* codes) noexcept;
  void (*aggregate)(const uint8_t* codes, int64_t rows, const Tables& tables, int32_t* sums, int64_t stride,
                    void* scratch) noexcept;
  // Merges some rows of sums, `stride` elements apart, into the greatest sums of earlier rows.
  void (*keep_greatest)(const int32_t* sums, int64_t stride, const RowRange& rows, int64_t outputs,
                        const Greatest& to) noexcept;
  void (*amm)(const Rows& x, const Trees& trees, const Tables& tables, const Output& y, void* scratch) noexcept;
  // amm for codes that are given.
  void (*amm_of_codes)(const uint8_t* codes, int64_t rows, const Tables& tables, const Output& y,
                       void* scratch) noexcept;
  // The same for y output by output: y.stride is the distance between outputs.
  void (*amm_of_codes_by_output)(const uint8_t* codes, int64_t rows, const Tables& tables, const Output& y,
                                 void* scratch) noexcept;
  // amm with tables by code (shared/small_batch.inc): faster for small batches.
  void (*amm_by_code)(const Rows& x, const Trees& trees, const Tables& tables, const Output& y, void* scratch) noexcept;

  // The kernels that read trees once more, for oblique trees.
  void (*encode_oblique)(const Rows& x, const ObliqueTrees& trees, uint8_t* codes, void* scratch) noexcept;
  void (*amm_oblique)(const Rows& x, const ObliqueTrees& trees, const Tables& tables, const Output& y,
                      void* scratch) noexcept;
  void (*amm_oblique_by_code)(const Rows& x, const ObliqueTrees& trees, const Tables& tables, const Output& y,
                              void* scratch) noexcept;

  // Integer factors. `scratch` is at least factor_scratch_bytes of the same sizes long, codebooks being 0 where there
  // are no tables, and rank that of Up where there is no Down. Tables have neither scale nor offset.
  size_t (*factor_scratch_bytes)(int64_t features, int64_t rank, int64_t codebooks);
  void (*project)(const Rows& x, const Down& down, int8_t* u, void* scratch) noexcept;
  void (*factors)(const Rows& x, const Factors& factors, const Output& y, void* scratch) noexcept;
  void (*amm_factors)(const Rows& x, const Trees& trees, const Tables& tables, const Factors& factors, const Output& y,
                      void* scratch) noexcept;
  void (*amm_factors_by_code)(const Rows& x, const Trees& trees, const Tables& tables, const Factors& factors,
                              const Output& y, void* scratch) noexcept;
  void (*amm_oblique_factors)(const Rows& x, const ObliqueTrees& trees, const Tables& tables, const Factors& factors,
                              const Output& y, void* scratch) noexcept;
  void (*amm_oblique_factors_by_code)(const Rows& x, const ObliqueTrees& trees, const Tables& tables,
                                      const Factors& factors, const Output& y, void* scratch) noexcept;
  // The same for u, and codes, that are given.
  void (*factors_of)(const int8_t* u, int64_t rows, const Up& up, const Output& y, void* scratch) noexcept;
  void (*amm_of_codes_factors)(const uint8_t* codes, const int8_t* u, int64_t rows, const Tables& tables, const Up& up,
                               const Output& y, void* scratch) noexcept;

  // From z, `stride` apart, in float32, to y. z and y do not overlap.
  void (*epilogue)(const float* z, int64_t stride, int64_t rows, int64_t outputs, const Epilogue& epilogue,
                   const Output& y) noexcept;

  // Codes at rest. `scratch` is at least scan_scratch_bytes of the same sizes long; queries and k may be zero.
  size_t (*scan_scratch_bytes)(int64_t vectors, int64_t queries, int64_t codebooks, int64_t k);
  void (*scan)(const Database& database, const QueryTables& tables, const Best& best, void* scratch) noexcept;
  // The sums of all vectors; `scratch` is that of a scan with k = 0.
  void (*scan_sums)(const Database& database, const QueryTables& tables, const AllSums& all, void* scratch) noexcept;
  // Scans the lists of greatest level; of equal sums, that of the list that is scanned first comes first. `scratch` is
  // scan_lists_scratch_bytes long.
  size_t (*scan_lists_scratch_bytes)(int64_t probe, int64_t codebooks, int64_t k);
  void (*scan_lists)(const Database& database, const Lists& lists, const QueryTables& tables, const Best& best,
                     void* scratch) noexcept;

  // `scratch` is four bytes per feature long.
  void (*rescore)(const Rows& queries, const Rows& vectors, const Candidates& candidates, void* scratch) noexcept;

  // Float tables and their gradient; every tier computes the same floats. `scratch` is kFloatScratch bytes long.
  void (*look_up_floats)(const RowCodes& codes, const FloatTables<const float>& tables, const FloatRows<float>& y,
                         void* scratch) noexcept;
  void (*look_up_gradient)(const RowCodes& codes, const FloatRows<const float>& dy, const FloatTables<float>& gradient,
                           void* scratch) noexcept;
};

}  // namespace jax_maddness

#endif  // JAX_MADDNESS_KERNELS_KERNELS_H_
