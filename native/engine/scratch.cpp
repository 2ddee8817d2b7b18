#include "scratch.h"

#include <algorithm>

namespace edgellm::engine {

namespace {

using kernels::activation_bytes;
using kernels::Form;
using kernels::kAlign;
using kernels::kGroupRows;
constexpr size_t kLine = kAlign / sizeof(float);
constexpr size_t kUpNumbers = 32768;  // they stay in the cache of a core

size_t stride_of(size_t columns) {
  const size_t lines = (columns + kLine - 1) / kLine;
  return (lines | 1) * kLine;
}

// Hands out parts of one piece of memory; without it, counts their bytes.
class Carver {
 public:
  explicit Carver(std::byte* memory) : memory_(memory) {}
  std::byte* bytes(size_t count) {
    std::byte* at = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += Scratch::round_up(count);
    return at;
  }
  float* floats(size_t count) { return reinterpret_cast<float*>(bytes(count * sizeof(float))); }
  Rows rows(size_t count, size_t columns) {
    const size_t stride = stride_of(columns);
    return {floats(count * stride), stride};
  }
  size_t used() const { return used_; }

 private:
  std::byte* memory_;
  size_t used_ = 0;
};

}  // namespace

size_t Scratch::up_columns(size_t rows, size_t step) { return std::max(step, kUpNumbers / rows / step * step); }

Scratch::Scratch(const DenseModel& model, size_t rows, size_t members) : count_(rows), own_(members) {
  const Numbers& n = model.numbers();
  const size_t pairs = n.experts == 0 ? rows : rows * n.used;
  const size_t widest = std::max({n.embd, n.q(), n.ff});
  const size_t up = std::max(kUpNumbers, rows * model.kernels().tile_step * kernels::kTile);
  const auto carve = [&](Carver carver) {
    x = carver.rows(rows, n.embd);
    qkv = carver.rows(rows, n.q() + 2 * n.kv());
    attended = carver.rows(rows, n.q());
    hidden = carver.rows(pairs, n.ff);
    scores = carver.rows(rows, n.experts);
    delta = carver.rows(rows, n.embd);
    // In so many parts, each with rows that fill its last group.
    const auto prepared = [&](size_t count, size_t parts) {
      const auto bytes = [&](Form form) {
        return carver.bytes(activation_bytes(form, widest, 1) * (count + count / kGroupRows + parts) + parts * kAlign);
      };
      return Prepared{carver.rows(count, n.embd), bytes(Form::bytes32), bytes(Form::bytes256)};
    };
    shared = prepared(rows, 1);
    if (n.experts != 0) gathered = prepared(pairs, std::min(n.experts, pairs));
    for (Own& own : own_) {
      own.prepared = prepared(kFew, 1);
      own.row = carver.floats(n.embd);
      own.up = carver.floats(up);
      carver.bytes(kAlign);  // of another member's
    }
    return carver.used();
  };
  memory_ = kernels::Aligned<std::byte>(carve(Carver(nullptr)));
  carve(Carver(memory_.get()));
}

}  // namespace edgellm::engine
