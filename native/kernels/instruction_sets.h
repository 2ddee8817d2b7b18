// The kernels that were compiled, one file for each instruction set.
#pragma once

#include "attention.h"
#include "product.h"

namespace edgellm::kernels {

extern const Kernels kAvx512Vnni;
extern const Kernels kAmxBf16;
extern const AttentionKernels kAvx512SingleAttention;
extern const AttentionKernels kAvx512PromptAttention;
extern const AttentionKernels kAmxPromptAttention;

}  // namespace edgellm::kernels
