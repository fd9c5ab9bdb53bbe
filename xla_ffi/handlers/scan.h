// Shared by the handlers that scan codes at rest: their sizes, checks, and merging.
#ifndef JAX_MADDNESS_HANDLERS_SCAN_H_
#define JAX_MADDNESS_HANDLERS_SCAN_H_

#include <algorithm>

#include "xla_ffi/handlers/common.h"
#include "xla_ffi/handlers/parallel.h"
#include "xla_ffi/handlers/validate.h"

namespace jax_maddness {

constexpr double kLookupsPerCycle = 32;

struct ScanProblem {
  int64_t vectors, queries, codebooks, k;

  double cycles() const {
    return static_cast<double>(vectors) * static_cast<double>(queries) * static_cast<double>(codebooks) /
           kLookupsPerCycle;
  }
};

// Checks codes and tables; `k` is 0.
inline ScanProblem check_codes(const Named& codes, const Named& tables) {
  check_type(codes, ffi::DataType::U8, "uint8");
  check_type(tables, ffi::DataType::U8, "uint8");
  for (const Named& array : {codes, tables}) {
    if (array.rank() != 3) throw InvalidArgument(describe(array) + " must have three dimensions.");
  }
  const int64_t blocks = codes.dim(0), queries = tables.dim(0), codebooks = tables.dim(1);
  if (codebooks < 1 || codebooks > kMaxCodebooks) {
    throw InvalidArgument(describe(tables) + " must have 1 to " + std::to_string(kMaxCodebooks) + " codebooks.");
  }
  if (blocks > INT32_MAX / kSideBySide) throw InvalidArgument(describe(codes) + " has too many blocks.");
  check_shape(codes, {blocks, divide_up(codebooks, 2), kSideBySide});
  check_shape(tables, {queries, codebooks, kLeaves});
  return {blocks * kSideBySide, queries, codebooks, 0};
}

// Checks everything about the arrays of a scan that they all have.
inline ScanProblem check_scan(const Named& codes, const Named& tables, const Named& sums, const Named& positions) {
  ScanProblem problem = check_codes(codes, tables);
  for (const Named& array : {sums, positions}) {
    check_type(array, ffi::DataType::S32, "int32");
    if (array.rank() != 2) throw InvalidArgument(describe(array) + " must have two dimensions.");
    check_shape(array, {problem.queries, sums.dim(1)});
  }
  problem.k = sums.dim(1);
  return problem;
}

// The result where no vector counts.
inline void fill_missing(const Best& best, int64_t queries) noexcept {
  std::fill(best.sums, best.sums + queries * best.k, -1);
  std::fill(best.positions, best.positions + queries * best.k, -1);
}

// Merges the best vectors of all ranges, each of them [queries][k] with the best first. Of equal sums,
// that of the first range comes first.
inline void merge(const Best& of_ranges, int64_t ranges, int64_t queries, const Best& best, int64_t* taken) noexcept {
  for (int64_t q = 0; q < queries; ++q) {
    std::fill(taken, taken + ranges, 0);
    for (int64_t i = q * best.k; i < (q + 1) * best.k; ++i) {
      int64_t from = 0, at = -1;
      for (int64_t r = 0; r < ranges; ++r) {
        const int64_t next = (r * queries + q) * best.k + taken[r];  // taken[r] <= i - q * k < k
        if (at < 0 || of_ranges.sums[next] > of_ranges.sums[at]) from = r, at = next;
      }
      best.sums[i] = of_ranges.sums[at];
      best.positions[i] = of_ranges.positions[at];
      ++taken[from];
    }
  }
}

// The tasks of a scan: each is a range, of vectors or of lists, and some of the queries.
struct Division {
  int64_t workers, query_parts = 1, ranges = 1;

  int64_t range_of(int64_t task) const { return task / query_parts; }
  Range queries_of(int64_t task, const ScanProblem& problem) const {
    return part(task % query_parts, query_parts, problem.queries, 1);
  }
};

// Runs scan(task, best, scratch) for every task, each with `each` bytes of scratch memory, and merges what the ranges
// found.
template <typename Scan>
void scan_and_merge(const Division& division, const ScanProblem& problem, int64_t each, const Best& best,
                    ffi::ThreadPool& pool, const Scan& scan) {
  const int64_t workers = division.workers, ranges = division.ranges;
  const int64_t results = ranges == 1 ? 0 : ranges * problem.queries * problem.k;
  char* const memory =
      scratch_of_this_thread().at_least(static_cast<size_t>(each * workers + results * 8 + ranges * 8));
  auto* const of_ranges = reinterpret_cast<int32_t*>(memory + each * workers);
  const Best parts = ranges == 1 ? best : Best{of_ranges, of_ranges + results, problem.k};
  parallel_for(pool, division.query_parts * ranges, workers, [&](int64_t task, int64_t worker) noexcept {
    const int64_t first = division.queries_of(task, problem).begin;
    const int64_t to = (division.range_of(task) * problem.queries + first) * problem.k;
    scan(task, Best{parts.sums + to, parts.positions + to, problem.k}, memory + each * worker);
  });
  if (ranges == 1) return;
  merge(parts, ranges, problem.queries, best, reinterpret_cast<int64_t*>(of_ranges + 2 * results));
}

}  // namespace jax_maddness

#endif  // JAX_MADDNESS_HANDLERS_SCAN_H_
