// The kernel sets of this processor against plain loops in double precision: for builds with sanitizers, where all
// memory that they are given is as large as it has to be and no larger, and for processors that are emulated.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "../kernels/aligned.h"
#include "../kernels/crc32.h"
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

// NaN is above everything.
void raise(double& worst, double error) {
  if (!(error <= worst)) worst = std::isnan(error) ? HUGE_VAL : error;
}

// Calls `work` for every index below `count`, by three threads.
void on_threads(size_t count, const std::function<void(size_t)>& work) {
  constexpr size_t kThreads = 3;
  std::vector<std::jthread> others;
  others.reserve(kThreads - 1);
  const auto each = [&work, count](size_t first) {
    for (size_t i = first; i < count; i += kThreads) work(i);
  };
  for (size_t i = 1; i < std::min(count, kThreads); ++i) others.emplace_back(each, i);
  each(0);
}

struct Kind {
  const char* name;
  Type type;
  size_t numbers, at[2];  // how many numbers of 16 bits a block has, and where; all else may be any bytes
};

constexpr Kind kKinds[] = {
    {"Q4_0", Type::q4_0, 1, {0, 0}},     {"Q4_1", Type::q4_1, 2, {0, 2}},
    {"Q5_0", Type::q5_0, 1, {0, 0}},     {"INT4 with zeros", Type::int4_zero, 1, {0, 0}},
    {"Q5_1", Type::q5_1, 2, {0, 2}},     {"Q8_0", Type::q8_0, 1, {0, 0}},
    {"IQ4_NL", Type::iq4_nl, 1, {0, 0}}, {"Q2_K", Type::q2_k, 2, {80, 82}},
    {"Q3_K", Type::q3_k, 1, {108, 0}},   {"Q4_K", Type::q4_k, 2, {0, 2}},
    {"Q5_K", Type::q5_k, 2, {0, 2}},     {"Q6_K", Type::q6_k, 1, {208, 0}},
    {"F16", Type::f16, 1, {0, 0}},       {"BF16", Type::bf16, 1, {0, 0}},
    {"F32", Type::f32, 0, {0, 0}},
};

