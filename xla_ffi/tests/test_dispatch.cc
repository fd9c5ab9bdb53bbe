// The choice of the tier, and the splitting of tasks, on threads and pools of its own.
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#include "xla_ffi/handlers/parallel.h"
#include "xla_ffi/tests/testing.h"

namespace jax_maddness::testing {
namespace {

std::string default_tier() {
  std::string error;
  const Tier* tier = active_tier(&error);
  CHECK(tier != nullptr, "%s", error.c_str());
  return tier->name;
}

struct Needs {
  std::string tier, flags;
};

const Needs kNeeds[] = {
#define JAX_MADDNESS_TIER(architecture, name, flags) {#name, flags},
#include "xla_ffi/kernels/tiers.inc"
#undef JAX_MADDNESS_TIER
};

std::string without(std::string text, char dropped) {
  text.erase(std::remove(text.begin(), text.end(), dropped), text.end());
  return text;
}

// Linux lists AMX where it may still refuse it to a process. `supported` has asked.
bool may_use_tiles() {
  unsigned long permitted = 0;
#if defined(SYS_arch_prctl)
  constexpr long kGetPermission = 0x1022, kTileData = 18;  // ARCH_GET_XCOMP_PERM, XFEATURE_XTILEDATA
  if (syscall(SYS_arch_prctl, kGetPermission, &permitted) == 0) permitted = permitted >> kTileData & 1;
#endif
  return permitted == 1;
}

// /proc/cpuinfo is the judge: a tier is supported exactly where the kernel lists every extension that its file is
// compiled with (-mavx512vnni is avx512_vnni there), and permits what needs permission.
void test_default_is_the_best_of_this_cpu() {
  std::ifstream file("/proc/cpuinfo");
  std::stringstream text;
  text << file.rdbuf();
  const std::string cpu = without(text.str(), '_');
  for (const Tier* tier : all_tiers()) {
    const bool supported = tier->supported();
    bool listed = true;
    for (const Needs& needs : kNeeds) {
      std::istringstream flags(needs.tier == tier->name ? needs.flags : "");
      for (std::string flag; flags >> flag;) {
        const std::string extension = without(flag.substr(std::strlen("-m")), '-');
        listed = listed && cpu.find(" " + extension + " ") != std::string::npos;
        if (extension == "amxtile") listed = listed && may_use_tiles();
      }
    }
    CHECK(supported == listed, "%s: supported is %d, /proc/cpuinfo says %d", tier->name, supported, listed);
  }
  CHECK(default_tier() == supported_tiers().front()->name, "default: %s", default_tier().c_str());
}

void test_set_tier() {
  for (const Tier* tier : supported_tiers()) {
    CHECK(set_tier(tier->name).empty(), "%s", tier->name);
    CHECK(default_tier() == tier->name, "%s", tier->name);
  }
  CHECK(set_tier("scalar").empty(), "scalar");
  for (const char* wrong : {"", "AVX2", "avx3", "scalar "}) {
    const std::string error = set_tier(wrong);
    CHECK(error.find(supported_tier_names()) != std::string::npos, "'%s': '%s'", wrong, error.c_str());
    CHECK(default_tier() == "scalar", "a refused tier changed the active one");
  }
  CHECK(set_tier(nullptr).empty(), "default");
  CHECK(default_tier() == supported_tiers().front()->name, "default");
}

// Starts every task on a thread of its own, late, or never, as a pool does whose only thread is the caller.
struct Pool {
  enum Kind { kPrompt, kLate, kNever } kind;
  std::vector<std::thread> threads;

  template <typename F>
  void Schedule(F&& f) {
    if (kind == kNever) return;
    threads.emplace_back([late = kind == kLate, f = std::forward<F>(f)]() mutable {
      if (late) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      f();
    });
  }
  ~Pool() {
    for (std::thread& thread : threads) thread.join();
  }
};

void test_parallel_for() {
  for (const auto kind : {Pool::kPrompt, Pool::kLate, Pool::kNever}) {
    for (const int64_t tasks : {0, 1, 2, 7, 1000}) {
      for (const int64_t workers : {1, 2, 5}) {
        Pool pool{kind, {}};
        std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks)), busy(static_cast<size_t>(workers));
        parallel_for(pool, tasks, workers, [&](int64_t task, int64_t worker) {
          CHECK(worker >= 0 && worker < workers, "worker %ld of %ld", long(worker), long(workers));
          CHECK(busy[worker].exchange(1) == 0, "two threads are worker %ld", long(worker));
          ++runs[task];
          busy[worker] = 0;
        });
        for (int64_t task = 0; task < tasks; ++task)
          CHECK(runs[task] == 1, "task %ld ran %d times", long(task), int(runs[task]));
      }
    }
  }
}

// The caller has nothing left to do, and gives up its core before the helper is done.
void test_a_caller_sleeps_until_helpers_are_done() {
  Pool pool{Pool::kPrompt, {}};
  std::atomic<bool> helps{false}, done{false};
  parallel_for(pool, 2, 2, [&](int64_t, int64_t worker) {
    if (worker == 0) {
      while (!helps) std::this_thread::yield();  // so that the helper has the other task
    } else {
      helps = true;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      done = true;
    }
  });
  CHECK(done, "parallel_for returned before its helper%s", "");
}

}  // namespace
}  // namespace jax_maddness::testing

int main(int argc, char** argv) {
  using namespace jax_maddness::testing;
  if (argc == 2 && std::strcmp(argv[1], "wrong-environment") == 0) {
    std::string error;
    CHECK(jax_maddness::active_tier(&error) == nullptr, "an unknown JAX_MADDNESS_TIER fell back silently");
    CHECK(error.find("JAX_MADDNESS_TIER") != std::string::npos, "%s", error.c_str());
    CHECK(jax_maddness::set_tier("scalar").empty() && jax_maddness::active_tier(&error) != nullptr,
          "set_tier overrides");
    return 0;
  }
  if (argc == 2 && std::strcmp(argv[1], "scalar-environment") == 0) {
    CHECK(default_tier() == "scalar", "JAX_MADDNESS_TIER=scalar gives %s", default_tier().c_str());
    return 0;
  }
  test_default_is_the_best_of_this_cpu();
  test_set_tier();
  test_parallel_for();
  test_a_caller_sleeps_until_helpers_are_done();
  std::printf("dispatch: %s\n", default_tier().c_str());
}
