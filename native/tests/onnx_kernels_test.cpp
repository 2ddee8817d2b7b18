// The kernels of ONNX's operators against plain loops, for a build with sanitizers: all memory that they are given is
// as large as it has to be and no larger.
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "../kernels/aligned.h"
#include "../kernels/instruction_sets.h"

namespace {

using namespace edgellm::kernels;

int passed = 0, failed = 0;

void check(bool holds, const char* what, size_t a, size_t b, size_t c) {
  ++(holds ? passed : failed);
  if (!holds) std::printf("failed: %s (%zu, %zu, %zu)\n", what, a, b, c);
}

std::vector<float> random(size_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(engine);
  return values;
}

// The nearest number of bfloat16, ties to even.
double rounded(float number) {
  const auto bits = std::bit_cast<uint32_t>(number);
  return std::bit_cast<float>((bits + 0x7fffU + (bits >> 16 & 1)) & 0xffff0000U);
}

void products(const Bfloat16Kernels& kernels, Type type, size_t rows, size_t columns, size_t count) {
  std::mt19937 engine(7);
  constexpr float kFactor = 0.125F;
  const size_t bytes = storage(type).bytes;
  std::vector<std::byte> file(rows * columns / 32 * bytes);
  for (size_t at = 0; at < file.size(); at += bytes) {
    for (size_t i = 0; i < bytes; ++i) file[at + i] = static_cast<std::byte>(engine());
    const uint16_t scale = to_half(static_cast<float>(engine() % 1000 + 1) / 512);
    std::memcpy(file.data() + at, &scale, sizeof scale);
  }
  const FileRows in_file = rows_of({file.data(), -1, 0, file.size()}, columns / 32 * bytes, nullptr);
  const Matrix matrix(type, rows, columns, in_file, [](size_t pieces, const auto& work) {
    for (size_t i = 0; i < pieces; ++i) work(i);
  });
  const std::vector<float> x = random(count * columns, 2), bias = random(rows, 3);
  std::vector<float> whole(count * rows), parts(count * rows);
  for (std::vector<float>* y : {&whole, &parts}) {
    const Aligned<std::byte> scratch(kernels.scratch(matrix, count));
    const Bfloat16Product product{&matrix, kFactor, count, x.data(), bias.data(), y->data(), scratch.get()};
    const size_t step = y == &whole ? count : kernels.row_step;
    const size_t tiles = y == &whole ? matrix.tiles() : kernels.tile_step;
    for (size_t at = 0; at < count; at += step) kernels.prepare(product, at, std::min(count, at + step));
    for (size_t at = 0; at < matrix.tiles(); at += tiles)
      kernels.multiply(product, at, std::min(matrix.tiles(), at + tiles));
  }
  check(whole == parts, "a product has other bits in parts", rows, columns, count);
  double worst = 0;
  std::vector<float> weights(columns);
  for (size_t r = 0; r < rows; ++r) {
    matrix.read_row(r, weights.data());
    for (size_t i = 0; i < count; ++i) {
      double sum = bias[r], size = std::abs(sum);
      for (size_t c = 0; c < columns; ++c) {
        const double term = rounded(x[i * columns + c]) * rounded(weights[c] * kFactor);
        sum += term;
        size += std::abs(term);
      }
      worst = std::max(worst, std::abs(whole[i * rows + r] - sum) / size);
    }
  }
  check(worst < 1e-6, kernels.name, rows, columns, count);
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
  if (const Bfloat16Kernels* kernels = bfloat16_kernels(); kernels != nullptr) {
    for (const Type type : {Type::q4_0, Type::int4_zero, Type::q8_0}) {
      for (const size_t count : {2, 13, 33}) {
        products(*kernels, type, 1, 32, count);
        products(*kernels, type, 40, 192, count);
        products(*kernels, type, 33, 2144, count);  // columns in two panels
      }
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
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
