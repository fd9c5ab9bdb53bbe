// Every tier's scans of codes at rest, of all and of lists, against loops, at sizes on and beside block edges.
#include <algorithm>
#include <numeric>

#include "xla_ffi/tests/definition.h"

namespace jax_maddness::testing {
namespace {

struct ScanProblem {
  int64_t blocks, count, queries, codebooks, k;
  std::vector<uint8_t> codes, tables;

  int64_t pairs() const { return (codebooks + 1) / 2; }

  int32_t sum(int64_t q, int64_t n) const {
    int32_t sum = 0;
    for (int64_t c = 0; c < codebooks; ++c) {
      const uint8_t both = codes[static_cast<size_t>((n / 64 * pairs() + c / 2) * 64 + n % 64)];
      sum += tables[static_cast<size_t>((q * codebooks + c) * 16 + (c % 2 == 0 ? both & 15 : both >> 4))] & 127;
    }
    return sum;
  }

  // Sums, then positions: [queries][k] each.
  std::vector<int32_t> best() const {
    std::vector<int32_t> sums, positions;
    for (int64_t q = 0; q < queries; ++q) {
      std::vector<std::pair<int32_t, int32_t>> all;  // by ascending pairs: of equal sums the first position
      for (int64_t n = 0; n < count; ++n) all.emplace_back(-sum(q, n), static_cast<int32_t>(n));
      std::sort(all.begin(), all.end());
      for (int64_t i = 0; i < k; ++i) {
        sums.push_back(i < count ? -all[i].first : -1);
        positions.push_back(i < count ? all[i].second : -1);
      }
    }
    sums.insert(sums.end(), positions.begin(), positions.end());
    return sums;
  }
};

// Entries below `most`, with noise in bit 7.
ScanProblem random_scan(Random& random, int64_t count, int64_t queries, int64_t codebooks, int64_t k, int64_t most) {
  ScanProblem p{(count + 63) / 64, count, queries, codebooks, k, {}, {}};
  for (int64_t i = 0; i < p.blocks * p.pairs() * 64; ++i) p.codes.push_back(static_cast<uint8_t>(random.below(256)));
  for (int64_t i = 0; i < queries * codebooks * 16; ++i) {
    p.tables.push_back(static_cast<uint8_t>(random.below(most) + random.below(2) * 128));
  }
  return p;
}

// The whole, and from a block in the middle on, as another task would.
void check_scan(const Tier& tier, const ScanProblem& p, int64_t first_block) {
  const Input<uint8_t> codes(p.codes), tables(p.tables);
  const int64_t first = first_block * 64, count = p.count - first;
  ScanProblem rest = p;
  rest.codes.erase(rest.codes.begin(), rest.codes.begin() + first * p.pairs());
  rest.count = count;
  const std::vector<int32_t> wanted = rest.best();
  const size_t bytes = tier.scan_scratch_bytes(count, p.queries, p.codebooks, p.k);
  const Result<char> scratch(1, static_cast<int64_t>((bytes + 63) / 64 * 64), 0);
  const Result<int32_t> sums(p.queries, p.k, p.k), positions(p.queries, p.k, p.k);
  tier.scan({codes.data() + first * p.pairs(), p.pairs(), first, count}, {tables.data(), p.queries, p.codebooks},
            {sums.data(), positions.data(), p.k}, scratch.data());
  std::vector<int32_t> got = sums.values();
  for (const int32_t position : positions.values()) {
    got.push_back(position < 0 ? position : position - static_cast<int32_t>(first));
  }
  scratch.values();
  for (size_t i = 0; i < wanted.size(); ++i) {
    CHECK(got[i] == wanted[i], "tier %s, %ld vectors from %ld, %ld queries, C = %ld, k = %ld: result %zu is %d, not %d",
          tier.name, long(count), long(first), long(p.queries), long(p.codebooks), long(p.k), i, got[i], wanted[i]);
  }
}

// The sums of all vectors from a block in the middle on, between others of the same result.
void check_sums(const Tier& tier, const ScanProblem& p, int64_t first_block) {
  const Input<uint8_t> codes(p.codes), tables(p.tables);
  const int64_t first = first_block * 64, count = p.count - first;
  const size_t bytes = tier.scan_scratch_bytes(count, p.queries, p.codebooks, 0);
  const Result<char> scratch(1, static_cast<int64_t>((bytes + 63) / 64 * 64), 0);
  const Result<int16_t> sums(p.queries, count, count + 3);
  tier.scan_sums({codes.data() + first * p.pairs(), p.pairs(), first, count}, {tables.data(), p.queries, p.codebooks},
                 {sums.data(), count + 3}, scratch.data());
  const std::vector<int16_t> got = sums.values();
  scratch.values();
  for (int64_t i = 0; i < p.queries * count; ++i) {
    const int32_t wanted = p.sum(i / count, first + i % count);
    CHECK(got[i] == wanted, "tier %s, %ld vectors from %ld, %ld queries, C = %ld: sum %ld is %d, not %d", tier.name,
          long(count), long(first), long(p.queries), long(p.codebooks), long(i), got[i], wanted);
  }
}

void test_sizes() {
  Random random(1);
  const int64_t codebooks[] = {1, 2, 3, 4, 15, 16, 17, 31, 32, 33, 48, 127, 255, 256};
  const int64_t most[] = {1, 2, 16, 128};  // all ties, many, some, few
  const auto pick = [&](const auto& list) { return list[random.below(sizeof list / sizeof *list)]; };
  for (const Tier* tier : tested_tiers()) {
    for (const int64_t count : {1, 2, 63, 64, 65, 127, 128, 129, 300, 1000}) {
      for (const int64_t k : {0, 1, 2, 10, 64, 100, 2000}) {
        const ScanProblem p = random_scan(random, count, random.below(10), pick(codebooks), k, pick(most));
        check_scan(*tier, p, random.below(p.blocks));
        check_sums(*tier, p, random.below(p.blocks));
      }
    }
    for (const int64_t c : codebooks) {
      for (const int64_t queries : {1, 5}) check_scan(*tier, random_scan(random, 200, queries, c, 7, 128), 0);
    }
  }
}

// Sums as large as they may be.
void test_largest_sums() {
  Random random(2);
  for (const Tier* tier : tested_tiers()) {
    ScanProblem p = random_scan(random, 130, 6, 256, 3, 128);
    std::fill(p.tables.begin(), p.tables.end(), 255);
    check_scan(*tier, p, 0);
    check_sums(*tier, p, 0);
  }
}

// Many vectors: buffers fill, again and again where each vector is better than those before.
void test_many_vectors() {
  Random random(3);
  for (const Tier* tier : tested_tiers()) {
    for (const int64_t k : {1, 10, 200}) {
      ScanProblem p = random_scan(random, 12'345, 5, 6, k, 128);
      check_scan(*tier, p, 0);
      for (int64_t q = 0; q < p.queries; ++q) {
        for (int64_t i = 0; i < p.codebooks * 16; ++i) p.tables[q * p.codebooks * 16 + i] = i < 32 ? 8 * (i % 16) : 0;
      }
      for (int64_t n = 0; n < p.count; ++n) {
        p.codes[n / 64 * p.pairs() * 64 + n % 64] = static_cast<uint8_t>(n * 16 / p.count * 17);
      }
      check_scan(*tier, p, 3);
    }
  }
}

// ---- Lists ----

struct ListProblem {
  ScanProblem scan;
  std::vector<int32_t> ranges, levels;
  int64_t count, longest, probe;
};

// Ranges that may reach beyond the codes, or begin before them; few levels, and far ones.
ListProblem random_lists(Random& random, const ScanProblem& scan, int64_t count) {
  ListProblem p{scan, {}, {}, count, random.below(scan.blocks + 2), random.below(count + 1)};
  for (int64_t i = 0; i < count; ++i) {
    p.ranges.push_back(static_cast<int32_t>(random.below(scan.blocks + 3) - 1));
    p.ranges.push_back(static_cast<int32_t>(random.below(200) - 10));
  }
  if (count > 0 && random.below(4) == 0) p.ranges[0] = INT32_MAX, p.ranges[1] = INT32_MAX;
  if (count > 1 && random.below(4) == 0) p.ranges[2] = 0, p.ranges[3] = INT32_MAX;
  for (int64_t i = 0; i < count * scan.queries; ++i) {
    const int32_t levels[] = {
        0, -3, -40'000, -8'388'607, INT32_MIN, INT32_MAX, static_cast<int32_t>(-random.below(200))};
    p.levels.push_back(levels[random.below(random.below(2) == 0 ? 7 : 2)]);
  }
  return p;
}

// Sums, then positions: [queries][k] each. A task that scans the lists from `begin` to before `end`.
std::vector<int32_t> best_of(const ListProblem& p, int64_t begin, int64_t end) {
  std::vector<int32_t> sums, positions;
  for (int64_t q = 0; q < p.scan.queries; ++q) {
    const int32_t* const levels = p.levels.data() + q * p.count;
    std::vector<int64_t> lists(static_cast<size_t>(p.count));
    std::iota(lists.begin(), lists.end(), 0);
    std::stable_sort(lists.begin(), lists.end(), [&](int64_t a, int64_t b) { return levels[a] > levels[b]; });
    std::vector<std::pair<int64_t, int64_t>> all;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t list = lists[static_cast<size_t>(i)];
      const int64_t first = std::clamp<int64_t>(p.ranges[2 * list], 0, p.scan.blocks);
      const int64_t most = std::min(p.scan.blocks - first, p.longest) * 64;
      const int64_t added = std::clamp<int64_t>(int64_t{levels[list]} + kMostAdded, 0, kMostAdded);
      for (int64_t n = 0; n < std::clamp<int64_t>(p.ranges[2 * list + 1], 0, most); ++n) {
        all.emplace_back(-p.scan.sum(q, first * 64 + n) - added, first * 64 + n);
      }
    }
    std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    for (size_t i = 0; i < static_cast<size_t>(p.scan.k); ++i) {
      sums.push_back(i < all.size() ? static_cast<int32_t>(-all[i].first) : -1);
      positions.push_back(i < all.size() ? static_cast<int32_t>(all[i].second) : -1);
    }
  }
  sums.insert(sums.end(), positions.begin(), positions.end());
  return sums;
}

void check_lists(const Tier& tier, const ListProblem& p, int64_t begin, int64_t end) {
  const ScanProblem& s = p.scan;
  const Input<uint8_t> codes(s.codes), tables(s.tables);
  const Input<int32_t> ranges(p.ranges), levels(p.levels);
  const size_t bytes = tier.scan_lists_scratch_bytes(p.probe, s.codebooks, s.k);
  const Result<char> scratch(1, static_cast<int64_t>((bytes + 63) / 64 * 64), 0);
  const Result<int32_t> sums(s.queries, s.k, s.k), positions(s.queries, s.k, s.k);
  tier.scan_lists({codes.data(), s.pairs(), 0, s.blocks * 64},
                  {ranges.data(), levels.data(), p.count, p.longest, p.probe, begin, end},
                  {tables.data(), s.queries, s.codebooks}, {sums.data(), positions.data(), s.k}, scratch.data());
  std::vector<int32_t> got = sums.values();
  const std::vector<int32_t> rest = positions.values(), wanted = best_of(p, begin, end);
  got.insert(got.end(), rest.begin(), rest.end());
  scratch.values();
  for (size_t i = 0; i < wanted.size(); ++i) {
    CHECK(got[i] == wanted[i], "tier %s, lists %ld to %ld of %ld, C = %ld, k = %ld: result %zu is %d, not %d",
          tier.name, long(begin), long(end), long(p.count), long(s.codebooks), long(s.k), i, got[i], wanted[i]);
  }
}

void test_lists() {
  Random random(4);
  for (const Tier* tier : tested_tiers()) {
    for (const int64_t count : {0, 1, 2, 7, 40}) {
      for (const int64_t k : {0, 1, 10, 64, 100, 2000}) {
        const ScanProblem scan =
            random_scan(random, 64 * (1 + random.below(9)), random.below(4), 1 + random.below(20), k, 16);
        const ListProblem p = random_lists(random, scan, count);
        const int64_t begin = random.below(p.probe + 1), end = begin + random.below(p.probe - begin + 1);
        check_lists(*tier, p, 0, p.probe);
        check_lists(*tier, p, begin, end);
      }
    }
    ScanProblem largest = random_scan(random, 192, 2, 256, 5, 128);
    std::fill(largest.tables.begin(), largest.tables.end(), 255);
    const ListProblem p = random_lists(random, largest, 6);
    check_lists(*tier, p, 0, p.probe);
  }
}

}  // namespace
}  // namespace jax_maddness::testing

int main(int argc, char** argv) {
  using namespace jax_maddness::testing;
  return run_on_tiers("scan", argc, argv, [] {
    test_sizes();
    test_largest_sums();
    test_many_vectors();
    test_lists();
  });
}
