// GroupQueryAttention as an operator of our own: what com.microsoft.GroupQueryAttention means for a cache of floats.
//
//   query (b, s, heads * size), key and value (b, s, kv_heads * size); or all three in query, side by side
//   past_key, past_value (b, kv_heads, capacity, size)       seqlens_k (b) int32: the position of each last token
//   total_sequence_length () int32: not read                 cos_cache, sin_cache (positions, rotary / 2): do_rotary
//     -> output (b, s, heads * size)    present_key, present_value: as past, in the same memory where they are bound so
//
// https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention
//
// Texts are padded on the right, as everywhere with this operator, and all s tokens of each are new. How it computes:
// ../kernels/attention.h.
#include "group_query_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../kernels/attention.h"
#include "operator.h"

namespace edgellm::ort {

namespace {

using kernels::Attention;
using kernels::AttentionKernels;
using kernels::Stage;

enum Input : size_t { kQuery, kKey, kValue, kPastKey, kPastValue, kLast, kTotal, kCos, kSin };

class GroupQueryAttention {
 public:
  GroupQueryAttention(const Api& api, const KernelInfo* info)
      : api_(api),
        heads_(positive(api, info, "num_heads")),
        kv_heads_(positive(api, info, "kv_num_heads")),
        rotates_(integer(api, info, "do_rotary") != 0),
        window_(integer(api, info, "local_window_size")),
        single_(kernels::single_attention()),
        prompt_(kernels::prompt_attention()) {
    Checked{api}(api.attribute(info, "scale", &scale_));
    if (heads_ % kv_heads_ != 0 || heads_ > kMost) throw std::invalid_argument("the numbers of heads do not fit");
    if (single_ == nullptr) throw std::runtime_error("this processor has none of the kernels");
  }

  void compute(KernelContext* context) const {
    const Checked check(api_);
    const auto query = input<float>(context, kQuery, kFloat, 3), past = input<float>(context, kPastKey, kFloat, 4);
    const auto key = input<float>(context, kKey, kFloat, 3), value = input<float>(context, kValue, kFloat, 3);
    const auto past_value = input<float>(context, kPastValue, kFloat, 4);
    const auto last = input<int32_t>(context, kLast, kInt32, 0);
    if (query.data == nullptr || past.data == nullptr || last.data == nullptr || past_value.shape != past.shape) {
      throw std::invalid_argument("an input is missing, or keys and values differ in their shapes");
    }
    Attention call{};
    call.batch = query.shape[0];
    call.tokens = query.shape[1];
    call.heads = heads_;
    call.kv_heads = kv_heads_;
    call.capacity = past.shape[2];
    call.size = past.shape[3];
    const bool packed = key.data == nullptr && value.data == nullptr;
    const size_t width = (heads_ + (packed ? 2 * kv_heads_ : 0)) * call.size;
    const std::vector<size_t> kv_shape{call.batch, call.tokens, kv_heads_ * call.size};
    if (past.shape[0] != call.batch || past.shape[1] != kv_heads_ || query.shape[2] != width || call.size % 32 != 0 ||
        call.size == 0 || call.size > kMost || (!packed && (key.shape != kv_shape || value.shape != kv_shape))) {
      throw std::invalid_argument("the shapes of its inputs do not fit");
    }
    call.query = query.data;
    call.key = packed ? query.data + heads_ * call.size : key.data;
    call.value = packed ? call.key + kv_heads_ * call.size : value.data;
    call.query_stride = width;
    call.key_stride = call.value_stride = packed ? width : kv_heads_ * call.size;
    call.window = window_ > 0 ? static_cast<size_t>(window_) : call.capacity + 1;
    call.scale = scale_ > 0 ? scale_ : 1 / std::sqrt(static_cast<float>(call.size));
    call.last = last.data;
    size_t positions = call.capacity;
    if (rotates_) {
      const auto cos = input<float>(context, kCos, kFloat, 2), sin = input<float>(context, kSin, kFloat, 2);
      if (cos.data == nullptr || sin.shape != cos.shape || 2 * cos.shape[1] > call.size) {
        throw std::invalid_argument("the caches of the rotation do not fit");
      }
      call.rotary = 2 * cos.shape[1];
      call.cos = cos.data;
      call.sin = sin.data;
      positions = std::min(positions, cos.shape[0]);
    }
    if (last.elements != call.batch) throw std::invalid_argument("seqlens_k has not a number for each text");
    for (size_t b = 0; b < call.batch; ++b) {
      const auto position = static_cast<int64_t>(last.data[b]);
      if (position + 1 < static_cast<int64_t>(call.tokens) || position >= static_cast<int64_t>(positions)) {
        throw std::invalid_argument("a position is outside of the cache");
      }
    }
    const auto dimension = [](size_t size) { return static_cast<int64_t>(size); };
    const int64_t out[] = {dimension(call.batch), dimension(call.tokens), dimension(heads_ * call.size)};
    const int64_t cache[] = {out[0], dimension(kv_heads_), dimension(call.capacity), dimension(call.size)};
    call.out = output(context, 0, out, 3);
    call.keys = output(context, 1, cache, 4);
    call.values = output(context, 2, cache, 4);
    if (call.batch == 0 || call.tokens == 0) return;
    if (call.keys != past.data) std::memcpy(call.keys, past.data, past.elements * sizeof(float));
    if (call.values != past_value.data) std::memcpy(call.values, past_value.data, past.elements * sizeof(float));

    const AttentionKernels& kernel = call.tokens == 1 ? *single_ : *prompt_;
    call.scratch = scratch_memory(kernel.scratch(call));
    for (const Stage& stage : kernel.stages(call)) {
      in_parallel(api_, context, stage.count, [&](size_t index) { stage.run(call, index); });
    }
  }

