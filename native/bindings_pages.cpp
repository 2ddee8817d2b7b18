// The KV cache, for Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "engine/pages.h"

namespace nb = nanobind;

namespace edgellm {

namespace {

using engine::KvFull;
using engine::Pages;
using engine::Table;

kernels::KvType kv_type(const std::string& name) {
  if (name == "int16") return kernels::KvType::int16;
  if (name == "int8") return kernels::KvType::int8;
  if (name == "f32") return kernels::KvType::f32;
  throw std::invalid_argument("a KV cache is of int16, int8 or f32");
}

// The bytes of an object that lends them.
class Lent {
 public:
  explicit Lent(nb::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) throw nb::python_error();
  }
  ~Lent() { PyBuffer_Release(&view_); }
  Lent(const Lent&) = delete;
  Lent& operator=(const Lent&) = delete;
  const std::byte* data() const { return static_cast<const std::byte*>(view_.buf); }
  size_t size() const { return static_cast<size_t>(view_.len); }

 private:
  Py_buffer view_{};
};

// `head`, and the state behind it.
nb::bytearray save(const Table& table, size_t start, size_t stop, const nb::bytes& head) {
  const Table::Use use = table.use();
  const size_t size = table.saved_bytes(start, stop);
  if (stop > table.length()) throw std::invalid_argument("positions that the sequence does not have");
  auto out =
      nb::steal<nb::bytearray>(PyByteArray_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(head.size() + size)));
  if (!out.is_valid()) throw nb::python_error();
  auto* bytes = static_cast<std::byte*>(out.data());
  std::memcpy(bytes, head.c_str(), head.size());
  const nb::gil_scoped_release release;
  table.save(start, stop, bytes + head.size());
  return out;
}

void load(Table& table, nb::handle buffer, size_t start, size_t stop) {
  const Lent saved(buffer);
  const Table::Use use = table.use();
  const size_t expected = table.saved_bytes(start, stop);
  if (saved.size() != expected) {
    throw std::invalid_argument("the state of " + std::to_string(stop - start) + " tokens is " +
                                std::to_string(expected) + " bytes, not " + std::to_string(saved.size()));
  }
  if (start != table.length()) throw std::invalid_argument("saved state that does not continue the sequence");
  table.reserve(stop);
  const nb::gil_scoped_release release;
  table.load(saved.data(), start, stop);
}

// `method`, while no other thread uses the table.
template <typename Result, typename... Arguments>
auto alone(Result (Table::*method)(Arguments...)) {
  return [method](Table& table, Arguments... arguments) {
    const Table::Use use = table.use();
    return (table.*method)(arguments...);
  };
}

}  // namespace

void bind_pages(nb::module_& m) {
  const nb::exception<KvFull> full(m, "KvFull");

  nb::class_<Pages>(m, "KvPages")
      .def(nb::new_([](size_t layers, size_t kv_heads, size_t size, const std::string& type, size_t most) {
             return std::make_shared<Pages>(kernels::PageShape{kv_type(type), layers, kv_heads, size}, most);
           }),
           nb::arg("layers"), nb::arg("kv_heads"), nb::arg("size"), nb::arg("kv_type"), nb::arg("most"))
      .def_prop_ro("used", &Pages::used)
      .def_prop_ro("most", &Pages::most)
      .def_prop_ro("nbytes", &Pages::bytes)
      .def_prop_ro("page_bytes", [](const Pages& pages) { return pages.shape().bytes(); });

  nb::class_<Table>(m, "KvTable")
      .def(nb::init<std::shared_ptr<Pages>>(), nb::arg("pages"))
      .def_prop_ro("length", &Table::length)
      .def("reserve", alone(&Table::reserve), nb::arg("length"))
      .def("truncate", alone(&Table::truncate), nb::arg("length"))
      .def(
          "fork",
          [](const Table& table, size_t length) {
            const Table::Use use = table.use();
            return table.fork(length);
          },
          nb::arg("length"))
      .def("save", &save, nb::arg("start"), nb::arg("stop"), nb::arg("head") = nb::bytes("", 0))
      .def("load", &load, nb::arg("buffer"), nb::arg("start"), nb::arg("stop"))
      .def("close", alone(&Table::close));
}

}  // namespace edgellm
