/* A CUDA driver that loads and launches nothing, and counts the launches it was asked for: what Triton's launcher calls,
 * for measuring what a launch costs the host. Built and loaded by no_gpu.py under the driver's name, libcuda.so.1.
 *
 * Arguments beyond those a function names are left where the caller put them. */
#include <stdint.h>

typedef int Result;
typedef void *Handle;

long launches;

Result cuLaunchKernelEx(void) {
  ++launches;
  return 0;
}

Result cuLaunchKernel(void) {
  ++launches;
  return 0;
}

#define DONE(name) \
  Result name(void) { return 0; }
#define ANSWER(name, type, value) \
  Result name(type *answer) { \
    *answer = (type)(value); \
    return 0; \
  }

DONE(cuInit)
DONE(cuCtxSetCurrent)
DONE(cuCtxSetLimit)
DONE(cuFuncSetAttribute)
DONE(cuFuncSetCacheConfig)
DONE(cuModuleUnload)
DONE(cuMemcpyDtoHAsync)
DONE(cuTensorMapEncodeTiled)
ANSWER(cuDriverGetVersion, int, 13000)
ANSWER(cuDeviceGetCount, int, 1)
ANSWER(cuDeviceGet, int, 0)
ANSWER(cuCtxGetDevice, int, 0)
ANSWER(cuCtxGetCurrent, Handle, 1)
ANSWER(cuCtxGetLimit, uint64_t, 0)
ANSWER(cuDevicePrimaryCtxRetain, Handle, 1)
ANSWER(cuModuleLoadData, Handle, 1)
ANSWER(cuModuleGetFunction, Handle, 1)
ANSWER(cuOccupancyMaxActiveClusters, int, 1)

Result cuGetErrorString(Result code, const char **text) {
  (void)code;
  *text = "no error";
  return 0;
}

Result cuStreamIsCapturing(Handle stream, int *answer) {
  (void)stream;
  *answer = 0;
  return 0;
}

/* Where a pointer is seen from the device: where it is. */
Result cuPointerGetAttribute(uint64_t *answer, int attribute, uint64_t pointer) {
  (void)attribute;
  *answer = pointer;
  return 0;
}

/* Of a kernel: 32 registers, no spills, and threads enough for any block. */
Result cuFuncGetAttribute(int *answer, int attribute) {
  enum { MAX_THREADS = 0, REGISTERS = 4 };
  *answer = attribute == MAX_THREADS ? 1024 : attribute == REGISTERS ? 32 : 0;
  return 0;
}

/* Of the device: an H100. */
Result cuDeviceGetAttribute(int *answer, int attribute) {
  enum { SHARED = 8, WARP = 10, REGISTERS = 12, PROCESSORS = 16, MAJOR = 75, MINOR = 76, SHARED_OPTIN = 97 };
  switch (attribute) {
    case SHARED:
    case SHARED_OPTIN: *answer = 227 * 1024; break;
    case WARP: *answer = 32; break;
    case REGISTERS: *answer = 65536; break;
    case PROCESSORS: *answer = 132; break;
    case MAJOR: *answer = 9; break;
    case MINOR: *answer = 0; break;
    default: *answer = 1024;
  }
  return 0;
}
