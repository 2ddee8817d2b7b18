// The kernels that were compiled, one file for each instruction set.
#pragma once

#include "product.h"

namespace edgellm::kernels {

extern const Kernels kAvx512Vnni;
extern const Kernels kAmxBf16;

}  // namespace edgellm::kernels
