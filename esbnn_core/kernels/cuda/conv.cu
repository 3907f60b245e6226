// One launch of the binary convolution: a block's product, then its epilogue. Compiled with -DTILE=Large or Small,
// -DPATH=Bits or Bytes and -DSTEPS=.. of conv.cuh.
#include "epilogue.cuh"

template <class T, class Path, int WHICH>
__device__ __forceinline__ void convolve(const Conv &p, Memory<T> &memory) {
  const int steps = WHICH < 0 ? p.steps : WHICH;
  const int across = (p.own + T::COLUMNS - 1) / T::COLUMNS, group = p.groups == 1 ? 0 : blockIdx.y / across;
  const int column0 = (blockIdx.y - group * across) * T::COLUMNS, pixel0 = blockIdx.x * T::ROWS;
  fill_rows<T>(p, memory.rows, pixel0);
  __syncthreads();
  {
    int sums[T::M16][T::N8][4] = {}, ones[T::M16][4] = {};
    multiply_panels<T, Path>(p, memory, steps, group, column0, sums, ones);
    __syncthreads(); // the last stage has been read
    put_sums<T, Path>(memory, sums, ones);
  }
  __syncthreads();

  finish_block<T, WHICH>(p, memory, steps, pixel0, group, column0);
}

#ifdef TILE
constexpr int BLOCKS = blocks_for(STEPS, TILE::WARPS_K == 1, PATH::OWN != 0);

extern "C" __global__ void __launch_bounds__(TILE::THREADS, BLOCKS) conv(const Conv p) {
  __shared__ Memory<TILE> memory;
  convolve<TILE, PATH, STEPS>(p, memory);
}
#endif
