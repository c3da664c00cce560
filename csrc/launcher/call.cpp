// Keys of calls, and what their arguments hold.
#include "call.h"

#include <cstring>

#include "driver.h"

namespace inn::launcher {
namespace {

AtenTensorHandle as_tensor(StableIValue value) { return torch::stable::detail::to<AtenTensorHandle>(value); }
StableListHandle as_list(StableIValue value) { return torch::stable::detail::to<StableListHandle>(value); }
StableIValue* as_box(StableIValue value) { return torch::stable::detail::to<StableIValue*>(value); }

size_t size_of(StableListHandle list) {
  size_t size = 0;
  ok(torch_list_size(list, &size), "read a list");
  return size;
}

StableIValue item_of(StableListHandle list, size_t n) {
  StableIValue item = 0;
  ok(torch_list_get_item(list, n, &item), "read a list");
  return item;
}

}  // namespace

Call::Call(const Operator& op, StableIValue* stack) : op_(op), stack_(stack) {
  key.reserve(160);
  tensors.reserve(8);
  key.push_back(int64_t(reinterpret_cast<uintptr_t>(&op)));
  for (size_t n = 0; op.kinds[n]; ++n) {
    const StableIValue value = stack[n];
    switch (const char kind = op.kinds[n]) {
      case 'V': key.push_back(int64_t(value)); break;
      case 'O': add_tensor(value ? as_tensor(*as_box(value)) : nullptr, kind); break;
      case 'S':
      case 'L': {
        const StableListHandle list = as_list(value);
        const size_t size = size_of(list);
        key.push_back(int64_t(size));
        for (size_t i = 0; i < size; ++i)
          if (kind == 'S') add_tensor(as_tensor(item_of(list, i)), kind);
          else key.push_back(int64_t(item_of(list, i)));
        break;
      }
      default: add_tensor(as_tensor(value), kind);
    }
  }
  if (std::strchr(op.kinds, 'S') != nullptr) add_shared();
  if (!known_ || !op.constant || device < 0) return;
  stream = current_stream(device);
  key.push_back(int64_t(reinterpret_cast<uintptr_t>(stream)));
}

void Call::add_tensor(AtenTensorHandle handle, char kind) {
  if (!known_) return;
  if (handle == nullptr) {
    key.push_back(-1);
    tensors.push_back({nullptr, 0});
    return;
  }
  int32_t dtype = 0, type = 0, index = 0;
  int64_t rank = 0, *sizes = nullptr, *strides = nullptr;
  const void* data = nullptr;
  bool fine = aoti_torch_get_device_type(handle, &type) == TORCH_SUCCESS && type == device_type();
  fine = fine && aoti_torch_get_device_index(handle, &index) == TORCH_SUCCESS;
  fine = fine && aoti_torch_get_dtype(handle, &dtype) == TORCH_SUCCESS;
  fine = fine && aoti_torch_get_dim(handle, &rank) == TORCH_SUCCESS;
  fine = fine && aoti_torch_get_sizes(handle, &sizes) == TORCH_SUCCESS;
  fine = fine && aoti_torch_get_strides(handle, &strides) == TORCH_SUCCESS;
  fine = fine && torch_get_const_data_ptr(handle, &data) == TORCH_SUCCESS;
  index = posing() ? 0 : index;
  if (!fine || (device >= 0 && index != device)) {
    known_ = false;
    return;
  }
  device = index;
  const uint64_t address = reinterpret_cast<uintptr_t>(data);
  int64_t same = 0;  // which argument before lies at the same address
  if (kind != 'S')
    while (same < int64_t(tensors.size()) && tensors[same].address != address) ++same;
  key.push_back(int64_t(dtype) << 32 | same << 16 | rank << 8 | index << 1 | (address % 16 == 0));
  key.insert(key.end(), sizes, sizes + rank);
  key.insert(key.end(), strides, strides + rank);
  tensors.push_back({handle, address});
  if (kind != 'W') return;
  int64_t version = 0;
  if (identities.empty() && tensors.size() > 1) {  // of a product: how the first argument's dtype is multiplied
    int32_t first = 0;
    known_ = known_ && aoti_torch_get_dtype(tensors[0].handle, &first) == TORCH_SUCCESS;
    if (first == aoti_torch_dtype_float32()) known_ = known_ && launcher::tf32(&tf32);
    key.push_back(tf32);
  }
  known_ = known_ && version_of(handle, &version);
  // A handle points to a tensor, which is a pointer to what all copies of the tensor share.
  identities.push_back(int64_t(*reinterpret_cast<const uintptr_t*>(handle)));
  identities.push_back(version);
  key.insert(key.end(), identities.end() - 2, identities.end());
}

// Of many tensors: which of them is the first at its address.
void Call::add_shared() {
  int bits = 4;
  while ((size_t(1) << bits) < 2 * tensors.size()) ++bits;
  std::vector<int32_t> slots(size_t(1) << bits, -1);
  for (size_t n = 0; n < tensors.size(); ++n) {
    const uint64_t address = tensors[n].address;
    size_t at = size_t((address * 0x9E3779B97F4A7C15u) >> (64 - bits));
    while (slots[at] >= 0 && tensors[slots[at]].address != address) at = (at + 1) & (slots.size() - 1);
    if (slots[at] < 0) slots[at] = int32_t(n);
    key.push_back(slots[at]);
  }
}

void Call::clear() {
  if (stack_ == nullptr) return;
  for (const TensorArgument& tensor : tensors)
    if (tensor.handle) aoti_torch_delete_tensor_object(tensor.handle);
  for (size_t n = 0; op_.kinds[n]; ++n) {
    if (op_.kinds[n] == 'O') delete as_box(stack_[n]);
    if (op_.kinds[n] == 'S' || op_.kinds[n] == 'L') torch_delete_list(as_list(stack_[n]));
  }
  stack_ = nullptr;
}

uint64_t hash_of(const std::vector<int64_t>& key) {
  uint64_t hash = 0x9E3779B97F4A7C15u + key.size();
  for (const int64_t word : key) {
    hash = (hash ^ uint64_t(word)) * 0xFF51AFD7ED558CCDu;
    hash ^= hash >> 32;
  }
  return hash;
}

}  // namespace inn::launcher
