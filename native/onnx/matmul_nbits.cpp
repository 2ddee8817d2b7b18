// MatMulNBits as an operator of our own: what com.microsoft.MatMulNBits means with accuracy_level 4, by our kernels.
//
//   A (..., K) float    B (N, K / block, block * bits / 8) uint8    scales (N, K / block) float
//   zero_points (N, ceil(K / block / 2)) uint8, optional            bias (N) float, optional
//     -> Y (..., N) float
//
// https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits
//
// Attributes of ours beside K, N, bits and block_size: `threads`, how many the session has, and `bytes`.
//
// Rows of A that follow one another in a text, (b, s, K) with s above 1, are multiplied in bfloat16 where the processor
// has kernels for that, single ones in bytes. With `bytes` all are, which is for logits: their rows shall be the same
// whether they are asked for one by one or together.
#include "matmul_nbits.h"

#include <algorithm>
#include <memory>

#include "../kernels/product.h"
#include "operator.h"

namespace edgellm::ort {

namespace {

using kernels::BlockMatrix;
using kernels::BlockShape;
using kernels::Kernels;
using kernels::Product;

enum Input : size_t { kA, kB, kScales, kZeroPoints, kGroups, kBias };

constexpr size_t kMost = size_t{1} << 40;      // rows or columns; more is damage
constexpr size_t kElementsPerTask = 16 << 10;  // below, handing work to another thread takes longer than doing it

// B, scales and zero_points of the operator. Two codes of 4 bits, or two zeros, share a byte, the first its low half.
struct Source {
  const uint8_t* codes;
  const float* scales;
  const uint8_t* zeros;

  void read(const BlockShape& shape, size_t row, uint8_t* row_codes, float* row_scales, uint8_t* row_zeros) const {
    const size_t blocks = shape.blocks(), row_bytes = shape.columns * static_cast<size_t>(shape.bits) / 8;
    const uint8_t* from = codes + row * row_bytes;
    if (shape.bits == 8)
      std::copy(from, from + row_bytes, row_codes);
    else
      unpack(from, shape.columns, row_codes);
    std::copy(scales + row * blocks, scales + (row + 1) * blocks, row_scales);
    if (zeros != nullptr) unpack(zeros + row * ((blocks + 1) / 2), blocks, row_zeros);
  }

 private:
  static void unpack(const uint8_t* from, size_t count, uint8_t* to) {
    for (size_t i = 0; i < count; ++i) to[i] = from[i / 2] >> (i % 2 * 4) & 15;
  }
};

class MatMulNBits {
 public:
  MatMulNBits(const Api& api, const KernelInfo* info)
      : api_(api),
        columns_(positive(api, info, "K")),
        rows_(positive(api, info, "N")),
        threads_(positive(api, info, "threads")) {
    const size_t block = positive(api, info, "block_size"), bits = positive(api, info, "bits");
    if (columns_ % block != 0 || columns_ > kMost || rows_ > kMost / columns_ || bits > 8) {
      throw std::invalid_argument("K, N, bits or block_size is out of range");
    }
    const size_t blocks = columns_ / block;
    const Source source{constant<uint8_t>(info, kB, kUint8, rows_ * blocks * (block * bits / 8)),
                        constant<float>(info, kScales, kFloat, rows_ * blocks),
                        constant<uint8_t>(info, kZeroPoints, kUint8, rows_ * ((blocks * bits + 7) / 8))};
    bias_ = constant<float>(info, kBias, kFloat, rows_);
    if (source.codes == nullptr || source.scales == nullptr)
      throw std::invalid_argument("the weights are not constant");
    const BlockShape shape{rows_, columns_, block, static_cast<int>(bits), source.zeros != nullptr};
    const auto read = [&](size_t row, uint8_t* row_codes, float* row_scales, uint8_t* row_zeros) {
      source.read(shape, row, row_codes, row_scales, row_zeros);
    };
    weights_ = std::make_unique<BlockMatrix>(shape, read, threads_);
    single_ = kernels::byte_kernels();
    several_ = integer(api, info, "bytes") != 0 ? nullptr : kernels::bfloat16_kernels();
    if (several_ == nullptr) several_ = single_;
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
    const Product product{weights_.get(),
                          count,
                          static_cast<const float*>(x_data),
                          bias_,
                          static_cast<float*>(y_data),
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

  // Call `work` for [0, total) in ranges that begin at multiples of `step`, from the threads of the session. `cost`: of
  // one of the total, in products of two numbers.
  void divide(const KernelContext* context, const Product& product, void (*work)(const Product&, size_t, size_t),
              size_t total, size_t step, size_t cost) const {
    const size_t parts = std::min({(total + step - 1) / step, 2 * threads_, 1 + total * cost / kElementsPerTask});
    const size_t size = ((total + parts - 1) / parts + step - 1) / step * step;
    in_parallel(api_, context, (total + size - 1) / size,
                [&](size_t index) { work(product, index * size, std::min(total, (index + 1) * size)); });
  }

  const Api api_;
  size_t columns_, rows_, threads_;
  std::unique_ptr<const BlockMatrix> weights_;
  const float* bias_ = nullptr;
  const Kernels *single_ = nullptr, *several_ = nullptr;
};

}  // namespace

const Operator* matmul_nbits() {
  static const Signature kOperator =
      operator_of<MatMulNBits>("MatMulNBits", {kFloat, kUint8, kFloat, kUint8, kInt32, kFloat}, 3, {kFloat});
  return &kOperator;
}

}  // namespace edgellm::ort
