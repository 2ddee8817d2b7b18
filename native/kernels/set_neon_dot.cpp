// The kernels of 64-bit Arm with the dot products of ARMv8.2.
#include "set.h"

#include "lanes_neon_dot.h"

namespace edgellm::kernels {
namespace neon_dot {
namespace {

#include "set.inc"

}  // namespace
}  // namespace neon_dot

constinit const KernelSet kNeonDot = neon_dot::kernels_named("neon_dot");

}  // namespace edgellm::kernels
