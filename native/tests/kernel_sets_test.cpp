// The kernel sets of this processor against plain loops in double precision: for builds with sanitizers, where all
// memory that they are given is as large as it has to be and no larger, and for processors that are emulated.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "../kernels/kernel_set.h"

namespace {

using namespace edgellm::kernels;

int passed = 0, failed = 0;

void check(bool holds, const KernelSet& set, const char* what, size_t a, size_t b, size_t c) {
  ++(holds ? passed : failed);
  if (!holds) std::printf("failed: %s: %s (%zu, %zu, %zu)\n", set.name, what, a, b, c);
}

std::vector<float> random(size_t count, unsigned seed, float scale = 1) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(count);
  for (float& value : values) value = normal(engine);
  return values;
}

struct Kind {
  const char* name;
  Type type;
  std::vector<size_t> halves;  // where a block has numbers of 16 bits; all else may be any bytes
};

const std::vector<Kind> kKinds = {
    {"Q4_0", Type::q4_0, {0}},      {"Q4_1", Type::q4_1, {0, 2}}, {"Q5_0", Type::q5_0, {0}},
    {"Q5_1", Type::q5_1, {0, 2}},   {"Q8_0", Type::q8_0, {0}},    {"IQ4_NL", Type::iq4_nl, {0}},
    {"Q2_K", Type::q2_k, {80, 82}}, {"Q3_K", Type::q3_k, {108}},  {"Q4_K", Type::q4_k, {0, 2}},
    {"Q5_K", Type::q5_k, {0, 2}},   {"Q6_K", Type::q6_k, {208}},  {"F16", Type::f16, {0}},
    {"BF16", Type::bf16, {0}},      {"F32", Type::f32, {}},
};

// The bytes of a row in a file.
std::vector<std::byte> file_row(const Kind& kind, size_t columns, std::mt19937& engine) {
  const Storage stored = storage(kind.type);
  std::vector<std::byte> row(columns / stored.numbers * stored.bytes);
  std::normal_distribution<float> normal;
  for (size_t at = 0; at < row.size(); at += stored.bytes) {
    for (size_t i = 0; i < stored.bytes; ++i) row[at + i] = static_cast<std::byte>(engine());
    for (const size_t place : kind.halves) {
      const float number = normal(engine);
      uint16_t bits = to_half(number);
      if (kind.type == Type::bf16) std::memcpy(&bits, reinterpret_cast<const char*>(&number) + 2, 2);
      std::memcpy(row.data() + at + place, &bits, 2);
    }
    if (kind.type == Type::f32) {
      const float number = normal(engine);
      std::memcpy(row.data() + at, &number, 4);
    }
  }
  return row;
}

// What products read of a row of X.
template <typename Block>
void decode(const Activations& a, size_t row, std::vector<double>& to) {
  constexpr size_t kColumns = sizeof(Block::codes);
  for (size_t c = 0; c < a.columns; ++c) {
    const Block& block = a.blocks<Block>(row)[c / kColumns * a.group_rows()];
    to[c] = double{block.scale} * block.codes[c % kColumns];
  }
}

class Rows {
 public:
  Rows(const KernelSet& set, Form form, const std::vector<float>& x, size_t columns)
      : activations_{form, x.size() / columns, columns, x.data(), columns, nullptr},
        memory_(activation_bytes(form, columns, x.size() / columns)) {
    activations_.out = memory_.get();
    for (size_t row = activations_.count; row-- > 0;) set.prepare(activations_, row, row + 1);
  }
  const Activations& get() const { return activations_; }

 private:
  Activations activations_;
  Aligned<std::byte> memory_;
};

