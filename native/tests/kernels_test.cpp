// The kernels against plain loops, for a build with sanitizers: all memory that they are given is as large as it has to
// be and no larger. What they compute to the bit is tested from Python, inside of ONNX Runtime.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "../cpu.h"
#include "../kernels/attention.h"
#include "../kernels/product.h"

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

using namespace edgellm::kernels;

int passed = 0, failed = 0;

void check(bool holds, const char* what, size_t a, size_t b, size_t c) {
  ++(holds ? passed : failed);
  if (!holds) std::printf("failed: %s (%zu, %zu, %zu)\n", what, a, b, c);
}

// Some processors have AMX, for those who ask.
void ask_for_amx() {
#if defined(__linux__) && defined(__x86_64__) && defined(SYS_arch_prctl)
  constexpr long kRequest = 0x1023, kTileData = 18;
  syscall(SYS_arch_prctl, kRequest, kTileData);
#endif
}

std::vector<float> random(size_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(engine);
  return values;
}

void products(const Kernels& kernels, const BlockShape& shape, size_t count) {
  std::mt19937 engine(7);
  std::vector<float> values(shape.rows * shape.columns);
  const std::vector<float> scales = random(shape.rows * shape.blocks(), 1);
  const BlockMatrix matrix(
      shape,
      [&](size_t row, uint8_t* codes, float* row_scales, uint8_t* zeros) {
        std::copy_n(scales.data() + row * shape.blocks(), shape.blocks(), row_scales);
        for (size_t b = 0; shape.zeros && b < shape.blocks(); ++b) zeros[b] = static_cast<uint8_t>(engine() % 16);
        for (size_t c = 0; c < shape.columns; ++c) {
          const size_t b = c / shape.block;
          codes[c] = static_cast<uint8_t>(engine() % (1U << shape.bits));
          const int zero = shape.zeros ? zeros[b] : 1 << (shape.bits - 1);
          values[row * shape.columns + c] = static_cast<float>(codes[c] - zero) * row_scales[b];
        }
      },
      1);
  const std::vector<float> x = random(count * shape.columns, 2), bias = random(shape.rows, 3);
  std::vector<float> whole(count * shape.rows), parts(count * shape.rows);
  for (std::vector<float>* y : {&whole, &parts}) {
    const Aligned<std::byte> scratch(kernels.scratch(matrix, count));
    const Product product{&matrix, count, x.data(), bias.data(), y->data(), scratch.get()};
    const size_t rows = y == &whole ? count : kernels.row_step,
                 tiles = y == &whole ? matrix.tiles() : kernels.tile_step;
    for (size_t at = 0; at < count; at += rows) kernels.prepare(product, at, std::min(count, at + rows));
    for (size_t at = 0; at < matrix.tiles(); at += tiles) {
      kernels.multiply(product, at, std::min(matrix.tiles(), at + tiles));
    }
  }
  check(whole == parts, "a product has other bits in parts", shape.rows, shape.columns, count);
  double worst = 0;
  for (size_t i = 0; i < count; ++i) {
    for (size_t r = 0; r < shape.rows; ++r) {
      double sum = 0, size = 0;
      for (size_t c = 0; c < shape.columns; ++c) {
        const double term = double{x[i * shape.columns + c]} * values[r * shape.columns + c];
        sum += term;
        size += term * term;
      }
      worst = std::max(worst, std::abs(whole[i * shape.rows + r] - sum - bias[r]) / std::sqrt(size));
    }
  }
  check(worst < 0.05, kernels.name, shape.rows, shape.columns, count);
}

