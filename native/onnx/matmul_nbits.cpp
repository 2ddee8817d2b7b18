// MatMulNBits as an operator of our own: what com.microsoft.MatMulNBits means with accuracy_level 4, through our kernels.
//
//   A (..., K) float    B (N, K / block, block * bits / 8) uint8    scales (N, K / block) float
//   zero_points (N, ceil(K / block / 2)) uint8, optional            bias (N) float, optional
//     -> Y (..., N) float
//
// https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits
//
// Rows of A that follow one another in a text, (b, s, K) with s above 1, are multiplied in bfloat16 where the processor
// has kernels for that, single ones in bytes. The same operator of the domain kBytesDomain always takes bytes: rows of
// logits shall be the same whether they are asked for one by one or together.
#include "matmul_nbits.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>

#include "../kernels/product.h"

namespace edgellm::ort {

namespace {

using kernels::BlockMatrix;
using kernels::Kernels;
using kernels::Product;

enum Input : size_t { kA, kB, kScales, kZeroPoints, kGroups, kBias, kInputs };

constexpr size_t kMaxRank = 8;
constexpr size_t kElementsPerTask = 16 << 10;  // below, handing work to another thread takes longer than doing it

struct MatMulNBits : Operator {
  bool bytes_only = false;
};

// Throws what ONNX Runtime says.
class Checked {
 public:
  explicit Checked(const Api& api) : api_(api) {}
  void operator()(Status* status) const {
    if (status == nullptr) return;
    api_.release(status);
    throw std::runtime_error("ONNX Runtime refused a call of the operator");
  }

 private:
  const Api& api_;
};

class ShapeOf {
 public:
  ShapeOf(const Api& api, const Tensor* tensor) : api_(api) { Checked{api}(api.shape_of(tensor, &shape_)); }
  ~ShapeOf() { api_.release(shape_); }
  ShapeOf(const ShapeOf&) = delete;
  ShapeOf& operator=(const ShapeOf&) = delete;

  size_t elements() const {
    size_t count = 0;
    Checked{api_}(api_.elements(shape_, &count));
    return count;
  }
  int type() const {
    int type = 0;
    Checked{api_}(api_.element_type(shape_, &type));
    return type;
  }
  size_t rank() const {
    size_t rank = 0;
    Checked{api_}(api_.rank(shape_, &rank));
    return rank;
  }
  void dimensions(int64_t* out, size_t rank) const { Checked{api_}(api_.dimensions(shape_, out, rank)); }

 private:
  const Api& api_;
  Shape* shape_ = nullptr;
};

class Kernel {
 public:
  Kernel(const Api& api, const KernelInfo* info, bool bytes_only)
      : api_(api), columns_(attribute(info, "K")), rows_(attribute(info, "N")) {
    const size_t block = attribute(info, "block_size"), bits = attribute(info, "bits");
    if (block == 0 || columns_ % block != 0 || columns_ > size_t{1} << 40 || rows_ > size_t{1} << 40 || bits > 8) {
      throw std::invalid_argument("MatMulNBits: K, N, bits or block_size is out of range");
    }
    const size_t blocks = columns_ / block;
    const auto* codes = constant<uint8_t>(info, kB, kUint8, rows_ * blocks * (block * bits / 8));
    const auto* scales = constant<float>(info, kScales, kFloat, rows_ * blocks);
    const auto* zeros = constant<uint8_t>(info, kZeroPoints, kUint8, rows_ * ((blocks * bits + 7) / 8));
    bias_ = constant<float>(info, kBias, kFloat, rows_);
    if (codes == nullptr || scales == nullptr) throw std::invalid_argument("MatMulNBits: the weights are not constant");
    weights_.emplace(rows_, columns_, block, static_cast<int>(bits), codes, scales, zeros);
    single_ = kernels::byte_kernels();
    several_ = bytes_only || kernels::bfloat16_kernels() == nullptr ? single_ : kernels::bfloat16_kernels();
    if (single_ == nullptr) throw std::runtime_error("MatMulNBits: this processor has none of the kernels");
  }