void products(const KernelSet& set, const Kind& kind, size_t rows, size_t columns, size_t count) {
  std::mt19937 engine(static_cast<unsigned>(rows + columns));
  std::vector<std::vector<std::byte>> file;
  for (size_t row = 0; row < rows; ++row) file.push_back(file_row(kind, columns, engine));
  const Matrix matrix(
      kind.type, rows, columns, [&](size_t row) { return file[row].data(); },
      [](size_t pieces, const auto& work) {
        for (size_t i = 0; i < pieces; ++i) work(i);
      });
  const std::vector<float> x = random(count * columns, 2), bias = random(rows, 3), before = random(count * rows, 4);
  const Rows prepared(set, matrix.form(), x, columns);

  std::vector<float> whole(count * rows), parts = before, added = before;
  const MatrixProduct product{&matrix, &prepared.get(), bias.data(), whole.data(), rows, false, 1};
  set.multiply(product, 0, matrix.tiles());
  MatrixProduct more = product;
  more.y = added.data(), more.add = true, more.scale = 0.5F;
  set.multiply(more, 0, matrix.tiles());
  bool same = true;
  for (size_t i = 0; i < count; ++i) {
    const std::vector<float> row(x.begin() + static_cast<ptrdiff_t>(i * columns),
                                 x.begin() + static_cast<ptrdiff_t>((i + 1) * columns));
    const Rows alone(set, matrix.form(), row, columns);
    MatrixProduct part = product;
    part.x = &alone.get(), part.y = parts.data() + i * rows;
    for (size_t tile = 0; tile < matrix.tiles(); tile += set.tile_step)
      set.multiply(part, tile, std::min(matrix.tiles(), tile + set.tile_step));
    for (size_t r = 0; r < rows; ++r) {
      const float expected = std::fma(whole[i * rows + r], 0.5F, before[i * rows + r]);
      same = same && added[i * rows + r] == expected;
    }
  }
  check(same, set, "a product that is added has other numbers", rows, columns, count);
  check(whole == parts, set, "a product has other bits in parts", rows, columns, count);

  double worst = 0;
  std::vector<float> weights(columns);
  std::vector<double> read(x.begin(), x.end());
  for (size_t i = 0; i < count && matrix.form() != Form::floats; ++i) {
    std::vector<double> row(columns);
    if (matrix.form() == Form::bytes32) decode<Bytes32>(prepared.get(), i, row);
    if (matrix.form() == Form::bytes256) decode<Bytes256>(prepared.get(), i, row);
    std::copy(row.begin(), row.end(), read.begin() + static_cast<ptrdiff_t>(i * columns));
  }
  for (size_t r = 0; r < rows; ++r) {
    matrix.read_row(r, weights.data());
    double largest = 0;
    for (const float weight : weights) largest = std::max(largest, double{std::abs(weight)});
    for (size_t i = 0; i < count; ++i) {
      double sum = bias[r], size = std::abs(sum);
      for (size_t c = 0; c < columns; ++c) {
        sum += read[i * columns + c] * weights[c];
        size += std::abs(read[i * columns + c]) * largest;
      }
      worst = std::max(worst, std::abs(whole[i * rows + r] - sum) / size);
    }
  }
  check(worst < 2e-6, set, kind.name, rows, columns, count);
}

// Each number against that of `expected(i)`, to `units` of its last place and 1e-7 more.
template <typename Expected>
void near(const KernelSet& set, const char* what, const std::vector<float>& found, double units, Expected expected) {
  double worst = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    const double right = expected(i);
    worst = std::max(worst, std::abs(found[i] - right) / (std::abs(right) * 1.2e-7 * units + 1e-7));
  }
  check(worst < 1, set, what, found.size(), 0, 0);
}

void rows(const KernelSet& set, size_t n) {
  const std::vector<float> x = random(n, 5, 4), up = random(n, 6), before = random(n, 7);
  std::vector<float> y(n);
  double squares = 0;
  for (const float number : x) squares += double{number} * number;
  const double scale = 1 / std::sqrt(squares / static_cast<double>(n) + 1e-6);
  set.rms_norm(x.data(), up.data(), n, 1e-6F, y.data());
  near(set, "norm", y, 8, [&](size_t i) { return x[i] * scale * up[i]; });
  set.gated(Gate::silu, x.data(), up.data(), n, y.data());
  near(set, "silu", y, 8, [&](size_t i) { return x[i] / (1 + std::exp(-double{x[i]})) * up[i]; });
  set.gated(Gate::gelu, x.data(), up.data(), n, y.data());
  near(set, "gelu", y, 16, [&](size_t i) { return x[i] / 2.0 * std::erfc(-x[i] / std::sqrt(2.0)) * up[i]; });
  set.gated(Gate::gelu_tanh, x.data(), up.data(), n, y.data());
  near(set, "gelu_tanh", y, 64, [&](size_t i) {
    const double z = x[i], u = 0.7978845608028654 * (z + 0.044715 * z * z * z);
    return z / (1 + std::exp(-2 * u)) * up[i];
  });
  y = x;
  set.soft_cap(y.data(), n, 3);
  near(set, "soft cap", y, 6, [&](size_t i) { return 3 * std::tanh(x[i] / 3.0); });
  y = before;
  set.scaled(x.data(), 0.7F, true, n, y.data());
  near(set, "scaled", y, 4, [&](size_t i) { return double{before[i]} + double{0.7F} * x[i]; });
  std::vector<float> head = random(2 * n + 3, 8);
  const std::vector<float> was = head;
  set.rotate(head.data(), 2 * n, x.data(), up.data());
  near(set, "rotation", head, 16, [&](size_t i) -> double {
    if (i >= 2 * n) return was[i];
    return i < n ? double{was[i]} * x[i] - double{was[n + i]} * up[i]
                 : double{was[i]} * x[i - n] + double{was[i - n]} * up[i - n];
  });
}

}  // namespace

int main() {
  for (const KernelSet* set : kernel_sets()) {
    for (const Kind& kind : kKinds) {
      for (const size_t count : {1, 2, 5, 13}) {
        products(*set, kind, 1, 256, count);
        products(*set, kind, 50, 768, count);
      }
    }
    for (const size_t n : {1, 15, 16, 33, 576, 1003}) rows(*set, n);
    std::printf("%s ", set->name);
  }
  std::printf("\n%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
