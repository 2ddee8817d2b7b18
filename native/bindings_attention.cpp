// Attention over pages by itself, for tests.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "engine/pages.h"
#include "kernels/aligned.h"
#include "kernels/kernel_set.h"

namespace nb = nanobind;

namespace edgellm {

namespace {

using ConstHeads = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;  // (tokens, heads, size)
using Heads = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

// Calls `work` for the indices below `count`, the last one first if that is asked for.
template <typename Work>
void each(size_t count, bool reverse, Work work) {
  for (size_t i = 0; i < count; ++i) work(reverse ? count - 1 - i : i);
}

void attend(const std::string& set, engine::Table& table, size_t layer, const ConstHeads& query, const ConstHeads& key,
            const ConstHeads& value, size_t window, float scale, float soft_cap, const Heads& out, bool reverse) {
  const kernels::PagedAttention& attention = kernels::kernel_set(set).attention;
  const engine::Table::Use use = table.use();
  if (table.pool() == nullptr) throw std::logic_error("this table of pages was closed");
  const kernels::PageShape& shape = table.pool()->shape();
  const size_t tokens = query.shape(0), heads = query.shape(1);
  for (const auto* each : {&key, &value}) {
    if (each->shape(0) != tokens || each->shape(1) != shape.kv_heads || each->shape(2) != shape.size) {
      throw std::invalid_argument("keys and values are (tokens, kv_heads, size)");
    }
  }
  if (tokens == 0 || heads == 0 || heads % shape.kv_heads != 0 || query.shape(2) != shape.size ||
      out.shape(0) != tokens || out.shape(1) != heads || out.shape(2) != shape.size) {
    throw std::invalid_argument("queries and results are (tokens, a multiple of kv_heads, size)");
  }
  if (layer >= shape.layers || window == 0) throw std::invalid_argument("no such layer, or a window that sees nothing");
  table.reserve(table.length() + tokens);
  kernels::AttentionStep step{&shape,
                              table.pages(),
                              layer,
                              table.length(),
                              tokens,
                              heads,
                              window,
                              scale,
                              soft_cap,
                              query.data(),
                              key.data(),
                              value.data(),
                              heads * shape.size,
                              shape.kv_heads * shape.size,
                              shape.kv_heads * shape.size,
                              out.data(),
                              heads * shape.size,
                              nullptr};
  const kernels::Aligned<std::byte> scratch(attention.scratch(step)), own(attention.own(shape));
  step.scratch = scratch.get();
  each(tokens, reverse, [&](size_t token) { attention.append(step, token); });
  each(attention.pieces(step), reverse, [&](size_t piece) { attention.attend(step, piece, own.get()); });
  each(attention.joins(step), reverse, [&](size_t index) { attention.join(step, index); });
  if (layer + 1 == shape.layers) table.commit(table.length() + tokens);
}

}  // namespace

void bind_attention(nb::module_& m) {
  m.def("attend", &attend, nb::arg("set"), nb::arg("table"), nb::arg("layer"), nb::arg("query"), nb::arg("key"),
        nb::arg("value"), nb::arg("window"), nb::arg("scale"), nb::arg("soft_cap"), nb::arg("out").noconvert(),
        nb::arg("reverse") = false);
}

}  // namespace edgellm
