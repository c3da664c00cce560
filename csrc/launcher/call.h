// A call of an operator as the dispatcher hands it over, and the key of its kind: everything that decides which plan
// replays it.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <vector>

namespace inn::launcher {

inline void ok(AOTITorchError code, const char* what) {
  STD_TORCH_CHECK(code == TORCH_SUCCESS, "PyTorch could not ", what);
}

// An operator and the kinds of its arguments:
//   T tensor   O optional tensor   W tensor whose identity and version matter: tables are made of its values
//   S tensors  L integers          V integer, truth value or dtype
struct Operator {
  const char* name;
  const char* kinds;
  bool constant;  // plans hold memory that is made for a stream
};

struct TensorArgument {
  AtenTensorHandle handle;  // nullptr: None
  uint64_t address;
};

class Call {
 public:
  Call(const Operator& op, StableIValue* stack);
  ~Call() { clear(); }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // The arguments on the stack are another's from now on.
  void hand_on() { stack_ = nullptr; }

  // Frees them.
  void clear();

  // Whether the launcher knows such a call: all tensors on one device of its kind.
  bool known() const { return known_; }

  std::vector<TensorArgument> tensors;  // in order, those of lists one after the other
  std::vector<int64_t> key;
  std::vector<int64_t> identities;  // address of the tensor itself and version, of each W
  int32_t device = -1;
  void* stream = nullptr;  // if the operator's plans are made for one
  bool tf32 = false;       // float32 products, where that decides anything

 private:
  void add_tensor(AtenTensorHandle handle, char kind);
  void add_shared();

  const Operator& op_;
  StableIValue* stack_;
  bool known_ = true;
};

uint64_t hash_of(const std::vector<int64_t>& key);

}  // namespace inn::launcher
