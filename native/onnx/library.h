// The function by which ONNX Runtime takes operators from a library: ours, this module.
#pragma once

#include "ort_abi.h"

#if defined(_WIN32)
#define EDGELLM_EXPORT __declspec(dllexport)
#else
#define EDGELLM_EXPORT __attribute__((visibility("default")))
#endif

namespace edgellm::ort {

constexpr const char* kDomain = "edgellm";  // of our operators

}  // namespace edgellm::ort

extern "C" EDGELLM_EXPORT edgellm::ort::Status* EDGELLM_ORT_CALL RegisterCustomOps(edgellm::ort::Options* options,
                                                                                   const edgellm::ort::ApiBase* base);
