// What the file of an instruction set is made of: its lanes, and set.inc in their namespace.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "activations.h"
#include "kernel_set.h"
#include "tile_layout.h"
#include "unroll.h"

namespace edgellm::kernels {

// Those that were compiled.
extern const KernelSet kAvx512, kAvxVnni, kAvx2, kNeonI8mm, kNeonDot, kScalar;

}  // namespace edgellm::kernels
