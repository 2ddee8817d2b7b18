#include "kernel_set.h"

#include <stdexcept>
#include <string>

namespace edgellm::kernels {

extern const KernelSet kScalar;

const std::vector<const KernelSet*>& kernel_sets() {
  static const std::vector<const KernelSet*> sets = {&kScalar};
  return sets;
}

const KernelSet& kernel_set(std::string_view name) {
  for (const KernelSet* set : kernel_sets()) {
    if (set->name == name) return *set;
  }
  throw std::invalid_argument("this processor has no kernels \"" + std::string(name) + "\"");
}

}  // namespace edgellm::kernels
