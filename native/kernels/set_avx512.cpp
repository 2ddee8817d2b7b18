// The kernels of AVX-512 with VNNI.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "activations.h"
#include "kernel_set.h"
#include "lanes_avx512.h"
#include "tile_layout.h"

namespace edgellm::kernels {
namespace avx512 {
namespace {

#include "activations.inc"
#include "math.inc"
#include "product.inc"
#include "rows.inc"

}  // namespace
}  // namespace avx512

extern const KernelSet kAvx512;
const KernelSet kAvx512{
    .name = "avx512_vnni",
    .prepare = avx512::prepare,
    .multiply = avx512::multiply,
    .tile_step = 2,
    .rms_norm = avx512::rms_norm,
    .gated = avx512::gated,
    .rotate = avx512::rotate,
    .soft_cap = avx512::soft_cap,
    .scaled = avx512::scaled,
    .attention = {},
};

}  // namespace edgellm::kernels
