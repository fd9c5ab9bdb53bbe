// Splits calls of rows and outputs into tasks.
#ifndef JAX_MADDNESS_HANDLERS_SPLIT_H_
#define JAX_MADDNESS_HANDLERS_SPLIT_H_

#include <algorithm>

#include "xla_ffi/handlers/common.h"
#include "xla_ffi/handlers/pages.h"
#include "xla_ffi/handlers/parallel.h"

namespace jax_maddness {

// A call is split into tasks: ranges of one op's rows, and of its outputs where rows are few. Rows are split between
// blocks of 64, outputs between cache lines of y if its rows start on lines: no kernel gains from smaller blocks, and
// few lines are written by two tasks.
constexpr int64_t kBlockRows = 64;
constexpr int64_t kBlockFactorRows = 16;  // of integer factors: fewer rows do not pay for repacking the matrices
constexpr int64_t kManyRows = 256;        // of a part, so that large tables are read seldom
constexpr int64_t kBlockOutputs = 64;
constexpr double kCyclesPerEncoding = 4;
constexpr double kLookupsPerCycle = 24;
constexpr double kProductsPerCycle = 24;  // of integer factors
constexpr double kCyclesPerOutput = 0.5;

struct Problem {
  int64_t ops, rows, codebooks, outputs;  // `outputs` is 0 where they cannot be split
  bool encodes;
  double products = 0;  // multiplications of factors, per row
  double repeated = 0;  // of these, those that every part of the outputs needs again
  int64_t block_rows = kBlockRows;

  double cycles() const {
    const double n = static_cast<double>(ops) * static_cast<double>(rows);
    const auto c = static_cast<double>(codebooks), m = static_cast<double>(outputs);
    return n * (c * (encodes ? kCyclesPerEncoding : 1) + m * (c / kLookupsPerCycle + kCyclesPerOutput) +
                products / kProductsPerCycle);
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
    row_parts = std::min({most_parts, of_many, divide_up(problem.rows, problem.block_rows)});
    // Every part of the outputs encodes the rows again, or projects them, which takes longer: so outputs are split only
    // if rows make too few parts.
    const int64_t wanted = problem.repeated > 0 ? workers : 2 * workers;
    if (row_parts * problem.ops >= wanted) return;
    output_parts = std::clamp<int64_t>(divide_up(wanted, row_parts * problem.ops), 1,
                                       std::max<int64_t>(1, divide_up(problem.outputs, kBlockOutputs)));
  }

  Task task(int64_t i, const Problem& problem) const {
    const int64_t op = i / (row_parts * output_parts), in_op = i % (row_parts * output_parts);
    return {op, part(in_op / output_parts, row_parts, problem.rows, problem.block_rows),
            part(in_op % output_parts, output_parts, problem.outputs, kBlockOutputs)};
  }
};

// Runs kernel(task, scratch, streams) for every task of a call, with so many bytes of scratch memory.
template <typename Kernel>
void split_and_run(const Problem& problem, size_t scratch_bytes, const Named& result, ffi::ThreadPool& pool,
                   const Kernel& kernel) {
  if (problem.ops == 0 || problem.rows == 0) return;
  const ResultPages pages(result.buffer.untyped_data(), result.buffer.size_bytes());
  const size_t row_bytes = result.buffer.size_bytes() / static_cast<size_t>(problem.ops * problem.rows);
  const Split split(problem, pool);
  const size_t bytes = (scratch_bytes + 63) / 64 * 64;
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

}  // namespace jax_maddness

#endif  // JAX_MADDNESS_HANDLERS_SPLIT_H_
