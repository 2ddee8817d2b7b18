// The kernels of ONNX's operators that were compiled, one file for each instruction set.
#pragma once

#include "attention.h"
#include "bfloat16_product.h"

namespace edgellm::kernels {

extern const Bfloat16Kernels kAmxBf16;
extern const AttentionKernels kAvx512SingleAttention;
extern const AttentionKernels kAvx512PromptAttention;
extern const AttentionKernels kAmxPromptAttention;

// The tiles of AMX are those of tests/software_tiles.h, for any processor with the vectors.
#if defined(EDGELLM_SOFTWARE_TILES)
constexpr bool kSoftwareTiles = true;
#else
constexpr bool kSoftwareTiles = false;
#endif

}  // namespace edgellm::kernels
