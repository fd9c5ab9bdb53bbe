// AMX without AMX, for tests only: force-included (-include) before avx512amx/tier.cc, after simde_avx512.h, it
// replaces the intrinsics of tiles by plain loops over what the manual of the processor says of each instruction. Where
// a processor would raise an exception, and where a thread ends with tiles that nothing released, the test ends.
//
// Linux's answer to the request for tiles is emulated too: without it, tiles cannot be used. The environment variable
// EMULATED_TILES=refused makes it a refusal.
#ifndef JAX_MADDNESS_TESTS_EMULATED_TILES_H_
#define JAX_MADDNESS_TESTS_EMULATED_TILES_H_

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define TILE_CHECK(condition)                                                    \
  do {                                                                           \
    if (condition) break;                                                        \
    std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
    std::abort();                                                                \
  } while (false)

namespace jax_maddness {
namespace {
namespace emulated_tiles {

std::atomic<bool> permitted{false};

long request(long number, long what, long feature) {
  TILE_CHECK(number == SYS_arch_prctl && what == 0x1023 && feature == 18);
  const char* answer = std::getenv("EMULATED_TILES");
  if (answer != nullptr && std::strcmp(answer, "refused") == 0) return -1;
  permitted = true;
  return 0;
}

struct Config {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};

struct Tiles {
  Config config = {};  // palette 0: released
  uint8_t data[8][16][64] = {};

  ~Tiles() { TILE_CHECK(config.palette == 0); }
};
thread_local Tiles tiles;

void load_config(const void* from) {
  TILE_CHECK(permitted && tiles.config.palette == 0);  // a second call would release the tiles of the first one
  Config config;
  std::memcpy(&config, from, 64);
  TILE_CHECK(config.palette == 1 && config.start_row == 0);
  for (const uint8_t byte : config.reserved) TILE_CHECK(byte == 0);
  for (int t = 0; t < 16; ++t) {
    TILE_CHECK(config.rows[t] <= (t < 8 ? 16 : 0) && config.bytes[t] <= (t < 8 ? 64 : 0));
    TILE_CHECK((config.rows[t] == 0) == (config.bytes[t] == 0));
  }
  std::memset(tiles.data, 0, sizeof tiles.data);
  tiles.config = config;
}

void release() { tiles.config = {}; }

void zero(int t) {
  TILE_CHECK(t >= 0 && t < 8 && tiles.config.palette == 1 && tiles.config.rows[t] > 0);
  std::memset(tiles.data[t], 0, sizeof tiles.data[t]);
}

void load(int t, const void* from, int64_t stride) {
  zero(t);  // also what is outside of the tile's shape
  for (int row = 0; row < tiles.config.rows[t]; ++row) {
    std::memcpy(tiles.data[t][row], static_cast<const char*>(from) + row * stride, tiles.config.bytes[t]);
  }
}

void store(int t, void* to, int64_t stride) {
  TILE_CHECK(t >= 0 && t < 8 && tiles.config.palette == 1 && tiles.config.rows[t] > 0);
  for (int row = 0; row < tiles.config.rows[t]; ++row) {
    std::memcpy(static_cast<char*>(to) + row * stride, tiles.data[t][row], tiles.config.bytes[t]);
  }
}

// Signed bytes of a, unsigned ones of b.
void multiply_signed_unsigned(int to, int a, int b) {
  for (const int t : {to, a, b}) TILE_CHECK(t >= 0 && t < 8 && tiles.config.palette == 1 && tiles.config.rows[t] > 0);
  TILE_CHECK(to != a && to != b && a != b);
  const uint8_t* const rows = tiles.config.rows;
  const uint16_t* const bytes = tiles.config.bytes;
  TILE_CHECK(bytes[a] == 4 * rows[b] && rows[to] == rows[a] && bytes[to] == bytes[b]);
  for (int m = 0; m < rows[to]; ++m) {
    uint32_t sums[16];
    std::memcpy(sums, tiles.data[to][m], sizeof sums);
    for (int k = 0; k < bytes[a]; ++k) {
      const auto factor = static_cast<int8_t>(tiles.data[a][m][k]);
      for (int n = 0; n < bytes[to] / 4; ++n) {
        sums[n] += static_cast<uint32_t>(factor * tiles.data[b][k / 4][4 * n + k % 4]);
      }
    }
    std::memcpy(tiles.data[to][m], sums, sizeof sums);
  }
}

}  // namespace emulated_tiles
}  // namespace
}  // namespace jax_maddness

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbsud
#define _tile_loadconfig(config) jax_maddness::emulated_tiles::load_config(config)
#define _tile_release() jax_maddness::emulated_tiles::release()
#define _tile_zero(tile) jax_maddness::emulated_tiles::zero(tile)
#define _tile_loadd(tile, from, stride) jax_maddness::emulated_tiles::load(tile, from, stride)
#define _tile_stored(tile, to, stride) jax_maddness::emulated_tiles::store(tile, to, stride)
#define _tile_dpbsud(to, a, b) jax_maddness::emulated_tiles::multiply_signed_unsigned(to, a, b)
#define syscall(number, what, feature) jax_maddness::emulated_tiles::request(number, what, feature)

#endif  // JAX_MADDNESS_TESTS_EMULATED_TILES_H_
