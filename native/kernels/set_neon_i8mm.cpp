// The kernels of 64-bit Arm with the products of mixed signs of ARMv8.6.
#include "set.h"

#include "lanes_neon_i8mm.h"

namespace edgellm::kernels {
namespace neon_i8mm {
namespace {

#include "set.inc"

}  // namespace
}  // namespace neon_i8mm

constinit const KernelSet kNeonI8mm = neon_i8mm::kernels_named("neon_i8mm");

}  // namespace edgellm::kernels
