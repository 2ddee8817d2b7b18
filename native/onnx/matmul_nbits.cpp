// MatMulNBits as an operator of our own: what com.microsoft.MatMulNBits means with accuracy_level 4, by our kernels.
//
//   A (..., K) float    B (N, K / block, block * bits / 8) uint8    scales (N, K / block) float
//   zero_points (N, ceil(K / block / 2)) uint8, optional            bias (N) float, optional
//     -> Y (..., N) float
//
// https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits
//
// Attributes of ours beside K, N, bits and block_size: `threads`, how many the session has, `kernels`, the name of a
// kernel set, and `bytes`.
//
// Rows of A are multiplied in bytes, with a scale for each 32 columns (../kernels/activations.h). Those that follow one
// another in a text, (b, s, K) with s above 1, are in bfloat16 where the processor has kernels for that; with `bytes`
// they are not, which is for logits: their rows shall be the same whether they are asked for one by one or together.
#include "matmul_nbits.h"

#include <algorithm>
#include <memory>

#include "../kernels/bfloat16_product.h"
#include "../kernels/kernel_set.h"
#include "nbits_weights.h"
#include "operator.h"

namespace edgellm::ort {

namespace {

enum Input : size_t { kA, kB, kScales, kZeroPoints, kGroups, kBias };

constexpr size_t kMost = size_t{1} << 40;      // rows or columns; more is damage
constexpr size_t kElementsPerTask = 16 << 10;  // below, handing work to another thread takes longer than doing it

class MatMulNBits {
 public:
  MatMulNBits(const Api& api, const KernelInfo* info)
      : api_(api),
        columns_(positive(api, info, "K")),
        rows_(positive(api, info, "N")),
        threads_(positive(api, info, "threads")),
        set_(kernels::kernel_set(text(api, info, "kernels"))) {
    const size_t block = positive(api, info, "block_size"), bits = positive(api, info, "bits");
    if (columns_ % block != 0 || columns_ > kMost || rows_ > kMost / columns_ || bits > 8) {
      throw std::invalid_argument("K, N, bits or block_size is out of range");
    }
    const size_t blocks = columns_ / block;
    const NBits source{rows_,
                       columns_,
                       block,
                       bits,
                       constant<uint8_t>(info, kB, kUint8, rows_ * blocks * (block * bits / 8)),
                       constant<float>(info, kScales, kFloat, rows_ * blocks),
                       constant<uint8_t>(info, kZeroPoints, kUint8, rows_ * ((blocks * bits + 7) / 8))};
    bias_ = constant<float>(info, kBias, kFloat, rows_);
    if (source.codes == nullptr || source.scales == nullptr)
      throw std::invalid_argument("the weights are not constant");
    weights_ = weights_of(source, threads_);
    if (integer(api, info, "bytes") == 0) several_ = kernels::bfloat16_kernels();
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
    const auto* x = static_cast<const float*>(x_data);
    if (together && several_ != nullptr)
      in_bfloat16(context, count, x, static_cast<float*>(y_data));
    else
      in_bytes(context, count, x, static_cast<float*>(y_data));
  }

 private:
  void in_bytes(const KernelContext* context, size_t count, const float* x, float* y) const {
    const kernels::Matrix& weights = *weights_.matrix;
    kernels::Activations prepared{weights.form(), count, columns_, x, columns_, nullptr, weights_.factor};
    prepared.out = scratch_memory(kernels::activation_bytes(prepared.form, columns_, count));
    const kernels::MatrixProduct product{&weights, &prepared, bias_, y, rows_, false, 1};
    divide(context, count, 1, prepare_cost(), [&](size_t first, size_t last) { set_.prepare(prepared, first, last); });
    divide(context, weights.tiles(), set_.tile_step, multiply_cost(count),
           [&](size_t first, size_t last) { set_.multiply(product, first, last); });
  }

  void in_bfloat16(const KernelContext* context, size_t count, const float* x, float* y) const {
    const kernels::Matrix& weights = *weights_.matrix;
    const kernels::Bfloat16Kernels& kernel = *several_;
    std::byte* scratch = scratch_memory(kernel.scratch(weights, count));
    const kernels::Bfloat16Product product{&weights, weights_.factor, count, x, bias_, y, scratch};
    divide(context, count, kernel.row_step, prepare_cost(),
           [&](size_t first, size_t last) { kernel.prepare(product, first, last); });
    divide(context, weights.tiles(), kernel.tile_step, multiply_cost(count),
           [&](size_t first, size_t last) { kernel.multiply(product, first, last); });
  }

  // Of a row of A, and of a tile of the weights, in products of two numbers. Preparing a row takes as long as
  // multiplying it with a few rows of W.
  size_t prepare_cost() const { return 4 * columns_; }
  size_t multiply_cost(size_t count) const { return count * columns_ * kernels::kTile; }

  // The values of a constant input; null if there is none.
  template <typename Value>
  const Value* constant(const KernelInfo* info, size_t index, ElementType type, size_t elements) const {
    const Tensor* tensor = nullptr;
    int is_constant = 0;
    const Owned<Status> fewer(api_.constant_input(info, index, &is_constant, &tensor), {&api_});  // inputs than index
    if (fewer != nullptr || is_constant == 0 || tensor == nullptr) return nullptr;
    const Described shape(api_, tensor);
    if (shape.type != type || shape.elements != elements) {
      throw std::invalid_argument("input " + std::to_string(index) + " has another type or size");
    }
    void* data = nullptr;
    Checked{api_}(api_.data(tensor, &data));
    return static_cast<const Value*>(data);
  }

  // Call work(first, last) for [0, total) in ranges that begin at multiples of `step`, from the threads of the session.
  // `cost`: of one of the total, in products of two numbers.
  template <typename Work>
  void divide(const KernelContext* context, size_t total, size_t step, size_t cost, const Work& work) const {
    const size_t parts = std::min({(total + step - 1) / step, 2 * threads_, 1 + total * cost / kElementsPerTask});
    const size_t size = ((total + parts - 1) / parts + step - 1) / step * step;
    in_parallel(api_, context, (total + size - 1) / size,
                [&](size_t index) { work(index * size, std::min(total, (index + 1) * size)); });
  }

  const Api api_;
  size_t columns_, rows_, threads_;
  const kernels::KernelSet& set_;
  Weights weights_{};
  const float* bias_ = nullptr;
  const kernels::Bfloat16Kernels* several_ = nullptr;  // rows of a text; null: in bytes as well
};

}  // namespace

const Operator* matmul_nbits() {
  static const Signature kOperator =
      operator_of<MatMulNBits>("MatMulNBits", {kFloat, kUint8, kFloat, kUint8, kInt32, kFloat}, 3, {kFloat});
  return &kOperator;
}

}  // namespace edgellm::ort
