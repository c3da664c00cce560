// The kernels for AVX512; setup.py adds the compiler flags for this file alone.
#if defined(__x86_64__) || defined(_M_X64)
#define INN_ISA_NAMESPACE avx512
#define INN_ISA_NAME "avx512"
#include "vector_avx512.h"

#include "kernel_bodies.h"
#endif
