// AMX: products of tiles of 16 x 32 numbers of bfloat16. Intel Architecture Instruction Set Extensions Programming
// Reference, chapter 3 (tiles); https://www.kernel.org/doc/html/latest/arch/x86/xstate.html (permission).
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "aligned.h"
#include "amx.h"
#include "instruction_sets.h"
#include "tile_layout.h"

namespace edgellm::kernels {

namespace {

constexpr size_t kPanelColumns = 2048;     // of W, unpacked at once
constexpr size_t kPanelBytes = 512 << 10;  // of the L2 cache, for them
constexpr size_t kMaxPanelTiles = 16;

// X in the scratch memory: per 16 rows, per 32 columns a tile of 16 rows x 32 bfloat16; rows that are not there are 0.
size_t scratch(const Matrix& weights, size_t count) {
  return (count + kRowsOfTile - 1) / kRowsOfTile * (weights.columns() / kDepth) * kTileBytes;
}

void prepare(const Bfloat16Product& product, size_t first_row, size_t last_row) {
  const size_t columns = product.weights->columns(), depths = columns / kDepth;
  const size_t padded = (last_row + kRowsOfTile - 1) / kRowsOfTile * kRowsOfTile;
  for (size_t row = first_row; row < padded; ++row) {
    std::byte* out = product.scratch + row / kRowsOfTile * depths * kTileBytes + row % kRowsOfTile * 64;
    const float* x = product.x + row * columns;
    for (size_t d = 0; d < depths; ++d, out += kTileBytes) {
      __m512i pair = _mm512_setzero_si512();
      if (row < last_row) {
        pair = bfloat16(x + d * kDepth);
      }
      _mm512_store_si512(out, pair);
    }
  }
}

// The numbers of a tile of W in the columns [first, last), whole blocks: per 32 columns a tile, `step` bytes after the
// one before, whose row k has the columns 2k and 2k + 1 of 16 rows of W.
template <Type kType>
void unpack(const Bfloat16Product& product, size_t tile, size_t first, size_t last, std::byte* out, size_t step) {
  constexpr TileLayout kLayout = tile_layout(kType);
  const uint8_t* block = product.weights->tile(tile) + first / kDepth * kLayout.bytes();
  const __m512i low = _mm512_set1_epi8(15), byte = _mm512_set1_epi32(255);
  const __m512 factor = _mm512_set1_ps(product.factor);
  for (size_t column = first; column < last; column += kDepth, block += kLayout.bytes(), out += step) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block));
    const __m512 scale = _mm512_mul_ps(_mm512_cvtph_ps(halves), factor);
    __m512 zero = _mm512_set1_ps(kLayout.low_bits == 4 ? 8.0F : 128.0F);
    if constexpr (kType == Type::int4_zero) {
      const auto* zeros = reinterpret_cast<const __m128i*>(block + kLayout.minima_at());
      zero = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(zeros)));
    }
    const auto value = [&](__m512i code) {
      return _mm512_mul_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(code), zero), scale);
    };
    // Four columns: `four` has a byte of each in every lane.
    const auto write = [&](__m512i four, std::byte* to) {
      const __m512 a = value(_mm512_and_si512(four, byte));
      const __m512 b = value(_mm512_and_si512(_mm512_srli_epi32(four, 8), byte));
      const __m512 c = value(_mm512_and_si512(_mm512_srli_epi32(four, 16), byte));
      const __m512 d = value(_mm512_srli_epi32(four, 24));
      _mm512_store_si512(to, pairs(a, b));
      _mm512_store_si512(to + 64, pairs(c, d));
    };
    const uint8_t* codes = block + kLayout.groups_at();
    for (size_t v = 0; v < kLayout.low_bits; ++v, codes += 64) {
      const __m512i all = _mm512_loadu_si512(codes);
      if constexpr (kLayout.low_bits == 8) {
        write(all, out + v * 128);
      } else {
        write(_mm512_and_si512(all, low), out + v * 128);
        write(_mm512_and_si512(_mm512_srli_epi16(all, 4), low), out + (4 + v) * 128);
      }
    }
  }
}

