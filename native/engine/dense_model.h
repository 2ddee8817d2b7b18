// A decoder: its numbers and its weights. What families differ in is a number, or whether a weight is there.
//
//   x = embedding * embedding_scale + position_embd
//   per layer:
//     h = norm(x; attn_norm);  q, k, v = products of h;  q, k = norm(.; attn_q_norm, attn_k_norm), rotated
//     x += residual_scale * norm(product(attention; attn_output); post_attention_norm)
//     h = norm(x; ffn_norm);  x += residual_scale * norm(network(h); post_ffw_norm)
//       network(h) = ffn_down(act(ffn_gate h) * ffn_up h), or the weighted sum of some of many such (experts.h)
//   logits = soft_cap(output(norm(x; output_norm) / logit_scale))
//
// In parallel: the network reads norm(x; ffn_norm) of the x that attention has read, and both are added then.
//
// A norm without a weight is left out, and one with a bias takes the mean of x away; those of q and k are over each
// head or over all of them, as their length says. Without a matrix "output" that is the embedding, without ffn_gate a
// network is ffn_down(act(ffn_up h)), and without position_embd nothing is added. Biases are added where there are any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "../kernels/kernel_set.h"
#include "../kernels/matrix.h"
#include "rotation.h"

namespace edgellm::engine {

using kernels::Gate;
using kernels::KernelSet;
using kernels::Matrix;

struct Numbers {
  size_t layers, embd, ff, heads, kv_heads, head, vocab;  // head: numbers of one; ff: of one expert where there are any
  size_t experts = 0, used = 0;                           // of each layer, and how many of them a row goes through
  float eps;
  Gate gate;
  float attention_scale, attention_cap, final_cap;  // caps: 0 for none
  float embedding_scale, residual_scale, logit_scale;
  bool parallel = false;
  std::vector<size_t> windows;    // (layers): keys that a query sees, SIZE_MAX for all
  std::vector<size_t> rotations;  // (layers): which rotation; 0: none

  size_t q() const { return heads * head; }
  size_t kv() const { return kv_heads * head; }
};

// A matrix and the bias of its product, which may be empty.
struct Linear {
  std::unique_ptr<Matrix> matrix;
  std::vector<float> bias;

  const float* bias_or_null() const { return bias.empty() ? nullptr : bias.data(); }
};

struct Norm {
  std::vector<float> weight, bias;

  bool empty() const { return weight.empty(); }
};

struct FeedForward {
  Linear gate, up, down;
};

// Norms are empty where there is none. One network, or one for each expert, and a router that chooses among them.
struct Layer {
  Linear q, k, v, output, router;
  std::vector<FeedForward> networks;
  Norm attn_norm, q_norm, k_norm, post_attention_norm, ffn_norm, post_ffw_norm;
};

class DenseModel {
 public:
  // std::invalid_argument for numbers that cannot be. By so many threads, or as many as can be started.
  DenseModel(Numbers numbers, const KernelSet& kernels, size_t threads);

  // A matrix as it lies in a file, laid out by all threads. layer: -1 for those of the whole model; role: GGUF's name
  // without "blk.N." and ".weight". bytes: all rows, those of experts one after the other; order: the file's row for
  // each row, or null for the same. std::invalid_argument for what does not fit, std::domain_error for scales that are
  // not finite and for a file that cannot be read, std::bad_alloc.
  void set_matrix(int64_t layer, const std::string& role, uint32_t type, size_t rows, size_t columns,
                  const kernels::FileBytes& bytes, const int64_t* order);
  // The weight of a norm, or a bias ("attn_q.bias", "attn_norm.bias").
  void set_vector(int64_t layer, const std::string& role, std::vector<float> values);
  // The rotation of the layers whose number in `rotations` is `kind`.
  void set_rotation(size_t kind, std::vector<double> frequencies, double magnitude);
  // Everything has been set: std::invalid_argument names what is missing or has the wrong shape.
  void finish();
  bool finished() const { return finished_; }

  const Numbers& numbers() const { return numbers_; }
  const KernelSet& kernels() const { return *kernels_; }
  size_t threads() const { return threads_; }

  const Layer& layer(size_t i) const { return layers_[i]; }
  const Matrix& embedding() const { return *embedding_.matrix; }
  const Linear& output() const { return output_.matrix ? output_ : embedding_; }
  const Matrix* positions() const { return positions_.matrix.get(); }  // null: none
  const Norm& output_norm() const { return output_norm_; }
  Rotation* rotation(size_t kind) { return kind == 0 ? nullptr : &rotations_.at(kind); }
  std::map<size_t, Rotation>& rotations() { return rotations_; }

 private:
  void check_settable(int64_t layer, std::string_view role) const;
  std::vector<Linear*> linears(int64_t layer, std::string_view role);
  Norm* norm(int64_t layer, std::string_view role);

  Numbers numbers_;
  const KernelSet* kernels_;
  size_t threads_;
  bool finished_ = false;
  std::vector<Layer> layers_;
  Linear embedding_, positions_, output_;
  Norm output_norm_;
  std::map<size_t, Rotation> rotations_;
};

}  // namespace edgellm::engine
