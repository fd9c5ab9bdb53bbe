// Shared by the tests and the micro-benchmarks: checks, random numbers, aligned memory.
#ifndef JAX_MADDNESS_TESTS_TESTING_H_
#define JAX_MADDNESS_TESTS_TESTING_H_

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "xla_ffi/kernels/dispatch.h"

// Ends the test with the line and a message in printf's manner.
#define CHECK(condition, ...)                                                \
  do {                                                                       \
    if (!(condition)) {                                                      \
      std::fprintf(stderr, "%s:%d: %s\n  ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                     \
      std::fprintf(stderr, "\n");                                            \
      std::exit(1);                                                          \
    }                                                                        \
  } while (false)

namespace jax_maddness::testing {

inline std::vector<const Tier*> supported_tiers() {
  std::vector<const Tier*> tiers;
  for (const Tier* tier : all_tiers()) {
    if (tier->supported()) tiers.push_back(tier);
  }
  return tiers;
}

struct Random {
  std::mt19937_64 engine;
  explicit Random(uint64_t seed) : engine(seed) {}
  int64_t below(int64_t end) { return static_cast<int64_t>(engine() % static_cast<uint64_t>(end)); }
  float normal() { return std::normal_distribution<float>()(engine); }
};

// Memory aligned to 64 bytes, as scratch must be.
class AlignedBytes {
 public:
  explicit AlignedBytes(size_t bytes)
      : bytes_(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64)), &std::free) {}
  char* data() const { return bytes_.get(); }

 private:
  std::unique_ptr<char, void (*)(void*)> bytes_;
};

}  // namespace jax_maddness::testing

#endif  // JAX_MADDNESS_TESTS_TESTING_H_
