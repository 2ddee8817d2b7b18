#include "product.h"

#include <algorithm>

#include "../cpu.h"
#include "instruction_sets.h"

namespace edgellm::kernels {

const Kernels* byte_kernels() {
#if defined(EDGELLM_AVX512_VNNI)
  static const bool kHas = has_cpu_features({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"});
  if (kHas) return &kAvx512Vnni;
#endif
  return nullptr;
}

const Kernels* bfloat16_kernels() {
#if defined(EDGELLM_AMX_BF16)
  static const bool kHas =
      has_cpu_features({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "amx_tile", "amx_bf16"});
  if (kHas && amx_permitted()) return &kAmxBf16;
#endif
  return nullptr;
}

const AttentionKernels* single_attention() {
#if defined(EDGELLM_AVX512_VNNI)
  if (byte_kernels() != nullptr) return &kAvx512SingleAttention;
#endif
  return nullptr;
}

const AttentionKernels* prompt_attention() {
#if defined(EDGELLM_AMX_BF16)
  if (bfloat16_kernels() != nullptr) return &kAmxPromptAttention;
#endif
#if defined(EDGELLM_AVX512_VNNI)
  if (byte_kernels() != nullptr) return &kAvx512PromptAttention;
#endif
  return nullptr;
}

size_t Attention::longest() const { return static_cast<size_t>(*std::max_element(last, last + batch)) + 1; }

std::string kernel_names() {
  std::string names;
  for (const Kernels* each : {byte_kernels(), bfloat16_kernels()}) {
    if (each == nullptr) continue;
    if (!names.empty()) names += ' ';
    names += each->name;
  }
  return names;
}

}  // namespace edgellm::kernels
