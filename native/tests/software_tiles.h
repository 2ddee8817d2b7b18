// The instructions for tiles of AMX in plain C++, in place of the processor's: kernels that are compiled with them
// (EDGELLM_SOFTWARE_TILES) run wherever there are the vectors of AVX-512 and bfloat16. Tiles are configured as amx.h
// does it: eight of 16 rows of 64 bytes.
//
// Source: Intel Architecture Instruction Set Extensions Programming Reference, chapter 3 (TILELOADD, TILESTORED,
// TDPBF16PS).
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace edgellm::kernels::software {

struct Tile {
  uint8_t bytes[16][64];
};

struct Thread {
  bool configured = false;
  Tile tiles[8];
};
inline thread_local Thread of_thread;

inline void configure() {
  of_thread.configured = true;
  std::memset(of_thread.tiles, 0xff, sizeof of_thread.tiles);  // what was not loaded spoils what it is used for
}
inline void release() { of_thread.configured = false; }

inline Tile& tile(int number) {
  if (!of_thread.configured) std::abort();  // as the instruction is not one then
  return of_thread.tiles[number];
}

inline void clear(int to) { tile(to) = {}; }

inline void load(int to, const void* from, size_t stride) {
  for (size_t r = 0; r < 16; ++r)
    std::memcpy(tile(to).bytes[r], static_cast<const std::byte*>(from) + r * stride, sizeof(Tile::bytes[r]));
}

inline void store(int from, void* to, size_t stride) {
  for (size_t r = 0; r < 16; ++r)
    std::memcpy(static_cast<std::byte*>(to) + r * stride, tile(from).bytes[r], sizeof(Tile::bytes[r]));
}

// Subnormal numbers count as 0.
inline float flushed(float number) { return std::fpclassify(number) == FP_SUBNORMAL ? 0.0F : number; }

inline float bfloat16_at(const uint8_t* at) {
  uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return flushed(std::bit_cast<float>(static_cast<uint32_t>(bits) << 16));
}

// sums (16, 16) += a (16, 32) x b (32, 16), whose row k has the columns 2 k and 2 k + 1 side by side. The products of
// even and those of odd places are summed apart, from 0 on.
inline void dot_bfloat16(int sums, int a, int b) {
  for (size_t m = 0; m < 16; ++m) {
    for (size_t n = 0; n < 16; ++n) {
      float even = 0, odd = 0, sum;
      for (size_t k = 0; k < 16; ++k) {
        const uint8_t *left = tile(a).bytes[m] + 4 * k, *right = tile(b).bytes[k] + 4 * n;
        even = flushed(std::fma(bfloat16_at(left), bfloat16_at(right), even));
        odd = flushed(std::fma(bfloat16_at(left + 2), bfloat16_at(right + 2), odd));
      }
      uint8_t* const at = tile(sums).bytes[m] + 4 * n;
      std::memcpy(&sum, at, sizeof sum);
      sum = flushed(flushed(sum) + flushed(even + odd));
      std::memcpy(at, &sum, sizeof sum);
    }
  }
}

}  // namespace edgellm::kernels::software

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadd(tile, from, stride) software::load(tile, from, stride)
#define _tile_stored(tile, to, stride) software::store(tile, to, stride)
#define _tile_zero(tile) software::clear(tile)
#define _tile_dpbf16ps(sums, a, b) software::dot_bfloat16(sums, a, b)
