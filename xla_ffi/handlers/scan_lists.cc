// The handler for lists of codes at rest: validate, split over the pool, call, merge.
#include <algorithm>

#include "xla/ffi/api/ffi.h"
#include "xla_ffi/handlers/common.h"
#include "xla_ffi/handlers/handlers.h"
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
Division divide(const ScanProblem& problem, const Lists& lists, const ffi::ThreadPool& pool) {
  const double share = static_cast<double>(lists.probe) / static_cast<double>(lists.count);
  Division division{useful_workers(problem.cycles() * share, pool)};
  division.query_parts = std::min(problem.queries, kTasksPerWorker * division.workers);
  if (division.workers > 1)
    division.ranges = std::min(divide_up(2 * division.workers, division.query_parts), lists.probe);
  return division;
}

void scan_in_parts(const Tier& tier, const ScanProblem& problem, const Database& database, const Lists& lists,
                   const QueryTables& tables, const Best& best, ffi::ThreadPool& pool) {
  const Division division = divide(problem, lists, pool);
  const size_t scratch = tier.scan_lists_scratch_bytes(lists.probe, problem.codebooks, problem.k);
  const auto each = static_cast<int64_t>((scratch + 63) / 64 * 64);
  scan_and_merge(division, problem, each, best, pool, [&](int64_t task, const Best& of_task, void* memory) noexcept {
    const Range queries = division.queries_of(task, problem);
    const Range some = part(division.range_of(task), division.ranges, lists.probe, 1);
    Lists own = lists;
    own.levels += queries.begin * lists.count;
    own.begin = some.begin;
    own.end = some.begin + some.count;
    const uint8_t* const values = tables.values + queries.begin * tables.codebooks * kLeaves;
    tier.scan_lists(database, own, {values, queries.count, tables.codebooks}, of_task, memory);
  });
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
