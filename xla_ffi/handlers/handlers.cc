// The handlers for both kinds of trees: validate, split over the pool, call. No arithmetic.
#include "xla_ffi/handlers/handlers.h"

#include <algorithm>

#include "xla/ffi/api/ffi.h"
#include "xla_ffi/handlers/common.h"
#include "xla_ffi/handlers/pages.h"
#include "xla_ffi/handlers/parallel.h"
#include "xla_ffi/handlers/trees.h"
#include "xla_ffi/handlers/validate.h"

namespace jax_maddness {
namespace {

// A call is split into tasks: ranges of one op's rows, and of its outputs where rows are few. Rows are split between
// blocks of 64, outputs between cache lines of y if its rows start on lines: no kernel gains from smaller blocks, and
// few lines are written by two tasks.
constexpr int64_t kBlockRows = 64;
constexpr int64_t kManyRows = 256;  // of a part, so that large tables are read seldom
constexpr int64_t kBlockOutputs = 64;
constexpr double kCyclesPerEncoding = 4;
constexpr double kLookupsPerCycle = 24;
constexpr double kCyclesPerOutput = 0.5;

struct Problem {
  int64_t ops, rows, codebooks, outputs;  // `outputs` is 0 for encode
  bool encodes;

  double cycles() const {
    const double n = static_cast<double>(ops) * static_cast<double>(rows);
    const auto c = static_cast<double>(codebooks), m = static_cast<double>(outputs);
    return n * (c * (encodes ? kCyclesPerEncoding : 1) + m * (c / kLookupsPerCycle + kCyclesPerOutput));
  }
};

struct Task {
  int64_t op;
  Range rows, outputs;
};

struct Split {
  int64_t workers = 1, row_parts = 1, output_parts = 1;

  Split(const Problem& problem, const ffi::ThreadPool& pool) {
    workers = useful_workers(problem.cycles(), pool);
    if (workers == 1) return;
    const int64_t most_parts = divide_up(workers * kTasksPerWorker, problem.ops);
    const int64_t of_many = divide_up(std::max<int64_t>(1, problem.rows / kManyRows), workers) * workers;
    row_parts = std::min({most_parts, of_many, divide_up(problem.rows, kBlockRows)});
    // Every part of the outputs encodes the rows again: so outputs are split only if rows make too few parts.
    if (row_parts * problem.ops >= 2 * workers) return;
    output_parts = std::clamp<int64_t>(divide_up(2 * workers, row_parts * problem.ops), 1,
                                       std::max<int64_t>(1, divide_up(problem.outputs, kBlockOutputs)));
  }

