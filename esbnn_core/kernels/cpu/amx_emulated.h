// The tile intrinsics of amx.cpp in plain C++ after Intel's manual (volume 2), for tests on processors without AMX
// (-DESBNN_AMX_EMULATED). Where the processor would raise a fault the process ends.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace esbnn {
namespace emulated {

struct State {
  bool configured = false;
  int rows[8] = {}, row_bytes[8] = {};
  alignas(64) uint8_t data[8][16][64] = {};
};
inline thread_local State state;

inline void must(bool holds, const char *fault) {
  if (holds) return;
  std::fprintf(stderr, "emulated AMX: %s\n", fault);
  std::abort();
}

inline void usable(int tile) {
  must(state.configured && tile >= 0 && tile < 8 && state.rows[tile] > 0, "#UD, this tile is not configured");
}

inline void release() { state = State(); }

inline void loadconfig(const void *from) {
  uint8_t bytes[64];
  std::memcpy(bytes, from, sizeof(bytes));
  release();
  if (bytes[0] == 0) return;
  must(bytes[0] == 1 && bytes[1] == 0, "#GP, palette 1 and start row 0 are emulated");
  for (int i = 2; i < 64; i++)
    must((i >= 16 && i < 32) || (i >= 48 && i < 56) || bytes[i] == 0, "#GP, a reserved byte is not 0");
  for (int t = 0; t < 8; t++) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * t, sizeof(row_bytes));
    must(row_bytes <= 64 && bytes[48 + t] <= 16, "#GP, a tile has at most 16 rows of 64 bytes");
    must((row_bytes == 0) == (bytes[48 + t] == 0), "#GP, rows without bytes or bytes without rows");
    state.rows[t] = bytes[48 + t], state.row_bytes[t] = row_bytes;
  }
  state.configured = true;
}

inline void zero(int tile) {
  usable(tile);
  std::memset(state.data[tile], 0, sizeof(state.data[tile]));
}

// rows and bytes past the configured ones become 0
inline void loadd(int tile, const void *base, int64_t stride) {
  zero(tile);
  for (int r = 0; r < state.rows[tile]; r++)
    std::memcpy(state.data[tile][r], static_cast<const uint8_t *>(base) + r * stride, state.row_bytes[tile]);
}

inline void stored(int tile, void *base, int64_t stride) {
  usable(tile);
  for (int r = 0; r < state.rows[tile]; r++)
    std::memcpy(static_cast<uint8_t *>(base) + r * stride, state.data[tile][r], state.row_bytes[tile]);
}

// to[m][n] += sum over k and 4 neighbours of a[m][4k + i] * b[k][4n + i], signed bytes to 32 bits without saturation
inline void dpbssd(int to, int a, int b) {
  usable(to), usable(a), usable(b);
  must(to != a && to != b && a != b, "#UD, three tiles are needed");
  must(state.row_bytes[to] == state.row_bytes[b] && state.rows[to] == state.rows[a] &&
           state.row_bytes[a] == 4 * state.rows[b] && state.row_bytes[to] % 4 == 0,
       "#UD, the tiles' sizes do not fit");
  typedef int8_t Bytes __attribute__((vector_size(16)));
  typedef int32_t Sums __attribute__((vector_size(64)));
  for (int k = 0; k < state.rows[b]; k++)
    for (int i = 0; i < 4; i++) {
      Bytes column{};
      for (int n = 0; n < state.row_bytes[to] / 4; n++) column[n] = int8_t(state.data[b][k][4 * n + i]);
      const Sums weights = __builtin_convertvector(column, Sums);
      for (int m = 0; m < state.rows[to]; m++) {
        Sums sums;
        std::memcpy(&sums, state.data[to][m], sizeof(sums));
        sums += weights * int32_t(int8_t(state.data[a][m][4 * k + i]));
        std::memcpy(state.data[to][m], &sums, sizeof(sums));
      }
    }
}

} // namespace emulated
} // namespace esbnn

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbssd
#define _tile_loadconfig(from) esbnn::emulated::loadconfig(from)
#define _tile_release() esbnn::emulated::release()
#define _tile_loadd(tile, base, stride) esbnn::emulated::loadd(tile, base, stride)
#define _tile_stored(tile, base, stride) esbnn::emulated::stored(tile, base, stride)
#define _tile_zero(tile) esbnn::emulated::zero(tile)
#define _tile_dpbssd(to, a, b) esbnn::emulated::dpbssd(to, a, b)
