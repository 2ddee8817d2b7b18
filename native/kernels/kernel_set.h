// The kernels of one instruction set. Each gives a row the same bits whatever other rows there are and however the work
// is divided.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "activations.h"
#include "matrix.h"
#include "paged_attention.h"

namespace edgellm::kernels {

// Y = X W' (+ bias), or Y += scale * (X W' + bias).
struct MatrixProduct {
  const Matrix* weights;
  const Activations* x;  // prepared in weights->form()
  const float* bias;     // (weights->rows()), or null
  float* y;              // row r begins at y + r * stride, with the number of the row `from` of W
  size_t stride;
  bool add;
  float scale;  // where it is added; 1 elsewhere
  size_t from = 0;
};

enum class Gate { silu, gelu_tanh, gelu };
// The one of that name. std::invalid_argument if there is none.
Gate gate_named(std::string_view name);

// Whether products of few rows have to ask for their matrix before they read it. Not on AMD's processors (measured on
// Zen 4): what brings memory there by itself is kept from it, and Q6_K came with 0.8 of what they read, not all of it.
bool asks_ahead();

struct KernelSet {
  const char* name;

  // Prepare the rows [first, last) of X; nothing to do for floats.
  void (*prepare)(const Activations&, size_t first, size_t last);
  // The numbers of Y that belong to the tiles [first, last) of W, of all rows; divide them at multiples of tile_step.
  // W is read in two streams, the halves of the part: parts of many tiles come faster from memory than small ones.
  void (*multiply)(const MatrixProduct&, size_t first_tile, size_t last_tile);
  size_t tile_step;

  // y = x / sqrt(mean(x^2) + eps) * weight, all (n,); weight null: 1. y may be x.
  void (*rms_norm)(const float* x, const float* weight, size_t n, float eps, float* y);
  // y = x less its mean, (n,). y may be x.
  void (*centered)(const float* x, size_t n, float* y);
  // y = act(gate) * up, all (n,); up null: 1. y may be gate.
  void (*gated)(Gate, const float* gate, const float* up, size_t n, float* y);
  // The first `rotary` numbers of a head: i and i + rotary / 2 are a point that turns by the angle i; cos, sin
  // (rotary / 2).
  void (*rotate)(float* head, size_t rotary, const float* cos, const float* sin);
  // x = cap * tanh(x / cap), (n,).
  void (*soft_cap)(float* x, size_t n, float cap);
  // y = (add ? y : 0) + scale * x, (n,).
  void (*scaled)(const float* x, float scale, bool add, size_t n, float* y);

  PagedAttention attention;
};

// Those that were compiled and that this processor has, the fastest first; the scalar one is always the last.
const std::vector<const KernelSet*>& kernel_sets();

// The one of that name. std::invalid_argument if this processor has none.
const KernelSet& kernel_set(std::string_view name);

}  // namespace edgellm::kernels