  void compute(KernelContext* context) const {
    const Checked check(api_);
    const Tensor* a = nullptr;
    check(api_.input(context, kA, &a));
    const ShapeOf shape(api_, a);
    const size_t rank = shape.rank();
    int64_t dimensions[kMaxRank];
    if (rank == 0 || rank > kMaxRank) throw std::invalid_argument("MatMulNBits: A has too few dimensions or too many");
    shape.dimensions(dimensions, rank);
    if (dimensions[rank - 1] != static_cast<int64_t>(columns_)) {
      throw std::invalid_argument("MatMulNBits: A has not as many columns as the weights");
    }
    const size_t count = shape.elements() / columns_;
    const bool together = rank >= 2 ? dimensions[rank - 2] > 1 : false;
    dimensions[rank - 1] = static_cast<int64_t>(rows_);
    Tensor* y = nullptr;
    check(api_.output(context, 0, dimensions, rank, &y));
    if (count == 0) return;
    void *x_data = nullptr, *y_data = nullptr;
    check(api_.data(a, &x_data));
    check(api_.data(y, &y_data));

    const Kernels& kernel = together ? *several_ : *single_;
    const size_t needed = kernel.scratch(*weights_, count);
    thread_local kernels::Aligned<std::byte> scratch;
    if (scratch.size() < needed) scratch = kernels::Aligned<std::byte>(needed);
    const Product product{&*weights_, count, static_cast<const float*>(x_data), bias_, static_cast<float*>(y_data),
                          scratch.get()};
    // Preparing a row takes as long as multiplying it with a few rows of W.
    divide(context, product, kernel.prepare, count, kernel.row_step, 4 * columns_);
    divide(context, product, kernel.multiply, weights_->tiles(), kernel.tile_step, count * columns_ * kernels::kTile);
  }

 private:
  size_t attribute(const KernelInfo* info, const char* name) const {
    int64_t value = 0;
    Checked{api_}(api_.attribute(info, name, &value));
    if (value <= 0) throw std::invalid_argument(std::string("MatMulNBits: ") + name + " is not positive");
    return static_cast<size_t>(value);
  }

  // The values of a constant input; null if there is none.
  template <typename Value>
  const Value* constant(const KernelInfo* info, size_t index, ElementType type, size_t elements) const {
    const Tensor* tensor = nullptr;
    int is_constant = 0;
    if (Status* status = api_.constant_input(info, index, &is_constant, &tensor)) {
      api_.release(status);  // the node has fewer inputs
      return nullptr;
    }
    if (is_constant == 0 || tensor == nullptr) return nullptr;
    const ShapeOf shape(api_, tensor);
    if (shape.type() != type || shape.elements() != elements) {
      throw std::invalid_argument("MatMulNBits: input " + std::to_string(index) + " has another type or size");
    }
    void* data = nullptr;
    Checked{api_}(api_.data(tensor, &data));
    return static_cast<const Value*>(data);
  }

  // Call `work` for [0, total) in ranges that begin at multiples of `step`, from the threads of the session. `cost`: of
  // one of the total, in products of two numbers.
  void divide(const KernelContext* context, const Product& product, void (*work)(const Product&, size_t, size_t),
              size_t total, size_t step, size_t cost) const {
    struct Task {
      const Product& product;
      void (*work)(const Product&, size_t, size_t);
      size_t total, size;
      std::exception_ptr error;
    };
    static const size_t kThreads = std::max(1U, std::thread::hardware_concurrency());
    const size_t parts = std::min({(total + step - 1) / step, 2 * kThreads, 1 + total * cost / kElementsPerTask});
    if (parts < 2) return work(product, 0, total);
    const size_t size = ((total + parts - 1) / parts + step - 1) / step * step;
    Task task{product, work, total, size, nullptr};
    const auto run = [](void* data, size_t index) {
      auto& each = *static_cast<Task*>(data);
      const size_t first = index * each.size;
      try {
        if (first < each.total) each.work(each.product, first, std::min(each.total, first + each.size));
      } catch (...) {
        each.error = std::current_exception();
      }
    };
    Checked{api_}(api_.parallel_for(context, run, (total + size - 1) / size, &task));
    if (task.error != nullptr) std::rethrow_exception(task.error);
  }

