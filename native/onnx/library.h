// The function by which ONNX Runtime takes operators from a library: ours, this module.
#pragma once

#include "ort_abi.h"

#if defined(_WIN32)
#define EDGELLM_EXPORT __declspec(dllexport)
#else
#define EDGELLM_EXPORT __attribute__((visibility("default")))
#endif

namespace edgellm::ort {

// As long as "com.microsoft", in whose place they are written into a graph. The second has MatMulNBits in bytes alone.
constexpr const char* kDomain = "edgellm.cpu.1";
constexpr const char* kBytesDomain = "edgellm.cpu.8";

}  // namespace edgellm::ort

extern "C" EDGELLM_EXPORT edgellm::ort::Status* EDGELLM_ORT_CALL RegisterCustomOps(edgellm::ort::Options* options,
                                                                                    const edgellm::ort::ApiBase* base);
