#include "sequence_steps.h"

#include <algorithm>
#include <set>

namespace edgellm::engine {

namespace {

constexpr size_t round_up(size_t n) { return (n + kernels::kAlign - 1) / kernels::kAlign * kernels::kAlign; }

void grow(kernels::Aligned<std::byte>& memory, size_t bytes) {
  if (memory.size() >= bytes) return;
  memory = {};
  memory = kernels::Aligned<std::byte>(bytes + bytes / 4);
}

// Calls `work` for the things of all sequences, of which there are `ends`[s] in those up to s.
template <typename Work>
void for_all(Team& team, const std::vector<size_t>& ends, const Work& work) {
  const size_t count = ends.empty() ? 0 : ends.back();
  for (size_t first = 0, last = 0; team.take(count, 1, first, last);) {
    auto sequence = static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), first) - ends.begin());
    for (size_t i = first; i < last; ++i) {
      while (i >= ends[sequence]) ++sequence;
      work(sequence, i - (sequence == 0 ? 0 : ends[sequence - 1]));
    }
  }
}

}  // namespace

SequenceSteps::SequenceSteps(const DenseModel& model) : numbers_(&model.numbers()), kernels_(&model.kernels()) {}

void SequenceSteps::clear() {
  steps_.clear();
  rows_.clear();
}

void SequenceSteps::add(const Table& table, size_t first, size_t tokens) {
  const Numbers& n = *numbers_;
  for (size_t token = 0; token < tokens; ++token) rows_.push_back({steps_.size(), token});
  kernels::AttentionStep step{};
  step.shape = &table.pool()->shape();
  step.pages = table.pages();
  step.first = first;
  step.tokens = tokens;
  step.heads = n.heads;
  step.scale = n.attention_scale;
  step.soft_cap = n.attention_cap;
  steps_.push_back(step);
}

void SequenceSteps::place(const Memory& memory, size_t members) {
  const std::set<size_t> windows(numbers_->windows.begin(), numbers_->windows.end());
  std::vector<size_t> offsets;
  size_t bytes = 0, row = 0;
  for (kernels::AttentionStep& step : steps_) {
    step.query = memory.query + row * memory.stride;
    step.key = memory.key + row * memory.stride;
    step.value = memory.value + row * memory.stride;
    step.query_stride = step.key_stride = step.value_stride = memory.stride;
    step.out = memory.out + row * memory.out_stride;
    step.out_stride = memory.out_stride;
    row += step.tokens;
    size_t most = 0;
    for (const size_t window : windows) {
      step.window = window;
      most = std::max(most, kernels_->attention.scratch(step));
    }
    offsets.push_back(bytes);
    bytes += round_up(most);
  }
  grow(scratch_, bytes);
  for (size_t i = 0; i < steps_.size(); ++i) steps_[i].scratch = scratch_.get() + offsets[i];
  own_bytes_ = 0;
  for (const kernels::AttentionStep& step : steps_)
    own_bytes_ = std::max(own_bytes_, round_up(kernels_->attention.own(*step.shape)));
  grow(own_, own_bytes_ * members);
  pieces_.resize(steps_.size());
  joins_.resize(steps_.size());
}

void SequenceSteps::enter(size_t layer) {
  size_t pieces = 0, joins = 0;
  for (size_t i = 0; i < steps_.size(); ++i) {
    steps_[i].layer = layer;
    steps_[i].window = numbers_->windows[layer];
    pieces_[i] = pieces += kernels_->attention.pieces(steps_[i]);
    joins_[i] = joins += kernels_->attention.joins(steps_[i]);
  }
}

void SequenceSteps::attend(Team& team, size_t member) const {
  std::byte* own = own_.get() + member * own_bytes_;
  for_all(team, pieces_, [&](size_t i, size_t piece) { kernels_->attention.attend(steps_[i], piece, own); });
}

void SequenceSteps::join(Team& team) const {
  for_all(team, joins_, [&](size_t i, size_t index) { kernels_->attention.join(steps_[i], index); });
}

}  // namespace edgellm::engine
