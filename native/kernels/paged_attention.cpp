#include "paged_attention.h"

namespace edgellm::kernels {

size_t PageShape::number_bytes() const { return type == KvType::f32 ? 4 : type == KvType::int16 ? 2 : 1; }

size_t PageShape::head_bytes() const {
  return 2 * kPageTokens * (size * number_bytes() + (type == KvType::f32 ? 0 : sizeof(float)));
}

}  // namespace edgellm::kernels
