// The handlers for codes at rest, all of which are scanned: validate, split over the pool, call, merge.
#include "xla_ffi/handlers/scan.h"

#include <algorithm>

#include "xla/ffi/api/ffi.h"
#include "xla_ffi/handlers/common.h"
#include "xla_ffi/handlers/handlers.h"
#include "xla_ffi/handlers/parallel.h"
#include "xla_ffi/handlers/validate.h"

namespace jax_maddness {
namespace {

using ffi::AnyBuffer;

constexpr int64_t kMostQueries = 64;                // of a task: all of them share the codes that it reads
constexpr int64_t kMostScratch = int64_t{4} << 20;  // bytes, of a task with several queries

// A task is a range of vectors and some queries. Where there are many queries, every task has all vectors; else the
// best vectors of the ranges are merged.
struct Split : Division {
  Split(const Tier& tier, const ScanProblem& problem, const ffi::ThreadPool& pool)
      : Division{useful_workers(problem.cycles(), pool)} {
    int64_t most = kMostQueries;
    while (most > 1 && scratch_bytes(tier, problem, problem.vectors, most) > kMostScratch) most /= 2;
    query_parts = divide_up(problem.queries, most);
    if (workers == 1 || query_parts >= 2 * workers) return;
    ranges = std::min(divide_up(2 * workers, query_parts), divide_up(problem.vectors, kSideBySide));
  }

  static int64_t scratch_bytes(const Tier& tier, const ScanProblem& problem, int64_t vectors, int64_t queries) {
    return static_cast<int64_t>(tier.scan_scratch_bytes(vectors, queries, problem.codebooks, problem.k) + 63) / 64 * 64;
  }
};

// The vectors and the queries of a task, and the scratch memory that each worker needs for one.
struct Task {
  Range vectors, queries;
  Database database;
  QueryTables tables;

  Task(int64_t task, const Split& split, const ScanProblem& problem, const Database& all, const QueryTables& of_all)
      : vectors(part(split.range_of(task), split.ranges, problem.vectors, kSideBySide)),
        queries(split.queries_of(task, problem)),
        database{all.codes + vectors.begin * all.pairs, all.pairs, vectors.begin, vectors.count},
        tables{of_all.values + queries.begin * of_all.codebooks * kLeaves, queries.count, of_all.codebooks} {}

  static int64_t most_scratch(const Tier& tier, const Split& split, const ScanProblem& problem) {
    const int64_t vectors = divide_up(divide_up(problem.vectors, kSideBySide), split.ranges) * kSideBySide;
    return Split::scratch_bytes(tier, problem, vectors, divide_up(problem.queries, split.query_parts));
  }
};

void scan_in_parts(const Tier& tier, const ScanProblem& problem, const Database& database, const QueryTables& tables,
                   const Best& best, ffi::ThreadPool& pool) {
  const Split split(tier, problem, pool);
  scan_and_merge(split, problem, Task::most_scratch(tier, split, problem), best, pool,
                 [&](int64_t task, const Best& part, void* scratch) noexcept {
                   const Task own(task, split, problem, database, tables);
                   tier.scan(own.database, own.tables, part, scratch);
                 });
}

// The sums of ranges of vectors for some queries each.
void scan_sums_in_parts(const Tier& tier, const ScanProblem& problem, const Database& database,
                        const QueryTables& tables, const AllSums& all, ffi::ThreadPool& pool) {
  const Split split(tier, problem, pool);
  const int64_t each = Task::most_scratch(tier, split, problem);
  char* const memory = scratch_of_this_thread().at_least(static_cast<size_t>(each * split.workers));
  parallel_for(pool, split.query_parts * split.ranges, split.workers, [&](int64_t task, int64_t worker) noexcept {
    const Task own(task, split, problem, database, tables);
    tier.scan_sums(own.database, own.tables,
                   {all.sums + own.queries.begin * all.stride + own.vectors.begin, all.stride}, memory + each * worker);
  });
}

// The number of vectors that count, of those that the codes have.
int64_t vectors_of(const Named& count, int64_t most) {
  check_type(count, ffi::DataType::S32, "int32");
  check_shape(count, {});
  return std::clamp<int64_t>(*data<const int32_t>(count), 0, most);
}

ffi::Error scan(ffi::ThreadPool pool, AnyBuffer codes_, AnyBuffer tables_, AnyBuffer count_,
                ffi::Result<AnyBuffer> sums_, ffi::Result<AnyBuffer> positions_) {
  return guarded([&](const Tier& tier) {
    const Named codes{"codes", codes_}, tables{"tables", tables_}, count{"count", count_}, sums{"sums", *sums_},
        positions{"positions", *positions_};
    ScanProblem problem = check_scan(codes, tables, sums, positions);
    problem.vectors = vectors_of(count, problem.vectors);
    if (problem.queries == 0 || problem.k == 0) return;
    const Best best = {data<int32_t>(sums), data<int32_t>(positions), problem.k};
    if (problem.vectors == 0) return fill_missing(best, problem.queries);
    const Database database = {data<const uint8_t>(codes), codes.dim(1), 0, problem.vectors};
    scan_in_parts(tier, problem, database, {data<const uint8_t>(tables), problem.queries, problem.codebooks}, best,
                  pool);
  });
}

XLA_FFI_DEFINE_HANDLER(bound_scan, scan,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<AnyBuffer>()    // codes
                           .Arg<AnyBuffer>()    // tables
                           .Arg<AnyBuffer>()    // count
                           .Ret<AnyBuffer>()    // sums
                           .Ret<AnyBuffer>());  // positions

ffi::Error scan_sums(ffi::ThreadPool pool, AnyBuffer codes_, AnyBuffer tables_, AnyBuffer count_,
                     ffi::Result<AnyBuffer> sums_) {
  return guarded([&](const Tier& tier) {
    const Named codes{"codes", codes_}, tables{"tables", tables_}, count{"count", count_}, sums{"sums", *sums_};
    ScanProblem problem = check_codes(codes, tables);
    const int64_t room = problem.vectors;
    check_type(sums, ffi::DataType::S16, "int16");
    check_shape(sums, {problem.queries, room / kSideBySide, kSideBySide});
    problem.vectors = vectors_of(count, room);
    auto* const all = data<int16_t>(sums);
    for (int64_t q = 0; q < problem.queries; ++q) {
      std::fill(all + q * room + problem.vectors, all + (q + 1) * room, int16_t{-1});
    }
    if (problem.queries == 0 || problem.vectors == 0) return;
    scan_sums_in_parts(tier, problem, {data<const uint8_t>(codes), codes.dim(1), 0, problem.vectors},
                       {data<const uint8_t>(tables), problem.queries, problem.codebooks}, {all, room}, pool);
  });
}

XLA_FFI_DEFINE_HANDLER(bound_scan_sums, scan_sums,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<AnyBuffer>()    // codes
                           .Arg<AnyBuffer>()    // tables
                           .Arg<AnyBuffer>()    // count
                           .Ret<AnyBuffer>());  // sums

}  // namespace

XLA_FFI_Error* scan_handler(XLA_FFI_CallFrame* frame) { return bound_scan(frame); }
XLA_FFI_Error* scan_sums_handler(XLA_FFI_CallFrame* frame) { return bound_scan_sums(frame); }

}  // namespace jax_maddness
