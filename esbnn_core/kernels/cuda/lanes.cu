// The packed weight in the order of the convolution (lanes.py says which): a thread makes a word of a panel or a corner.
#include "values.cuh"

// In the order of LANES in launch.py.
struct Lanes {
  const u32 *weight; // (groups * filters, kernel_h, kernel_w, words)
  u32 *lanes;        // (groups, panels, padded, 8), then (kernel_h + 1, kernel_w + 1, groups, padded)
  int groups, filters, padded; // of a group
  int kernel_h, kernel_w, words, panels;
};

constexpr int LANES_THREADS = 256, PANEL_WORDS = 8;

__device__ __forceinline__ void make_lanes(const Lanes &p) {
  const int depth = p.kernel_h * p.kernel_w * p.words;
  const i64 at = i64(blockIdx.x) * LANES_THREADS + threadIdx.x;
  const i64 of_panels = i64(p.groups) * p.panels * p.padded * PANEL_WORDS;
  if (at < of_panels) {
    const i64 line = at / PANEL_WORDS, block = line / p.padded;
    const int filter = int(line - block * p.padded), group = int(block / p.panels), panel = int(block) - group * p.panels;
    const int place = panel * PANEL_WORDS + int(at - line * PANEL_WORDS);
    const bool inside = filter < p.filters && place < depth;
    p.lanes[at] = inside ? p.weight[(i64(group) * p.filters + filter) * depth + place] : 0u;
    return;
  }
  const i64 corner = at - of_panels, line = corner / p.padded, tap = line / p.groups;
  if (tap >= i64(p.kernel_h + 1) * (p.kernel_w + 1)) return;
  const int filter = int(corner - line * p.padded), group = int(line - tap * p.groups);
  const int row = int(tap) / (p.kernel_w + 1), column = int(tap) - row * (p.kernel_w + 1);
  u32 ones = 0;
  if (filter < p.filters) {
    const u32 *from = p.weight + (i64(group) * p.filters + filter) * depth;
    for (int r = 0; r < row; r++)
      for (int word = r * p.kernel_w * p.words; word < (r * p.kernel_w + column) * p.words; word++)
        ones += __popc(from[word]);
  }
  p.lanes[at] = ones;
}

extern "C" __global__ void __launch_bounds__(LANES_THREADS) lanes(const Lanes p) { make_lanes(p); }
