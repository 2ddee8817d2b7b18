// What is bound for Python, a file for each room.
#pragma once

#include <nanobind/nanobind.h>

namespace edgellm {

void bind_kernels(nanobind::module_& m);
void bind_rows(nanobind::module_& m);
void bind_engine(nanobind::module_& m);
void bind_attention(nanobind::module_& m);
void bind_pages(nanobind::module_& m);
void bind_sampling(nanobind::module_& m);

}  // namespace edgellm
