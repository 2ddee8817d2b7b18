// Memory of a pass, for so many rows and members of the team.
#pragma once

#include <cstddef>
#include <vector>

#include "../kernels/aligned.h"
#include "dense_model.h"

namespace edgellm::engine {

// So few rows of X are prepared by every member for itself; more are divided, which takes a barrier.
constexpr size_t kFew = 4;

// Rows of one buffer. They begin an odd number of cache lines apart, so that those of a column fall into different sets
// of the caches.
struct Rows {
  float* data = nullptr;
  size_t stride = 0;

  float* operator[](size_t row) const { return data + row * stride; }
};

class Scratch {
 public:
  // std::bad_alloc
  Scratch(const DenseModel& model, size_t rows, size_t members);
  size_t rows() const { return count_; }
  size_t members() const { return own_.size(); }

  Rows x;         // (embd): what the layers add to
  Rows qkv;       // (q + kv + kv)
  Rows attended;  // (q)
  Rows hidden;    // (ff): act(gate) * up; of experts, for each of those of a row
  Rows scores;    // (experts)
  Rows delta;     // (embd): what a block adds, before its norm

  // X of a product: normed, and as the kernels read it.
  struct Prepared {
    Rows normed;  // (embd)
    std::byte *bytes32, *bytes256;
  };
  Prepared shared;
  Prepared gathered;  // of the rows of experts, or of their hidden ones; each expert's at a multiple of kAlign
  // Of one member.
  struct Own {
    Prepared prepared;  // kFew rows
    float* row;         // (embd)
    float* up;          // up_columns of all rows
  };
  const Own& own(size_t member) const { return own_[member]; }

  static size_t round_up(size_t bytes) { return (bytes + kernels::kAlign - 1) / kernels::kAlign * kernels::kAlign; }
  // Columns of `up` that are computed at once, of so many rows: at least `step`, and multiples of it.
  static size_t up_columns(size_t rows, size_t step);

 private:
  size_t count_;
  kernels::Aligned<std::byte> memory_;
  std::vector<Own> own_;
};

}  // namespace edgellm::engine
