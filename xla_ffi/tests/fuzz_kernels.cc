// Every tier against the definitions (definition.h, factors.h) in random sizes, types and contents, for as long as it
// is told to.
#include <algorithm>

#include "xla_ffi/tests/factor_run.h"
#include "xla_ffi/tests/fuzz.h"

namespace jax_maddness::testing {
namespace {

// Mostly small, now and then none, one, or beside a multiple of 16.
int64_t random_size(Random& random, int64_t least, int64_t most) {
  switch (random.below(6)) {
    case 0:
      return least;
    case 1:
      return std::clamp(16 * random.below(most / 16 + 1) + random.below(3) - 1, least, most);
    default:
      return least + random.below(most - least + 1);
  }
}

// Integer factors, or the int8 product.
void run_factors(Random& random) {
  const bool large = random.below(20) == 0;
  const FactorSizes sizes = {random_size(random, 0, large ? 300 : 70), random_size(random, 1, large ? 600 : 70),
                             random.below(3) == 0 ? 0 : 4 * random_size(random, 1, large ? 130 : 20),
                             random_size(random, 0, large ? 300 : 130), random_size(random, 1, 12)};
  const FloatType type = kTypes[random.below(3)];
  const bool by_row = sizes.rank == 0 && random.below(2) == 0;
  for (const Tier* tier : supported_tiers()) {
    Random of_tier = random;
    check_random_factors(*tier, of_tier, sizes, type, by_row);
  }
}

void run_case(uint64_t seed) {
  Random random(seed);
  if (random.below(3) == 0) return run_factors(random);
  const bool large = random.below(20) == 0;
  const int64_t rows = random_size(random, 0, large ? 1200 : 150), features = random_size(random, 1, large ? 400 : 70);
  const int64_t codebooks = random_size(random, 1, large ? 30 : 150), outputs = random_size(random, 0, large ? 90 : 50);
  Problem problem = random_problem(random, rows, features, codebooks, outputs, kTypes[random.below(3)]);
  if (random.below(2) == 0) {
    problem.oblique =
        random_oblique(random, problem.x, rows, features, codebooks, random_size(random, 1, large ? 300 : 40));
  }
  for (const Tier* tier : supported_tiers()) check_tier(*tier, problem, random);
}

}  // namespace
}  // namespace jax_maddness::testing

int main(int argc, char** argv) {
  using namespace jax_maddness::testing;
  const Campaign campaign(argc, argv);
  const int64_t cases = run_campaign(campaign, run_case);
  std::printf("kernels: %ld cases from seed %lu on, on the tiers %s\n", long(cases), campaign.seed,
              jax_maddness::supported_tier_names().c_str());
}
