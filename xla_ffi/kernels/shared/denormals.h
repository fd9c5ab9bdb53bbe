// For tier files only: everything here has internal linkage, so that no tier's instructions reach another file.
#ifndef JAX_MADDNESS_KERNELS_SHARED_DENORMALS_H_
#define JAX_MADDNESS_KERNELS_SHARED_DENORMALS_H_

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace jax_maddness {
namespace {

// While one lives, denormals count, or are flushed to zero: XLA runs its threads with DAZ and FTZ set, under which
// 1e-40 > 0 is false. The floating-point settings of the caller come back at the end. The barriers keep loads of data
// after the one switch and stores of results before the other, and with them all arithmetic between.
template <bool kCount>
class Denormals {
 public:
  Denormals() : saved_(get()) { set(kCount ? saved_ & ~kFlush : saved_ | kFlush); }
  ~Denormals() { set(saved_); }
  Denormals(const Denormals&) = delete;
  Denormals& operator=(const Denormals&) = delete;

 private:
#if defined(__x86_64__)
  using Word = uint32_t;
  static constexpr Word kFlush = 0x8040;  // FTZ and DAZ of MXCSR
  static Word get() { return _mm_getcsr(); }
  static void set(Word word) {
    asm volatile("" ::: "memory");
    _mm_setcsr(word);
    asm volatile("" ::: "memory");
  }
#elif defined(__aarch64__)
  using Word = uint64_t;
  static constexpr Word kFlush = Word{1} << 24 | Word{1} << 19;  // FZ and FZ16 of FPCR; no conversion from f16 flushes
  static Word get() {
    Word word;
    asm volatile("mrs %0, fpcr" : "=r"(word));
    return word;
  }
  static void set(Word word) { asm volatile("msr fpcr, %0" ::"r"(word) : "memory"); }
#else
  using Word = uint32_t;
  static constexpr Word kFlush = 0;
  static Word get() { return 0; }
  static void set(Word) {}
#endif
  const Word saved_;
};

using CountDenormals = Denormals<true>;
using FlushDenormals = Denormals<false>;

}  // namespace
}  // namespace jax_maddness

#endif  // JAX_MADDNESS_KERNELS_SHARED_DENORMALS_H_
