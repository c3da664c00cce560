/* A CUDA driver that loads and launches nothing, and counts the launches it was asked for: what Triton's launcher calls,
 * for measuring what a launch costs the host, and for tests of what is launched. Built and loaded by no_gpu.py under the driver's name, libcuda.so.1.
 *
 * Arguments beyond those a function names are left where the caller put them. */
#include <stdint.h>

typedef int Result;
typedef void *Handle;

long launches;

/* The last launches, launch n at n modulo the number of them, of kernels of which so many parameters are to be noted. */
enum { NOTED = 16, PARAMETERS = 64, KERNELS = 4096 };
struct {
  uint64_t function, stream;
  uint32_t grid[3], block[3], shared;
  uint64_t values[PARAMETERS]; /* 8 bytes of each, whatever its type */
} noted[NOTED];
uint8_t parameters[KERNELS];

struct Config {
  uint32_t grid[3], block[3], shared;
  Handle stream;
};

static Result note(const struct Config *config, Handle function, void **values) {
  int n = launches++ % NOTED;
  int count = (uint64_t)function < KERNELS ? parameters[(uint64_t)function] : 0;
  noted[n].function = (uint64_t)function;
  noted[n].stream = (uint64_t)config->stream;
  for (int d = 0; d < 3; ++d) {
    noted[n].grid[d] = config->grid[d];
    noted[n].block[d] = config->block[d];
  }
  noted[n].shared = config->shared;
  for (int i = 0; i < count; ++i) noted[n].values[i] = *(uint64_t *)values[i];
  return 0;
}

Result cuLaunchKernelEx(const struct Config *config, Handle function, void **values) {
  return note(config, function, values);
}

int failing; /* what a launch answers, if not 0 */

Result cuLaunchKernel(Handle function, uint32_t x, uint32_t y, uint32_t z, uint32_t threads, uint32_t block_y,
                      uint32_t block_z, uint32_t shared, Handle stream, void **values) {
  struct Config config = {{x, y, z}, {threads, block_y, block_z}, shared, stream};
  return failing ? failing : note(&config, function, values);
}

/* Each kernel has a handle of its own. */
Result cuModuleGetFunction(uint64_t *answer) {
  static uint64_t last;
  *answer = ++last;
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
ANSWER(cuOccupancyMaxActiveClusters, int, 1)

Result cuGetErrorString(Result code, const char **text) {
  *text = code ? "an error that a test asked for" : "no error";
  return 0;
}

int capturing;

Result cuStreamIsCapturing(Handle stream, int *answer) {
  (void)stream;
  *answer = capturing;
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
