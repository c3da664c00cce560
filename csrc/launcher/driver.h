// The CUDA driver and PyTorch's CUDA library as the launcher sees them: found when it is set up, never linked, so that
// the library loads on machines that have neither.
#pragma once

#include <cstdint>

namespace inn::launcher {

// Finds the driver ("": libcuda.so.1) and what PyTorch knows of streams. `posing`: CPU tensors stand for a GPU's, on
// stream 0 (bench/no_gpu.py). Returns what is missing, or nullptr.
const char* connect(const char* driver, bool posing);

// What tensors of the device that is launched on say of themselves.
int32_t device_type();
bool posing();

void* current_stream(int32_t device);

// Whether a stream is being captured into a CUDA graph; also where the driver cannot say.
bool is_capturing(void* stream);

// Whether float32 products may be TF32, in `allowed`; false where PyTorch does not say.
bool tf32(bool* allowed);

// How often a tensor was changed in place, in `version`; false where PyTorch does not say. The tensor is a handle's.
bool version_of(const void* tensor, int64_t* version);

// Makes a device the current one while it lives, with a context to launch in.
class Guard {
 public:
  explicit Guard(int32_t device);
  ~Guard();
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;

 private:
  void* guard_ = nullptr;
};

struct Grid {
  uint32_t x, y, z, threads, shared;
};

// Raises a RuntimeError with the driver's words.
void launch(void* function, const Grid& grid, void* stream, void** parameters);

}  // namespace inn::launcher
