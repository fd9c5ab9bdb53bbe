// Time, and the core's clock, by which the micro-benchmarks count cycles.
#ifndef JAX_MADDNESS_TESTS_CLOCK_H_
#define JAX_MADDNESS_TESTS_CLOCK_H_

#include <chrono>
#include <cstdint>

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

}  // namespace jax_maddness::testing

#endif  // JAX_MADDNESS_TESTS_CLOCK_H_
