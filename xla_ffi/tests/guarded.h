// Arrays that catch a kernel reading or writing outside of them; conversions of the 16-bit types, in doubles.
#ifndef JAX_MADDNESS_TESTS_GUARDED_H_
#define JAX_MADDNESS_TESTS_GUARDED_H_

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "xla_ffi/tests/testing.h"

namespace jax_maddness::testing {

// Memory that ends at a page that may not be touched: reading past the end crashes.
class EndOfMemory {
 public:
  explicit EndOfMemory(size_t bytes) : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
    pages_ = (bytes + page_ - 1) / page_ * page_ + page_;
    base_ = mmap(nullptr, pages_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(base_ != MAP_FAILED, "mmap of %zu bytes", pages_);
    begin_ = static_cast<char*>(base_) + pages_ - page_ - bytes;
    CHECK(mprotect(static_cast<char*>(base_) + pages_ - page_, page_, PROT_NONE) == 0, "mprotect");
  }
  EndOfMemory(const EndOfMemory&) = delete;
  ~EndOfMemory() { munmap(base_, pages_); }
  char* begin() const { return begin_; }

 private:
  size_t page_, pages_;
  void* base_;
  char* begin_;
};

template <typename T>
class Input {
 public:
  explicit Input(const std::vector<T>& values) : memory_(values.size() * sizeof(T)) {
    if (!values.empty()) std::memcpy(memory_.begin(), values.data(), values.size() * sizeof(T));
  }
  const T* data() const { return reinterpret_cast<const T*>(memory_.begin()); }

 private:
  EndOfMemory memory_;
};

// Rows of `columns` elements, `stride` apart. The gaps between rows and the bytes before the first must stay as they
// are; after the last element memory ends.
template <typename T>
class Result {
 public:
  Result(int64_t rows, int64_t columns, int64_t stride)
      : rows_(rows), columns_(columns), stride_(stride), memory_(kFront + bytes()) {
    std::memset(memory_.begin(), kFill, kFront + bytes());
  }

  T* data() const { return reinterpret_cast<T*>(memory_.begin() + kFront); }

  std::vector<T> values() const {
    for (size_t i = 0; i < kFront; ++i) check_fill(memory_.begin() + i);
    std::vector<T> result;
    for (int64_t n = 0; n < rows_; ++n) {
      result.insert(result.end(), data() + n * stride_, data() + n * stride_ + columns_);
      if (n + 1 == rows_) break;
      const char* gap = reinterpret_cast<const char*>(data() + n * stride_ + columns_);
      for (size_t i = 0; i < static_cast<size_t>(stride_ - columns_) * sizeof(T); ++i) check_fill(gap + i);
    }
    return result;
  }

 private:
  static constexpr size_t kFront = 128;
  static constexpr unsigned char kFill = 0xa5;

  static void check_fill(const char* byte) {
    CHECK(static_cast<unsigned char>(*byte) == kFill, "a kernel wrote outside of its output");
  }
  size_t bytes() const { return rows_ == 0 ? 0 : static_cast<size_t>((rows_ - 1) * stride_ + columns_) * sizeof(T); }

  const int64_t rows_, columns_, stride_;
  EndOfMemory memory_;
};

// ---- bf16 and f16 by their definitions: sign * significand * 2^exponent ----

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Exact. f32 itself is taken as its bits.
inline float widen(uint32_t bits, FloatType type) {
  if (type == FloatType::kF32) return float_of(bits);
  if (type == FloatType::kBF16) return float_of(bits << 16);
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  if (exponent == 31) magnitude = fraction != 0 ? std::nan("") : HUGE_VAL;
  return static_cast<float>(bits >> 15 ? -magnitude : magnitude);
}

// To the nearest, ties to even, by counting steps of the type's spacing at that magnitude, in double: exact.
inline uint32_t round_to(float value, FloatType type) {
  if (type == FloatType::kF32) return bits_of(value);
  const bool f16 = type == FloatType::kF16;
  const int digits = f16 ? 11 : 8, least = f16 ? -14 : -126, infinity = f16 ? 0x7c00 : 0x7f80;
  const uint32_t sign = bits_of(value) >> 31 << 15;
  if (std::isnan(value)) return sign | static_cast<uint32_t>(infinity) | 0x200 | 0x40;
  if (std::isinf(value)) return sign | static_cast<uint32_t>(infinity);
  const double magnitude = std::fabs(static_cast<double>(value));
  int exponent = least;
  if (magnitude > 0) exponent = std::max(least, std::ilogb(magnitude));
  const double steps = std::nearbyint(std::ldexp(magnitude, digits - 1 - exponent));
  // Patterns of one sign are consecutive integers, across binades, and up to infinity.
  const double pattern = std::ldexp(exponent - least, digits - 1) + steps;
  return sign | static_cast<uint32_t>(std::min(pattern, static_cast<double>(infinity)));
}

inline std::vector<char> in_type(const std::vector<float>& values, FloatType type) {
  const size_t width = type == FloatType::kF32 ? 4 : 2;
  std::vector<char> bytes(values.size() * width);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint32_t bits = round_to(values[i], type);
    std::memcpy(bytes.data() + i * width, &bits, width);
  }
  return bytes;
}

}  // namespace jax_maddness::testing

#endif  // JAX_MADDNESS_TESTS_GUARDED_H_
