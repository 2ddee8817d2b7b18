// Loops whose every turn the compiler sees by itself, so that arrays of sums stay in registers.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

// EDGELLM_UNROLL, before a loop: every turn of it is compiled by itself.
// EDGELLM_PLAIN_LOOPS: none of this, for builds with sanitizers, which would be compiled for minutes, and where sixteen
// numbers are a loop, not a register.
#if defined(__GNUC__) && !defined(__OPTIMIZE__) && !defined(EDGELLM_PLAIN_LOOPS)
#define EDGELLM_PLAIN_LOOPS
#endif

#if defined(EDGELLM_PLAIN_LOOPS)
#define EDGELLM_INLINE inline
#define EDGELLM_INLINE_LAMBDA
#define EDGELLM_UNROLL
#elif defined(_MSC_VER) && !defined(__clang__)
#define EDGELLM_INLINE __forceinline
#define EDGELLM_INLINE_LAMBDA
#define EDGELLM_UNROLL
#else
#define EDGELLM_INLINE inline __attribute__((always_inline))
#define EDGELLM_INLINE_LAMBDA __attribute__((always_inline))
#if defined(__clang__)
#define EDGELLM_UNROLL _Pragma("unroll")
#else
#define EDGELLM_UNROLL _Pragma("GCC unroll 16")
#endif
#endif

namespace edgellm::kernels {

// Calls turn(i) for the constants i in [0, n).
template <size_t n, typename Turn>
EDGELLM_INLINE void unroll(const Turn& turn) {
  [&]<size_t... i>(std::index_sequence<i...>)
      EDGELLM_INLINE_LAMBDA { (turn(std::integral_constant<size_t, i>{}), ...); }(std::make_index_sequence<n>{});
}

}  // namespace edgellm::kernels
