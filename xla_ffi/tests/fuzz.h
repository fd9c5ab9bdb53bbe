// Shared by the fuzzers: cases are numbered, and the number of a case is the seed of all that is random in it. A case
// that fails, or that a sanitizer ends, prints the command that repeats it.
#ifndef JAX_MADDNESS_TESTS_FUZZ_H_
#define JAX_MADDNESS_TESTS_FUZZ_H_

#include <chrono>
#include <thread>

#include "xla_ffi/tests/testing.h"

extern "C" void __sanitizer_set_death_callback(void (*)()) __attribute__((weak));  // absent without sanitizers

namespace jax_maddness::testing {

struct Campaign {
  const char* program;
  double seconds = 10;
  uint64_t seed = 0;
  int64_t cases = INT64_MAX;
  int64_t threads = 1;

  Campaign(int argc, char** argv) : program(argv[0]) {
    for (int i = 1; i < argc; i += 2) {
      const auto is = [&](const char* option) { return std::strcmp(argv[i], option) == 0 && i + 1 < argc; };
      if (is("--seconds")) {
        seconds = std::atof(argv[i + 1]);
      } else if (is("--seed")) {
        seed = std::strtoull(argv[i + 1], nullptr, 10);
      } else if (is("--cases")) {
        cases = std::atoll(argv[i + 1]);
      } else if (is("--threads")) {
        threads = std::atoll(argv[i + 1]);
      } else {
        std::fprintf(stderr, "usage: %s [--seconds S] [--seed N] [--cases N] [--threads N]\n", program);
        std::exit(2);
      }
    }
  }
};

inline const Campaign* running = nullptr;
inline thread_local int64_t current_seed = -1;  // of the case that this thread runs

inline void say_how_to_repeat() {
  if (current_seed < 0) return;
  std::fprintf(stderr, "Repeat it with: %s --seed %ld --cases 1\n", running->program, static_cast<long>(current_seed));
  current_seed = -1;
}

// Runs `run_case(seed)` with one seed after the other, until the time is over, on as many threads as the campaign asks
// for: thread t takes every `threads`th seed. Returns how many cases ran.
template <typename Case>
int64_t run_campaign(const Campaign& campaign, const Case& run_case) {
  using clock = std::chrono::steady_clock;
  running = &campaign;
  std::atexit(say_how_to_repeat);
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(say_how_to_repeat);
  const auto end = clock::now() + std::chrono::duration<double>(campaign.seconds);
  std::vector<int64_t> ran(static_cast<size_t>(campaign.threads));
  const auto work = [&](int64_t thread) {
    for (int64_t i = thread; i < campaign.cases && (i == thread || clock::now() < end); i += campaign.threads) {
      current_seed = static_cast<int64_t>(campaign.seed) + i;
      run_case(static_cast<uint64_t>(current_seed));
      ++ran[static_cast<size_t>(thread)];
    }
    current_seed = -1;
  };
  std::vector<std::thread> others;
  for (int64_t thread = 1; thread < campaign.threads; ++thread) others.emplace_back(work, thread);
  work(0);
  for (std::thread& thread : others) thread.join();
  int64_t total = 0;
  for (const int64_t count : ran) total += count;
  return total;
}

}  // namespace jax_maddness::testing

#endif  // JAX_MADDNESS_TESTS_FUZZ_H_
