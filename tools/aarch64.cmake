# Toolchain file: programs for 64-bit ARM on any Linux, static, run by QEMU. `make test-aarch64` uses it.
# Needs Debian's g++-aarch64-linux-gnu and qemu-user. QEMU_CPU in the environment chooses the CPU (default: QEMU's max).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_EXE_LINKER_FLAGS_INIT -static)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64)
