// The kernels in use, chosen once per process.
#pragma once

#include "kernels.h"

namespace inn {

const InstructionSet& instruction_set();

}  // namespace inn
