// What the kernels of 512 bits share.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "product.h"

namespace edgellm::kernels {

// Write the numbers of one tile and one row of X; with the bias, unless there is more to be added first.
inline void store_tile(const Product& product, size_t tile, size_t row, __m512 y, bool last = true) {
  const size_t rows = product.weights->rows(), first = tile * kTile;
  const size_t left = rows - first;
  const auto mask = static_cast<__mmask16>(left >= kTile ? 0xffffU : (1U << left) - 1);
  if (last && product.bias != nullptr) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, product.bias + first));
  _mm512_mask_storeu_ps(product.y + row * rows + first, mask, y);
}

}  // namespace edgellm::kernels
