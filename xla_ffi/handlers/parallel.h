// Runs tasks on XLA's thread pool and on the calling thread.
#ifndef JAX_MADDNESS_HANDLERS_PARALLEL_H_
#define JAX_MADDNESS_HANDLERS_PARALLEL_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

namespace jax_maddness {

// Shared by the caller and its helpers. It outlives the call: a helper that the pool starts late finds no task left,
// and touches nothing else.
class TaskQueue {
 public:
  TaskQueue(int64_t tasks, void (*run)(const void*, int64_t, int64_t), const void* function)
      : tasks_(tasks), run_(run), function_(function) {}

  // Runs tasks until none is left. `function_` lives as long as any task is unfinished: see wait().
  void work() noexcept {
    const int64_t worker = workers_.fetch_add(1, std::memory_order_relaxed);
    for (int64_t task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;) {
      run_(function_, task, worker);
      if (finished_.fetch_add(1, std::memory_order_acq_rel) + 1 == tasks_) {
        const std::lock_guard<std::mutex> lock(mutex_);
        all_finished_.notify_one();
      }
    }
  }

  // Returns when every task is finished, all of them being taken already: it never waits for a helper to start.
  void wait() {
    const auto done = [this] { return finished_.load(std::memory_order_acquire) == tasks_; };
    // A thread that sleeps takes as long to wake as most tasks take to finish.
    const auto patience = std::chrono::steady_clock::now() + std::chrono::microseconds(50);
    do {
      for (int check = 0; check < 16; ++check) {
        if (done()) return;
        relax();
      }
    } while (std::chrono::steady_clock::now() < patience);
    std::unique_lock<std::mutex> lock(mutex_);
    all_finished_.wait(lock, done);
  }

 private:
  // Leaves the core to its other thread, if it has one, for some tens of cycles.
  static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  const int64_t tasks_;
  void (*const run_)(const void*, int64_t, int64_t);
  const void* const function_;
  std::atomic<int64_t> next_{0}, finished_{0}, workers_{0};
  std::mutex mutex_;
  std::condition_variable all_finished_;
};

// Calls function(task, worker) for every task in [0, tasks), on at most `workers` threads, one of them the caller's.
// `worker` is in [0, workers), and no two threads have the same one at a time. `function` must not throw: an exception
// in a pool's task ends the process. Safe on a pool of any size, and from one of the pool's own threads.
template <typename Pool, typename Function>
void parallel_for(Pool& pool, int64_t tasks, int64_t workers, const Function& function) {
  if (workers <= 1 || tasks <= 1) {
    for (int64_t task = 0; task < tasks; ++task) function(task, int64_t{0});
    return;
  }
  const auto run = [](const void* f, int64_t task, int64_t worker) {
    (*static_cast<const Function*>(f))(task, worker);
  };
  const auto queue = std::make_shared<TaskQueue>(tasks, run, &function);
  for (int64_t helper = 1; helper < workers && helper < tasks; ++helper) {
    try {
      pool.Schedule([queue] { queue->work(); });
    } catch (...) {
      break;  // out of memory: go on with the helpers that there are
    }
  }
  queue->work();
  queue->wait();
}

}  // namespace jax_maddness

#endif  // JAX_MADDNESS_HANDLERS_PARALLEL_H_
