// AVX-512 with VNNI: 64 products of bytes per instruction.
// https://www.intel.com/content/www/us/en/docs/intrinsics-guide
#include <immintrin.h>

#include <cstring>
#include <utility>

#include "avx512.h"
#include "instruction_sets.h"

namespace edgellm::kernels {

namespace {

constexpr size_t kMaxRows = 12;  // rows of X that share a reading of W: two registers each, of 32
constexpr size_t kAhead = 2048;  // bytes of W that are asked for before they are read

// X as bytes, in the scratch memory.
struct Rows {
  explicit Rows(const Product& product)
      : columns(product.weights->columns()),
        blocks(product.weights->blocks()),
        codes(reinterpret_cast<int8_t*>(product.scratch)),
        scales(reinterpret_cast<float*>(codes + product.count * columns)),
        sums(scales + product.count * blocks) {}

  size_t columns, blocks;
  int8_t* codes;  // (count, columns)
  float* scales;  // (count, blocks)
  float* sums;    // (count, blocks): of the codes; as an int32, times -zero, where all blocks of W have the same zero
};

size_t scratch(const BlockMatrix& weights, size_t count) {
  return count * (weights.columns() + 2 * sizeof(float) * weights.blocks());
}

inline __m512i broadcast(const void* four) {
  int32_t value;
  std::memcpy(&value, four, 4);
  return _mm512_set1_epi32(value);
}

// Tile `tile` for the rows [first, first + kRows) of X.
template <int kBits, bool kZeros, size_t kRows>
void multiply_tile(const Product& product, size_t tile, size_t first) {
  const BlockMatrix& weights = *product.weights;
  const Rows rows(product);
  const size_t blocks = rows.blocks, groups = weights.block() / kGroup, columns = rows.columns;
  const uint8_t* codes = weights.codes(tile);
  const float* scales = weights.scales(tile);
  const uint8_t* zeros = weights.zeros(tile);
  const int8_t* x = rows.codes + first * columns;
  const float* x_scales = rows.scales + first * blocks;
  const float* x_sums = rows.sums + first * blocks;
  const __m512i low = _mm512_set1_epi8(15);

  __m512 y[kRows];
  for (size_t r = 0; r < kRows; ++r) y[r] = _mm512_setzero_ps();
  for (size_t b = 0; b < blocks; ++b) {
    __m512i sum[kRows];
    for (size_t r = 0; r < kRows; ++r) {
      sum[r] = kZeros ? _mm512_setzero_si512() : broadcast(x_sums + r * blocks + b);
    }
    for (size_t g = 0; g < groups; ++g) {
      if constexpr (kBits == 4) {
        for (size_t v = 0; v < 4; ++v) {
          if (kRows == 1) _mm_prefetch(reinterpret_cast<const char*>(codes + kAhead), _MM_HINT_T0);
          const __m512i both = _mm512_load_si512(codes);
          codes += kAlign;
          const __m512i a = _mm512_and_si512(both, low), c = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
          for (size_t r = 0; r < kRows; ++r) {
            sum[r] = _mm512_dpbusd_epi32(sum[r], a, broadcast(x + r * columns + 4 * v));
            sum[r] = _mm512_dpbusd_epi32(sum[r], c, broadcast(x + r * columns + 16 + 4 * v));
          }
        }
      } else {
        for (size_t v = 0; v < 8; ++v) {
          if (kRows == 1) _mm_prefetch(reinterpret_cast<const char*>(codes + kAhead), _MM_HINT_T0);
          const __m512i a = _mm512_load_si512(codes);
          codes += kAlign;
          for (size_t r = 0; r < kRows; ++r)
            sum[r] = _mm512_dpbusd_epi32(sum[r], a, broadcast(x + r * columns + 4 * v));
        }
      }
      x += kGroup;
    }
    const __m512 w = _mm512_load_ps(scales + b * kTile);
    __m512 zero = _mm512_setzero_ps();
    if constexpr (kZeros) {
      const auto* here = reinterpret_cast<const __m128i*>(zeros + b * kTile);
      zero = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128(here)));
    }
    for (size_t r = 0; r < kRows; ++r) {
      __m512 whole = _mm512_cvtepi32_ps(sum[r]);
      if constexpr (kZeros) whole = _mm512_fnmadd_ps(zero, _mm512_set1_ps(x_sums[r * blocks + b]), whole);  // exact
      y[r] = _mm512_fmadd_ps(whole, _mm512_mul_ps(w, _mm512_set1_ps(x_scales[r * blocks + b])), y[r]);
    }
  }
  for (size_t r = 0; r < kRows; ++r) store_tile(product, tile, first + r, y[r]);
}

using MultiplyTile = void (*)(const Product&, size_t, size_t);

template <int kBits, bool kZeros, size_t... kRows>
MultiplyTile pick(size_t rows, std::index_sequence<kRows...>) {
  static constexpr MultiplyTile kTable[] = {&multiply_tile<kBits, kZeros, kRows + 1>...};
  return kTable[rows - 1];
}

MultiplyTile pick(const BlockMatrix& weights, size_t rows) {
  constexpr auto kAll = std::make_index_sequence<kMaxRows>{};
  if (weights.bits() == 8) return pick<8, false>(rows, kAll);
  return weights.zeros(0) != nullptr ? pick<4, true>(rows, kAll) : pick<4, false>(rows, kAll);
}

void multiply(const Product& product, size_t first_tile, size_t last_tile) {
  const size_t count = product.count, parts = (count + kMaxRows - 1) / kMaxRows;
  for (size_t tile = first_tile; tile < last_tile; ++tile) {
    for (size_t part = 0, first = 0; part < parts; ++part) {
      const size_t rows = (count - first) / (parts - part);  // parts of about the same size
      pick(*product.weights, rows)(product, tile, first);
      first += rows;
    }
  }
}

void prepare(const Product& product, size_t first_row, size_t last_row) {
  const BlockMatrix& weights = *product.weights;
  const Rows rows(product);
  const size_t block = weights.block();
  const int32_t zero = weights.bits() == 4 ? 8 : 128;
  for (size_t row = first_row; row < last_row; ++row) {
    for (size_t b = 0; b < rows.blocks; ++b) {
      const float* x = product.x + row * rows.columns + b * block;
      int8_t* codes = rows.codes + row * rows.columns + b * block;
      __m512 largest = _mm512_setzero_ps();
      for (size_t i = 0; i < block; i += 16) largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_loadu_ps(x + i)));
      const float most = _mm512_reduce_max_ps(largest);
      const __m512 inverse = _mm512_set1_ps(most > 0 ? 127.0F / most : 0.0F);
      __m512i sum = _mm512_setzero_si512();
      for (size_t i = 0; i < block; i += 16) {
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse));
        sum = _mm512_add_epi32(sum, whole);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), _mm512_cvtsepi32_epi8(whole));
      }
      const int32_t all = _mm512_reduce_add_epi32(sum);
      const int32_t taken = -zero * all;
      float* kept = rows.sums + row * rows.blocks + b;
      rows.scales[row * rows.blocks + b] = most / 127.0F;
      if (weights.zeros(0) != nullptr)
        *kept = static_cast<float>(all);
      else
        std::memcpy(kept, &taken, sizeof taken);
    }
  }
}

}  // namespace

const Kernels kAvx512Vnni{"avx512_vnni", 1, 1, &scratch, &prepare, &multiply};

}  // namespace edgellm::kernels
