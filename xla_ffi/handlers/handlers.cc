// The handlers for both kinds of trees: validate, split over the pool, call. No arithmetic.
#include "xla_ffi/handlers/handlers.h"

#include "xla/ffi/api/ffi.h"
#include "xla_ffi/handlers/epilogue.h"

namespace jax_maddness {
namespace {

ffi::Error aggregate(ffi::ThreadPool pool, ffi::AnyBuffer codes_, ffi::AnyBuffer values_,
                     ffi::Result<ffi::AnyBuffer> sums_) {
  return guarded([&](const Tier& tier) {
    const Named codes{"codes", codes_}, values{"values", values_}, sums{"sums", *sums_};
    const Problem problem = problem_of_codes(codes, values);
    check_type(sums, ffi::DataType::S32, "int32");
    check_rows(sums, codes, problem.outputs);
    if (problem.outputs == 0) return;
    split_and_run(problem, tier.scratch_bytes(0, problem.codebooks), sums, pool,
                  [&](const Task& task, void* scratch, bool) noexcept {
                    const int64_t first = task.op * problem.rows + task.rows.begin;
                    tier.aggregate(
                        bytes_of<uint8_t>(codes, problem, task), task.rows.count, tables_of(values, problem, task),
                        data<int32_t>(sums) + first * problem.outputs + task.outputs.begin, problem.outputs, scratch);
                  });
  });
}

ffi::Error amm_of_codes(ffi::ThreadPool pool, ffi::AnyBuffer codes_, ffi::AnyBuffer values_, ffi::AnyBuffer scale_,
                        ffi::AnyBuffer offset_, ffi::RemainingArgs rest, ffi::Dictionary attributes,
                        ffi::Result<ffi::AnyBuffer> y_) {
  return guarded([&](const Tier& tier) {
    const Named codes{"codes", codes_}, values{"values", values_}, scale{"scale", scale_}, offset{"offset", offset_},
        y{"y", *y_};
    const Problem problem = problem_of_codes(codes, values);
    check_rescaling(scale, offset, problem);
    const FloatType type = check_float_type(y);
    check_rows(y, codes, problem.outputs);
    write_outputs(tier, problem, tier.scratch_bytes(0, problem.codebooks), y, type, {rest, attributes}, pool,
                  [&](const Task& task, const Output& out, void* scratch) noexcept {
                    tier.amm_of_codes(bytes_of<uint8_t>(codes, problem, task), task.rows.count,
                                      rescaling(tables_of(values, problem, task), scale, offset, problem, task), out,
                                      scratch);
                  });
  });
}

using ffi::AnyBuffer;

XLA_FFI_DEFINE_HANDLER(bound_aggregate, aggregate,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<AnyBuffer>()    // codes
                           .Arg<AnyBuffer>()    // values
                           .Ret<AnyBuffer>());  // sums

XLA_FFI_DEFINE_HANDLER(bound_amm_of_codes, amm_of_codes,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<AnyBuffer>()    // codes
                           .Arg<AnyBuffer>()    // values
                           .Arg<AnyBuffer>()    // scale
                           .Arg<AnyBuffer>()    // offset
                           .RemainingArgs()     // residual
                           .Attrs()             // activation
                           .Ret<AnyBuffer>());  // y

}  // namespace

ffi::Error encode_with(const TreeArrays& trees, ffi::ThreadPool& pool, AnyBuffer x_, AnyBuffer codes_) {
  return guarded([&](const Tier& tier) {
    const Named x{"x", x_}, codes{"codes", codes_};
    Problem problem{0, 0, 0, 0, true};
    const FloatType type = check_float_type(x);
    check_trees(x, trees, &problem);
    check_type(codes, ffi::DataType::U8, "uint8");
    check_rows(codes, x, problem.codebooks);
    split_and_run(problem, tier.scratch_bytes(x.last(), problem.codebooks), codes, pool,
                  [&](const Task& task, void* scratch, bool) noexcept {
                    const int64_t first = (task.op * problem.rows + task.rows.begin) * problem.codebooks;
                    trees.encode(tier, task.op, rows_of(x, type, problem, task), data<uint8_t>(codes) + first, scratch);
                  });
  });
}

ffi::Error amm_with(const TreeArrays& trees, ffi::ThreadPool& pool, AnyBuffer x_, const TableArrays& arrays,
                    const EpilogueOperands& epilogue, AnyBuffer y_) {
  return guarded([&](const Tier& tier) {
    const bool by_code = arrays.by_code;
    const Named x{"x", x_}, y{"y", y_}, values{by_code ? "by_code" : "values", arrays.values},
        scale{"scale", arrays.scale}, offset{"offset", arrays.offset};
    Problem problem{0, 0, 0, 0, true};
    const FloatType type = check_float_type(x);
    check_trees(x, trees, &problem);
    (by_code ? check_by_code : check_values)(values, &problem);
    check_rescaling(scale, offset, problem);
    if (y.buffer.element_type() != x.buffer.element_type()) throw InvalidArgument("y must have the type of x.");
    check_rows(y, x, problem.outputs);
    write_outputs(tier, problem, tier.scratch_bytes(x.last(), problem.codebooks), y, type, epilogue, pool,
                  [&](const Task& task, const Output& out, void* scratch) noexcept {
                    const Tables plain = (by_code ? by_code_of : tables_of)(values, problem, task);
                    const Tables tables = rescaling(plain, scale, offset, problem, task);
                    const Rows rows = rows_of(x, type, problem, task);
                    by_code ? trees.amm_by_code(tier, task.op, rows, tables, out, scratch)
                            : trees.amm(tier, task.op, rows, tables, out, scratch);
                  });
  });
}

XLA_FFI_Error* aggregate_handler(XLA_FFI_CallFrame* frame) { return bound_aggregate(frame); }
XLA_FFI_Error* amm_of_codes_handler(XLA_FFI_CallFrame* frame) { return bound_amm_of_codes(frame); }

}  // namespace jax_maddness
