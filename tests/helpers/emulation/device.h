// A CUDA block on one CPU thread: every thread of it is a fiber that runs until it must wait for others. Enough of CUDA
// C++ for the kernels in esbnn_core/kernels/cuda, and what a chip would leave open made hostile: asynchronous copies
// land as late or as early as they may, warps run first to last or last to first, shared memory starts as garbage.
#pragma once
#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>

typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct alignas(8) uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline u32 __float_as_uint(float x) { u32 y; std::memcpy(&y, &x, 4); return y; }
inline float __uint_as_float(u32 x) { float y; std::memcpy(&y, &x, 4); return y; }
inline float __int_as_float(int x) { return __uint_as_float(u32(x)); }
inline float __int2float_rn(int x) { return float(x); }
inline float __fadd_rn(float a, float b) { return a + b; } // built with -ffp-contract=off
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline unsigned long long atomicAdd(unsigned long long *at, unsigned long long more) { return *at += more, *at - more; }
inline int __popc(u32 x) { return __builtin_popcount(x); }
inline u32 atomicOr(u32 *at, u32 bits) { const u32 old = *at; *at |= bits; return old; }

[[noreturn]] inline void fail(const char *what) {
  std::fprintf(stderr, "emulation: %s\n", what);
  std::abort();
}
inline void check_aligned(const void *at, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(at) % bytes) fail("an address is not aligned to the access");
}
template <class V> V __ldg(const V *at) {
  check_aligned(at, sizeof(V));
  return *at;
}

enum Meeting { SHUFFLE, BALLOT, MMA_BITS, MMA_BYTES };
struct Dim { unsigned x, y; };
struct Copy { char *to; const char *from; int bytes; bool inside; };

struct Fiber {
  std::vector<char> stack = std::vector<char>(1 << 16);
  ucontext_t context;
  jmp_buf place;
  bool started, done;
  int thread;
  std::vector<Copy> open;                // not committed
  std::vector<std::vector<Copy>> groups; // committed, under way
};

struct Warp {
  int kind, arrived = 0;
  i64 turn = 0;
  alignas(16) char operands[32][32], results[2][32][16];
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  int threads = 0, current = 0, arrived = 0, alive = 0;
  i64 turn = 0;
  bool eager = false; // copies land at once, not when they are waited for
  ucontext_t home;
  jmp_buf home_place;
  void (*kernel)(const void *);
  const void *parameters;
};
inline Block block;
inline Dim threadIdx, blockIdx;
inline int lane() { return threadIdx.x % 32; }

// Back to the scheduler; the fiber goes on when it is called again. setjmp spares the system calls of swapcontext.
inline void yield() {
  Fiber &own = block.fibers[block.current];
#ifdef PLAIN_FIBERS
  swapcontext(&own.context, &block.home);
#else
  if (!_setjmp(own.place)) _longjmp(block.home_place, 1);
#endif
  threadIdx.x = own.thread;
}

inline void __syncthreads() {
  const i64 mine = block.turn;
  if (++block.arrived == block.threads) {
    block.arrived = 0, block.turn++;
    return;
  }
  while (block.turn == mine) yield();
}

// All 32 lanes of a warp hand in operands for the same instruction; the last one executes it for all.
template <class In, class Out> Out meet(Meeting kind, const In &own, void (*execute)(const In *, Out *)) {
  static_assert(sizeof(In) <= 32 && sizeof(Out) <= 16, "");
  Warp &warp = block.warps[threadIdx.x / 32];
  const i64 mine = warp.turn;
  if (warp.arrived && warp.kind != kind) fail("the lanes of a warp meet for different instructions");
  warp.kind = kind;
  std::memcpy(warp.operands[lane()], &own, sizeof(In));
  if (++warp.arrived == 32) {
    In in[32];
    Out out[32];
    for (int i = 0; i < 32; i++) std::memcpy(&in[i], warp.operands[i], sizeof(In));
    execute(in, out);
    for (int i = 0; i < 32; i++) std::memcpy(warp.results[mine % 2][i], &out[i], sizeof(Out));
    warp.arrived = 0, warp.turn++;
  } else {
    while (warp.turn == mine) yield();
  }
  Out result;
  std::memcpy(&result, warp.results[mine % 2][lane()], sizeof(Out));
  return result;
}

