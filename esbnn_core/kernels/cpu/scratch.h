// A buffer that a thread keeps between calls: a layer needs little, and needs it at every call.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace esbnn {

struct Scratch {
  void *data = nullptr;
  size_t bytes = 0;
  ~Scratch() { std::free(data); }

  // Memory for `count` values, aligned to cache lines; its contents are lost. Null if there is too little memory.
  template <typename T> T *need(int64_t count) {
    const size_t wanted = size_t(count) * sizeof(T);
    if (wanted > bytes) {
      std::free(data);
      bytes = (wanted + 4095) & ~size_t(4095);
      data = std::aligned_alloc(64, bytes);
      if (!data) bytes = 0;
    }
    return static_cast<T *>(data);
  }
};

} // namespace esbnn
