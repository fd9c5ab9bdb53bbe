// Every tier's keep_greatest, block by block, against a stable sort of all rows.
#include <algorithm>
#include <numeric>
#include <vector>

#include "xla_ffi/tests/definition.h"

namespace jax_maddness::testing {
namespace {

void check_greatest(const Tier& tier, Random& random, int64_t rows, int64_t outputs, int64_t k, int64_t different,
                    int64_t row_bits) {
  const int64_t stride = outputs + 3;
  std::vector<int32_t> sums;
  for (int64_t i = 0; i < rows * stride; ++i)
    sums.push_back(static_cast<int32_t>(random.below(different)) - (row_bits > 0 ? 0 : 2));
  std::vector<uint8_t> skipped;
  for (int64_t n = 0; n < rows; ++n) skipped.push_back(random.below(5) == 0);
  const Input<uint8_t> skip(skipped);
  const std::vector<int32_t> lowest(static_cast<size_t>(k * outputs), INT32_MIN);
  const std::vector<int32_t> none(static_cast<size_t>(k * outputs), -1);
  std::vector<int32_t> best = lowest, at = none;
  for (int64_t n = 0; n < rows; n += 7) {
    const int64_t count = std::min<int64_t>(7, rows - n);
    const auto begin = sums.begin() + n * stride;
    const Input<int32_t> block(std::vector<int32_t>(begin, begin + count * stride));
    tier.keep_greatest(block.data(), stride, {skip.data(), n, count}, outputs,
                       {best.data(), at.data(), k, outputs, row_bits});
  }
  for (int64_t m = 0; m < outputs; ++m) {
    std::vector<int32_t> order;
    for (int64_t n = 0; n < rows; ++n) {
      if (skipped[static_cast<size_t>(n)] == 0) order.push_back(static_cast<int32_t>(n));
    }
    const auto sum = [&](int32_t n) { return sums[static_cast<size_t>(n * stride + m)]; };
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return sum(a) > sum(b); });
    for (int64_t i = 0; i < k; ++i) {
      const bool exists = i < static_cast<int64_t>(order.size());
      const int32_t wanted_at = exists ? order[static_cast<size_t>(i)] : -1,
                    wanted = exists ? sum(wanted_at) : INT32_MIN;
      const auto place = static_cast<size_t>(i * outputs + m);
      CHECK(best[place] == wanted && at[place] == wanted_at, "tier %s, %ld rows, k = %ld: %d at %d, not %d at %d",
            tier.name, long(rows), long(k), best[place], at[place], wanted, wanted_at);
    }
  }
}

void test_sizes() {
  Random random(1);
  for (const Tier* tier : tested_tiers()) {
    for (const int64_t outputs : {1, 15, 16, 17, 32, 40}) {
      for (const int64_t k : {1, 2, 3, 4, 5, 8, 9, 16}) {
        for (const int64_t rows : {0, 1, 7, 30, 32}) {
          for (const int64_t row_bits : {0, 5, 11}) {  // 32 rows have five, and sums below 2 ** 20 fit beside eleven
            check_greatest(*tier, random, rows, outputs, k, k % 2 ? 4 : 1 << 20, row_bits);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace jax_maddness::testing

int main(int argc, char** argv) {
  using namespace jax_maddness::testing;
  return run_on_tiers("greatest", argc, argv, test_sizes);
}
