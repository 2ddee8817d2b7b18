#include "paged_attention.h"

namespace edgellm::kernels {

size_t PageShape::number_bytes() const { return type == KvType::f32 ? 4 : type == KvType::f16 ? 2 : 1; }

size_t PageShape::head_bytes() const {
  return 2 * kPageTokens * (size * number_bytes() + (type == KvType::int8 ? sizeof(float) : 0));
}

}  // namespace edgellm::kernels
