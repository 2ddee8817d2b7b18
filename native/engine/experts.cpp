#include "experts.h"

#include <algorithm>
#include <cmath>

namespace edgellm::engine {

using kernels::Activations;
using kernels::Form;
using kernels::kTile;

namespace {

constexpr size_t kReading = 4;  // rows whose products take as long as reading a tile from memory

constexpr size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

}  // namespace

Experts::Experts(const DenseModel& model) : n_(model.numbers()), kernels_(model.kernels()) {}

void Experts::run(Team& team, size_t member, const Layer& layer, const Scratch& scratch, const Activations& h,
                  const Sum& sum) {
  const size_t rows = h.count, pairs = rows * n_.used;
  const size_t gathered = rows == 1 ? 1 : pairs;  // all experts read the only row where it is
  const bool few = rows <= kFew;
  const auto choose_row = [&](size_t row) { choose(scratch.scores[row], choices_.data() + row * n_.used); };
  // Few rows: by one member, while the others wait.
  team.barrier([&] {
    choices_.resize(pairs);
    if (!few) return;
    for (size_t row = 0; row < rows; ++row) choose_row(row);
    group(scratch, rows);
    for (size_t pair = 0; pair < gathered; ++pair) gather(layer, scratch, h, pair);
  });
  if (!few) {
    for (size_t first = 0, last = 0; team.take(rows, 1, first, last);)
      for (size_t row = first; row < last; ++row) choose_row(row);
    team.barrier([&] { group(scratch, rows); });
    for (size_t first = 0, last = 0; team.take(pairs, kernels::kGroupRows, first, last);)
      for (size_t pair = first; pair < last; ++pair) gather(layer, scratch, h, pair);
    team.barrier();
  }
  gate_up(team, member, layer, scratch);
  team.barrier([&] {
    for (size_t pair = 0; few && pair < pairs; ++pair) prepare_hidden(layer, scratch, pair);
  });
  if (!few) {
    for (size_t first = 0, last = 0; team.take(pairs, kernels::kGroupRows, first, last);)
      for (size_t pair = first; pair < last; ++pair) prepare_hidden(layer, scratch, pair);
    team.barrier();
  }
  down(team, member, layer, scratch, sum);
}

// Scores that are no numbers choose any experts.
void Experts::choose(const float* scores, Choice* chosen) const {
  size_t count = 0;
  for (size_t expert = 0; expert < n_.experts; ++expert) {
    size_t at = count;
    while (at > 0 && scores[expert] > chosen[at - 1].weight) --at;
    if (at == n_.used) continue;
    count = std::min(count + 1, n_.used);
    std::copy_backward(chosen + at, chosen + count - 1, chosen + count);
    chosen[at] = {expert, scores[expert]};
  }
  const float largest = chosen[0].weight;
  float all = 0;
  for (size_t i = 0; i < count; ++i) all += chosen[i].weight = std::exp(chosen[i].weight - largest);
  for (size_t i = 0; i < count; ++i) chosen[i].weight /= all;
}

void Experts::group(const Scratch& scratch, size_t rows) {
  next_.assign(n_.experts, 0);
  for (const Choice& choice : choices_) ++next_[choice.expert];
  groups_.clear();
  size_t first = 0, offsets[2][3] = {};
  for (size_t expert = 0; expert < n_.experts; ++expert) {
    const size_t count = next_[expert];
    next_[expert] = first;
    if (count == 0) continue;
    const Scratch::Prepared& memory = scratch.gathered;
    // The memory of X is that of the hidden rows later.
    const auto input = [&](size_t columns, const Rows& floats, size_t (&offset)[3]) {
      Input made{count, {}};
      for (const auto& [form, bytes] : {std::pair{Form::bytes32, memory.bytes32}, {Form::bytes256, memory.bytes256}}) {
        size_t& at = offset[static_cast<size_t>(form)];
        made.form(form) = {form, count, columns, nullptr, 0, bytes + at};
        at += Scratch::round_up(kernels::activation_bytes(form, columns, count));
      }
      made.form(Form::floats) = {Form::floats, count, columns, floats.data, floats.stride, nullptr};
      return made;
    };
    const Rows x{memory.normed[rows == 1 ? 0 : first], memory.normed.stride};
    const Rows hidden{scratch.hidden[first], scratch.hidden.stride};
    groups_.push_back({expert, first, count, input(n_.embd, x, offsets[0]), input(n_.ff, hidden, offsets[1])});
    if (rows == 1) groups_.back().x = groups_.front().x;
    first += count;
  }
  pairs_.resize(choices_.size());
  for (size_t i = 0; i < groups_.size(); ++i)
    for (size_t pair = 0; pair < groups_[i].count; ++pair) pairs_[groups_[i].first + pair].group = i;
  for (size_t row = 0; row < rows; ++row) {
    const Choice *chosen = choices_.data() + row * n_.used, *end = chosen + n_.used;
    const size_t least =
        std::min_element(chosen, end, [](const Choice& a, const Choice& b) { return a.expert < b.expert; })->expert;
    for (; chosen != end; ++chosen) {
      Pair& pair = pairs_[next_[chosen->expert]++];
      pair.row = row;
      pair.weight = chosen->weight;
      pair.first = chosen->expert == least;
    }
  }
}

void Experts::gather(const Layer& layer, const Scratch& scratch, const Activations& h, size_t pair) const {
  const Group& group = groups_[pairs_[pair].group];
  const FeedForward& network = layer.networks[group.expert];
  const float* row = h.x + pairs_[pair].row * h.stride;
  const size_t at = pair - group.first;
  for (const Form form : {Form::bytes32, Form::bytes256, Form::floats}) {
    const bool gated = network.gate.matrix != nullptr && form == network.gate.matrix->form();
    if (!gated && form != network.up.matrix->form()) continue;
    if (form == Form::floats) {
      std::copy_n(row, n_.embd, scratch.gathered.normed[pair]);
      continue;
    }
    Activations one = group.x.form(form);
    one.x = row;  // of every row, with a stride of 0
    kernels_.prepare(one, at, at + 1);
  }
}

void Experts::prepare_hidden(const Layer& layer, const Scratch& scratch, size_t pair) const {
  const Group& group = groups_[pairs_[pair].group];
  const Form form = layer.networks[group.expert].down.matrix->form();
  if (form == Form::floats) return;
  Activations one = group.hidden.form(form);
  one.x = scratch.hidden[pair];
  kernels_.prepare(one, pair - group.first, pair - group.first + 1);
}

// Steps of tiles of all groups are handed out together, by what they take.
void Experts::gate_up(Team& team, size_t member, const Layer& layer, const Scratch& scratch) const {
  const size_t step = kernels_.tile_step, tiles = ceil_div(n_.ff, kTile), steps = ceil_div(tiles, step);
  size_t all = 0;
  for (const Group& group : groups_) all += steps * (kReading + group.count);
  for (size_t first = 0, last = 0; team.take(all, 1, first, last);) {
    size_t before = 0;
    for (const Group& group : groups_) {
      const size_t each = kReading + group.count, after = before + steps * each;
      if (first < after && before < last) {  // the steps that begin in [first, last)
        const size_t begin = first <= before ? 0 : ceil_div(first - before, each) * step;
        const size_t end = std::min(tiles, ceil_div(std::min(last, after) - before, each) * step);
        const Rows hidden{scratch.hidden[group.first], scratch.hidden.stride};
        engine::gate_up(kernels_, n_.gate, group.x, layer.networks[group.expert], hidden, scratch.own(member).up, begin,
                        end);
      }
      before = after;
    }
  }
}

// A member has some columns of all rows, so that what experts give is added in their order.
void Experts::down(Team& team, size_t member, const Layer& layer, const Scratch& scratch, const Sum& sum) const {
  const size_t step = kernels_.tile_step, tiles = ceil_div(n_.embd, kTile);
  for (size_t first = 0, last = 0; team.take(tiles, step, first, last);) {
    for (const Group& group : groups_) {
      const size_t most = Scratch::up_columns(group.count, step * kTile) / kTile;
      for (size_t begin = first; begin < last; begin += most) {
        const size_t end = std::min(last, begin + most), column = begin * kTile;
        const size_t columns = std::min(n_.embd, end * kTile) - column;
        const Rows made{scratch.own(member).up, (end - begin) * kTile};
        multiply_tiles(kernels_, group.hidden, {layer.networks[group.expert].down, made, false, 1, column}, begin, end);
        for (size_t i = 0; i < group.count; ++i) {
          const Pair& pair = pairs_[group.first + i];
          kernels_.scaled(made[i], sum.scale * pair.weight, sum.add || !pair.first, columns, sum.y[pair.row] + column);
        }
      }
    }
  }
}

}  // namespace edgellm::engine
