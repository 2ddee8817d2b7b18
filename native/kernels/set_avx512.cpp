// The kernels of AVX-512 with VNNI.
#include "set.h"

#include "lanes_avx512.h"

namespace edgellm::kernels {
namespace avx512 {
namespace {

#include "set.inc"

}  // namespace
}  // namespace avx512

constinit const KernelSet kAvx512 = avx512::kernels_named("avx512_vnni");

}  // namespace edgellm::kernels
