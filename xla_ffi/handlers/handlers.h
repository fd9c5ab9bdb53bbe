// The XLA FFI handlers. module.cc hands them to Python under these names, prefixed with jax_maddness_.
//
// clang-format off: columns
//   name                arguments                                                             results
//   encode              x [B, ..., D], indices i32 [B, C, 4], thresholds f32 [B, C, 15]       codes u8 [B, ..., C]
//   aggregate           codes u8 [B, ..., C], values u8 [B, M, C, 16]                         sums i32 [B, ..., M]
//   amm                 x, indices, thresholds, values, scale f32 [B, M], offset f32 [B, M]   y [B, ..., M]
//   amm_by_code         the same with by_code u8 [B, C, 16, M] in place of values             y
//   amm_by_feature      as amm, with x [B, D, ...]: the rows stand feature by feature         y
//   amm_by_feature_and_output   the same                                                      y [B, M, ...]
//   amm_of_codes        codes, values, scale, offset                                          y
//
//   encode_oblique, amm_oblique, amm_oblique_by_code: as above, with these in place of indices and thresholds:
//                       features i32 [B, C, W], projections i8 [B, C, 4, W], thresholds i32 [B, C, 15],
//                       center f32 [B, D], feature scale f32 [B, D]
//
//   project             x, center f32 [B, D], feature scale f32 [B, D], down i8               u i8 [B, ..., r]
//                       [B, ceil(D / 4), r, 4], steps f32 [B, r]
//   factors             the same, and up i8 [B, r / 4, M, 4], scale, offset                   y
//   factors_of          u, up, scale, offset                                                  y
//   int8, int8_by_row   x, center, feature scale, up i8 [B, ceil(D / 4), M, 4], scale, offset y
//   amm_factors         x, indices, thresholds, values, center, feature scale, down, steps,   y
//                       up, shift u8 [B, M], scale, offset
//   amm_factors_by_code, amm_oblique_factors, amm_oblique_factors_by_code: likewise
//   amm_of_codes_factors codes, u, values, up, shift, scale, offset                           y
//
//   look_up             codes u8 [B, ..., C], values f32 [B, M, C, 16]                        y f32 [B, ..., M]
//   look_up_gradient    codes, dy f32 [B, ..., M]                                             values' gradient
//
//   greatest            codes u8 [N, rows, C], values u8 [M, C, 16], skipped u8 [N, rows]     sums i32 [N, k, M],
//                                                                                             positions i32 [N, k, M]
//   scan                codes u8 [blocks, pairs, 64], tables u8 [Q, C, 16], count i32 []      sums i32 [Q, k],
//                                                                                             positions i32 [Q, k]
//   scan_sums           codes, tables, count                                                  sums i16 [Q, blocks, 64]
//   scan_lists          codes, tables, ranges i32 [L, 2], levels i32 [Q, L], probe i32 [],    sums i32 [Q, k],
//                       longest i32 []                                                        positions i32 [Q, k]
//   rescore             queries [Q, r F], vectors [V, F], positions i32 [Q, k]                scores f32 [Q, k]
// clang-format on
//
// x, queries and vectors are f32, bf16 or f16; y has the type of x, or any of these where there is no x. B counts ops,
// each with rows of its own: usually 1. The dimensions between are rows. Any number of them may be zero, except D and
// C; so may blocks, Q, V, L and k.
//
// greatest: where fewer than k rows count, the sum is the lowest int32 and the position -1. scan: only the first
// `count` vectors count, clipped to those that exist; scan_sums: the sums of all others are -1. scan_lists: ranges are
// clipped to the blocks that exist, and to `longest` blocks each; `probe` to the number of lists. rescore: a query is
// as long as r vectors in a row, and is multiplied with the r vectors from each position on.
#ifndef JAX_MADDNESS_HANDLERS_HANDLERS_H_
#define JAX_MADDNESS_HANDLERS_HANDLERS_H_

#include "xla/ffi/api/c_api.h"

namespace jax_maddness {

XLA_FFI_Error* encode_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* aggregate_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* amm_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* amm_of_codes_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* amm_by_code_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* amm_by_feature_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* amm_by_feature_and_output_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* encode_oblique_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* amm_oblique_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* amm_oblique_by_code_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* project_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* factors_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* factors_of_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* int8_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* int8_by_row_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* amm_factors_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* amm_factors_by_code_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* amm_oblique_factors_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* amm_oblique_factors_by_code_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* amm_of_codes_factors_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* scan_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* scan_sums_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* scan_lists_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* rescore_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* greatest_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* look_up_handler(XLA_FFI_CallFrame* frame);
XLA_FFI_Error* look_up_gradient_handler(XLA_FFI_CallFrame* frame);

}  // namespace jax_maddness

#endif  // JAX_MADDNESS_HANDLERS_HANDLERS_H_
