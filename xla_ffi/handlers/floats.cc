// The handlers for float tables and their gradient: validate, split over the pool, call. No arithmetic.
#include <algorithm>

#include "xla/ffi/api/ffi.h"
#include "xla_ffi/handlers/common.h"
#include "xla_ffi/handlers/handlers.h"
#include "xla_ffi/handlers/parallel.h"
#include "xla_ffi/handlers/validate.h"

namespace jax_maddness {
namespace {

using ffi::AnyBuffer;

constexpr double kLookupsPerCycle = 8;
constexpr int64_t kFewestRows = 256;     // in a task, which turns its tables first
constexpr int64_t kFewestCodebooks = 8;  // in a task, which reads all of dy's columns

struct Problem {
  int64_t ops, rows, codebooks, outputs;

  double cycles() const {
    return static_cast<double>(ops) * static_cast<double>(rows) * static_cast<double>(outputs) *
           static_cast<double>(codebooks) / kLookupsPerCycle;
  }
};

// A task computes some outputs of one op. Where these make too few tasks, it computes only some of the rows of y, or of
// the codebooks of the gradient (`others`). No number is a sum over several tasks, so that results do not depend on the
// number of threads.
struct Task {
  int64_t op;
  Range outputs, others;
};

template <typename Kernel>
void split_and_run(const Problem& problem, int64_t others, int64_t fewest, ffi::ThreadPool& pool,
                   const Kernel& kernel) {
  const int64_t output_parts = divide_up(problem.outputs, kTileOutputs), tiles = problem.ops * output_parts;
  if (tiles == 0) return;
  const int64_t workers = useful_workers(problem.cycles(), pool);
  const int64_t most_parts = workers == 1 ? 1 : divide_up(kTasksPerWorker * workers, tiles);
  const int64_t parts = std::clamp<int64_t>(others / fewest, 1, most_parts);
  char* const memory = scratch_of_this_thread().at_least(kFloatScratch * static_cast<size_t>(workers));
  parallel_for(pool, tiles * parts, workers, [&](int64_t i, int64_t worker) noexcept {
    const int64_t tile = i / parts;
    const Task task = {tile / output_parts, part(tile % output_parts, output_parts, problem.outputs, kTileOutputs),
                       part(i % parts, parts, others, 1)};
    kernel(task, memory + kFloatScratch * static_cast<size_t>(worker));
  });
}

// Checks everything about codes, float tables or their gradient, and float rows.
Problem check_floats(const Named& codes, const Named& tables, const Named& rows) {
  check_type(codes, ffi::DataType::U8, "uint8");
  check_type(tables, ffi::DataType::F32, "float32");
  check_type(rows, ffi::DataType::F32, "float32");
  const Problem problem{codes.dim(0), count_rows(codes), codes.last(), rows.last()};
  if (problem.codebooks < 1) throw InvalidArgument(describe(codes) + " must have at least one codebook.");
  check_shape(tables, {problem.ops, problem.outputs, problem.codebooks, kLeaves});
  check_rows(rows, codes, problem.outputs);
  return problem;
}

RowCodes codes_of(const Named& codes, const Problem& problem, int64_t op, const Range& rows, const Range& codebooks) {
  const int64_t first = (op * problem.rows + rows.begin) * problem.codebooks + codebooks.begin;
  return {data<const uint8_t>(codes) + first, rows.count, codebooks.count, problem.codebooks};
}

template <typename Float>
FloatTables<Float> tables_of(const Named& tables, const Problem& problem, const Task& task, int64_t codebook) {
  const int64_t first = (task.op * problem.outputs + task.outputs.begin) * problem.codebooks + codebook;
  return {data<Float>(tables) + first * kLeaves, task.outputs.count, problem.codebooks * kLeaves};
}

template <typename Float>
FloatRows<Float> rows_of(const Named& rows, const Problem& problem, const Task& task, int64_t row) {
  const int64_t first = (task.op * problem.rows + row) * problem.outputs + task.outputs.begin;
  return {data<Float>(rows) + first, problem.outputs};
}

ffi::Error look_up(ffi::ThreadPool pool, AnyBuffer codes_, AnyBuffer values_, ffi::Result<AnyBuffer> y_) {
  return guarded([&](const Tier& tier) {
    const Named codes{"codes", codes_}, values{"values", values_}, y{"y", *y_};
    const Problem problem = check_floats(codes, values, y);
    split_and_run(problem, problem.rows, kFewestRows, pool, [&](const Task& task, void* scratch) noexcept {
      tier.look_up_floats(codes_of(codes, problem, task.op, task.others, {0, problem.codebooks}),
                          tables_of<const float>(values, problem, task, 0),
                          rows_of<float>(y, problem, task, task.others.begin), scratch);
    });
  });
}

ffi::Error look_up_gradient(ffi::ThreadPool pool, AnyBuffer codes_, AnyBuffer dy_, ffi::Result<AnyBuffer> gradient_) {
  return guarded([&](const Tier& tier) {
    const Named codes{"codes", codes_}, dy{"dy", dy_}, gradient{"gradient", *gradient_};
    const Problem problem = check_floats(codes, gradient, dy);
    split_and_run(problem, problem.codebooks, kFewestCodebooks, pool, [&](const Task& task, void* scratch) noexcept {
      tier.look_up_gradient(codes_of(codes, problem, task.op, {0, problem.rows}, task.others),
                            rows_of<const float>(dy, problem, task, 0),
                            tables_of<float>(gradient, problem, task, task.others.begin), scratch);
    });
  });
}

XLA_FFI_DEFINE_HANDLER(bound_look_up, look_up,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<AnyBuffer>()    // codes
                           .Arg<AnyBuffer>()    // values
                           .Ret<AnyBuffer>());  // y

XLA_FFI_DEFINE_HANDLER(bound_look_up_gradient, look_up_gradient,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<AnyBuffer>()    // codes
                           .Arg<AnyBuffer>()    // dy
                           .Ret<AnyBuffer>());  // gradient

}  // namespace

XLA_FFI_Error* look_up_handler(XLA_FFI_CallFrame* frame) { return bound_look_up(frame); }

XLA_FFI_Error* look_up_gradient_handler(XLA_FFI_CallFrame* frame) { return bound_look_up_gradient(frame); }

}  // namespace jax_maddness
