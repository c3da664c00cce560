// The kernels for any machine.
#define INN_ISA_NAMESPACE baseline
#define INN_ISA_NAME "baseline"
#include "vector_baseline.h"

#include "kernel_bodies.h"
