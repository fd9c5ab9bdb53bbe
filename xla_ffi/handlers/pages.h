// Prepares the memory of a large result: fewer page faults, and stores that suit it.
#ifndef JAX_MADDNESS_HANDLERS_PAGES_H_
#define JAX_MADDNESS_HANDLERS_PAGES_H_

#include <cstddef>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace jax_maddness {

// XLA allocates the result anew in every call. From 32 MB on, and at times for less, glibc takes it from the system
// and gives it back. Its pages are then missing, and the first write to each 4 KB is a page fault: 10-12 ms for 32 MB.
// Asking for huge pages, all at once, takes 2.2-4.5 ms. Lines of a result larger than the second-level cache are
// written past the caches: 8192 x 1024 x 1024 (C = 64) takes 11.2 ms instead of 14.6 among other work, 2048 x 1024 x
// 1024 (C = 128) 2.2 instead of 3.4, and with a reader that follows at once 3.2 instead of 4.3. At 4 MB that reader
// loses. (One thread, Sapphire Rapids, 2026-11-24. Asking for the pages of a part of the result just before it is
// written, so that it is still in the cache, gained nothing.)
class ResultPages {
 public:
  ResultPages(const void* data, size_t bytes)
      : missing_(bytes >= kLarge && is_missing(data, bytes)), streams_(bytes >= kStreamed) {
    if (missing_) ask_for_huge_pages(data, bytes);
  }

  // Whether lines should be written past the cache: that pays where they would leave the cache anyway.
  bool streams() const { return streams_; }

  // Makes the pages of a part of the result present, which its thread is about to write. Advice: may do nothing.
  void populate(void* data, size_t bytes) const noexcept {
#ifdef __linux__
    constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, Linux 5.14
    if (!missing_) return;
    const uintptr_t page = page_size(), begin = reinterpret_cast<uintptr_t>(data) / page * page;
    (void)madvise(reinterpret_cast<void*>(begin), reinterpret_cast<uintptr_t>(data) + bytes - begin, kPopulateWrite);
#else
    (void)data;
    (void)bytes;
#endif
  }

 private:
  static constexpr size_t kLarge = size_t{1} << 20;
  static constexpr size_t kStreamed = size_t{6} << 20;

#ifdef __linux__
  static uintptr_t page_size() { return static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)); }

  // Whether the page in the middle is missing, as a sample of all.
  static bool is_missing(const void* data, size_t bytes) {
    const uintptr_t page = page_size(), middle = (reinterpret_cast<uintptr_t>(data) + bytes / 2) / page * page;
    unsigned char present = 1;
    return mincore(reinterpret_cast<void*>(middle), page, &present) == 0 && (present & 1) == 0;
  }

  static void ask_for_huge_pages(const void* data, size_t bytes) {
    constexpr uintptr_t kHuge = uintptr_t{2} << 20;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) / kHuge * kHuge;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHuge * kHuge;
    if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
#else
  static bool is_missing(const void*, size_t) { return false; }
  static void ask_for_huge_pages(const void*, size_t) {}
#endif

  const bool missing_;
  const bool streams_;
};

}  // namespace jax_maddness

#endif  // JAX_MADDNESS_HANDLERS_PAGES_H_
