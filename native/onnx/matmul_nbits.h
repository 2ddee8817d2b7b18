// The operator MatMulNBits.
#pragma once

#include "ort_abi.h"

namespace edgellm::ort {

const Operator* matmul_nbits();

}  // namespace edgellm::ort
