// Time, and the core's clock, by which the micro-benchmarks count cycles.
#ifndef JAX_MADDNESS_TESTS_CLOCK_H_
#define JAX_MADDNESS_TESTS_CLOCK_H_

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "xla_ffi/tests/testing.h"

namespace jax_maddness::testing {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Seconds of one cycle now: about 6 us of dependent additions, one a cycle.
inline double time_of_cycle() {
  constexpr int kSteps = 2000;  // enough for reading the time, some 10 ns, not to count
  uint64_t x = 1;
  const auto start = Clock::now();
  for (int i = 0; i < kSteps; ++i) {
#if defined(__x86_64__)
    // Not by a constant: those the newest Intel cores (from Golden Cove on) add while renaming, several a cycle.
    asm volatile("add %0, %0\nadd %0, %0\nadd %0, %0\nadd %0, %0\nadd %0, %0\nadd %0, %0\nadd %0, %0\nadd %0, %0"
                 : "+r"(x));
#elif defined(__aarch64__)
    asm volatile(
        "add %0, %0, #1\nadd %0, %0, #1\nadd %0, %0, #1\nadd %0, %0, #1\n"
        "add %0, %0, #1\nadd %0, %0, #1\nadd %0, %0, #1\nadd %0, %0, #1"
        : "+r"(x));
#endif
  }
  return seconds_since(start) / (kSteps * 8);
}

// The median number of cycles that `run` took in a quarter of a second, each run's time over that of a cycle just
// before and after it: the clock changes with what runs, and the least of either would come from different clocks.
template <typename Run>
double median_cycles(const Run& run) {
  std::vector<double> cycles;
  double before = time_of_cycle();
  for (const auto start = Clock::now(); seconds_since(start) < 0.25;) {
    const auto begin = Clock::now();
    run();
    const double time = seconds_since(begin), after = time_of_cycle();
    cycles.push_back(2 * time / (before + after));
    before = after;
  }
  std::nth_element(cycles.begin(), cycles.begin() + cycles.size() / 2, cycles.end());
  return cycles[cycles.size() / 2];
}

// What a micro-benchmark is asked for: [--json] [tier ...], by default all tiers of this CPU.
struct Asked {
  bool json;
  std::vector<const Tier*> tiers;

  Asked(int argc, char** argv) : json(argc > 1 && std::strcmp(argv[1], "--json") == 0) {
    char** const names = argv + (json ? 2 : 1);
    char** const end = argv + argc;
    for (const Tier* tier : supported_tiers()) {
      const auto is_named = [tier](const char* name) { return std::strcmp(name, tier->name) == 0; };
      if (names == end || std::any_of(names, end, is_named)) tiers.push_back(tier);
    }
  }
};

}  // namespace jax_maddness::testing

#endif  // JAX_MADDNESS_TESTS_CLOCK_H_
