// A pass: new tokens of several sequences through all layers, and the logits of some of them.
//
// What a token gets does not depend on which others there are, how they are cut into passes, or on the threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <vector>

#include "../abort_flag.h"
#include "../kernels/aligned.h"
#include "../kernels/kernel_set.h"
#include "dense_model.h"
#include "experts.h"
#include "pages.h"
#include "products.h"
#include "scratch.h"
#include "sequence_steps.h"
#include "thread_pool.h"

namespace edgellm::engine {

// The tokens that one sequence goes on with, and of how many of the last of them the logits are wanted.
struct Part {
  Table* table;
  std::vector<int32_t> tokens;
  size_t rows;
};

// The abort flag was raised: every sequence is as long as before.
struct Interrupted : std::runtime_error {
  Interrupted() : std::runtime_error("the pass was interrupted") {}
};

using Logits = std::shared_ptr<kernels::Aligned<float>>;  // (rows that are wanted, vocab)

class Forward {
 public:
  // So many tokens go through the layers at once. The model is finished, and outlives this.
  Forward(DenseModel& model, size_t micro_batch);

  // The logits, in the order of the parts. They stay as they are until the next call; those of many rows, longer.
  // std::invalid_argument for tokens and sequences that are none of this model's, std::bad_alloc, KvFull,
  // Interrupted; std::logic_error for a sequence that somebody else uses. Safe from any thread.
  Logits run(const std::vector<Part>& parts, const AbortFlag* abort);

 private:
  struct Source;

  std::vector<Table::Use> check(const std::vector<Part>& parts) const;
  void compute(ThreadPool::Turn& turn, const std::vector<Part>& parts);

  // What all members do together.
  void work(Team& team, size_t member);
  bool attention(Team& team, size_t member, size_t layer);
  void feed_forward(Team& team, size_t member, const Layer& layer);
  void output(Team& team, size_t member);
  const Norm* attention_delta(const Layer& layer) const;
  const Norm* network_delta(const Layer& layer) const;
  Input prepare(Team& team, size_t member, const Source& source, std::initializer_list<const Linear*> readers);

  // What one does for a row.
  void embed(size_t row, float* own) const;
  void normalize(const Norm& norm, const float* x, size_t n, float* y) const;
  void turn(size_t row, const Layer& layer, size_t rotation) const;
  void settle(size_t row, const Norm& norm, float* own) const;

  DenseModel& model_;
  const Numbers& n_;
  const KernelSet& kernels_;
  const size_t micro_batch_;
  std::unique_ptr<Scratch> scratch_;
  Logits logits_;  // those of few rows are kept

  // of the tokens that go through the layers now
  SequenceSteps steps_;
  Experts experts_;
  std::vector<int32_t> tokens_;
  std::vector<size_t> wanted_;  // rows whose logits are
  float* out_ = nullptr;        // for the first of them
  const AbortFlag* abort_ = nullptr;
  bool stopped_ = false;
};

}  // namespace edgellm::engine
