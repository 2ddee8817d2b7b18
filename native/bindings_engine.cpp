#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "abort_flag.h"
#include "bindings.h"
#include "engine/forward.h"

namespace nb = nanobind;

namespace edgellm {

namespace {

using namespace engine;

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FilePlace = std::tuple<int, uint64_t, size_t>;  // a descriptor, the first byte, how many
using Order = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Doubles = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using LogitRows = nb::ndarray<nb::numpy, const float, nb::ndim<2>, nb::c_contig>;

// A model and what computes its passes.
struct Engine {
  DenseModel model;
  Forward forward;

  Engine(Numbers numbers, const KernelSet& kernels, size_t threads, size_t micro_batch)
      : model(std::move(numbers), kernels, threads), forward(model, micro_batch) {}
};

size_t last_rows(const std::variant<int64_t, std::string>& rows, size_t tokens) {
  if (const auto* count = std::get_if<int64_t>(&rows)) {
    if (*count < 0) throw std::invalid_argument("less than no rows of logits");
    return static_cast<size_t>(*count);
  }
  const std::string& name = std::get<std::string>(rows);
  if (name == "none") return 0;
  if (name == "last") return 1;
  if (name == "all") return tokens;
  throw std::invalid_argument("rows of logits: 'none', 'last', 'all' or a number, not '" + name + "'");
}

LogitRows forward(Engine& self, const std::vector<std::shared_ptr<Table>>& tables,
                  std::vector<std::vector<int32_t>> tokens, const std::vector<std::variant<int64_t, std::string>>& rows,
                  const AbortFlag* abort) {
  if (!self.model.finished()) throw std::invalid_argument("the model is not finished");
  if (tables.size() != tokens.size() || tables.size() != rows.size())
    throw std::invalid_argument("tables, tokens and rows: one of each for a sequence");
  std::vector<Part> parts;
  size_t count = 0;
  for (size_t i = 0; i < tables.size(); ++i) {
    if (tables[i] == nullptr) throw std::invalid_argument("None in place of a sequence");
    const size_t last = last_rows(rows[i], tokens[i].size());
    parts.push_back({tables[i].get(), std::move(tokens[i]), last});
    count += last;
  }
  Logits logits;
  {
    const nb::gil_scoped_release release;
    logits = self.forward.run(parts, abort);
  }
  const float* data = logits->get();
  const size_t vocab = self.model.numbers().vocab;
  const nb::capsule owner(new Logits(std::move(logits)),
                          [](void* memory) noexcept { delete static_cast<Logits*>(memory); });
  return LogitRows(data, {count, vocab}, owner);
}

}  // namespace

void bind_engine(nb::module_& m) {
  const nb::exception<Interrupted> interrupted(m, "PassInterrupted");

  nb::class_<Engine>(m, "DenseModel")
      .def(
          "__init__",
          [](Engine* self, size_t n_layer, size_t n_embd, size_t n_ff, size_t n_head, size_t n_head_kv, size_t head_dim,
             size_t n_vocab, size_t n_expert, size_t n_expert_used, float norm_eps, const std::string& activation,
             float attention_scale, float attention_softcap, float final_softcap, float embedding_scale,
             float residual_scale, float logit_scale, bool parallel_residual, std::vector<size_t> windows,
             std::vector<size_t> rotations, size_t threads, size_t micro_batch,
             const std::optional<std::string>& kernels) {
            for (size_t& window : windows)
              if (window == 0) window = SIZE_MAX;
            new (self)
                Engine({.layers = n_layer,
                        .embd = n_embd,
                        .ff = n_ff,
                        .heads = n_head,
                        .kv_heads = n_head_kv,
                        .head = head_dim,
                        .vocab = n_vocab,
                        .experts = n_expert,
                        .used = n_expert_used,
                        .eps = norm_eps,
                        .gate = kernels::gate_named(activation),
                        .attention_scale = attention_scale,
                        .attention_cap = attention_softcap,
                        .final_cap = final_softcap,
                        .embedding_scale = embedding_scale,
                        .residual_scale = residual_scale,
                        .logit_scale = logit_scale,
                        .parallel = parallel_residual,
                        .windows = std::move(windows),
                        .rotations = std::move(rotations)},
                       kernels ? kernels::kernel_set(*kernels) : *kernels::kernel_sets().front(), threads, micro_batch);
          },
          nb::kw_only(), nb::arg("n_layer"), nb::arg("n_embd"), nb::arg("n_ff"), nb::arg("n_head"),
          nb::arg("n_head_kv"), nb::arg("head_dim"), nb::arg("n_vocab"), nb::arg("n_expert") = 0,
          nb::arg("n_expert_used") = 0, nb::arg("norm_eps"), nb::arg("activation"), nb::arg("attention_scale"),
          nb::arg("attention_softcap") = 0.0F, nb::arg("final_softcap") = 0.0F, nb::arg("embedding_scale") = 1.0F,
          nb::arg("residual_scale") = 1.0F, nb::arg("logit_scale") = 1.0F, nb::arg("parallel_residual") = false,
          nb::arg("windows"), nb::arg("rotations"), nb::arg("threads"), nb::arg("micro_batch") = 512,
          nb::arg("kernels") = nb::none())
      .def(
          "set_matrix",
          [](Engine& self, int64_t layer, const std::string& role, uint32_t type, size_t rows, size_t columns,
             const std::variant<Bytes, FilePlace>& data, const std::optional<Order>& order) {
            if (order && order->size() != rows) throw std::invalid_argument("order needs a number for each row");
            kernels::FileBytes bytes{};
            if (const auto* memory = std::get_if<Bytes>(&data)) {
              bytes = {reinterpret_cast<const std::byte*>(memory->data()), -1, 0, memory->size()};
            } else {
              const auto [descriptor, at, size] = std::get<FilePlace>(data);
              bytes = {nullptr, descriptor, at, size};
            }
            const nb::gil_scoped_release release;
            self.model.set_matrix(layer, role, type, rows, columns, bytes, order ? order->data() : nullptr);
          },
          nb::arg("layer"), nb::arg("role"), nb::arg("type"), nb::arg("rows"), nb::arg("columns"),
          nb::arg("data").noconvert(), nb::arg("order").noconvert() = nb::none())
      .def(
          "set_vector",
          [](Engine& self, int64_t layer, const std::string& role, const Floats& values) {
            self.model.set_vector(layer, role, {values.data(), values.data() + values.size()});
          },
          nb::arg("layer"), nb::arg("role"), nb::arg("values"))
      .def(
          "set_rotation",
          [](Engine& self, size_t kind, const Doubles& frequencies, double magnitude) {
            self.model.set_rotation(kind, {frequencies.data(), frequencies.data() + frequencies.size()}, magnitude);
          },
          nb::arg("kind"), nb::arg("frequencies"), nb::arg("magnitude") = 1.0)
      .def("finish", [](Engine& self) { self.model.finish(); })
      .def("forward", &forward, nb::arg("tables"), nb::arg("tokens"), nb::arg("rows"), nb::arg("abort") = nb::none())
      .def_prop_ro("kernels", [](const Engine& self) { return self.model.kernels().name; });
}

}  // namespace edgellm
