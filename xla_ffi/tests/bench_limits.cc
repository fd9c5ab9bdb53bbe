// What this machine's memory and clock allow, one thread, as one JSON object:
//
//   bench_limits [--clock]        --clock: that alone, in a few milliseconds
//
// Bytes per second are the best of several passes, as other processes can only slow one down: these are roofs.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "xla_ffi/tests/clock.h"

#if defined(__x86_64__)
#include <emmintrin.h>
// One function for each width of register, the best being chosen when the program is loaded.
#define WIDEST __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDEST
#endif

namespace jax_maddness::testing {
namespace {

typedef uint64_t Line __attribute__((vector_size(64)));

WIDEST uint64_t read(const char* data, size_t bytes) {
  const Line* lines = reinterpret_cast<const Line*>(data);
  Line a{}, b{}, c{}, d{};
  for (size_t i = 0; i < bytes / 64; i += 4) {
    a |= lines[i];
    b |= lines[i + 1];
    c |= lines[i + 2];
    d |= lines[i + 3];
  }
  const Line all = a | b | c | d;
  return all[0] | all[1] | all[2] | all[3] | all[4] | all[5] | all[6] | all[7];
}

WIDEST void write(char* data, size_t bytes) {
  Line* lines = reinterpret_cast<Line*>(data);
  for (size_t i = 0; i < bytes / 64; ++i) lines[i] = Line{i};
}

// Past the cache.
void stream(char* data, size_t bytes) {
#if defined(__x86_64__)
  const __m128i value = _mm_set1_epi8(1);
  for (size_t i = 0; i < bytes; i += 16) _mm_stream_si128(reinterpret_cast<__m128i*>(data + i), value);
  _mm_sfence();
#else
  write(data, bytes);
#endif
}

// The most GB/s at which `run` goes through `bytes`, in a quarter of a second and three passes at least.
template <typename Run>
double gigabytes_per_second(size_t bytes, const Run& run) {
  double best = 1e30;
  int passes = 0;
  for (const auto start = Clock::now(); passes < 4 || seconds_since(start) < 0.25; ++passes) {
    const auto begin = Clock::now();
    run();
    if (passes > 0) best = std::min(best, seconds_since(begin));  // the first one brings the data near
  }
  return 1e-9 * static_cast<double>(bytes) / best;
}

// Milliseconds to get 32 MB of fresh memory from the kernel and touch every page of it.
double fresh_memory_ms(bool huge) {
  constexpr size_t kBytes = size_t{32} << 20, kPage = 4096;
  double best = 1e30;
  for (int i = 0; i < 5; ++i) {
    const auto start = Clock::now();
    void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::exit(1);
#if defined(MADV_HUGEPAGE)
    madvise(memory, kBytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#endif
    volatile char* bytes = static_cast<char*>(memory);
    for (size_t at = 0; at < kBytes; at += kPage) bytes[at] = 1;
    best = std::min(best, seconds_since(start));
    munmap(memory, kBytes);
  }
  return 1e3 * best;
}

// The middle of many readings: a moment's interruption only makes the clock look slow.
double clock_ghz() {
  std::vector<double> readings;
  for (int i = 0; i < 1000; ++i) readings.push_back(1e-9 / time_of_cycle());
  std::nth_element(readings.begin(), readings.begin() + 500, readings.end());
  return readings[500];
}

void print_bandwidths() {
  constexpr size_t kMost = size_t{256} << 20;
  const std::unique_ptr<char, void (*)(void*)> memory(static_cast<char*>(std::aligned_alloc(4096, kMost)), &std::free);
  char* data = memory.get();
  if (data == nullptr) std::exit(1);
  std::memset(data, 1, kMost);
  uint64_t keep = 0;
  const auto print = [&](const char* name, const auto& run) {
    const char* comma = "";
    std::printf(", \"%s\": {", name);
    for (const size_t megabytes : {1, 16, 256}) {
      const size_t bytes = megabytes << 20;
      std::printf("%s\"%zu\": %.2f", comma, megabytes, gigabytes_per_second(bytes, [&] { run(bytes); }));
      comma = ", ";
    }
    std::printf("}");
  };
  print("read_gb_s", [&](size_t bytes) { keep |= read(data, bytes); });
  print("store_gb_s", [&](size_t bytes) { write(data, bytes); });
  print("streaming_store_gb_s", [&](size_t bytes) { stream(data, bytes); });
  if (keep == 0) std::fprintf(stderr, "read nothing\n");  // so that no compiler leaves the reading out
}

}  // namespace
}  // namespace jax_maddness::testing

int main(int argc, char** argv) {
  using namespace jax_maddness::testing;
  std::printf("{\"clock_ghz\": %.3f", clock_ghz());
  if (argc == 1 || std::strcmp(argv[1], "--clock") != 0) {
    print_bandwidths();
    std::printf(", \"fresh_32mb_ms\": {\"pages\": %.3f, \"huge_pages\": %.3f}", fresh_memory_ms(false),
                fresh_memory_ms(true));
  }
  std::printf("}\n");
}
