// The KV cache, for Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>
#include <tuple>
#include <vector>

#include "bindings.h"
#include "engine/pages.h"
#include "engine/saved_blocks.h"
#include "kernels/crc32.h"

namespace nb = nanobind;

namespace edgellm {

namespace {

using engine::KvFull;
using engine::Pages;
using engine::SavedBlock;
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

// Where the state of a block lies: what lends its bytes, or (descriptor, bytes, CRC-32 before them, CRC-32 of all).
using InFile = std::tuple<int, size_t, uint32_t, uint32_t>;

void load(Table& table, const std::vector<nb::object>& blocks, const std::vector<size_t>& stops, size_t threads) {
  if (blocks.size() != stops.size()) throw std::invalid_argument("every block has a stop");
  const Table::Use use = table.use();
  std::vector<std::unique_ptr<Lent>> lent;
  std::vector<SavedBlock> found;
  size_t start = table.length();
  for (size_t i = 0; i < blocks.size(); ++i) {
    SavedBlock block{start, stops[i], nullptr, -1, 0, 0};
    size_t bytes = 0;
    if (InFile file; nb::try_cast(blocks[i], file)) {
      std::tie(block.descriptor, bytes, block.before, block.crc) = file;
    } else {
      lent.push_back(std::make_unique<Lent>(blocks[i]));
      block.saved = lent.back()->data();
      bytes = lent.back()->size();
    }
    if (const size_t expected = table.saved_bytes(start, stops[i]); bytes != expected) {
      throw std::invalid_argument("the state of " + std::to_string(stops[i] - start) + " tokens is " +
                                  std::to_string(expected) + " bytes, not " + std::to_string(bytes));
    }
    found.push_back(block);
    start = stops[i];
  }
  const nb::gil_scoped_release release;
  engine::load(table, found, threads);
}

uint32_t crc32(nb::handle buffer, uint32_t before) {
  const Lent data(buffer);
  const nb::gil_scoped_release release;
  return kernels::crc32(data.data(), data.size(), before);
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
  nb::register_exception_translator([](const std::exception_ptr& error, void*) {
    try {
      std::rethrow_exception(error);
    } catch (const engine::DamagedFile& damaged) {
      PyErr_SetString(PyExc_ValueError, damaged.what());
    } catch (const std::system_error& failed) {
      PyErr_SetObject(PyExc_OSError, nb::make_tuple(failed.code().value(), failed.what()).ptr());
    }
  });
  m.def("crc32", &crc32, nb::arg("data"), nb::arg("before") = 0);

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
      .def("load", &load, nb::arg("blocks"), nb::arg("stops"), nb::arg("threads") = 1)
      .def("close", alone(&Table::close));
}

}  // namespace edgellm
