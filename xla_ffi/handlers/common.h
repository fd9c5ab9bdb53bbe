// Shared by all handlers: splitting of work, scratch memory, errors.
#ifndef JAX_MADDNESS_HANDLERS_COMMON_H_
#define JAX_MADDNESS_HANDLERS_COMMON_H_

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <new>
#include <string>

#include "xla/ffi/api/ffi.h"
#include "xla_ffi/handlers/validate.h"
#include "xla_ffi/kernels/dispatch.h"

namespace jax_maddness {

constexpr int64_t kMostOfARow = int64_t{1} << 40;  // features, or codebooks: only empty arrays have more
constexpr int64_t kTasksPerWorker = 4;             // so that a slow core does not hold up the rest
constexpr double kCyclesPerWorker = 100'000;       // about 35 us, as long as it takes to wake a helper

template <typename T>
T* data(const Named& array) {
  return static_cast<T*>(array.buffer.untyped_data());
}

inline int64_t width(FloatType type) { return type == FloatType::kF32 ? 4 : 2; }

struct Range {
  int64_t begin, count;
};

// Unlike that of kernels/shared/integers.h it never overflows: dimensions of empty arrays may be as large as they like.
inline int64_t divide_up(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// Part `i` of `parts` of [0, size), in whole blocks; the sizes of any two parts differ by at most one block.
inline Range part(int64_t i, int64_t parts, int64_t size, int64_t block) {
  const int64_t blocks = divide_up(size, block), each = blocks / parts, more = blocks % parts;
  const auto edge = [&](int64_t j) { return std::min(size, (j * each + std::min(j, more)) * block); };
  return {edge(i), edge(i + 1) - edge(i)};
}

// The number of threads that pay for work of so many cycles.
inline int64_t useful_workers(double cycles, const ffi::ThreadPool& pool) {
  const double threads = static_cast<double>(std::max<int64_t>(1, pool.num_threads()));
  return static_cast<int64_t>(std::clamp(cycles / kCyclesPerWorker, 1.0, threads));
}

// Scratch memory, one per calling thread, kept between calls: XLA has none on CPU. The caller owns the memory of its
// helpers too, so that no allocation can fail in a thread of the pool.
class Scratch {
 public:
  ~Scratch() { std::free(data_); }

  char* at_least(size_t bytes) {
    if (bytes <= bytes_) return data_;
    std::free(data_);
    bytes_ = 0;
    data_ = static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
    if (data_ == nullptr) throw std::bad_alloc();
    bytes_ = bytes;
    return data_;
  }

 private:
  char* data_ = nullptr;
  size_t bytes_ = 0;
};

inline Scratch& scratch_of_this_thread() {
  thread_local Scratch scratch;
  return scratch;
}

// Runs the body of a handler and turns what it throws into an error of XLA: no exception may leave a handler.
template <typename Body>
ffi::Error guarded(const Body& body) {
  try {
    std::string error;
    const Tier* tier = active_tier(&error);
    if (tier == nullptr) return ffi::Error::InvalidArgument(error);
    body(*tier);
    return ffi::Error::Success();
  } catch (const InvalidArgument& e) {
    return ffi::Error::InvalidArgument(std::string("jax_maddness: ") + e.what());
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "jax_maddness: out of memory for scratch.");
  } catch (const std::exception& e) {
    return ffi::Error::Internal(std::string("jax_maddness: ") + e.what());
  }
}

}  // namespace jax_maddness

#endif  // JAX_MADDNESS_HANDLERS_COMMON_H_
