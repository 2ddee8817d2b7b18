// Products of the rows of a pass with weights.
#pragma once

#include <array>
#include <cstddef>
#include <initializer_list>

#include "../kernels/kernel_set.h"
#include "dense_model.h"
#include "scratch.h"
#include "thread_pool.h"

namespace edgellm::engine {

// X of a product, in the forms that its matrices read.
struct Input {
  size_t count;
  std::array<kernels::Activations, 3> forms;

  kernels::Activations& form(kernels::Form form) { return forms[static_cast<size_t>(form)]; }
  const kernels::Activations& form(kernels::Form form) const { return forms[static_cast<size_t>(form)]; }
};

struct Product {
  const Linear& weights;
  Rows y;
  bool add;
  float scale;
  size_t from = 0;  // as in MatrixProduct
};

// The tiles [first, last) of the weights.
void multiply_tiles(const KernelSet& kernels, const Input& x, const Product& product, size_t first, size_t last);

// By all members: all tiles of all products are handed out together.
void multiply(const KernelSet& kernels, Team& team, const Input& x, std::initializer_list<Product> products);

// hidden = act(gate) * up, or act(up), for the tiles [first, last) of each, some columns at a time, which stay in the
// cache of the core meanwhile. up: Scratch::Own's.
void gate_up(const KernelSet& kernels, Gate gate, const Input& x, const FeedForward& network, Rows hidden, float* up,
             size_t first, size_t last);

}  // namespace edgellm::engine
