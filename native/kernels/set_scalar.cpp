// The kernels in plain C++.
#define EDGELLM_PLAIN_LOOPS
#include "set.h"

#include "lanes_scalar.h"

namespace edgellm::kernels {
namespace scalar {
namespace {

#include "set.inc"

}  // namespace
}  // namespace scalar

constinit const KernelSet kScalar = scalar::kernels_named("scalar");

}  // namespace edgellm::kernels
