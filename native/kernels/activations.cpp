#include "activations.h"

namespace edgellm::kernels {

size_t activation_bytes(Form form, size_t columns, size_t count) {
  if (form == Form::floats || count == 0) return 0;
  const Activations a{form, count, columns, nullptr, 0, nullptr};
  const size_t row = form == Form::bytes32 ? columns / 32 * sizeof(Bytes32) : columns / 256 * sizeof(Bytes256);
  return a.groups() * a.group_rows() * row;
}

}  // namespace edgellm::kernels
