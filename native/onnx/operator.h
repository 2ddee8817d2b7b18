// What operators of ours for ONNX Runtime have in common.
#pragma once

#include <cstddef>
#include <cstdio>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../kernels/aligned.h"
#include "ort_abi.h"

namespace edgellm::ort {

// What ONNX Runtime made for us, given back in the end.
template <typename T>
struct Release {
  const Api* api;
  void operator()(T* each) const { api->release(each); }
};
template <typename T>
using Owned = std::unique_ptr<T, Release<T>>;

// Throws where ONNX Runtime refuses a call.
class Checked {
 public:
  explicit Checked(const Api& api) : api_(api) {}
  void operator()(Status* status) const {
    if (status == nullptr) return;
    const Owned<Status> owned(status, {&api_});
    throw std::runtime_error(api_.message(status));
  }

 private:
  const Api& api_;
};

// The type and the dimensions of a tensor.
struct Described {
  Described(const Api& api, const Tensor* tensor) {
    const Checked check(api);
    Shape* made = nullptr;
    check(api.shape_of(tensor, &made));
    const Owned<Shape> shape(made, {&api});
    size_t rank = 0;
    check(api.element_type(shape.get(), &type));
    check(api.elements(shape.get(), &elements));
    check(api.rank(shape.get(), &rank));
    dimensions.resize(rank);
    check(api.dimensions(shape.get(), dimensions.data(), rank));
  }

  int type = 0;
  size_t elements = 0;
  std::vector<int64_t> dimensions;
};

// An attribute that is an integer. Throws where there is none.
inline int64_t integer(const Api& api, const KernelInfo* info, const char* name) {
  int64_t value = 0;
  Checked{api}(api.attribute(info, name, &value));
  return value;
}

// One that is a short text. Throws where there is none.
inline std::string text(const Api& api, const KernelInfo* info, const char* name) {
  char value[64];
  size_t size = sizeof value;
  Checked{api}(api.attribute(info, name, value, &size));
  return {value, size - 1};
}

// An integer that is positive. Throws for another.
inline size_t positive(const Api& api, const KernelInfo* info, const char* name) {
  const int64_t value = integer(api, info, name);
  if (value <= 0) throw std::invalid_argument(std::string(name) + " is not positive");
  return static_cast<size_t>(value);
}

// Memory of this thread for one call of an operator, at a multiple of 64 bytes.
inline std::byte* scratch_memory(size_t size) {
  thread_local kernels::Aligned<std::byte> scratch;
  if (scratch.size() < size) scratch = kernels::Aligned<std::byte>(size);
  return scratch.get();
}

// Calls work(index) for every index below count, from the threads of the session, and waits. Throws what they throw.
template <typename Work>
void in_parallel(const Api& api, const KernelContext* context, size_t count, const Work& work) {
  if (count == 1) return work(0);
  struct Task {
    const Work& work;
    std::mutex mutex;
    std::exception_ptr error;  // the last one
  } task{work, {}, nullptr};
  const auto run = [](void* data, size_t index) {
    auto& each = *static_cast<Task*>(data);
    try {
      each.work(index);
    } catch (...) {
      const std::lock_guard lock(each.mutex);
      each.error = std::current_exception();
    }
  };
  Checked{api}(api.parallel_for(context, run, count, &task));
  if (task.error != nullptr) std::rethrow_exception(task.error);
}

// Calls body(); what it throws becomes a status, made without memory of its own, for std::bad_alloc is among it.
template <typename Body>
Status* guarded(const Api& api, const char* name, Body&& body) noexcept {
  const auto failed = [&](ErrorCode code, const char* what) {
    char message[512];
    std::snprintf(message, sizeof message, "%s: %s", name, what);
    return api.status(code, message);
  };
  try {
    body();
    return nullptr;
  } catch (const std::invalid_argument& error) {
    return failed(kInvalidArgument, error.what());
  } catch (const std::exception& error) {
    return failed(kFail, error.what());
  } catch (...) {
    return failed(kFail, "an error of an unknown kind");
  }
}

// What ONNX Runtime asks about an operator.
struct Signature : Operator {
  const char* title;
  std::vector<ElementType> inputs, outputs;
  size_t required;  // inputs, the first ones; the others are optional
};

inline const Signature& signature(const Operator* op) { return *static_cast<const Signature*>(op); }

// Kernel: made by Kernel(api, info), has a method compute(context) const.
template <typename Kernel>
Signature operator_of(const char* title, std::vector<ElementType> inputs, size_t required,
                      std::vector<ElementType> outputs) {
  struct Made {  // ONNX Runtime hands its table over when it makes a kernel
    Made(const Signature& signature, const Function* table, const KernelInfo* info)
        : title(signature.title), api(table), kernel(api, info) {}
    const char* title;
    Api api;
    Kernel kernel;
  };
  Signature op{};
  op.title = title;
  op.inputs = std::move(inputs);
  op.outputs = std::move(outputs);
  op.required = required;
  op.version = kVersion;
  op.name = [](const Operator* each) { return signature(each).title; };
  op.provider = [](const Operator*) -> const char* { return nullptr; };  // the CPU
  op.input_count = [](const Operator* each) -> size_t { return signature(each).inputs.size(); };
  op.output_count = [](const Operator* each) -> size_t { return signature(each).outputs.size(); };
  op.input_type = [](const Operator* each, size_t index) -> int { return signature(each).inputs[index]; };
  op.output_type = [](const Operator* each, size_t index) -> int { return signature(each).outputs[index]; };
  op.input_presence = [](const Operator* each, size_t index) -> int {
    return index < signature(each).required ? kRequired : kOptional;
  };
  op.output_presence = [](const Operator*, size_t) -> int { return kRequired; };
  op.input_memory = [](const Operator*, size_t) -> int { return 0; };
  op.variadic_input_minimum = [](const Operator*) -> int { return 1; };
  op.variadic_input_alike = [](const Operator*) -> int { return 1; };
  op.variadic_output_minimum = [](const Operator*) -> int { return 1; };
  op.variadic_output_alike = [](const Operator*) -> int { return 1; };
  op.start_version = [](const Operator*) -> int { return 1; };
  op.end_version = [](const Operator*) -> int { return 1; };
  op.create_kernel_2 = [](const Operator* each, const Function* table, const KernelInfo* info, void** out) {
    return guarded(Api(table), signature(each).title, [&] { *out = new Made(signature(each), table, info); });
  };
  op.compute_2 = [](void* made, KernelContext* context) {
    const auto& each = *static_cast<const Made*>(made);
    return guarded(each.api, each.title, [&] { each.kernel.compute(context); });
  };
  op.destroy = [](void* made) { delete static_cast<Made*>(made); };
  return op;
}

}  // namespace edgellm::ort