// The bytes of a row in a file.
std::vector<std::byte> file_row(const Kind& kind, size_t columns, std::mt19937& engine) {
  const Storage stored = storage(kind.type);
  std::vector<std::byte> row(columns / stored.numbers * stored.bytes);
  std::normal_distribution<float> normal;
  for (size_t at = 0; at < row.size(); at += stored.bytes) {
    for (size_t i = 0; i < stored.bytes; ++i) row[at + i] = static_cast<std::byte>(engine());
    for (size_t n = 0; n < kind.numbers; ++n) {
      // Of either sign, from 2^-4 to 2.
      const unsigned half = 0x2c00 + engine() % 0x1400, brain = 0x3d80 + engine() % 0x280;
      const auto bits = static_cast<uint16_t>((kind.type == Type::bf16 ? brain : half) | engine() % 2 << 15);
      std::memcpy(row.data() + at + kind.at[n], &bits, 2);
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
    on_threads(activations_.count, [&](size_t row) { set.prepare(activations_, row, row + 1); });
  }
  const Activations& get() const { return activations_; }

 private:
  Activations activations_;
  Aligned<std::byte> memory_;
};

void products(const KernelSet& set, const Kind& kind, size_t rows, size_t columns, size_t count) {
  std::mt19937 engine(static_cast<unsigned>(rows + columns));
  std::vector<std::byte> file;
  for (size_t row = 0; row < rows; ++row) {
    const std::vector<std::byte> bytes = file_row(kind, columns, engine);
    file.insert(file.end(), bytes.begin(), bytes.end());
  }
  const FileRows in_file = rows_of({file.data(), -1, 0, file.size()}, file.size() / rows, nullptr);
  const Matrix matrix(kind.type, rows, columns, in_file, on_threads);
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
    on_threads((matrix.tiles() + set.tile_step - 1) / set.tile_step, [&](size_t i) {
      set.multiply(part, i * set.tile_step, std::min(matrix.tiles(), (i + 1) * set.tile_step));
    });
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
      raise(worst, std::abs(whole[i * rows + r] - sum) / size);
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
    raise(worst, std::abs(found[i] - right) / (std::abs(right) * 1.2e-7 * units + 1e-7));
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
  double sum = 0, worst = 0;
  for (const float number : x) sum += number;
  set.centered(x.data(), n, y.data());
  for (size_t i = 0; i < n; ++i) raise(worst, std::abs(y[i] - (x[i] - sum / static_cast<double>(n))));
  check(worst < 1e-5, set, "centered", n, 0, 0);
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

struct Text {
  PageShape shape;
  size_t tokens, heads, window;
  float soft_cap;
  std::vector<float> query, key, value;
};

// The last page of a block of its own, behind which no memory is.
std::byte* page_of(const PageShape& shape, std::vector<Aligned<std::byte>>& memory, int filled_with) {
  std::byte* block = memory.emplace_back(shape.block_bytes()).get();
  std::memset(block, filled_with, shape.block_bytes());
  return block + (kBlockPages - 1) * shape.part_bytes();
}

// What the tokens attend to, so many of them in a pass by turns, in a cache of its own whose cells held something else.
std::vector<float> attended(const KernelSet& set, const Text& text, const std::vector<size_t>& steps, int before) {
  const size_t size = text.shape.size, queries = text.heads * size, keys = text.shape.kv_heads * size;
  std::vector<Aligned<std::byte>> memory;
  std::vector<std::byte*> pages;
  std::vector<float> out(text.tokens * queries);
  for (size_t first = 0, count = 0, pass = 0; first < text.tokens; first += count, ++pass) {
    count = std::min(steps[pass % steps.size()], text.tokens - first);
    while (pages.size() * kPageTokens < first + count) {
      pages.push_back(page_of(text.shape, memory, before));
    }
    for (size_t layer = 0; layer < text.shape.layers; ++layer) {
      AttentionStep now{&text.shape,
                        pages.data(),
                        layer,
                        first,
                        count,
                        text.heads,
                        text.window,
                        0.2F,
                        text.soft_cap,
                        text.query.data() + first * queries,
                        text.key.data() + first * keys,
                        text.value.data() + first * keys,
                        queries,
                        keys,
                        keys,
                        out.data() + first * queries,
                        queries,
                        nullptr};
      const Aligned<std::byte> scratch(set.attention.scratch(now));
      now.scratch = scratch.get();
      on_threads(count, [&](size_t token) { set.attention.append(now, token); });
      on_threads(set.attention.pieces(now), [&](size_t piece) {
        const Aligned<std::byte> own(set.attention.own(text.shape));
        set.attention.attend(now, piece, own.get());
      });
      on_threads(set.attention.joins(now), [&](size_t index) { set.attention.join(now, index); });
    }
  }
  return out;
}

double attention_error(const Text& text, const std::vector<float>& found) {
  const size_t size = text.shape.size, group = text.heads / text.shape.kv_heads;
  double worst = 0;
  for (size_t at = 0; at < text.tokens; ++at) {
    for (size_t head = 0; head < text.heads; ++head) {
      const float* query = text.query.data() + (at * text.heads + head) * size;
      std::vector<double> sum(size);
      double total = 0;
      for (size_t seen = at + 1 > text.window ? at + 1 - text.window : 0; seen <= at; ++seen) {
        const size_t cell = (seen * text.shape.kv_heads + head / group) * size;
        double score = 0;
        for (size_t d = 0; d < size; ++d) score += double{query[d]} * text.key[cell + d];
        score *= double{0.2F};
        if (text.soft_cap > 0) score = text.soft_cap * std::tanh(score / text.soft_cap);
        const double weight = std::exp(score);
        total += weight;
        for (size_t d = 0; d < size; ++d) sum[d] += weight * text.value[cell + d];
      }
      for (size_t d = 0; d < size; ++d) {
        const double error = found[(at * text.heads + head) * size + d] - sum[d] / total;
        raise(worst, std::abs(error));
      }
    }
  }
  return worst;
}

void attention(const KernelSet& set, KvType type, double most, size_t size, size_t tokens, size_t window, float cap) {
  const PageShape shape{type, 2, 2, size};
  const Text text{shape,
                  tokens,
                  6,
                  window,
                  cap,
                  random(tokens * 6 * size, 9),
                  random(tokens * 2 * size, 10),
                  random(tokens * 2 * size, 11)};
  const std::vector<float> found = attended(set, text, {tokens}, 0);
  check(attention_error(text, found) < most, set, "attention", size, tokens, window);
  const std::vector<float> parts = attended(set, text, {40, 1, 1, 9, 128}, 0x3b);
  check(found == parts, set, "attention has other bits in parts", size, tokens, window);
}

// Steps of a sequence in pages of its own, each as large as it is and no larger, against plain attention.
struct Sequence {
  Sequence(const KernelSet& set, const PageShape& shape, size_t group, size_t tokens, size_t window)
      : set(set), shape(shape), heads(shape.kv_heads * group), tokens(tokens), window(window) {
    for (size_t i = 0; i < (tokens + kPageTokens - 1) / kPageTokens; ++i) {
      pages.push_back(page_of(shape, memory, 0x11));
    }
    query = random(tokens * heads * shape.size, 9, 3), key = random(tokens * shape.kv_heads * shape.size, 10);
    value = random(key.size(), 11), out.resize(query.size());
  }

  void go_on(size_t first, size_t last) {
    const size_t wide = heads * shape.size, narrow = shape.kv_heads * shape.size, layer = shape.layers - 1;
    AttentionStep step{&shape,
                       pages.data(),
                       layer,
                       first,
                       last - first,
                       heads,
                       window,
                       0.1F,
                       20,
                       query.data() + first * wide,
                       key.data() + first * narrow,
                       value.data() + first * narrow,
                       wide,
                       narrow,
                       narrow,
                       out.data() + first * wide,
                       wide,
                       nullptr};
    const PagedAttention& attention = set.attention;
    const Aligned<std::byte> scratch(attention.scratch(step)), own(attention.own(shape));
    step.scratch = scratch.get();
    for (size_t i = step.tokens; i-- > 0;) attention.append(step, i);
    for (size_t i = attention.pieces(step); i-- > 0;) attention.attend(step, i, own.get());
    for (size_t i = attention.joins(step); i-- > 0;) attention.join(step, i);
  }

  double expected(size_t i) const {
    const size_t size = shape.size, head = i / size % heads, at = i / size / heads;
    const size_t kv = head / (heads / shape.kv_heads), seen = at >= window ? at + 1 - window : 0;
    double total = 0, sum = 0;
    for (size_t t = seen; t <= at; ++t) {
      const size_t cell = (t * shape.kv_heads + kv) * size;
      double score = 0;
      for (size_t d = 0; d < size; ++d) score += double{query[i - i % size + d]} * key[cell + d];
      const double weight = std::exp(20 * std::tanh(score * double{0.1F} / 20));
      total += weight, sum += weight * value[cell + i % size];
    }
    return sum / total;
  }

  const KernelSet& set;
  const PageShape shape;
  size_t heads, tokens, window;
  std::vector<Aligned<std::byte>> memory;
  std::vector<std::byte*> pages;
  std::vector<float> query, key, value, out;
};

void attention(const KernelSet& set, KvType type, size_t size, size_t group, size_t tokens, size_t window) {
  const PageShape shape{type, 2, 2, size};
  Sequence whole(set, shape, group, tokens, window), parts(set, shape, group, tokens, window);
  whole.go_on(0, tokens);
  for (size_t first = 0, last = 0; first < tokens; first = last) {
    last = std::min(tokens, first + (first % 2 == 0 ? 1 : 80));
    parts.go_on(first, last);
  }
  check(std::memcmp(whole.out.data(), parts.out.data(), whole.out.size() * sizeof(float)) == 0, set,
        "attention has other bits in parts", size, group, tokens);
  double worst = 0;
  for (size_t i = whole.out.size() - group * 2 * size; i < whole.out.size(); ++i) {
    worst = std::max(worst, std::abs(whole.expected(i) - double{whole.out[i]}));
  }
  const double rounding = type == KvType::f32 ? 1e-4 : type == KvType::int16 ? 5e-3 : 0.1;
  check(worst < rounding, set, "attention", size, group, tokens);
}

// The fastest way of this processor against the table, and that against a remainder bit by bit.
void checksums() {
  std::mt19937 engine(1);
  std::vector<uint8_t> bytes(1000);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(engine());
  for (const size_t count : {0, 1, 7, 8, 15, 16, 127, 128, 129, 144, 255, 256, 271, 995}) {
    const std::vector<uint8_t> part(bytes.end() - static_cast<std::ptrdiff_t>(count), bytes.end());
    for (const uint32_t before : {0U, 0x12345678U}) {
      uint32_t crc = ~before;
      for (const uint8_t byte : part) {
        crc ^= byte;
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc % 2 != 0 ? 0xedb88320U : 0);
      }
      check(crc32_by_table(part.data(), count, before) == ~crc, *kernel_sets().back(), "checksum by table", count,
            before, 0);
      check(crc32(part.data(), count, before) == ~crc, *kernel_sets().back(), "checksum", count, before, 0);
    }
  }
}

}  // namespace

int main() {
  checksums();
  for (const KernelSet* set : kernel_sets()) {
    for (const Kind& kind : kKinds) {
      for (const size_t count : {1, 2, 5, 13}) {
        products(*set, kind, 1, 256, count);
        products(*set, kind, 50, 768, count);
      }
    }
    for (const auto& [type, most] : {std::pair{KvType::int16, 1e-3}, {KvType::int8, 8e-2}, {KvType::f32, 1e-5}}) {
      attention(*set, type, most, 64, 1, SIZE_MAX, 0);
      attention(*set, type, most, 80, 70, SIZE_MAX, 0);
      attention(*set, type, most, 32, 300, 40, 5);
    }
    for (const size_t n : {1, 15, 16, 33, 576, 1003}) rows(*set, n);
    for (const KvType type : {KvType::int16, KvType::int8, KvType::f32}) {
      attention(*set, type, 16, 1, 33, SIZE_MAX);
      attention(*set, type, 80, 5, 300, SIZE_MAX);
      attention(*set, type, 64, 3, 290, 100);
      attention(*set, type, 256, 2, 40, 7);
    }
    std::printf("%s ", set->name);
  }
  std::printf("\n%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
