#include "dense_model.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "thread_pool.h"

namespace edgellm::engine {

namespace {

using Role = std::string_view;

constexpr std::pair<Role, Linear Layer::*> kLinears[] = {
    {"attn_q", &Layer::q},
    {"attn_k", &Layer::k},
    {"attn_v", &Layer::v},
    {"attn_output", &Layer::output},
};
constexpr Role kRouter = "ffn_gate_inp", kStacked = "_exps";  // of experts
constexpr std::pair<Role, Linear FeedForward::*> kNetworkLinears[] = {
    {"ffn_gate", &FeedForward::gate},
    {"ffn_up", &FeedForward::up},
    {"ffn_down", &FeedForward::down},
};
constexpr std::pair<Role, Norm Layer::*> kNorms[] = {
    {"attn_norm", &Layer::attn_norm}, {"attn_q_norm", &Layer::q_norm},
    {"attn_k_norm", &Layer::k_norm},  {"post_attention_norm", &Layer::post_attention_norm},
    {"ffn_norm", &Layer::ffn_norm},   {"post_ffw_norm", &Layer::post_ffw_norm},
};

std::string full_name(int64_t layer, Role role) {
  return layer < 0 ? std::string(role) : "blk." + std::to_string(layer) + "." + std::string(role);
}

[[noreturn]] void refuse(int64_t layer, Role role, const std::string& why) {
  throw std::invalid_argument(full_name(layer, role) + ": " + why);
}

std::string shape(size_t rows, size_t columns) {
  return std::string("(") + std::to_string(rows) + ", " + std::to_string(columns) + ")";
}

void expect(int64_t layer, Role role, const Linear& linear, size_t rows, size_t columns) {
  if (!linear.matrix) refuse(layer, role, "this matrix is missing");
  const Matrix& matrix = *linear.matrix;
  if (matrix.rows() != rows || matrix.columns() != columns)
    refuse(layer, role,
           "the shape is " + shape(matrix.rows(), matrix.columns()) + ", expected " + shape(rows, columns));
  if (!linear.bias.empty() && linear.bias.size() != rows)
    refuse(layer, role, "a bias of " + std::to_string(linear.bias.size()) + " numbers for " + std::to_string(rows));
}

void expect(int64_t layer, Role role, const Norm& norm, size_t size, size_t other) {
  const size_t found = norm.weight.size();
  if (!norm.empty() && found != size && found != other)
    refuse(layer, role, std::to_string(found) + " numbers, expected " + std::to_string(size));
  if (!norm.bias.empty() && norm.bias.size() != found)
    refuse(layer, role, "a bias of " + std::to_string(norm.bias.size()) + " numbers for " + std::to_string(found));
}

void check(const Numbers& n) {
  constexpr size_t kMost = size_t{1} << 24;  // of each: products of two of them fit anywhere
  for (const size_t size : {n.layers, n.embd, n.ff, n.heads, n.kv_heads, n.head, n.vocab})
    if (size == 0 || size > kMost) throw std::invalid_argument("a size of " + std::to_string(size) + " in the model");
  if (n.heads % n.kv_heads != 0) throw std::invalid_argument("heads of queries must be a multiple of those of keys");
  if (n.head % 16 != 0 || n.head > 256)
    throw std::invalid_argument("heads of " + std::to_string(n.head) + " numbers; multiples of 16 up to 256 are known");
  if (n.windows.size() != n.layers || n.rotations.size() != n.layers)
    throw std::invalid_argument("windows and rotations need a number for each layer");
  if (std::find(n.windows.begin(), n.windows.end(), size_t{0}) != n.windows.end())
    throw std::invalid_argument("a window of no keys");
  for (const float number :
       {n.eps, n.attention_scale, n.attention_cap, n.final_cap, n.embedding_scale, n.residual_scale, n.logit_scale})
    if (!std::isfinite(number)) throw std::invalid_argument("a number of the model is not finite");
  if (n.experts > kMost || n.used > n.experts || (n.used == 0) != (n.experts == 0))
    throw std::invalid_argument(std::to_string(n.used) + " of " + std::to_string(n.experts) + " experts in the model");
  if (n.eps < 0 || n.attention_cap < 0 || n.final_cap < 0 || n.logit_scale == 0)
    throw std::invalid_argument("a number of the model is negative, or its logit scale 0");
}

}  // namespace

DenseModel::DenseModel(Numbers numbers, const KernelSet& kernels, size_t threads)
    : numbers_(std::move(numbers)), kernels_(&kernels), threads_(threads) {
  check(numbers_);
  if (threads_ == 0) throw std::invalid_argument("a model needs at least one thread");
  layers_.resize(numbers_.layers);
  for (Layer& layer : layers_) layer.networks.resize(std::max<size_t>(numbers_.experts, 1));
}

// Those whose rows a tensor of this role holds, one after the other.
std::vector<Linear*> DenseModel::linears(int64_t at, Role role) {
  if (at < 0) {
    if (role == "token_embd") return {&embedding_};
    if (role == "position_embd") return {&positions_};
    if (role == "output") return {&output_};
    return {};
  }
  Layer& layer = layers_[static_cast<size_t>(at)];
  for (const auto& [name, member] : kLinears)
    if (name == role) return {&(layer.*member)};
  if (numbers_.experts != 0) {
    if (role == kRouter) return {&layer.router};
    if (!role.ends_with(kStacked)) return {};
    role.remove_suffix(kStacked.size());
  }
  std::vector<Linear*> found;
  for (const auto& [name, member] : kNetworkLinears)
    for (FeedForward& network : layer.networks)
      if (name == role) found.push_back(&(network.*member));
  return found;
}

Norm* DenseModel::norm(int64_t layer, Role role) {
  if (layer < 0) return role == "output_norm" ? &output_norm_ : nullptr;
  for (const auto& [name, member] : kNorms)
    if (name == role) return &(layers_[static_cast<size_t>(layer)].*member);
  return nullptr;
}

void DenseModel::check_settable(int64_t layer, Role role) const {
  if (finished_) refuse(layer, role, "the model is finished");
  if (layer < -1 || layer >= static_cast<int64_t>(numbers_.layers)) refuse(layer, role, "there is no such layer");
}

void DenseModel::set_matrix(int64_t layer, const std::string& role, uint32_t type, size_t rows, size_t columns,
                            const kernels::FileBytes& bytes, const int64_t* order) {
  check_settable(layer, role);
  const std::vector<Linear*> targets = linears(layer, role);
  if (targets.empty()) refuse(layer, role, "there is no such matrix");
  const auto kind = static_cast<kernels::Type>(type);
  const kernels::Storage stored = kernels::storage(kind);
  if (stored.numbers == 0) refuse(layer, role, "the type " + std::to_string(type) + " is not known");
  if (rows == 0 || columns == 0 || columns % stored.numbers != 0)
    refuse(layer, role, "the shape " + shape(rows, columns) + " cannot be stored in this type");
  const size_t blocks = bytes.size / stored.bytes, row_blocks = columns / stored.numbers;
  if (bytes.size % stored.bytes != 0 || blocks % row_blocks != 0 || blocks / row_blocks != rows)
    refuse(layer, role, std::to_string(bytes.size) + " bytes do not hold " + shape(rows, columns) + " numbers");
  for (size_t i = 0; order != nullptr && i < rows; ++i)
    if (order[i] < 0 || static_cast<size_t>(order[i]) >= rows) refuse(layer, role, "the order of its rows is wrong");
  const size_t row_bytes = row_blocks * stored.bytes, each = rows / targets.size();
  if (each * targets.size() != rows)
    refuse(layer, role, std::to_string(rows) + " rows of " + std::to_string(targets.size()) + " experts");
  const kernels::FileRows file = kernels::rows_of(bytes, row_bytes, order);
  ThreadPool::Turn turn(ThreadPool::process(), threads_);
  try {
    for (size_t i = 0; i < targets.size(); ++i)
      targets[i]->matrix = std::make_unique<Matrix>(
          kind, each, columns,
          [&](size_t first, size_t count, std::byte* room) { return file(i * each + first, count, room); },
          [&](size_t count, const std::function<void(size_t)>& work) { turn.each(count, work); });
  } catch (const std::domain_error& error) {
    throw std::domain_error(full_name(layer, role) + ": " + error.what());
  } catch (const std::invalid_argument& error) {
    refuse(layer, role, error.what());
  }
}

void DenseModel::set_vector(int64_t layer, const std::string& role, std::vector<float> values) {
  check_settable(layer, role);
  if (values.empty()) refuse(layer, role, "no numbers");
  for (const float value : values)
    if (!std::isfinite(value)) throw std::domain_error(full_name(layer, role) + ": not all numbers are finite");
  constexpr Role kBias = ".bias";
  if (role.ends_with(kBias)) {
    const Role owner = Role(role).substr(0, role.size() - kBias.size());
    const std::vector<Linear*> targets = linears(layer, owner);
    Norm* target = norm(layer, owner);
    const bool one = targets.size() == 1 && targets[0] != &embedding_ && targets[0] != &positions_;
    if (target == nullptr && !one) refuse(layer, role, "there is no such bias");
    (target != nullptr ? target->bias : targets[0]->bias) = std::move(values);
    return;
  }
  Norm* target = norm(layer, role);
  if (target == nullptr) refuse(layer, role, "there is no such norm");
  target->weight = std::move(values);
}

void DenseModel::set_rotation(size_t kind, std::vector<double> frequencies, double magnitude) {
  if (finished_ || kind == 0) throw std::invalid_argument("rotations are numbered from 1, and set before finish");
  Rotation rotation(std::move(frequencies), magnitude);
  if (rotation.rotary() > numbers_.head)
    throw std::invalid_argument("a rotation of " + std::to_string(rotation.rotary()) + " numbers of a head of " +
                                std::to_string(numbers_.head));
  rotations_.insert_or_assign(kind, std::move(rotation));
}

void DenseModel::finish() {
  const Numbers& n = numbers_;
  expect(-1, "token_embd", embedding_, n.vocab, n.embd);
  if (positions_.matrix) expect(-1, "position_embd", positions_, positions_.matrix->rows(), n.embd);
  if (output_.matrix || !output_.bias.empty()) expect(-1, "output", output_, n.vocab, n.embd);
  if (output_norm_.empty()) refuse(-1, "output_norm", "this norm is missing");
  expect(-1, "output_norm", output_norm_, n.embd, n.embd);
  for (size_t i = 0; i < n.layers; ++i) {
    const auto at = static_cast<int64_t>(i);
    const Layer& layer = layers_[i];
    expect(at, "attn_q", layer.q, n.q(), n.embd);
    expect(at, "attn_k", layer.k, n.kv(), n.embd);
    expect(at, "attn_v", layer.v, n.kv(), n.embd);
    expect(at, "attn_output", layer.output, n.embd, n.q());
    if (n.experts != 0) expect(at, kRouter, layer.router, n.experts, n.embd);
    const std::string suffix(n.experts == 0 ? "" : kStacked);
    for (const FeedForward& network : layer.networks) {
      if (network.gate.matrix || !network.gate.bias.empty())
        expect(at, "ffn_gate" + suffix, network.gate, n.ff, n.embd);
      expect(at, "ffn_up" + suffix, network.up, n.ff, n.embd);
      expect(at, "ffn_down" + suffix, network.down, n.embd, n.ff);
    }
    expect(at, "attn_norm", layer.attn_norm, n.embd, n.embd);
    expect(at, "attn_q_norm", layer.q_norm, n.head, n.q());
    expect(at, "attn_k_norm", layer.k_norm, n.head, n.kv());
    expect(at, "post_attention_norm", layer.post_attention_norm, n.embd, n.embd);
    expect(at, "ffn_norm", layer.ffn_norm, n.embd, n.embd);
    expect(at, "post_ffw_norm", layer.post_ffw_norm, n.embd, n.embd);
    if (n.parallel && !(layer.post_attention_norm.empty() && layer.post_ffw_norm.empty()))
      throw std::invalid_argument("norms after what is computed in parallel");
    if (n.rotations[i] != 0 && !rotations_.contains(n.rotations[i]))
      throw std::invalid_argument("the rotation " + std::to_string(n.rotations[i]) + " is missing");
  }
  finished_ = true;
}

}  // namespace edgellm::engine
