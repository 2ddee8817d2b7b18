// The attention of a pass: a step for each of its sequences, one layer at a time, divided between the members of a
// team.
#pragma once

#include <cstddef>
#include <vector>

#include "../kernels/aligned.h"
#include "../kernels/kernel_set.h"
#include "dense_model.h"
#include "pages.h"
#include "thread_pool.h"

namespace edgellm::engine {

class SequenceSteps {
 public:
  explicit SequenceSteps(const DenseModel& model);

  struct Row {
    size_t sequence, token;
  };
  // Where the queries, keys, values and results of the rows of the pass are; the heads of a row lie together.
  struct Memory {
    const float *query, *key, *value;
    size_t stride;
    float* out;
    size_t out_stride;
  };

  // The pass begins; then the new tokens of each sequence, whose first one has the position `first`; then `place`, for
  // so many members.
  void clear();
  void add(const Table& table, size_t first, size_t tokens);
  void place(const Memory& memory, size_t members);

  size_t rows() const { return rows_.size(); }
  size_t position(size_t row) const { return steps_[rows_[row].sequence].first + rows_[row].token; }

  // In this order: enter by one member, append for each row by any, and the others by all, with barriers between them.
  void enter(size_t layer);
  void append(size_t row) const { kernels_->attention.append(steps_[rows_[row].sequence], rows_[row].token); }
  void attend(Team& team, size_t member) const;
  bool joins() const { return !joins_.empty() && joins_.back() > 0; }
  void join(Team& team) const;

 private:
  const Numbers* numbers_;
  const KernelSet* kernels_;
  std::vector<kernels::AttentionStep> steps_;
  std::vector<Row> rows_;
  std::vector<size_t> pieces_, joins_;         // of the sequences up to this one
  kernels::Aligned<std::byte> scratch_, own_;  // of each sequence; of each member
  size_t own_bytes_ = 0;
};

}  // namespace edgellm::engine
