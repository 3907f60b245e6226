// Bits of sign(x + shift): one launch over values of any floating type, channels innermost or pixels innermost.
#include "values.cuh"

// In the order of PACK in launch.py. Value c of pixel i of image n is x[n * image_step + i * pixel_step + c *
// channel_step]; one of the last two steps is 1.
struct Pack {
  const void *x;
  const float *shift; // or null
  u32 *bits;
  i64 image_step, pixel_step, channel_step;
  int images, pixels; // of one image
  int channels, groups, words; // words of one group
  int type;
  int dense; // one flat run of 8 aligned values after another, 32 to a word
};

constexpr int PACK_THREADS = 256, PACK_TURNS = 4;

__device__ __forceinline__ float value_at(const Pack &p, i64 at) {
  if (p.type == FLOAT32) return static_cast<const float *>(p.x)[at];
  return widened(static_cast<const u16 *>(p.x)[at], p.type);
}

// Four threads make a word; only the shift needs a division.
__device__ __forceinline__ void pack_dense(const Pack &p) {
  const u32 runs = i64(p.images) * p.pixels * p.channels / 8;
#pragma unroll
  for (int turn = 0; turn < PACK_TURNS; turn++) {
    const u32 run = (blockIdx.x * PACK_TURNS + turn) * PACK_THREADS + threadIdx.x;
    float v[8];
    load8(v, p.x, p.type, i64(run < runs ? run : 0) * 8, 8, true);
    if (p.shift) {
      const int channel = run % (p.channels / 8) * 8;
#pragma unroll
      for (int i = 0; i < 8; i++) v[i] = __fadd_rn(v[i], p.shift[channel + i]);
    }
    const u32 word = quad_word(signs8(v), threadIdx.x);
    if (threadIdx.x % 4 == 0 && run < runs) p.bits[run / 4] = word;
  }
}

// A warp makes a word, one channel a thread: channels innermost, any number of them, at any address.
__device__ __forceinline__ void pack_inner(const Pack &p) {
  const u32 words = p.groups * p.words, total = u32(p.images) * p.pixels * words, lane = threadIdx.x % 32;
#pragma unroll 1
  for (int turn = 0; turn < PACK_TURNS; turn++) {
    const u32 word = (blockIdx.x * PACK_TURNS + turn) * (PACK_THREADS / 32) + threadIdx.x / 32;
    if (word >= total) return; // the whole warp
    const u32 pixel = word / words, of_pixel = word - pixel * words, group = of_pixel / p.words;
    const int own = p.channels / p.groups, place = (of_pixel - group * p.words) * 32 + lane;
    const int channel = group * own + place;
    bool positive = false;
    if (place < own) {
      const u32 image = pixel / p.pixels;
      float v = value_at(p, image * p.image_step + (pixel - image * p.pixels) * p.pixel_step + channel);
      if (p.shift) v = __fadd_rn(v, p.shift[channel]);
      positive = v >= 0.0f;
    }
    const u32 made = __ballot_sync(~0u, positive);
    if (lane == 0) p.bits[word] = made;
  }
}

// A thread makes a word of its pixel, and its neighbours those of the neighbouring pixels: pixels innermost.
__device__ __forceinline__ void pack_outer(const Pack &p) {
  const u32 words = p.groups * p.words, across = (p.pixels + PACK_THREADS - 1) / PACK_THREADS;
  const u32 line = blockIdx.x / across, pixel = (blockIdx.x - line * across) * PACK_THREADS + threadIdx.x;
  const u32 image = line / words, of_pixel = line - image * words, group = of_pixel / p.words;
  if (pixel >= u32(p.pixels)) return;
  const int own = p.channels / p.groups, place = (of_pixel - group * p.words) * 32;
  const int count = own - place < 32 ? own - place : 32, channel = group * own + place;
  const i64 at = image * p.image_step + channel * p.channel_step + pixel * p.pixel_step;
  u32 made = 0;
#pragma unroll 8
  for (int i = 0; i < count; i++) {
    float v = value_at(p, at + i * p.channel_step);
    if (p.shift) v = __fadd_rn(v, p.shift[channel + i]);
    made |= u32(v >= 0.0f) << i;
  }
  p.bits[(i64(image) * p.pixels + pixel) * words + of_pixel] = made;
}

__device__ __forceinline__ void pack_any(const Pack &p) {
  if (p.dense)
    pack_dense(p);
  else if (p.channel_step == 1)
    pack_inner(p);
  else
    pack_outer(p);
}

extern "C" __global__ void __launch_bounds__(PACK_THREADS) pack(const Pack p) { pack_any(p); }