using Unpack = void (*)(const Bfloat16Product&, size_t tile, size_t first, size_t last, std::byte* out, size_t step);

Unpack unpack_of(Type type) {
  if (type == Type::q8_0) return &unpack<Type::q8_0>;
  return type == Type::int4_zero ? &unpack<Type::int4_zero> : &unpack<Type::q4_0>;
}

// Write the numbers of one tile and one row of X; with the bias, unless there is more to be added first.
void store_tile(const Bfloat16Product& product, size_t tile, size_t row, __m512 y, bool last = true) {
  const size_t rows = product.weights->rows(), first = tile * kTile;
  const size_t left = rows - first;
  const auto mask = static_cast<__mmask16>(left >= kTile ? 0xffffU : (1U << left) - 1);
  if (last && product.bias != nullptr) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, product.bias + first));
  _mm512_mask_storeu_ps(product.y + row * rows + first, mask, y);
}

// The name of a tile has to be written out.
template <int kTmm>
void read_tile(const void* from, size_t stride) {
  if constexpr (kTmm == 0) _tile_loadd(0, from, stride);
  if constexpr (kTmm == 1) _tile_loadd(1, from, stride);
  if constexpr (kTmm == 2) _tile_loadd(2, from, stride);
  if constexpr (kTmm == 3) _tile_loadd(3, from, stride);
}

template <int kTmm>
void write_tile(void* to, size_t stride) {
  if constexpr (kTmm == 0) _tile_stored(0, to, stride);
  if constexpr (kTmm == 1) _tile_stored(1, to, stride);
  if constexpr (kTmm == 2) _tile_stored(2, to, stride);
  if constexpr (kTmm == 3) _tile_stored(3, to, stride);
}

// Columns of W whose values are there: [first, last). values: per 32 columns the tiles of W, `step` bytes in all.
struct Panel {
  size_t first, last, step;
  std::byte* values;
};

// 16 x 16 numbers of Y: the rows from `row` on, those of W in `tile`.
struct Sums {
  Sums(const Bfloat16Product& given, size_t tile_, size_t row_)
      : product(given),
        tile(tile_),
        row(row_),
        rows(given.weights->rows()),
        count(std::min(kRowsOfTile, given.count - row_)),
        whole(count == kRowsOfTile && (tile_ + 1) * kTile <= rows) {}

  template <int kTmm>
  void read() {
    if (whole) return read_tile<kTmm>(product.y + row * rows + tile * kTile, rows * sizeof(float));
    alignas(64) float sums[kRowsOfTile][kTile] = {};
    const size_t width = std::min(kTile, rows - tile * kTile) * sizeof(float);
    for (size_t r = 0; r < count; ++r) std::memcpy(sums[r], product.y + (row + r) * rows + tile * kTile, width);
    written();
    read_tile<kTmm>(sums, 64);
  }

  template <int kTmm>
  void write(bool last) {
    if (whole && !(last && product.bias != nullptr)) {
      return write_tile<kTmm>(product.y + row * rows + tile * kTile, rows * sizeof(float));
    }
    alignas(64) float sums[kRowsOfTile][kTile];
    write_tile<kTmm>(sums, 64);
    for (size_t r = 0; r < count; ++r) store_tile(product, tile, row + r, _mm512_load_ps(sums[r]), last);
  }

  const Bfloat16Product& product;
  size_t tile, row, rows, count;
  bool whole;
};

