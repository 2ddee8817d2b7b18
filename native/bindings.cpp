#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "abort_flag.h"
#include "amx_refusal.h"
#include "bindings.h"
#include "cpu.h"
#include "host.h"
#include "kernels/instruction_sets.h"
#include "onnx/library.h"
#include "tokenize.h"

namespace nb = nanobind;
using edgellm::AbortFlag;

namespace {

// The numbers below `count` for which `bool fn(const void *object, int32_t id)` at an address says true.
std::vector<int32_t> ids_where(uintptr_t function, uintptr_t object, int32_t count) {
  const auto holds = reinterpret_cast<bool (*)(const void*, int32_t)>(function);
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < count; ++id) {
    if (holds(reinterpret_cast<const void*>(object), id)) ids.push_back(id);
  }
  return ids;
}

}  // namespace

NB_MODULE(_native, m) {
#ifdef NDEBUG
  // What outlives the interpreter is not always ours to free: PySide6 never frees a QThread of a module, nor what it
  // refers to. A user at whose exit that is reported can do nothing about it.
  nb::set_leak_warnings(false);
#endif
  m.doc() = "What edgellm needs from C: processor facts, an abort flag for native code, the AMX refusal.";

  m.def("cpu_features", &edgellm::cpu_features);
  m.def("cpu_name", &edgellm::cpu_name);
  m.def("amx_permitted", &edgellm::amx_permitted);
  m.def("physical_cores", &edgellm::physical_cores);
  m.def("host_memory", [] {
    const edgellm::HostMemory memory = edgellm::host_memory();
    return std::pair<uint64_t, uint64_t>(memory.total, memory.available);
  });
  m.def("trim_heap", &edgellm::trim_heap, nb::call_guard<nb::gil_scoped_release>());
  m.def("call_refusing_amx", &edgellm::call_refusing_amx, nb::arg("function"), nb::arg("argument"),
        nb::call_guard<nb::gil_scoped_release>());
  m.def("ids_where", &ids_where, nb::arg("function"), nb::arg("object"), nb::arg("count"));
  m.def(
      "longest_stretch",
      [](const nb::bytes& text) {
        const edgellm::Stretch found = edgellm::longest_stretch({text.c_str(), text.size()});
        return std::pair<size_t, size_t>(found.first, found.count);
      },
      nb::arg("text"));
  m.def(
      "tokenize",
      [](uintptr_t function, uintptr_t vocabulary, const nb::bytes& text, bool parse_special, size_t stack) {
        const std::string_view view(text.c_str(), text.size());
        const nb::gil_scoped_release release;
        return edgellm::tokenize(reinterpret_cast<edgellm::TokenizeFunction>(function),
                                 reinterpret_cast<const void*>(vocabulary), view, parse_special, stack);
      },
      nb::arg("function"), nb::arg("vocabulary"), nb::arg("text"), nb::arg("parse_special"), nb::arg("stack"));
  edgellm::bind_sampling(m);
  m.def("bfloat16_kernels", [] {
    const edgellm::kernels::Bfloat16Kernels* const kernels = edgellm::kernels::bfloat16_kernels();
    return std::string(kernels == nullptr ? "" : kernels->name);
  });
  m.def("attends_in_onnx", [] { return edgellm::kernels::single_attention() != nullptr; });
  edgellm::bind_kernels(m);
  edgellm::bind_rows(m);
  edgellm::bind_attention(m);
  edgellm::bind_pages(m);
  edgellm::bind_engine(m);
  m.attr("onnx_domain") = edgellm::ort::kDomain;
  m.attr("discard_log") = reinterpret_cast<uintptr_t>(&edgellm_discard_log);

  nb::class_<AbortFlag>(m, "AbortFlag")
      .def(nb::init<>())
      .def("set", [](AbortFlag& flag) { flag.store(true, std::memory_order_relaxed); })
      .def("clear", [](AbortFlag& flag) { flag.store(false, std::memory_order_relaxed); })
      .def_prop_ro("is_set", [](const AbortFlag& flag) { return flag.load(std::memory_order_relaxed); })
      .def_prop_ro("callback", [](const AbortFlag&) { return reinterpret_cast<uintptr_t>(&edgellm_abort_requested); })
      .def_prop_ro("data", [](const AbortFlag& flag) { return reinterpret_cast<uintptr_t>(&flag); });
}