struct Shuffle { u32 value; int mask; };
inline u32 __shfl_xor_sync(u32, u32 value, int mask) {
  return meet<Shuffle, u32>(SHUFFLE, {value, mask}, [](const Shuffle *in, u32 *out) {
    for (int i = 0; i < 32; i++) out[i] = in[i ^ in[i].mask].value;
  });
}
inline u32 __ballot_sync(u32, bool value) {
  return meet<bool, u32>(BALLOT, value, [](const bool *in, u32 *out) {
    u32 bits = 0;
    for (int i = 0; i < 32; i++) bits |= u32(in[i]) << i;
    for (int i = 0; i < 32; i++) out[i] = bits;
  });
}

inline void land(const Copy &c) {
  if (c.inside)
    std::memcpy(c.to, c.from, c.bytes);
  else
    std::memset(c.to, 0, c.bytes);
}
inline void later(void *to, const void *from, int bytes, bool inside) {
  const Copy copy = {static_cast<char *>(to), static_cast<const char *>(from), bytes, inside};
  if (block.eager) return land(copy);
  std::memset(to, 0xA5, bytes); // under way: neither the old words nor the new
  block.fibers[block.current].open.push_back(copy);
}
inline void commit_copies() {
  Fiber &own = block.fibers[block.current];
  own.groups.push_back(std::move(own.open));
  own.open.clear();
}
inline void wait_copies(int left) {
  auto &groups = block.fibers[block.current].groups;
  while (int(groups.size()) > left) {
    for (const Copy &copy : groups.front()) land(copy);
    groups.erase(groups.begin());
  }
}

inline void run_fiber() {
  Fiber &own = block.fibers[block.current];
  block.kernel(block.parameters);
  own.done = true, block.alive--;
  for (;;) yield();
}

inline void resume(int index) {
  Fiber &f = block.fibers[index];
  block.current = index, threadIdx.x = f.thread;
#ifdef PLAIN_FIBERS
  swapcontext(&block.home, &f.context);
#else
  if (_setjmp(block.home_place)) return;
  if (f.started) _longjmp(f.place, 1);
  f.started = true;
  setcontext(&f.context);
#endif
}

// All blocks of a launch, one after the other.
inline void run_grid(void (*kernel)(const void *), const void *parameters, unsigned across, unsigned down, int threads,
                     bool eager, bool backwards, void *shared, size_t shared_bytes) {
  block.threads = threads, block.eager = eager, block.kernel = kernel, block.parameters = parameters;
  if (int(block.fibers.size()) < threads) block.fibers.resize(threads);
  for (unsigned b = 0; b < across * down; b++) {
    blockIdx.x = b % across, blockIdx.y = b / across;
    if (shared) std::memset(shared, 0xC3, shared_bytes);
    block.warps.assign(threads / 32, Warp());
    block.alive = threads, block.arrived = 0;
    for (int t = 0; t < threads; t++) {
      Fiber &f = block.fibers[t];
      f.thread = t, f.started = f.done = false;
      f.open.clear(), f.groups.clear();
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = f.stack.data(), f.context.uc_stack.ss_size = f.stack.size();
      f.context.uc_link = nullptr;
      makecontext(&f.context, run_fiber, 0);
    }
    i64 quiet = 0;
    while (block.alive) {
      const int before = block.alive;
      const i64 turn = block.turn;
      i64 warp_turns = 0, warp_turns_after = 0;
      for (const Warp &w : block.warps) warp_turns += w.turn;
      for (int i = 0; i < threads; i++) {
        const int warp = backwards ? threads / 32 - 1 - i / 32 : i / 32, t = warp * 32 + i % 32;
        if (!block.fibers[t].done) resume(t);
      }
      for (const Warp &w : block.warps) warp_turns_after += w.turn;
      quiet = before == block.alive && turn == block.turn && warp_turns == warp_turns_after ? quiet + 1 : 0;
      if (quiet > 2) fail("all threads of a block wait for each other");
    }
    if (block.arrived) fail("a thread waited for threads that had ended");
  }
}