// kRowTiles times 16 rows of X from `row` on, with kTiles tiles of W from `tile` on, whose values begin at `w`.
template <int kRowTiles, int kTiles>
void multiply_tiles(const Bfloat16Product& product, const Panel& panel, size_t tile, size_t row, const std::byte* w) {
  const size_t row_bytes = product.weights->columns() / kDepth * kTileBytes;
  const std::byte* x = product.scratch + row / kRowsOfTile * row_bytes + panel.first / kDepth * kTileBytes;
  const bool last = panel.last == product.weights->columns();
  const auto each = [&](auto what) {  // the tile of sums and what it is of
    what.template operator()<0>(Sums(product, tile, row));
    if constexpr (kTiles == 2) what.template operator()<1>(Sums(product, tile + 1, row));
    if constexpr (kRowTiles == 2) what.template operator()<2>(Sums(product, tile, row + kRowsOfTile));
    if constexpr (kRowTiles == 2 && kTiles == 2)
      what.template operator()<3>(Sums(product, tile + 1, row + kRowsOfTile));
  };
  if (panel.first == 0) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    each([]<int kTmm>(Sums sums) { sums.read<kTmm>(); });
  }
  for (size_t d = panel.first; d < panel.last; d += kDepth, x += kTileBytes, w += panel.step) {
    _tile_loadd(4, x, 64);
    _tile_loadd(6, w, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kTiles == 2) {
      _tile_loadd(7, w + kTileBytes, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kRowTiles == 2) {
      _tile_loadd(5, x + row_bytes, 64);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (kRowTiles == 2 && kTiles == 2) _tile_dpbf16ps(3, 5, 7);
  }
  each([last]<int kTmm>(Sums sums) { sums.write<kTmm>(last); });
}

// All rows of X with the tiles [first, last) of W. The values of W stay in the L2 cache, 32 rows of X in it meanwhile.
void multiply_panel(const Bfloat16Product& product, const Panel& panel, size_t first, size_t last) {
  for (size_t row = 0; row < product.count; row += 2 * kRowsOfTile) {
    const bool two_rows = row + kRowsOfTile < product.count;
    const std::byte* w = panel.values;
    for (size_t tile = first; tile < last; tile += 2, w += 2 * kTileBytes) {
      const bool two = tile + 1 < last;
      if (two_rows && two)
        multiply_tiles<2, 2>(product, panel, tile, row, w);
      else if (two_rows)
        multiply_tiles<2, 1>(product, panel, tile, row, w);
      else if (two)
        multiply_tiles<1, 2>(product, panel, tile, row, w);
      else
        multiply_tiles<1, 1>(product, panel, tile, row, w);
    }
  }
}

void multiply(const Bfloat16Product& product, size_t first_tile, size_t last_tile) {
  const Matrix& weights = *product.weights;
  const size_t parts = (weights.columns() + kPanelColumns - 1) / kPanelColumns;
  const size_t columns = (weights.columns() / kDepth + parts - 1) / parts * kDepth;
  const size_t tiles = std::clamp<size_t>(kPanelBytes / (columns / kDepth * kTileBytes) / 2 * 2, 2, kMaxPanelTiles);
  const Unpack unpack = unpack_of(weights.type());
  thread_local Aligned<std::byte> values;
  if (values.size() < columns / kDepth * tiles * kTileBytes) {
    values = Aligned<std::byte>(columns / kDepth * tiles * kTileBytes);
  }
  const Tiles tiles_of_thread;
  for (size_t tile = first_tile; tile < last_tile; tile += tiles) {
    const size_t stop = std::min(last_tile, tile + tiles);
    for (size_t first = 0; first < weights.columns(); first += columns) {
      const Panel panel{first, std::min(weights.columns(), first + columns), tiles * kTileBytes, values.get()};
      for (size_t each = tile; each < stop; ++each) {
        unpack(product, each, panel.first, panel.last, panel.values + (each - tile) * kTileBytes, panel.step);
      }
      written();
      multiply_panel(product, panel, tile, stop);
    }
  }
}

}  // namespace

const Bfloat16Kernels kAmxBf16{"amx_bf16", kRowsOfTile, 2, &scratch, &prepare, &multiply};

}  // namespace edgellm::kernels
