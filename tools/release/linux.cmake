# Toolchain file of the wheels for Linux. GCC compiles, as everywhere else; the linker is that of the package ziglang,
# which knows the symbols of older versions of glibc. GCC's C++ library is linked in, and nothing but PyInit__ffi is
# exported. (Compiled by ziglang 0.17.1, int8 products on AVX2 take 1.4 times as long: bench_factors, AMD EPYC of 2
# shared cores, 2026-11-30. And its __builtin_cpu_supports finds no instruction set, so that the scalar tier runs.)
#
# In the environment: ZIG, the program, and ZIG_TARGET, such as x86_64-linux-gnu.2.28.
if(NOT "$ENV{ZIG_TARGET}" MATCHES "^(x86_64|aarch64)-linux-gnu\\.")
  message(FATAL_ERROR "ZIG_TARGET is '$ENV{ZIG_TARGET}', not one such as x86_64-linux-gnu.2.28.")
endif()
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR ${CMAKE_MATCH_1})
set(CMAKE_CXX_COMPILER ${CMAKE_MATCH_1}-linux-gnu-g++)
set(CMAKE_CXX_FLAGS_INIT -ffile-prefix-map=${CMAKE_SOURCE_DIR}=.)  # the same bytes wherever the sources are
set(JAX_MADDNESS_OLD_GLIBC ON)
unset(Python_FIND_ABI CACHE)  # set for free-threaded Pythons, whose headers CMake 4.4 then misses for another platform

execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=libstdc++.a OUTPUT_VARIABLE libstdcxx
                OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-libgcc-file-name OUTPUT_VARIABLE libgcc
                OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
string(CONCAT CMAKE_CXX_CREATE_SHARED_MODULE
  "$ENV{ZIG} cc -target $ENV{ZIG_TARGET} -shared -s -o <TARGET> <OBJECTS> <LINK_LIBRARIES> ${libstdcxx} ${libgcc} "
  "-lunwind -Wl,--gc-sections -Wl,--version-script=${CMAKE_CURRENT_LIST_DIR}/exports.map")
