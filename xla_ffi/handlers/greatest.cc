// The handler for the greatest sums over rows: aggregates some rows at a time and keeps the greatest sums only.
#include <algorithm>
#include <limits>

#include "xla/ffi/api/ffi.h"
#include "xla_ffi/handlers/common.h"
#include "xla_ffi/handlers/handlers.h"
#include "xla_ffi/handlers/parallel.h"
#include "xla_ffi/handlers/validate.h"

namespace jax_maddness {
namespace {

using ffi::AnyBuffer;

constexpr int64_t kRowsAtOnce = 64;
constexpr int64_t kOutputsAtOnce = 512;  // their sums stay in a core's own cache
constexpr int64_t kFewestOutputs = 64;   // of a task, as every task packs all codes again
constexpr double kLookupsPerCycle = 24;

struct Problem {
  int64_t examples, rows, codebooks, outputs, k;
};

Problem check_greatest(const Named& codes, const Named& values, const Named& skipped, const Named& sums,
                       const Named& positions) {
  for (const Named& array : {codes, values, skipped}) check_type(array, ffi::DataType::U8, "uint8");
  for (const Named& array : {sums, positions}) check_type(array, ffi::DataType::S32, "int32");
  for (const Named& array : {codes, values, sums}) {
    if (array.rank() != 3) throw InvalidArgument(describe(array) + " must have three dimensions.");
  }
  const Problem problem{codes.dim(0), codes.dim(1), codes.dim(2), values.dim(0), sums.dim(1)};
  if (problem.codebooks < 1) throw InvalidArgument(describe(codes) + " must have at least one codebook.");
  if (problem.k < 1 || problem.k > kMaxGreatest) throw InvalidArgument(describe(sums) + " has too many of each.");
  if (problem.rows > std::numeric_limits<int32_t>::max())
    throw InvalidArgument(describe(codes) + " has too many rows.");
  check_shape(values, {problem.outputs, problem.codebooks, kLeaves});
  check_shape(skipped, {problem.examples, problem.rows});
  check_shape(sums, {problem.examples, problem.k, problem.outputs});
  check_shape(positions, {problem.examples, problem.k, problem.outputs});
  return problem;
}

// The value of Greatest::row_bits.
int64_t row_bits(const Problem& problem) {
  int64_t bits = 1;
  while (problem.rows > int64_t{1} << bits) ++bits;
  constexpr int64_t kGreatestEntry = 255;
  return bits < 31 && problem.codebooks <= (int64_t{1} << (31 - bits)) / (kGreatestEntry + 1) ? bits : 0;
}

// A task computes some of the outputs of one example, over all of its rows.
struct Task {
  const uint8_t* codes;
  const uint8_t* skipped;
  Tables tables;
  Greatest to;
};

void run(const Tier& tier, const Problem& problem, const Task& task, int32_t* block, void* scratch) noexcept {
  const int64_t outputs = task.tables.outputs;
  for (int64_t i = 0; i < problem.k; ++i) {
    std::fill_n(task.to.sums + i * task.to.stride, outputs, std::numeric_limits<int32_t>::min());
    std::fill_n(task.to.positions + i * task.to.stride, outputs, -1);
  }
  for (int64_t n = 0; n < problem.rows; n += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, problem.rows - n);
    tier.aggregate(task.codes + n * problem.codebooks, count, task.tables, block, outputs, scratch);
    tier.keep_greatest(block, outputs, {task.skipped, n, count}, outputs, task.to);
  }
}

ffi::Error greatest(ffi::ThreadPool pool, AnyBuffer codes_, AnyBuffer values_, AnyBuffer skipped_,
                    ffi::Result<AnyBuffer> sums_, ffi::Result<AnyBuffer> positions_) {
  return guarded([&](const Tier& tier) {
    const Named codes{"codes", codes_}, values{"values", values_}, skipped{"skipped", skipped_}, sums{"sums", *sums_},
        positions{"positions", *positions_};
    const Problem problem = check_greatest(codes, values, skipped, sums, positions);
    if (problem.examples == 0 || problem.outputs == 0) return;
    const double lookups = static_cast<double>(problem.examples) * static_cast<double>(problem.rows) *
                           static_cast<double>(problem.codebooks) * static_cast<double>(problem.outputs);
    const int64_t workers = useful_workers(lookups / kLookupsPerCycle, pool);
    const int64_t most_parts = workers == 1 ? 1 : divide_up(workers * kTasksPerWorker, problem.examples);
    const int64_t parts = std::max(std::min(most_parts, divide_up(problem.outputs, kFewestOutputs)),
                                   divide_up(problem.outputs, kOutputsAtOnce));
    const int64_t block = kRowsAtOnce * std::min(kOutputsAtOnce, problem.outputs) * int64_t{sizeof(int32_t)};
    const size_t each = (tier.scratch_bytes(0, problem.codebooks) + 63) / 64 * 64 + static_cast<size_t>(block);
    char* const memory = scratch_of_this_thread().at_least(each * static_cast<size_t>(workers));
    parallel_for(pool, problem.examples * parts, workers, [&](int64_t i, int64_t worker) noexcept {
      const int64_t example = i / parts, first = example * problem.rows;
      const Range outputs = part(i % parts, parts, problem.outputs, kFewestOutputs);
      const int64_t to = example * problem.k * problem.outputs + outputs.begin;
      char* const of_worker = memory + each * static_cast<size_t>(worker);
      run(tier, problem,
          {data<const uint8_t>(codes) + first * problem.codebooks,
           data<const uint8_t>(skipped) + first,
           {data<const uint8_t>(values) + outputs.begin * problem.codebooks * kLeaves, nullptr, nullptr, outputs.count,
            problem.codebooks},
           {data<int32_t>(sums) + to, data<int32_t>(positions) + to, problem.k, problem.outputs, row_bits(problem)}},
          reinterpret_cast<int32_t*>(of_worker), of_worker + block);
    });
  });
}

XLA_FFI_DEFINE_HANDLER(bound_greatest, greatest,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<AnyBuffer>()    // codes
                           .Arg<AnyBuffer>()    // values
                           .Arg<AnyBuffer>()    // skipped
                           .Ret<AnyBuffer>()    // sums
                           .Ret<AnyBuffer>());  // positions

}  // namespace

XLA_FFI_Error* greatest_handler(XLA_FFI_CallFrame* frame) { return bound_greatest(frame); }

}  // namespace jax_maddness
