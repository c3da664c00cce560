// The kernels for AVX2; setup.py adds the compiler flags for this file alone.
#if defined(__x86_64__) || defined(_M_X64)
#define INN_ISA_NAMESPACE avx2
#define INN_ISA_NAME "avx2"
#include "vector_avx2.h"

#include "kernel_bodies.h"
#endif
