#include "instruction_sets.h"

#include <algorithm>

#include "../cpu.h"

namespace edgellm::kernels {

const Bfloat16Kernels* bfloat16_kernels() {
#if defined(EDGELLM_AMX_BF16)
  static const bool kHas = has_cpu_features({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}) &&
                           (kSoftwareTiles || (has_cpu_features({"amx_tile", "amx_bf16"}) && amx_permitted()));
  if (kHas) return &kAmxBf16;
#endif
  return nullptr;
}

const AttentionKernels* single_attention() {
#if defined(EDGELLM_AVX512_VNNI)
  static const bool kHas = has_cpu_features({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"});
  if (kHas) return &kAvx512SingleAttention;
#endif
  return nullptr;
}

const AttentionKernels* prompt_attention() {
#if defined(EDGELLM_AMX_BF16)
  if (bfloat16_kernels() != nullptr) return &kAmxPromptAttention;
#endif
#if defined(EDGELLM_AVX512_VNNI)
  if (single_attention() != nullptr) return &kAvx512PromptAttention;
#endif
  return nullptr;
}

size_t Attention::longest() const { return static_cast<size_t>(*std::max_element(last, last + batch)) + 1; }

}  // namespace edgellm::kernels
