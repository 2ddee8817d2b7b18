// The operator GroupQueryAttention.
#pragma once

#include "ort_abi.h"

namespace edgellm::ort {

const Operator* group_query_attention();

}  // namespace edgellm::ort
