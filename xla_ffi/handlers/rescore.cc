// The handler for exact scores of candidates: validate, split over the pool, call.
#include <algorithm>

#include "xla/ffi/api/ffi.h"
#include "xla_ffi/handlers/common.h"
#include "xla_ffi/handlers/handlers.h"
#include "xla_ffi/handlers/parallel.h"
#include "xla_ffi/handlers/validate.h"

namespace jax_maddness {
namespace {

using ffi::AnyBuffer;

constexpr double kBytesPerCycle = 6;       // rows from memory
constexpr int64_t kFewestCandidates = 16;  // candidates of a query in a task, at least

struct Problem {
  int64_t queries, vectors, k, features;
};

Problem check_rescore(const Named& queries, const Named& vectors, const Named& positions, const Named& scores) {
  check_type(positions, ffi::DataType::S32, "int32");
  check_type(scores, ffi::DataType::F32, "float32");
  for (const Named& array : {queries, vectors, positions}) {
    if (array.rank() != 2) throw InvalidArgument(describe(array) + " must have two dimensions.");
  }
  const Problem problem{queries.dim(0), vectors.dim(0), positions.dim(1), queries.dim(1)};
  const int64_t step = vectors.dim(1);
  if (step == 0 ? problem.features != 0 : problem.features == 0 || problem.features % step != 0) {
    throw InvalidArgument(describe(queries) + " must have a multiple of the features that vectors have.");
  }
  check_shape(positions, {problem.queries, problem.k});
  check_shape(scores, {problem.queries, problem.k});
  return problem;
}

ffi::Error rescore(ffi::ThreadPool pool, AnyBuffer queries_, AnyBuffer vectors_, AnyBuffer positions_,
                   ffi::Result<AnyBuffer> scores_) {
  return guarded([&](const Tier& tier) {
    const Named queries{"queries", queries_}, vectors{"vectors", vectors_}, positions{"positions", positions_},
        scores{"scores", *scores_};
    const FloatType query_type = check_float_type(queries), type = check_float_type(vectors);
    const Problem problem = check_rescore(queries, vectors, positions, scores);
    if (problem.queries == 0 || problem.k == 0) return;
    const double bytes = static_cast<double>(problem.queries) * static_cast<double>(problem.k) *
                         static_cast<double>(problem.features * width(type));
    const int64_t workers = useful_workers(bytes / kBytesPerCycle, pool);
    const int64_t query_parts = std::min(problem.queries, kTasksPerWorker * workers);
    const int64_t parts = workers == 1 ? 1
                                       : std::min(divide_up(kTasksPerWorker * workers, query_parts),
                                                  divide_up(problem.k, kFewestCandidates));
    const size_t each = (static_cast<size_t>(problem.features) * sizeof(float) + 63) / 64 * 64;
    char* const memory = scratch_of_this_thread().at_least(each * static_cast<size_t>(workers));
    const Rows of_vectors = {data<const char>(vectors), type, problem.vectors, vectors.dim(1)};
    parallel_for(pool, query_parts * parts, workers, [&](int64_t task, int64_t worker) noexcept {
      const Range some_queries = part(task / parts, query_parts, problem.queries, 1);
      const Range some_positions = part(task % parts, parts, problem.k, kFewestCandidates);
      const int64_t first = some_queries.begin * problem.k + some_positions.begin;
      const Rows of_queries = {data<const char>(queries) + some_queries.begin * problem.features * width(query_type),
                               query_type, some_queries.count, problem.features};
      tier.rescore(
          of_queries, of_vectors,
          {data<const int32_t>(positions) + first, data<float>(scores) + first, some_positions.count, problem.k},
          memory + each * static_cast<size_t>(worker));
    });
  });
}

XLA_FFI_DEFINE_HANDLER(bound_rescore, rescore,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<AnyBuffer>()    // queries
                           .Arg<AnyBuffer>()    // vectors
                           .Arg<AnyBuffer>()    // positions
                           .Ret<AnyBuffer>());  // scores

}  // namespace

XLA_FFI_Error* rescore_handler(XLA_FFI_CallFrame* frame) { return bound_rescore(frame); }

}  // namespace jax_maddness
