// The handler for lists of codes at rest: validate, split over the pool, call, merge.
#include <algorithm>

#include "xla/ffi/api/ffi.h"
#include "xla_ffi/handlers/common.h"
#include "xla_ffi/handlers/handlers.h"
#include "xla_ffi/handlers/parallel.h"
#include "xla_ffi/handlers/scan.h"
#include "xla_ffi/handlers/validate.h"

namespace jax_maddness {
namespace {

using ffi::AnyBuffer;

// Checks the lists and returns them: ranges are clipped where they are read (scan_lists.inc).
Lists check_lists(const ScanProblem& problem, const Named& ranges, const Named& levels, const Named& probe,
                  const Named& longest) {
  for (const Named& array : {ranges, levels, probe, longest}) check_type(array, ffi::DataType::S32, "int32");
  if (ranges.rank() != 2) throw InvalidArgument(describe(ranges) + " must have two dimensions.");
  const int64_t count = ranges.dim(0);
  check_shape(ranges, {count, 2});
  check_shape(levels, {problem.queries, count});
  for (const Named& array : {probe, longest}) check_shape(array, {});
  const int64_t scanned = std::clamp<int64_t>(*data<const int32_t>(probe), 0, count);
  return {data<const int32_t>(ranges),
          data<const int32_t>(levels),
          count,
          std::max<int64_t>(*data<const int32_t>(longest), 0),
          scanned,
          0,
          scanned};
}

// A task is some queries, or some of the lists of one query, whose best vectors are then merged. Lists are taken to be
// as long as they are on average.
struct Split {
  int64_t workers, query_parts, ranges = 1;

  Split(const ScanProblem& problem, const Lists& lists, const ffi::ThreadPool& pool)
      : workers(useful_workers(problem.cycles() * static_cast<double>(lists.probe) / static_cast<double>(lists.count),
                               pool)),
        query_parts(std::min(problem.queries, kTasksPerWorker * workers)) {
    if (workers > 1) ranges = std::min(divide_up(2 * workers, query_parts), lists.probe);
  }
};

void scan_in_parts(const Tier& tier, const ScanProblem& problem, const Database& database, const Lists& lists,
                   const QueryTables& tables, const Best& best, ffi::ThreadPool& pool) {
  const Split split(problem, lists, pool);
  const size_t scratch = tier.scan_lists_scratch_bytes(lists.probe, problem.codebooks, problem.k);
  const auto each = static_cast<int64_t>((scratch + 63) / 64 * 64);
  const int64_t results = split.ranges == 1 ? 0 : split.ranges * problem.queries * problem.k;
  const size_t bytes = static_cast<size_t>(each * split.workers + results * 8 + split.ranges * 8);
  char* const memory = scratch_of_this_thread().at_least(bytes);
  auto* const of_ranges = reinterpret_cast<int32_t*>(memory + each * split.workers);
  const Best parts = split.ranges == 1 ? best : Best{of_ranges, of_ranges + results, problem.k};
  parallel_for(pool, split.query_parts * split.ranges, split.workers, [&](int64_t task, int64_t worker) noexcept {
    const int64_t range = task / split.query_parts;
    const Range queries = part(task % split.query_parts, split.query_parts, problem.queries, 1);
    const Range some = part(range, split.ranges, lists.probe, 1);
    Lists own = lists;
    own.levels += queries.begin * lists.count;
    own.begin = some.begin;
    own.end = some.begin + some.count;
    const int64_t to = (range * problem.queries + queries.begin) * problem.k;
    tier.scan_lists(database, own,
                    {tables.values + queries.begin * tables.codebooks * kLeaves, queries.count, tables.codebooks},
                    {parts.sums + to, parts.positions + to, problem.k}, memory + each * worker);
  });
  if (split.ranges == 1) return;
  merge(parts, split.ranges, problem.queries, best, reinterpret_cast<int64_t*>(of_ranges + 2 * results));
}

ffi::Error scan_lists(ffi::ThreadPool pool, AnyBuffer codes_, AnyBuffer tables_, AnyBuffer ranges_, AnyBuffer levels_,
                      AnyBuffer probe_, AnyBuffer longest_, ffi::Result<AnyBuffer> sums_,
                      ffi::Result<AnyBuffer> positions_) {
  return guarded([&](const Tier& tier) {
    const Named codes{"codes", codes_}, tables{"tables", tables_}, sums{"sums", *sums_},
        positions{"positions", *positions_};
    const ScanProblem problem = check_scan(codes, tables, sums, positions);
    const Lists lists =
        check_lists(problem, {"ranges", ranges_}, {"levels", levels_}, {"probe", probe_}, {"longest", longest_});
    if (problem.queries == 0 || problem.k == 0) return;
    const Best best = {data<int32_t>(sums), data<int32_t>(positions), problem.k};
    if (problem.vectors == 0 || lists.probe == 0) return fill_missing(best, problem.queries);
    scan_in_parts(tier, problem, {data<const uint8_t>(codes), codes.dim(1), 0, problem.vectors}, lists,
                  {data<const uint8_t>(tables), problem.queries, problem.codebooks}, best, pool);
  });
}

XLA_FFI_DEFINE_HANDLER(bound_scan_lists, scan_lists,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<AnyBuffer>()    // codes
                           .Arg<AnyBuffer>()    // tables
                           .Arg<AnyBuffer>()    // ranges
                           .Arg<AnyBuffer>()    // levels
                           .Arg<AnyBuffer>()    // probe
                           .Arg<AnyBuffer>()    // longest
                           .Ret<AnyBuffer>()    // sums
                           .Ret<AnyBuffer>());  // positions

}  // namespace

XLA_FFI_Error* scan_lists_handler(XLA_FFI_CallFrame* frame) { return bound_scan_lists(frame); }

}  // namespace jax_maddness
