#include "paged_attention.h"

namespace edgellm::kernels {

size_t PageShape::number_bytes() const { return type == KvType::f32 ? 4 : type == KvType::int16 ? 2 : 1; }

size_t PageShape::numbers_bytes() const { return kPageTokens * size * number_bytes(); }

size_t PageShape::part_bytes() const {
  return numbers_bytes() + (type == KvType::f32 ? 0 : kPageTokens * sizeof(float));
}

size_t PageShape::bytes() const { return layers * kv_heads * 2 * part_bytes(); }

size_t PageShape::block_bytes() const { return kBlockPages * bytes(); }

size_t PageShape::keys_at(size_t layer, size_t head) const { return (layer * kv_heads + head) * 2 * values_at(); }

size_t PageShape::values_at() const { return kBlockPages * part_bytes(); }

}  // namespace edgellm::kernels