// One layer with rotation by given angles; past: tokens in the cache before these, of each of two texts.
void attention(const AttentionKernels& kernels, size_t tokens, size_t size, size_t window, double rounding) {
  constexpr size_t kBatch = 2, kHeads = 6, kKvHeads = 2;
  const size_t past[kBatch] = {0, 70}, capacity = past[1] + tokens, width = (kHeads + 2 * kKvHeads) * size;
  const int32_t last[kBatch] = {static_cast<int32_t>(tokens - 1), static_cast<int32_t>(capacity - 1)};
  const size_t half = size / 4, cells = capacity * size;
  const std::vector<float> packed = random(kBatch * tokens * width, 4), angles = random(capacity * half, 5);
  std::vector<float> cos(angles.size()), sin(angles.size()), out(kBatch * tokens * kHeads * size);
  for (size_t i = 0; i < angles.size(); ++i) cos[i] = std::cos(angles[i]), sin[i] = std::sin(angles[i]);
  std::vector<float> keys = random(kBatch * kKvHeads * cells, 6), values = random(kBatch * kKvHeads * cells, 7);
  Attention call{};
  call.batch = kBatch, call.tokens = tokens, call.heads = kHeads, call.kv_heads = kKvHeads, call.size = size;
  call.capacity = capacity, call.rotary = 2 * half, call.window = window, call.scale = 0.1F;
  call.query = packed.data(), call.key = call.query + kHeads * size, call.value = call.key + kKvHeads * size;
  call.query_stride = call.key_stride = call.value_stride = width;
  call.cos = cos.data(), call.sin = sin.data(), call.last = last;
  call.keys = keys.data(), call.values = values.data(), call.out = out.data();
  const Aligned<std::byte> scratch(kernels.scratch(call));
  call.scratch = scratch.get();
  for (const Stage& stage : kernels.stages(call)) {
    for (size_t index = stage.count; index-- > 0;) stage.run(call, index);
  }
  double worst = 0;
  for (size_t b = 0; b < kBatch; ++b) {
    for (size_t t = 0; t < tokens; ++t) {
      const size_t position = past[b] + t, first = position + 1 > window ? position + 1 - window : 0;
      for (size_t head = 0; head < kHeads; ++head) {
        const float* from = call.query + (b * tokens + t) * width + head * size;
        std::vector<double> query(from, from + size), sum(size);
        for (size_t i = 0; i < half; ++i) {
          const double c = cos[position * half + i], s = sin[position * half + i];
          query[i] = from[i] * c - from[half + i] * s;
          query[half + i] = from[half + i] * c + from[i] * s;
        }
        double total = 0;
        const size_t cell = (b * kKvHeads + head / (kHeads / kKvHeads)) * cells;
        for (size_t at = first; at <= position; ++at) {
          double score = 0;
          for (size_t d = 0; d < size; ++d) score += query[d] * keys[cell + at * size + d];
          const double weight = std::exp(score * double{call.scale});
          total += weight;
          for (size_t d = 0; d < size; ++d) sum[d] += weight * values[cell + at * size + d];
        }
        const float* found = out.data() + ((b * tokens + t) * kHeads + head) * size;
        for (size_t d = 0; d < size; ++d) worst = std::max(worst, std::abs(sum[d] / total - double{found[d]}));
      }
    }
  }
  check(worst < rounding, "attention", tokens, size, window);
}

}  // namespace

int main() {
  ask_for_amx();
  for (const Kernels* kernels : {byte_kernels(), bfloat16_kernels()}) {
    if (kernels == nullptr) continue;
    for (const size_t count : {1, 2, 13, 33}) {
      products(*kernels, {1, 32, 32, 4, false}, count);
      products(*kernels, {40, 192, 64, 4, true}, count);
      products(*kernels, {33, 2144, 32, 8, false}, count);
    }
  }
  for (const size_t size : {32, 64, 96}) {
    for (const size_t window : {1000, 40}) {
      if (single_attention() != nullptr) attention(*single_attention(), 1, size, window, 1e-5);
      for (const size_t tokens : {2, 7, 16, 50, 130}) {
        const double rounding = bfloat16_kernels() != nullptr ? 0.05 : 1e-5;
        if (prompt_attention() != nullptr) attention(*prompt_attention(), tokens, size, window, rounding);
      }
    }
  }
  std::printf("kernels: \"%s\"\n%d passed, %d failed\n", kernel_names().c_str(), passed, failed);
  return failed == 0 ? 0 : 1;
}
