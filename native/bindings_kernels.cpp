// Matrices of weights and their products by themselves, for tests and measurements.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "bindings.h"
#include "kernels/aligned.h"
#include "kernels/kernel_set.h"
#include "kernels/matrix.h"

namespace nb = nanobind;

namespace edgellm {

namespace {

using kernels::Matrix;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Order = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Row = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ConstRow = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ConstRows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void on_threads(size_t threads, size_t count, const std::function<void(size_t)>& work) {
  std::vector<std::jthread> others;
  for (size_t t = 1; t < threads; ++t) {
    others.emplace_back([&work, t, threads, count] {
      for (size_t i = t; i < count; i += threads) work(i);
    });
  }
  for (size_t i = 0; i < count; i += threads) work(i);
}

std::unique_ptr<Matrix> make_matrix(uint32_t type, size_t rows, size_t columns, const Bytes& data,
                                    const std::optional<Order>& order, size_t threads) {
  const auto kind = static_cast<kernels::Type>(type);
  const kernels::Storage stored = kernels::storage(kind);
  const size_t row_bytes = stored.numbers == 0 ? 0 : columns / stored.numbers * stored.bytes;
  const size_t file_rows = row_bytes == 0 ? 0 : data.size() / row_bytes;
  if (order) {
    if (order->size() < rows) throw std::invalid_argument("the order of rows has too few");
    for (size_t i = 0; i < rows; ++i) {
      if (order->data()[i] < 0 || static_cast<size_t>(order->data()[i]) >= file_rows)
        throw std::invalid_argument("the order of rows names one that is not there");
    }
  } else if (row_bytes != 0 && file_rows < rows) {
    throw std::invalid_argument("a matrix of fewer bytes than its shape needs");
  }
  const kernels::FileBytes bytes{reinterpret_cast<const std::byte*>(data.data()), -1, 0, data.size()};
  const kernels::FileRows file = kernels::rows_of(bytes, row_bytes, order ? order->data() : nullptr);
  const nb::gil_scoped_release release;
  return std::make_unique<Matrix>(kind, rows, columns, file, [threads](size_t count, const auto& work) {
    on_threads(std::max<size_t>(threads, 1), count, work);
  });
}

void read_row(const Matrix& matrix, size_t row, const Row& out) {
  if (row >= matrix.rows() || out.size() != matrix.columns()) throw std::invalid_argument("no such row of a matrix");
  matrix.read_row(row, out.data());
}

void multiply(const std::string& name, const Matrix& matrix, const ConstRows& x, const Rows& y,
              const std::optional<ConstRow>& bias, std::optional<float> scale, size_t first, size_t last) {
  if (x.shape(1) != matrix.columns() || y.shape(1) != matrix.rows() || x.shape(0) != y.shape(0) ||
      (bias && bias->size() != matrix.rows())) {
    throw std::invalid_argument("a product of shapes that do not match");
  }
  const kernels::KernelSet& set = kernels::kernel_set(name);
  last = std::min(last, matrix.tiles());
  first = std::min(first, last);
  kernels::Activations rows{matrix.form(), x.shape(0), x.shape(1), x.data(), x.shape(1), nullptr};
  const kernels::Aligned<std::byte> prepared(kernels::activation_bytes(rows.form, rows.columns, rows.count));
  rows.out = prepared.get();
  const kernels::MatrixProduct product{
      &matrix, &rows, bias ? bias->data() : nullptr, y.data(), matrix.rows(), scale.has_value(), scale.value_or(1.0F)};
  const nb::gil_scoped_release release;
  if (rows.form != kernels::Form::floats) set.prepare(rows, 0, rows.count);
  set.multiply(product, first, last);
}

}  // namespace

void bind_kernels(nb::module_& m) {
  nb::class_<Matrix>(m, "KernelMatrix")
      .def(nb::new_(&make_matrix), nb::arg("type"), nb::arg("rows"), nb::arg("columns"), nb::arg("data").noconvert(),
           nb::arg("order").noconvert() = nb::none(), nb::arg("threads") = 1)
      .def_prop_ro("bytes", &Matrix::bytes)
      .def_prop_ro("tiles", &Matrix::tiles)
      .def("read_row", &read_row, nb::arg("row"), nb::arg("out").noconvert());
  m.def("multiply", &multiply, nb::arg("set"), nb::arg("matrix"), nb::arg("x"), nb::arg("y").noconvert(),
        nb::arg("bias") = nb::none(), nb::arg("scale") = nb::none(), nb::arg("first") = 0, nb::arg("last") = SIZE_MAX);
}

}  // namespace edgellm
