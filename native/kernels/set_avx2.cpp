// The kernels of AVX2 with FMA and F16C.
#include "set.h"

#include "lanes_avx2.h"

namespace edgellm::kernels {
namespace avx2 {
namespace {

#include "set.inc"

}  // namespace
}  // namespace avx2

constinit const KernelSet kAvx2 = avx2::kernels_named("avx2");

}  // namespace edgellm::kernels