  const Api api_;
  size_t columns_, rows_;
  std::optional<BlockMatrix> weights_;
  const float* bias_ = nullptr;
  const Kernels *single_ = nullptr, *several_ = nullptr;
};

template <typename Body>
Status* guarded(const Api& api, Body&& body) {
  try {
    body();
    return nullptr;
  } catch (const std::invalid_argument& error) {
    return api.status(kInvalidArgument, error.what());
  } catch (const std::exception& error) {
    return api.status(kFail, error.what());  // std::bad_alloc among them
  } catch (...) {
    return api.status(kFail, "MatMulNBits failed");
  }
}

// What a kernel needs beside itself: ONNX Runtime hands the table over when it makes one.
struct Made {
  Made(const Function* table, const KernelInfo* info, bool bytes_only) : api(table), kernel(api, info, bytes_only) {}
  Api api;
  Kernel kernel;
};

MatMulNBits describe(bool bytes_only) {
  MatMulNBits op{};
  op.bytes_only = bytes_only;
  op.version = kVersion;
  op.name = [](const Operator*) { return "MatMulNBits"; };
  op.provider = [](const Operator*) -> const char* { return nullptr; };  // the CPU
  op.input_count = [](const Operator*) -> size_t { return kInputs; };
  op.output_count = [](const Operator*) -> size_t { return 1; };
  op.input_type = [](const Operator*, size_t index) -> int {
    return index == kB || index == kZeroPoints ? kUint8 : index == kGroups ? kInt32 : kFloat;
  };
  op.output_type = [](const Operator*, size_t) -> int { return kFloat; };
  op.input_presence = [](const Operator*, size_t index) -> int { return index <= kScales ? kRequired : kOptional; };
  op.output_presence = [](const Operator*, size_t) -> int { return kRequired; };
  op.input_memory = [](const Operator*, size_t) -> int { return 0; };
  op.variadic_input_minimum = [](const Operator*) -> int { return 1; };
  op.variadic_input_alike = [](const Operator*) -> int { return 1; };
  op.variadic_output_minimum = [](const Operator*) -> int { return 1; };
  op.variadic_output_alike = [](const Operator*) -> int { return 1; };
  op.start_version = [](const Operator*) -> int { return 1; };
  op.end_version = [](const Operator*) -> int { return 1; };
  op.create_kernel_2 = [](const Operator* self, const Function* table, const KernelInfo* info, void** out) {
    return guarded(Api(table), [&] { *out = new Made(table, info, static_cast<const MatMulNBits*>(self)->bytes_only); });
  };
  op.compute_2 = [](void* made, KernelContext* context) {
    const auto& each = *static_cast<const Made*>(made);
    return guarded(each.api, [&] { each.kernel.compute(context); });
  };
  op.destroy = [](void* made) { delete static_cast<Made*>(made); };
  return op;
}

}  // namespace

}  // namespace edgellm::ort

// ONNX Runtime calls this for a library that is registered with the options of a session.
extern "C" EDGELLM_EXPORT edgellm::ort::Status* EDGELLM_ORT_CALL RegisterCustomOps(edgellm::ort::Options* options,
                                                                                    const edgellm::ort::ApiBase* base) {
  using namespace edgellm::ort;
  const Function* table = base->get(kVersion);
  if (table == nullptr) return nullptr;  // there is no table to make an error with; the graph's operator stays unknown
  static const MatMulNBits kBoth = describe(false), kBytes = describe(true);
  const Api api(table);
  static std::mutex mutex;
  static Domain* domains[2] = {nullptr, nullptr};  // for good: sessions refer to them
  const std::lock_guard lock(mutex);
  for (const bool bytes : {false, true}) {
    if (domains[bytes] == nullptr) {
      Domain* domain = nullptr;
      if (Status* status = api.create_domain(bytes ? kBytesDomain : kDomain, &domain)) return status;
      if (Status* status = api.add(domain, bytes ? &kBytes : &kBoth)) return status;
      domains[bytes] = domain;
    }
    if (Status* status = api.add(options, domains[bytes])) return status;
  }
  return nullptr;
}
