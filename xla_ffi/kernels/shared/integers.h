// For tier files only: everything here has internal linkage, so that no tier's instructions reach another file. (An
// inline function with external linkage, std::min among them, may be compiled in several tiers, and the linker keeps
// one copy for all: that of AVX-512, say.)
#ifndef JAX_MADDNESS_KERNELS_SHARED_INTEGERS_H_
#define JAX_MADDNESS_KERNELS_SHARED_INTEGERS_H_

#include <cstdint>

namespace jax_maddness {
namespace {

constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// Of non-negative numbers.
constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

}  // namespace
}  // namespace jax_maddness

#endif  // JAX_MADDNESS_KERNELS_SHARED_INTEGERS_H_
