// MatMulNBits as an operator of our own: what com.microsoft.MatMulNBits means with accuracy_level 4, through our kernels.
//
//   A (..., K) float    B (N, K / block, block * bits / 8) uint8    scales (N, K / block) float
//   zero_points (N, ceil(K / block / 2)) uint8, optional            bias (N) float, optional
//     -> Y (..., N) float
//
// https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits
//
// Rows of A that follow one another in a text, (b, s, K) with s above 1, are multiplied in bfloat16 where the processor
// has kernels for that, single ones in bytes. The variant of bytes alone is for logits: their rows shall be the same
// whether they are asked for one by one or together.
#include "matmul_nbits.h"

#include <algorithm>
#include <optional>
#include <thread>

#include "../kernels/product.h"
#include "operator.h"

namespace edgellm::ort {

namespace {

using kernels::BlockMatrix;
using kernels::Kernels;
using kernels::Product;

enum Input : size_t { kA, kB, kScales, kZeroPoints, kGroups, kBias };

constexpr size_t kMost = size_t{1} << 40;         // rows or columns; more is damage
constexpr size_t kElementsPerTask = 16 << 10;     // below, handing work to another thread takes longer than doing it

class MatMulNBits {
 public:
  MatMulNBits(const Api& api, const KernelInfo* info, bool bytes_only)
      : api_(api), columns_(positive(api, info, "K")), rows_(positive(api, info, "N")) {
    const size_t block = positive(api, info, "block_size"), bits = positive(api, info, "bits");
    if (columns_ % block != 0 || columns_ > kMost || rows_ > kMost / columns_ || bits > 8) {
      throw std::invalid_argument("K, N, bits or block_size is out of range");
    }
    const size_t blocks = columns_ / block;
    const auto* codes = constant<uint8_t>(info, kB, kUint8, rows_ * blocks * (block * bits / 8));
    const auto* scales = constant<float>(info, kScales, kFloat, rows_ * blocks);
    const auto* zeros = constant<uint8_t>(info, kZeroPoints, kUint8, rows_ * ((blocks * bits + 7) / 8));
    bias_ = constant<float>(info, kBias, kFloat, rows_);
    if (codes == nullptr || scales == nullptr) throw std::invalid_argument("the weights are not constant");
    weights_.emplace(rows_, columns_, block, static_cast<int>(bits), codes, scales, zeros);
    single_ = kernels::byte_kernels();
    several_ = bytes_only || kernels::bfloat16_kernels() == nullptr ? single_ : kernels::bfloat16_kernels();
    if (single_ == nullptr) throw std::runtime_error("this processor has none of the kernels");
  }

  void compute(KernelContext* context) const {
    const Checked check(api_);
    const Tensor* a = nullptr;
    check(api_.input(context, kA, &a));
    Described shape(api_, a);
    std::vector<int64_t>& dimensions = shape.dimensions;
    if (dimensions.empty() || dimensions.back() != static_cast<int64_t>(columns_)) {
      throw std::invalid_argument("A has not as many columns as the weights");
    }
    const size_t count = shape.elements / columns_;
    const bool together = dimensions.size() >= 2 && dimensions[dimensions.size() - 2] > 1;
    dimensions.back() = static_cast<int64_t>(rows_);
    Tensor* y = nullptr;
    check(api_.output(context, 0, dimensions.data(), dimensions.size(), &y));
    if (count == 0) return;
    void *x_data = nullptr, *y_data = nullptr;
    check(api_.data(a, &x_data));
    check(api_.data(y, &y_data));

    const Kernels& kernel = together ? *several_ : *single_;
    const Product product{&*weights_, count, static_cast<const float*>(x_data), bias_, static_cast<float*>(y_data),
                          scratch_memory(kernel.scratch(*weights_, count))};
    // Preparing a row takes as long as multiplying it with a few rows of W.
    divide(context, product, kernel.prepare, count, kernel.row_step, 4 * columns_);
    divide(context, product, kernel.multiply, weights_->tiles(), kernel.tile_step, count * columns_ * kernels::kTile);
  }

 private:
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
    const Described shape(api_, tensor);
    if (shape.type != type || shape.elements != elements) {
      throw std::invalid_argument("input " + std::to_string(index) + " has another type or size");
    }
    void* data = nullptr;
    Checked{api_}(api_.data(tensor, &data));
    return static_cast<const Value*>(data);
  }

  // Call `work` for [0, total) in ranges that begin at multiples of `step`, from the threads of the session. `cost`: of
  // one of the total, in products of two numbers.
  void divide(const KernelContext* context, const Product& product, void (*work)(const Product&, size_t, size_t),
              size_t total, size_t step, size_t cost) const {
    static const size_t kThreads = std::max(1U, std::thread::hardware_concurrency());
    const size_t parts = std::min({(total + step - 1) / step, 2 * kThreads, 1 + total * cost / kElementsPerTask});
    const size_t size = ((total + parts - 1) / parts + step - 1) / step * step;
    in_parallel(api_, context, (total + size - 1) / size, [&](size_t index) {
      work(product, index * size, std::min(total, (index + 1) * size));
    });
  }

  const Api api_;
  size_t columns_, rows_;
  std::optional<BlockMatrix> weights_;
  const float* bias_ = nullptr;
  const Kernels *single_ = nullptr, *several_ = nullptr;
};

}  // namespace

const Operator* matmul_nbits(bool bytes_only) {
  const auto describe = [](bool variant) {
    return operator_of<MatMulNBits>("MatMulNBits", {kFloat, kUint8, kFloat, kUint8, kInt32, kFloat}, 3, {kFloat}, variant);
  };
  static const Signature kAny = describe(false), kBytes = describe(true);
  return bytes_only ? &kBytes : &kAny;
}

}  // namespace edgellm::ort
