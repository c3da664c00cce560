// The kernels for AVX512; setup.py adds the compiler flags for this file alone.
#if defined(__x86_64__) || defined(_M_X64)
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // gcc 12 warns about _mm512_undefined_ps in its own headers
#endif
#define INN_ISA_NAMESPACE avx512
#define INN_ISA_NAME "avx512"
#include "vector_avx512.h"

#include "kernel_bodies.h"
#endif
