// Which instruction set to run: the best that the processor has, or the one INN_KERNELS_ISA names.
#include "instruction_set.h"

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <cstring>

namespace inn {
namespace {

// Instruction sets this processor can run, the best last.
int available(const InstructionSet* found[3]) {
  int n = 0;
  found[n++] = &baseline::instruction_set;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    found[n++] = &avx2::instruction_set;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      found[n++] = &avx512::instruction_set;
  }
#endif
  return n;
}

const InstructionSet& choose() {
  const InstructionSet* found[3];
  const int n = available(found);
  const char* wanted = std::getenv("INN_KERNELS_ISA");
  if (wanted == nullptr || *wanted == '\0') return *found[n - 1];
  for (int i = 0; i < n; ++i)
    if (std::strcmp(found[i]->name, wanted) == 0) return *found[i];
  STD_TORCH_CHECK(false, "INN_KERNELS_ISA: this processor has baseline", n > 1 ? ", avx2" : "",
                  n > 2 ? ", avx512" : "", "; got ", wanted);
  return *found[0];
}

}  // namespace

const InstructionSet& instruction_set() {
  static const InstructionSet& chosen = choose();
  return chosen;
}

}  // namespace inn

// The name of the instruction set in use, for tests and benches (through ctypes); null when INN_KERNELS_ISA is wrong.
extern "C" __attribute__((visibility("default"))) const char* inn_kernels_instruction_set() {
  try {
    return inn::instruction_set().name;
  } catch (...) {
    return nullptr;
  }
}
