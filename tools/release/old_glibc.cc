// What GCC's C++ library takes from versions of glibc after 2.28, for wheels (linux.cmake); nothing of it is exported.
#include <cstdlib>

extern "C" {
// glibc 2.32: whether reference counts need no atomic instructions. They always have them.
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
// glibc 2.36: for std::random_device, which nothing here uses.
__attribute__((visibility("hidden"))) unsigned arc4random() { std::abort(); }
}
