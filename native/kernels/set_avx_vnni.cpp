// The kernels of AVX-VNNI: AVX2 with products of bytes.
#include "set.h"

#include "lanes_avx_vnni.h"

namespace edgellm::kernels {
namespace avx_vnni {
namespace {

#include "set.inc"

}  // namespace
}  // namespace avx_vnni

constinit const KernelSet kAvxVnni = avx_vnni::kernels_named("avx_vnni");

}  // namespace edgellm::kernels
