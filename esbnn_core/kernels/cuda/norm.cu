// The norm of a unit that trains on bits (cpu/norm.cpp says what it computes): a thread has a filter and its copies, a few
// numbers in double, in the order of the CPU's. A compilation of its own: divisions in double are calls with instructions
// that the steps over maps must not have.
#include "values.cuh"

constexpr int NORM_THREADS = 64;

// In the order of NORM in training.py. Null for what is left out.
struct Norm {
  const i64 *moments; // (2, filters): sums and sums of squares over the rows
  const float *scale, *gamma; // (filters), (channels)
  const float *beta, *shift_in;       // forward, (channels)
  float *running_mean, *running_var;  // forward, (channels)
  const double *totals; // backward, (6, channels): see enum Total
  float *result;        // forward: centre, factor, offset; backward: constant, slope, gradients of scale and gamma, totals
  i64 rows;
  double eps, momentum;
  int filters, copies;
};

__device__ __forceinline__ double or_one(const float *numbers, int at) { return numbers ? double(numbers[at]) : 1.0; }

__device__ __forceinline__ void statistics_of(double &mean, double &var, const Norm &p, int filter) {
  const double rows = double(p.rows);
  mean = double(p.moments[filter]) / rows;
  const double square = double(p.moments[p.filters + filter]) / rows - mean * mean;
  var = square > 0.0 ? square : 0.0;
}

__device__ __forceinline__ void norm_forward(const Norm &p) {
  const int o = blockIdx.x * NORM_THREADS + threadIdx.x, channels = p.filters * p.copies;
  if (o >= p.filters) return;
  double mean, var;
  statistics_of(mean, var, p, o);
  const double rows = double(p.rows), by = or_one(p.scale, o), part = by / sqrt(by * by * var + p.eps);
  const float keep = float(1.0 - p.momentum), new_mean = float(mean * by * p.momentum);
  const float new_var = float(var * (rows / (rows - 1.0)) * by * by * p.momentum);
  float *factor = p.result + p.filters, *offset = factor + channels;
  p.result[o] = float(mean);
  for (int c = o; c < channels; c += p.filters) {
    factor[c] = float(part * or_one(p.gamma, c));
    offset[c] = __fadd_rn(p.beta ? p.beta[c] : 0.0f, p.shift_in ? p.shift_in[c] : 0.0f);
    if (!p.running_mean) continue;
    p.running_mean[c] = __fadd_rn(__fmul_rn(p.running_mean[c], keep), new_mean);
    p.running_var[c] = __fadd_rn(__fmul_rn(p.running_var[c], keep), new_var);
  }
}

__device__ __forceinline__ void norm_backward(const Norm &p) {
  const int o = blockIdx.x * NORM_THREADS + threadIdx.x, channels = p.filters * p.copies;
  if (o >= p.filters) return;
  double mean, var;
  statistics_of(mean, var, p, o);
  const double rows = double(p.rows), by = or_one(p.scale, o);
  const double root = 1.0 / sqrt(by * by * var + p.eps), part = root * by;
  const double *of_offset = p.totals, *of_factor = p.totals + channels;
  float *slope = p.result + p.filters, *scale_grad = slope + p.filters, *gamma_grad = scale_grad + p.filters;
  float *others = gamma_grad + channels;
  double total = 0.0, mean_grad = 0.0;
  for (int c = o; c < channels; c += p.filters) {
    gamma_grad[c] = float(of_factor[c] * part);
    total += of_factor[c] * or_one(p.gamma, c);
    mean_grad += part * or_one(p.gamma, c) * of_offset[c];
    others[c] = float(of_offset[c]);
    for (int which = 2; which < 6; which++)
      others[i64(which - 1) * channels + c] = float(p.totals[i64(which) * channels + c]);
  }
  scale_grad[o] = float(total * (root * root * root * p.eps));
  p.result[o] = float(-mean_grad / rows);
  slope[o] = float(2.0 * (total * (part * part * part * -0.5)) / rows);
}

#ifdef __CUDACC__
extern "C" __global__ void __launch_bounds__(NORM_THREADS) batch_norm(const Norm p) { norm_forward(p); }
extern "C" __global__ void __launch_bounds__(NORM_THREADS) batch_norm_gradients(const Norm p) { norm_backward(p); }
#endif
