#include "kernel_set.h"

namespace edgellm::kernels {

extern const KernelSet kScalar;

const std::vector<const KernelSet*>& kernel_sets() {
  static const std::vector<const KernelSet*> sets = {&kScalar};
  return sets;
}

}  // namespace edgellm::kernels
