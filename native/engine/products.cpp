#include "products.h"

#include <algorithm>

namespace edgellm::engine {

using kernels::kTile;
using kernels::Matrix;

void multiply_tiles(const KernelSet& kernels, const Input& x, const Product& product, size_t first, size_t last) {
  const Matrix& matrix = *product.weights.matrix;
  kernels.multiply({&matrix, &x.form(matrix.form()), product.weights.bias_or_null(), product.y.data, product.y.stride,
                    product.add, product.scale, product.from},
                   first, last);
}

void multiply(const KernelSet& kernels, Team& team, const Input& x, std::initializer_list<Product> products) {
  const size_t step = kernels.tile_step;
  const auto steps_of = [&](const Product& product) { return (product.weights.matrix->tiles() + step - 1) / step; };
  size_t steps = 0;
  for (const Product& product : products) steps += steps_of(product);
  for (size_t first = 0, last = 0; team.take(steps, 1, first, last);) {
    size_t before = 0;
    for (const Product& product : products) {
      const size_t own = steps_of(product), begin = std::max(first, before), end = std::min(last, before + own);
      if (begin < end)
        multiply_tiles(kernels, x, product, (begin - before) * step,
                       std::min(product.weights.matrix->tiles(), (end - before) * step));
      before += own;
    }
  }
}

void gate_up(const KernelSet& kernels, Gate gate, const Input& x, const FeedForward& network, Rows hidden, float* up,
             size_t first, size_t last) {
  const size_t most = Scratch::up_columns(x.count, kernels.tile_step * kTile) / kTile;
  for (size_t begin = first; begin < last; begin += most) {
    const size_t end = std::min(last, begin + most), column = begin * kTile;
    const size_t columns = std::min(network.up.matrix->rows(), end * kTile) - column;
    const Rows up_rows{up, (end - begin) * kTile};
    const bool gated = network.gate.matrix != nullptr;
    multiply_tiles(kernels, x, {gated ? network.gate : network.up, hidden, false, 1}, begin, end);
    if (gated) multiply_tiles(kernels, x, {network.up, up_rows, false, 1, column}, begin, end);
    for (size_t row = 0; row < x.count; ++row)
      kernels.gated(gate, hidden[row] + column, gated ? up_rows[row] : nullptr, columns, hidden[row] + column);
  }
}

}  // namespace edgellm::engine