 private:
  static constexpr size_t kMost = 4096;  // heads, and numbers of a head; more is damage

  template <typename Value>
  struct Given {
    const Value* data = nullptr;  // null: it is not given
    size_t elements = 0;
    std::vector<size_t> shape;
  };

  // rank: of its shape; 0 for any.
  template <typename Value>
  Given<Value> input(const KernelContext* context, size_t index, ElementType type, size_t rank) const {
    const Checked check(api_);
    const Tensor* tensor = nullptr;
    check(api_.input(context, index, &tensor));
    if (tensor == nullptr) return {};
    const Described described(api_, tensor);
    if (described.type != type || (rank != 0 && described.dimensions.size() != rank)) {
      throw std::invalid_argument("input " + std::to_string(index) + " has another type or rank");
    }
    void* data = nullptr;
    check(api_.data(tensor, &data));
    return {static_cast<const Value*>(data), described.elements,
            std::vector<size_t>(described.dimensions.begin(), described.dimensions.end())};
  }

  float* output(KernelContext* context, size_t index, const int64_t* dimensions, size_t rank) const {
    const Checked check(api_);
    Tensor* tensor = nullptr;
    void* data = nullptr;
    check(api_.output(context, index, dimensions, rank, &tensor));
    check(api_.data(tensor, &data));
    return static_cast<float*>(data);
  }

  const Api api_;
  size_t heads_, kv_heads_;
  bool rotates_;
  int64_t window_;
  float scale_ = 0;
  const AttentionKernels *single_, *prompt_;
};

}  // namespace

const Operator* group_query_attention() {
  // After the nine above come inputs that the graphs we take do not give: position_ids, attention_bias, head_sink, ...
  static const Signature kOperator = operator_of<GroupQueryAttention>(
      "GroupQueryAttention",
      {kFloat, kFloat, kFloat, kFloat, kFloat, kInt32, kInt32, kFloat, kFloat, kInt64, kFloat, kFloat, kFloat, kFloat},
      1, {kFloat, kFloat, kFloat});
  return &kOperator;
}

}  // namespace edgellm::ort
