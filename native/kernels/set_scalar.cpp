// The kernels in plain C++.
#include <type_traits>
#include <utility>

#include "activations.h"
#include "kernel_set.h"
#include "lanes_scalar.h"
#include "tile_layout.h"

namespace edgellm::kernels {
namespace scalar {
namespace {

#include "activations.inc"
#include "math.inc"
#include "product.inc"
#include "rows.inc"

}  // namespace
}  // namespace scalar

extern const KernelSet kScalar;
const KernelSet kScalar{
    .name = "scalar",
    .prepare = scalar::prepare,
    .multiply = scalar::multiply,
    .tile_step = 2,
    .rms_norm = scalar::rms_norm,
    .gated = scalar::gated,
    .rotate = scalar::rotate,
    .soft_cap = scalar::soft_cap,
    .scaled = scalar::scaled,
    .attention = {},
};

}  // namespace edgellm::kernels