  Task task(int64_t i, const Problem& problem) const {
    const int64_t op = i / (row_parts * output_parts), in_op = i % (row_parts * output_parts);
    return {op, part(in_op / output_parts, row_parts, problem.rows, kBlockRows),
            part(in_op % output_parts, output_parts, problem.outputs, kBlockOutputs)};
  }
};

template <typename Kernel>
void split_and_run(const Tier& tier, const Problem& problem, int64_t features, const Named& result,
                   ffi::ThreadPool& pool, const Kernel& kernel) {
  if (problem.ops == 0 || problem.rows == 0) return;
  const ResultPages pages(result.buffer.untyped_data(), result.buffer.size_bytes());
  const size_t row_bytes = result.buffer.size_bytes() / static_cast<size_t>(problem.ops * problem.rows);
  const Split split(problem, pool);
  const size_t bytes = (tier.scratch_bytes(features, problem.codebooks) + 63) / 64 * 64;
  char* const memory = scratch_of_this_thread().at_least(bytes * static_cast<size_t>(split.workers));
  parallel_for(pool, problem.ops * split.row_parts * split.output_parts, split.workers,
               [&](int64_t i, int64_t worker) noexcept {
                 const Task task = split.task(i, problem);
                 const int64_t first = task.op * problem.rows + task.rows.begin;
                 pages.populate(data<char>(result) + static_cast<size_t>(first) * row_bytes,
                                static_cast<size_t>(task.rows.count) * row_bytes);
                 kernel(task, memory + bytes * static_cast<size_t>(worker), pages.streams());
               });
}

// Checks everything about x and its trees.
void check_trees(const Named& x, const TreeArrays& trees, Problem* problem) {
  problem->rows = count_rows(x);
  problem->ops = x.dim(0);
  problem->codebooks = trees.check(x);
}

void check_by_code(const Named& by_code, Problem* problem) {
  check_type(by_code, ffi::DataType::U8, "uint8");
  if (by_code.rank() != 4) throw InvalidArgument(describe(by_code) + " must have four dimensions.");
  problem->outputs = by_code.dim(3);
  check_shape(by_code, {problem->ops, problem->codebooks, kLeaves, problem->outputs});
}

void check_values(const Named& values, Problem* problem) {
  check_type(values, ffi::DataType::U8, "uint8");
  if (values.rank() != 4) throw InvalidArgument(describe(values) + " must have four dimensions.");
  problem->outputs = values.dim(1);
  check_shape(values, {problem->ops, problem->outputs, problem->codebooks, kLeaves});
}

Rows rows_of(const Named& x, FloatType type, const Problem& problem, const Task& task) {
  const int64_t features = x.last();
  const int64_t first = (task.op * problem.rows + task.rows.begin) * features;
  return {data<const char>(x) + first * width(type), type, task.rows.count, features};
}

Tables tables_of(const Named& values, const Problem& problem, const Task& task) {
  const int64_t first = task.op * problem.outputs + task.outputs.begin;
  return {data<const uint8_t>(values) + first * problem.codebooks * kLeaves, nullptr, nullptr, task.outputs.count,
          problem.codebooks};
}

Tables by_code_of(const Named& by_code, const Problem& problem, const Task& task) {
  const int64_t first = task.op * problem.codebooks * kLeaves * problem.outputs + task.outputs.begin;
  return {
      data<const uint8_t>(by_code) + first, nullptr, nullptr, task.outputs.count, problem.codebooks, problem.outputs};
}

// Checks codes and tables of a call that is given codes.
Problem problem_of_codes(const Named& codes, const Named& values) {
  check_type(codes, ffi::DataType::U8, "uint8");
  Problem problem{0, count_rows(codes), codes.last(), 0, false};
  problem.ops = codes.dim(0);
  if (problem.codebooks < 1) throw InvalidArgument(describe(codes) + " must have at least one codebook.");
  check_values(values, &problem);
  return problem;
}

void check_rescaling(const Named& scale, const Named& offset, const Problem& problem) {
  for (const Named& vector : {scale, offset}) {
    check_type(vector, ffi::DataType::F32, "float32");
    check_shape(vector, {problem.ops, problem.outputs});
  }
}

// Adds scale and offset to tables.
Tables rescaling(Tables tables, const Named& scale, const Named& offset, const Problem& problem, const Task& task) {
  tables.scale = data<const float>(scale) + task.op * problem.outputs + task.outputs.begin;
  tables.offset = data<const float>(offset) + task.op * problem.outputs + task.outputs.begin;
  return tables;
}

Output output_of(const Named& y, FloatType type, const Problem& problem, const Task& task, bool streams) {
  const int64_t first = (task.op * problem.rows + task.rows.begin) * problem.outputs + task.outputs.begin;
  return {data<char>(y) + first * width(type), type, problem.outputs, streams};
}

ffi::Error aggregate(ffi::ThreadPool pool, ffi::AnyBuffer codes_, ffi::AnyBuffer values_,
                     ffi::Result<ffi::AnyBuffer> sums_) {
  return guarded([&](const Tier& tier) {
    const Named codes{"codes", codes_}, values{"values", values_}, sums{"sums", *sums_};
    const Problem problem = problem_of_codes(codes, values);
    check_type(sums, ffi::DataType::S32, "int32");
    check_rows(sums, codes, problem.outputs);
    if (problem.outputs == 0) return;
    split_and_run(tier, problem, 0, sums, pool, [&](const Task& task, void* scratch, bool) noexcept {
      const int64_t first = task.op * problem.rows + task.rows.begin;
      tier.aggregate(data<const uint8_t>(codes) + first * problem.codebooks, task.rows.count,
                     tables_of(values, problem, task),
                     data<int32_t>(sums) + first * problem.outputs + task.outputs.begin, problem.outputs, scratch);
    });
  });
}

ffi::Error amm_of_codes(ffi::ThreadPool pool, ffi::AnyBuffer codes_, ffi::AnyBuffer values_, ffi::AnyBuffer scale_,
                        ffi::AnyBuffer offset_, ffi::Result<ffi::AnyBuffer> y_) {
  return guarded([&](const Tier& tier) {
    const Named codes{"codes", codes_}, values{"values", values_}, scale{"scale", scale_}, offset{"offset", offset_},
        y{"y", *y_};
    const Problem problem = problem_of_codes(codes, values);
    check_rescaling(scale, offset, problem);
    const FloatType type = check_float_type(y);
    check_rows(y, codes, problem.outputs);
    if (problem.outputs == 0) return;
    split_and_run(tier, problem, 0, y, pool, [&](const Task& task, void* scratch, bool streams) noexcept {
      const int64_t first = task.op * problem.rows + task.rows.begin;
      tier.amm_of_codes(data<const uint8_t>(codes) + first * problem.codebooks, task.rows.count,
                        rescaling(tables_of(values, problem, task), scale, offset, problem, task),
                        output_of(y, type, problem, task, streams), scratch);
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
    split_and_run(tier, problem, x.last(), codes, pool, [&](const Task& task, void* scratch, bool) noexcept {
      const int64_t first = (task.op * problem.rows + task.rows.begin) * problem.codebooks;
      trees.encode(tier, task.op, rows_of(x, type, problem, task), data<uint8_t>(codes) + first, scratch);
    });
  });
}

ffi::Error amm_with(const TreeArrays& trees, ffi::ThreadPool& pool, AnyBuffer x_, const TableArrays& arrays,
                    AnyBuffer y_) {
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
    if (problem.outputs == 0) return;
    split_and_run(tier, problem, x.last(), y, pool, [&](const Task& task, void* scratch, bool streams) noexcept {
      const Tables plain = (by_code ? by_code_of : tables_of)(values, problem, task);
      const Tables tables = rescaling(plain, scale, offset, problem, task);
      const Output out = output_of(y, type, problem, task, streams);
      const Rows rows = rows_of(x, type, problem, task);
      by_code ? trees.amm_by_code(tier, task.op, rows, tables, out, scratch)
              : trees.amm(tier, task.op, rows, tables, out, scratch);
    });
  });
}

XLA_FFI_Error* aggregate_handler(XLA_FFI_CallFrame* frame) { return bound_aggregate(frame); }
XLA_FFI_Error* amm_of_codes_handler(XLA_FFI_CallFrame* frame) { return bound_amm_of_codes(frame); }

}  // namespace jax_maddness
