// A mixture of experts: the networks of a layer, of which each row goes through a few.
//
//   scores = router h;  the `used` experts with the largest scores, of equal ones the first
//   weight = exp(score) / sum of those of the chosen
//   y += scale * sum of weight * network(h), in the order of the experts
//
// That is a softmax over all experts whose chosen part is made to sum to 1, and the softmax over the chosen alone.
//
// The rows of an expert are brought together, so that its matrices are read once for all of them. What a row gets does
// not depend on which others there are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dense_model.h"
#include "products.h"
#include "scratch.h"
#include "thread_pool.h"

namespace edgellm::engine {

class Experts {
 public:
  explicit Experts(const DenseModel& model);

  // y += scale * what is computed, or y = that. (embd)
  struct Sum {
    Rows y;
    bool add;
    float scale;
  };
  // By all members, once the scores of all rows are there (Scratch::scores). h: the rows as floats, which a member may
  // have for itself if they are at most kFew.
  void run(Team& team, size_t member, const Layer& layer, const Scratch& scratch, const kernels::Activations& h,
           const Sum& sum);

 private:
  struct Choice {
    size_t expert;
    float weight;
  };
  // A row of an expert.
  struct Pair {
    size_t group, row;
    float weight;
    bool first;  // of its row
  };
  // The rows of an expert: pairs [first, first + count).
  struct Group {
    size_t expert, first, count;
    Input x, hidden;
  };

  void choose(const float* scores, Choice* chosen) const;
  void group(const Scratch& scratch, size_t rows);
  void gather(const Layer& layer, const Scratch& scratch, const kernels::Activations& h, size_t pair) const;
  void prepare_hidden(const Layer& layer, const Scratch& scratch, size_t pair) const;
  void gate_up(Team& team, size_t member, const Layer& layer, const Scratch& scratch) const;
  void down(Team& team, size_t member, const Layer& layer, const Scratch& scratch, const Sum& sum) const;

  const Numbers& n_;
  const KernelSet& kernels_;
  std::vector<Choice> choices_;  // (rows, used)
  std::vector<Pair> pairs_;      // by experts, then by rows
  std::vector<Group> groups_;    // of experts that have rows, in their order
  std::vector<size_t> next_;     // (experts)
};

}  // namespace edgellm::engine
