#include "forward.h"

#include <algorithm>
#include <array>
#include <string>
#include <unordered_set>

namespace edgellm::engine {

using kernels::Activations;
using kernels::Form;
using kernels::kTile;

namespace {

constexpr size_t kKeptRows = 16;  // of logits, whose memory is used again

}  // namespace

// Rows of which the next products are made: those of x, normed and divided, after what a block has added to them.
struct Forward::Source {
  Rows x;
  size_t columns;
  const Norm* norm = nullptr;                 // empty or null: none
  const Norm* settle = nullptr;               // of what is to be added, empty: none; null: nothing is
  const std::vector<size_t>* rows = nullptr;  // null: all
  float scale = 1;
  bool floats = false;  // to be there as such, whatever the matrices read
};

Forward::Forward(DenseModel& model, size_t micro_batch)
    : model_(model),
      n_(model.numbers()),
      kernels_(model.kernels()),
      micro_batch_(micro_batch),
      steps_(model),
      experts_(model) {
  if (micro_batch == 0) throw std::invalid_argument("a pass has at least one token");
}

// The sequences, which nobody else uses from then on.
std::vector<Table::Use> Forward::check(const std::vector<Part>& parts) const {
  std::unordered_set<const Table*> seen;
  std::vector<Table::Use> uses;
  for (const Part& part : parts) {
    if (!seen.insert(part.table).second) throw std::invalid_argument("a sequence is there twice");
    uses.push_back(part.table->use());
    const auto& pool = part.table->pool();
    if (pool == nullptr) throw std::invalid_argument("a sequence that is closed");
    const PageShape& shape = pool->shape();
    if (shape.layers != n_.layers || shape.kv_heads != n_.kv_heads || shape.size != n_.head)
      throw std::invalid_argument("the pages of a sequence are those of another model");
    if (part.tokens.empty()) throw std::invalid_argument("a sequence without new tokens");
    if (part.rows > part.tokens.size()) throw std::invalid_argument("more rows of logits than tokens");
    if (model_.positions() != nullptr && part.table->length() + part.tokens.size() > model_.positions()->rows())
      throw std::invalid_argument("more tokens than the " + std::to_string(model_.positions()->rows()) + " positions");
    for (const int32_t token : part.tokens)
      if (token < 0 || static_cast<size_t>(token) >= n_.vocab)
        throw std::invalid_argument("the token " + std::to_string(token) + " is none of the " +
                                    std::to_string(n_.vocab) + " of the vocabulary");
  }
  return uses;
}

Logits Forward::run(const std::vector<Part>& parts, const AbortFlag* abort) {
  const std::vector<Table::Use> uses = check(parts);
  ThreadPool::Turn turn(ThreadPool::process(), model_.threads());
  size_t wanted = 0, longest = 0;
  for (const Part& part : parts) {
    wanted += part.rows;
    longest = std::max(longest, part.table->length() + part.tokens.size());
  }
  Logits out = logits_;
  if (out == nullptr || out->size() < wanted * n_.vocab) {
    out = std::make_shared<kernels::Aligned<float>>(std::max<size_t>(wanted, 1) * n_.vocab);
    if (wanted <= kKeptRows) logits_ = out;
  }
  for (auto& [kind, rotation] : model_.rotations()) rotation.reach(longest);
  const auto give_back = [&] {
    for (const Part& part : parts) part.table->truncate(part.table->length());
  };
  try {
    for (const Part& part : parts) part.table->reserve(part.table->length() + part.tokens.size());
    out_ = out->get();
    abort_ = abort;
    compute(turn, parts);
  } catch (...) {
    give_back();
    throw;
  }
  for (const Part& part : parts) part.table->commit(part.table->length() + part.tokens.size());
  return out;
}

void Forward::compute(ThreadPool::Turn& turn, const std::vector<Part>& parts) {
  size_t part = 0, token = 0;  // the next one
  while (part < parts.size()) {
    steps_.clear();
    tokens_.clear();
    wanted_.clear();
    while (part < parts.size() && tokens_.size() < micro_batch_) {
      const Part& p = parts[part];
      const size_t count = std::min(p.tokens.size() - token, micro_batch_ - tokens_.size());
      steps_.add(*p.table, p.table->length() + token, count);
      for (const size_t end = token + count; token < end; ++token) {
        if (token + p.rows >= p.tokens.size()) wanted_.push_back(tokens_.size());
        tokens_.push_back(p.tokens[token]);
      }
      if (token < p.tokens.size()) break;
      ++part;
      token = 0;
    }
    if (!scratch_ || scratch_->rows() < tokens_.size() || scratch_->members() < turn.threads()) {
      constexpr size_t kStep = 16;
      const size_t rows = std::min(micro_batch_, (tokens_.size() + kStep - 1) / kStep * kStep);
      scratch_.reset();
      scratch_ = std::make_unique<Scratch>(model_, rows, turn.threads());
    }
    const Rows& qkv = scratch_->qkv;
    steps_.place({qkv.data, qkv.data + n_.q(), qkv.data + n_.q() + n_.kv(), qkv.stride, scratch_->attended.data,
                  scratch_->attended.stride},
                 turn.threads());
    stopped_ = false;
    turn.run([this](Team& team, size_t member) { work(team, member); });
    if (stopped_) throw Interrupted();
    out_ += wanted_.size() * n_.vocab;
  }
}

void Forward::work(Team& team, size_t member) {
  for (size_t first = 0, last = 0; team.take(tokens_.size(), 1, first, last);)
    for (size_t row = first; row < last; ++row) embed(row, scratch_->own(member).row);
  for (size_t i = 0; i < n_.layers; ++i) {
    if (!attention(team, member, i)) return;
    feed_forward(team, member, model_.layer(i));
  }
  output(team, member);
}

bool Forward::attention(Team& team, size_t member, size_t i) {
  const Layer& layer = model_.layer(i);
  const Scratch& s = *scratch_;
  const Norm* before = i == 0 ? nullptr : network_delta(model_.layer(i - 1));
  const Input x = prepare(team, member, {.x = s.x, .columns = n_.embd, .norm = &layer.attn_norm, .settle = before},
                          {&layer.q, &layer.k, &layer.v});
  const Rows k{s.qkv.data + n_.q(), s.qkv.stride}, v{k.data + n_.kv(), s.qkv.stride};
  multiply(kernels_, team, x, {{layer.q, s.qkv, false, 1}, {layer.k, k, false, 1}, {layer.v, v, false, 1}});

  const size_t rows = tokens_.size();
  const auto put = [&](size_t row) {
    turn(row, layer, n_.rotations[i]);
    steps_.append(row);
  };
  team.barrier([&] {
    stopped_ = abort_ != nullptr && abort_->load(std::memory_order_relaxed);
    steps_.enter(i);
    for (size_t row = 0; rows <= kFew && row < rows; ++row) put(row);
  });
  if (stopped_) return false;
  if (rows > kFew) {
    for (size_t first = 0, last = 0; team.take(rows, 1, first, last);)
      for (size_t row = first; row < last; ++row) put(row);
    team.barrier();
  }
  steps_.attend(team, member);
  if (steps_.joins()) {
    team.barrier();
    steps_.join(team);
  }
  const Input attended = prepare(team, member, {.x = s.attended, .columns = n_.q()}, {&layer.output});
  const bool later = n_.parallel || attention_delta(layer) != nullptr;
  multiply(kernels_, team, attended, {{layer.output, later ? s.delta : s.x, !later, later ? 1 : n_.residual_scale}});
  return true;
}

void Forward::feed_forward(Team& team, size_t member, const Layer& layer) {
  const Scratch& s = *scratch_;
  const bool later = network_delta(layer) != nullptr;
  const Rows& y = later ? s.delta : s.x;
  const float scale = later ? 1 : n_.residual_scale;
  Source source{.x = s.x, .columns = n_.embd, .norm = &layer.ffn_norm, .settle = attention_delta(layer)};
  if (n_.experts != 0) {
    source.floats = true;
    const Input x = prepare(team, member, source, {&layer.router});
    multiply(kernels_, team, x, {{layer.router, s.scores, false, 1}});
    experts_.run(team, member, layer, s, x.form(Form::floats), {y, n_.parallel || !later, scale});
    return;
  }
  const FeedForward& network = layer.networks.front();
  const Input x = prepare(team, member, source, {network.gate.matrix ? &network.gate : &network.up, &network.up});
  for (size_t first = 0, last = 0; team.take(network.up.matrix->tiles(), kernels_.tile_step, first, last);)
    gate_up(kernels_, n_.gate, x, network, s.hidden, s.own(member).up, first, last);
  const Input hidden = prepare(team, member, {.x = s.hidden, .columns = n_.ff}, {&network.down});
  multiply(kernels_, team, hidden, {{network.down, y, n_.parallel || !later, scale}});
}

void Forward::output(Team& team, size_t member) {
  if (wanted_.empty()) return;
  const Linear& weights = model_.output();
  const Input x = prepare(team, member,
                          {.x = scratch_->x,
                           .columns = n_.embd,
                           .norm = &model_.output_norm(),
                           .settle = network_delta(model_.layer(n_.layers - 1)),
                           .rows = &wanted_,
                           .scale = 1 / n_.logit_scale},
                          {&weights});
  const Rows y{out_, n_.vocab};
  const size_t tiles = weights.matrix->tiles();
  for (size_t first = 0, last = 0; team.take(tiles, kernels_.tile_step, first, last);) {
    multiply_tiles(kernels_, x, {weights, y, false, 1}, first, last);
    if (n_.final_cap == 0) continue;
    const size_t begin = first * kTile, end = std::min(n_.vocab, last * kTile);
    for (size_t row = 0; row < x.count; ++row) kernels_.soft_cap(y[row] + begin, end - begin, n_.final_cap);
  }
}

Input Forward::prepare(Team& team, size_t member, const Source& source, std::initializer_list<const Linear*> readers) {
  const Scratch::Own& own = scratch_->own(member);
  const size_t count = source.rows == nullptr ? tokens_.size() : source.rows->size();
  const bool few = count <= kFew, normed = source.norm != nullptr && !source.norm->empty();
  const bool settles = source.settle != nullptr;
  const auto row_of = [&](size_t i) { return source.rows == nullptr ? i : (*source.rows)[i]; };
  team.barrier([&] {
    for (size_t i = 0; few && settles && i < count; ++i) settle(row_of(i), *source.settle, own.row);
  });

  const Scratch::Prepared& memory = few ? own.prepared : scratch_->shared;
  Input x{count, {}};
  const Rows& read = normed ? memory.normed : source.x;
  x.form(Form::bytes32) = {Form::bytes32, count, source.columns, nullptr, 0, memory.bytes32};
  x.form(Form::bytes256) = {Form::bytes256, count, source.columns, nullptr, 0, memory.bytes256};
  x.form(Form::floats) = {Form::floats, count, source.columns, read.data, read.stride, nullptr};
  std::array<bool, 3> read_in{};
  read_in[static_cast<size_t>(Form::floats)] = source.floats;
  for (const Linear* reader : readers) read_in[static_cast<size_t>(reader->matrix->form())] = true;

  const auto prepare_row = [&](size_t i) {
    const float* row = source.x[row_of(i)];
    if (normed) {
      // Where nobody reads it later, it need not leave the cache.
      float* to = read_in[static_cast<size_t>(Form::floats)] ? memory.normed[i] : own.row;
      normalize(*source.norm, row, source.columns, to);
      if (source.scale != 1) kernels_.scaled(to, source.scale, false, source.columns, to);
      row = to;
    }
    for (const Form each : {Form::bytes32, Form::bytes256}) {
      if (!read_in[static_cast<size_t>(each)]) continue;
      Activations one = x.form(each);
      one.x = row;  // of every row, with a stride of 0
      kernels_.prepare(one, i, i + 1);
    }
  };
  if (few) {
    for (size_t i = 0; i < count; ++i) prepare_row(i);
    return x;
  }
  // Those of a group lie together.
  for (size_t first = 0, last = 0; team.take(count, x.form(Form::bytes32).group_rows(), first, last);)
    for (size_t i = first; i < last; ++i) {
      if (settles) settle(row_of(i), *source.settle, own.row);
      prepare_row(i);
    }
  team.barrier();
  return x;
}

// What attention and the network of a layer have added is normed first, as this says, and only then part of x; null:
// is part of x. What is added in parallel is one.
const Norm* Forward::attention_delta(const Layer& layer) const {
  return n_.parallel || layer.post_attention_norm.empty() ? nullptr : &layer.post_attention_norm;
}

const Norm* Forward::network_delta(const Layer& layer) const {
  return !n_.parallel && layer.post_ffw_norm.empty() ? nullptr : &layer.post_ffw_norm;
}

// own: (embd), for the time being.
void Forward::embed(size_t row, float* own) const {
  float* x = scratch_->x[row];
  model_.embedding().read_row(static_cast<size_t>(tokens_[row]), x);
  if (n_.embedding_scale != 1) kernels_.scaled(x, n_.embedding_scale, false, n_.embd, x);
  if (model_.positions() == nullptr) return;
  model_.positions()->read_row(steps_.position(row), own);
  kernels_.scaled(own, 1, true, n_.embd, x);
}

// y may be x.
void Forward::normalize(const Norm& norm, const float* x, size_t n, float* y) const {
  const bool biased = !norm.bias.empty();
  if (biased) kernels_.centered(x, n, y);
  kernels_.rms_norm(biased ? y : x, norm.weight.data(), n, n_.eps, y);
  if (biased) kernels_.scaled(norm.bias.data(), 1, true, n, y);
}

// The norms of q and k, and their rotation.
void Forward::turn(size_t row, const Layer& layer, size_t rotation) const {
  float* q = scratch_->qkv[row];
  const Rotation* angles = model_.rotation(rotation);
  const size_t position = steps_.position(row);
  const auto heads = [&](float* x, size_t count, const Norm& norm) {
    const bool each = norm.weight.size() == n_.head;
    if (!norm.empty() && !each) normalize(norm, x, count * n_.head, x);
    for (float* head = x; head < x + count * n_.head; head += n_.head) {
      if (each) normalize(norm, head, n_.head, head);
      if (angles != nullptr) kernels_.rotate(head, angles->rotary(), angles->cos(position), angles->sin(position));
    }
  };
  heads(q, n_.heads, layer.q_norm);
  heads(q + n_.q(), n_.kv_heads, layer.k_norm);
}

// x += residual_scale * norm(delta). own: (embd), for the time being.
void Forward::settle(size_t row, const Norm& norm, float* own) const {
  const float* delta = scratch_->delta[row];
  if (!norm.empty()) normalize(norm, delta, n_.embd, own);
  kernels_.scaled(norm.empty() ? delta : own, n_.residual_scale, true, n_.embd, scratch_->x[row]);
}

}  // namespace edgellm::engine
