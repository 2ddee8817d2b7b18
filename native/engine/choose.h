// From one row of logits to one token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "logit_blocks.h"

namespace edgellm::engine {

enum class Filter { top_n_sigma, top_k, typical_p, top_p, min_p, xtc_threshold };

// As in edgellm/backends/base.py. temperature 0: the likeliest token, the smallest id of equal ones.
struct SamplingPlan {
  std::vector<Shift> shifts;
  const uint32_t* mask;  // see LogitBlocks
  double temperature;
  std::vector<std::pair<Filter, double>> filters;
  double point;
};

// The token, or -1 where no logit is possible or one of those that are allowed is no number. The same on every machine:
// floats are added in an order that does not depend on it.
int32_t choose(const float* row, size_t size, const SamplingPlan& plan);

// Of the log-softmax of a row: that of `token`, and the n largest, by falling logit, then by id.
struct LogProbabilities {
  double chosen;
  std::vector<std::pair<int32_t, double>> top;
};
LogProbabilities log_probabilities(const float* row, size_t size, size_t token, size_t n);

}  // namespace edgellm::engine
