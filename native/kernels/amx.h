// Tiles of AMX as all kernels here configure them: eight of 16 rows of 64 bytes.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "avx512.h"
#if defined(EDGELLM_SOFTWARE_TILES)
#include "../tests/software_tiles.h"
#endif

namespace edgellm::kernels {

constexpr size_t kDepth = 32;  // numbers of bfloat16 in a row of a tile
constexpr size_t kTileBytes = 1024;
constexpr size_t kRowsOfTile = 16;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The tiles of this thread, while it lives.
class Tiles {
 public:
#if defined(EDGELLM_SOFTWARE_TILES)
  Tiles() { software::configure(); }
  ~Tiles() { software::release(); }
#else
  Tiles() {
    const TileConfig config;
    __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");  // GCC 12's intrinsic reads 8 bytes of it
  }
  ~Tiles() { _tile_release(); }
#endif
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// What was written so far is in memory for the tiles that are loaded next: GCC does not see that they read it.
inline void written() { __asm__ volatile("" : : : "memory"); }

// The numbers of two vectors side by side: in lane i those of bfloat16 nearest to low[i] and, in its upper half,
// high[i].
inline __m512i pairs(__m512 low, __m512 high) {
  const __m512i shuffle = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(shuffle, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
}

// 32 numbers, which follow one another, as bfloat16.
inline __m512i bfloat16(const float* x) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(x)));
}

}  // namespace edgellm::kernels
