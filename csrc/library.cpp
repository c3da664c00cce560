// Registers the CPU kernels for the schemas that inn_kernels/ops.py defines.
//
// Built on PyTorch's stable ABI only: this library works with every torch from 2.10 on, and has no Python symbol.
// (A SymInt argument of a schema reaches a boxed kernel as int64.)
#include <torch/csrc/stable/library.h>

#include "operations.h"

STABLE_TORCH_LIBRARY_IMPL(inn_kernels, CPU, m) {
  m.impl("discretize", TORCH_BOX(&inn::discretize));
  m.impl("discretize_adjoint", TORCH_BOX(&inn::discretize_adjoint));
  m.impl("discretize_tap_gradient", TORCH_BOX(&inn::discretize_tap_gradient));
  m.impl("interpolate", TORCH_BOX(&inn::interpolate));
  m.impl("spread", TORCH_BOX(&inn::spread));
  m.impl("interpolate_tap_gradient", TORCH_BOX(&inn::interpolate_tap_gradient));
  m.impl("discretize_foreach", TORCH_BOX(&inn::discretize_foreach));
  m.impl("discretize_foreach_adjoint", TORCH_BOX(&inn::discretize_foreach_adjoint));
  m.impl("weight_gradient", TORCH_BOX(&inn::weight_gradient));
  m.impl("uniform_taps", TORCH_BOX(&inn::uniform_taps));
  m.impl("axis_table", TORCH_BOX(&inn::axis_table));
}
