// The kernels over rows of floats by themselves, for tests. Results are written into the arrays given.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings.h"
#include "kernels/aligned.h"
#include "kernels/kernel_set.h"

namespace nb = nanobind;

namespace edgellm {

namespace {

using Row = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ConstRow = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ConstRows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void same_size(size_t a, size_t b) {
  if (a != b) throw std::invalid_argument("rows of " + std::to_string(a) + " and " + std::to_string(b) + " numbers");
}

std::vector<std::string> names() {
  std::vector<std::string> found;
  for (const kernels::KernelSet* set : kernels::kernel_sets()) found.emplace_back(set->name);
  return found;
}

void rms_norm(const std::string& set, const ConstRow& x, const std::optional<ConstRow>& weight, float eps,
              const Row& y) {
  same_size(x.size(), y.size());
  if (weight) same_size(x.size(), weight->size());
  kernels::kernel_set(set).rms_norm(x.data(), weight ? weight->data() : nullptr, x.size(), eps, y.data());
}

void centered(const std::string& set, const ConstRow& x, const Row& y) {
  same_size(x.size(), y.size());
  kernels::kernel_set(set).centered(x.data(), x.size(), y.data());
}

void gated(const std::string& set, const std::string& kind, const ConstRow& x, const std::optional<ConstRow>& up,
           const Row& y) {
  if (up) same_size(x.size(), up->size());
  same_size(x.size(), y.size());
  const float* times = up ? up->data() : nullptr;
  kernels::kernel_set(set).gated(kernels::gate_named(kind), x.data(), times, x.size(), y.data());
}

void rotate(const std::string& set, const Row& head, const ConstRow& cos, const ConstRow& sin) {
  same_size(cos.size(), sin.size());
  if (2 * cos.size() > head.size()) throw std::invalid_argument("more is rotated than there is");
  kernels::kernel_set(set).rotate(head.data(), 2 * cos.size(), cos.data(), sin.data());
}

void soft_cap(const std::string& set, const Row& x, float cap) {
  kernels::kernel_set(set).soft_cap(x.data(), x.size(), cap);
}

void scaled(const std::string& set, const ConstRow& x, float scale, bool add, const Row& y) {
  same_size(x.size(), y.size());
  kernels::kernel_set(set).scaled(x.data(), scale, add, x.size(), y.data());
}

// The block of every row and column block, one behind the other: as they would lie if each row were prepared alone.
template <typename Block>
nb::bytes blocks(const kernels::Activations& a) {
  std::vector<Block> out;
  for (size_t row = 0; row < a.count; ++row) {
    for (size_t i = 0; i < a.columns / sizeof(Block::codes); ++i)
      out.push_back(a.blocks<Block>(row)[i * a.group_rows()]);
  }
  return nb::bytes(reinterpret_cast<const char*>(out.data()), out.size() * sizeof(Block));
}

nb::bytes prepare(const std::string& set, const std::string& form, const ConstRows& x, size_t step) {
  const bool small = form == "bytes32";
  if (!small && form != "bytes256") throw std::invalid_argument("rows are prepared as bytes32 or bytes256");
  if (x.shape(1) % (small ? 32 : 256) != 0) throw std::invalid_argument("rows of whole blocks are prepared");
  if (step == 0) throw std::invalid_argument("rows are prepared some at a time");
  kernels::Activations a{
      small ? kernels::Form::bytes32 : kernels::Form::bytes256, x.shape(0), x.shape(1), x.data(), x.shape(1), nullptr};
  const kernels::Aligned<std::byte> out(kernels::activation_bytes(a.form, a.columns, a.count));
  a.out = out.get();
  for (size_t row = 0; row < a.count; row += step) {
    kernels::kernel_set(set).prepare(a, row, std::min(row + step, a.count));
  }
  return small ? blocks<kernels::Bytes32>(a) : blocks<kernels::Bytes256>(a);
}

}  // namespace

void bind_rows(nb::module_& m) {
  m.def("kernel_sets", &names);
  m.def("rms_norm", &rms_norm, nb::arg("set"), nb::arg("x"), nb::arg("weight").none(), nb::arg("eps"),
        nb::arg("y").noconvert());
  m.def("centered", &centered, nb::arg("set"), nb::arg("x"), nb::arg("y").noconvert());
  m.def("gated", &gated, nb::arg("set"), nb::arg("gate"), nb::arg("x"), nb::arg("up").none(), nb::arg("y").noconvert());
  m.def("rotate", &rotate, nb::arg("set"), nb::arg("head").noconvert(), nb::arg("cos"), nb::arg("sin"));
  m.def("soft_cap", &soft_cap, nb::arg("set"), nb::arg("x").noconvert(), nb::arg("cap"));
  m.def("scaled", &scaled, nb::arg("set"), nb::arg("x"), nb::arg("scale"), nb::arg("add"), nb::arg("y").noconvert());
  m.def("prepare", &prepare, nb::arg("set"), nb::arg("form"), nb::arg("x"), nb::arg("step"));
}

}  // namespace edgellm
