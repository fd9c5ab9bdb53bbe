// Fewer page faults on large results.
#ifndef JAX_MADDNESS_HUGE_PAGES_H_
#define JAX_MADDNESS_HUGE_PAGES_H_

#include <cstddef>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace jax_maddness {

// Asks for huge pages under a large result. XLA allocates it afresh for every call, and the first write to each 4 KB
// page of it is a fault: at 8192 x 1024 x 1024 these cost as much as the product. Advice only, where the system has
// huge pages. From 32 MB on glibc takes memory from the system for each allocation and gives it back, so that the
// advice ends with the buffer; smaller results come from the heap, are warm after the first call, and are left alone.
inline void advise_huge_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  if (bytes < 16 * kPage) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace jax_maddness

#endif  // JAX_MADDNESS_HUGE_PAGES_H_
