// Functions of the CUDA driver and of PyTorch that are looked up by name.
#include "driver.h"

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include <exception>
#include <string>

namespace inn::launcher {
namespace {

struct Functions {
  int (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
  int (*error)(int, const char**);
  int (*capturing)(void*, int*);
  int (*context)(void**);
  int (*set_context)(void*);
  int (*primary)(void**, int);
  AOTITorchError (*stream)(int32_t, void**);
  AOTITorchError (*make_guard)(int32_t, void**);
  AOTITorchError (*delete_guard)(void*);
  int64_t (*version)(const void*);  // at::TensorBase::_version, of what a handle points to
  void* (*globals)();               // at::globalContext
  int (*precision)(const void*, int, int);  // at::Context::float32Precision
};

Functions functions;
bool is_posing = false;

template <typename F>
bool find(void* library, const char* name, F* function) {
  *function = library ? reinterpret_cast<F>(dlsym(library, name)) : nullptr;
  return *function != nullptr;
}

}  // namespace

const char* connect(const char* driver, bool posing) {
  void* cuda = dlopen(*driver ? driver : "libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (cuda == nullptr) return "there is no CUDA driver, libcuda.so.1";
  Functions found{};
  if (!find(cuda, "cuLaunchKernel", &found.launch) || !find(cuda, "cuGetErrorString", &found.error) ||
      !find(cuda, "cuStreamIsCapturing", &found.capturing) || !find(cuda, "cuCtxGetCurrent", &found.context) ||
      !find(cuda, "cuCtxSetCurrent", &found.set_context) || !find(cuda, "cuDevicePrimaryCtxRetain", &found.primary))
    return "the CUDA driver lacks a function";
  if (!posing) {
    void* torch = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    if (torch == nullptr) return "PyTorch is built without CUDA";
    if (!find(torch, "aoti_torch_get_current_cuda_stream", &found.stream) ||
        !find(torch, "aoti_torch_create_cuda_guard", &found.make_guard) ||
        !find(torch, "aoti_torch_delete_cuda_guard", &found.delete_guard))
      return "PyTorch does not say which stream is current";
  }
  // The launcher does without these: calls that depend on them stay with Python. What they say is compared with what
  // Python says whenever a plan is stored.
  void* torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  find(torch, "_ZNK2at10TensorBase8_versionEv", &found.version);
  find(torch, "_ZN2at13globalContextEv", &found.globals);
  find(torch, "_ZNK2at7Context16float32PrecisionENS_14Float32BackendENS_9Float32OpE", &found.precision);
  functions = found;
  is_posing = posing;
  return nullptr;
}

bool posing() { return is_posing; }

int32_t device_type() { return is_posing ? aoti_torch_device_type_cpu() : aoti_torch_device_type_cuda(); }

void* current_stream(int32_t device) {
  void* stream = nullptr;
  STD_TORCH_CHECK(is_posing || functions.stream(device, &stream) == TORCH_SUCCESS, "there is no current stream");
  return stream;
}

bool is_capturing(void* stream) {
  int status = 0;
  return functions.capturing(stream, &status) != 0 || status != 0;
}

bool tf32(bool* allowed) {
  if (!functions.globals || !functions.precision) return false;
  constexpr int kCuda = 1, kMatmul = 3, kTf32 = 2;  // at::Float32Backend, Float32Op, Float32Precision
  *allowed = functions.precision(functions.globals(), kCuda, kMatmul) == kTf32;
  return true;
}

bool version_of(const void* tensor, int64_t* version) {
  if (!functions.version) return false;
  try {
    *version = functions.version(tensor);
  } catch (const std::exception&) {  // an inference tensor has none
    return false;
  }
  return true;
}

Guard::Guard(int32_t device) {
  if (is_posing) return;
  STD_TORCH_CHECK(functions.make_guard(device, &guard_) == TORCH_SUCCESS, "GPU ", device, " cannot be made current");
  void* context = nullptr;
  if (functions.context(&context) == 0 && context == nullptr && functions.primary(&context, device) == 0)
    functions.set_context(context);  // this thread's first
}

Guard::~Guard() {
  if (guard_) functions.delete_guard(guard_);
}

void launch(void* function, const Grid& grid, void* stream, void** parameters) {
  const int code = functions.launch(function, grid.x, grid.y, grid.z, grid.threads, 1, 1, grid.shared, stream,
                                    parameters, nullptr);
  if (code == 0) return;
  const char* text = nullptr;
  functions.error(code, &text);
  STD_TORCH_CHECK(false, "CUDA error ", code, " at a launch: ", text ? text : "unknown");
}

}  // namespace inn::launcher
