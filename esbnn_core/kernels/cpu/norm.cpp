// The norm of a unit that trains on bits: what it makes of the moments of a batch of exact sums, and the gradients that
// follow from those of its factors and offsets. A few numbers a channel, in double, each rounded to float once at the end.
#include <algorithm>
#include <cmath>

#include "interface.h"

namespace {

struct Statistics {
  double mean, var;
};

// Of one filter's sums; whole numbers, so that a large mean costs the variance no digits.
Statistics statistics_of(const int64_t *moments, int64_t filters, int64_t filter, double rows) {
  const double mean = double(moments[filter]) / rows;
  return {mean, std::max(double(moments[filters + filter]) / rows - mean * mean, 0.0)};
}

double or_one(const float *numbers, int64_t at) { return numbers ? double(numbers[at]) : 1.0; }

} // namespace

API void esbnn_norm(const int64_t *n, void *const *p, const double *d) {
  const int64_t filters = n[0], copies = n[1], channels = filters * copies;
  const double rows = double(n[2]), eps = d[0], momentum = d[1];
  const auto *moments = static_cast<const int64_t *>(p[0]);
  const auto *scale = static_cast<const float *>(p[1]), *gamma = static_cast<const float *>(p[2]);
  const auto *beta = static_cast<const float *>(p[3]), *shift_in = static_cast<const float *>(p[4]);
  auto *running_mean = static_cast<float *>(p[5]), *running_var = static_cast<float *>(p[6]);
  auto *centre = static_cast<float *>(p[7]), *factor = centre + filters, *offset = factor + channels;
  const float keep = float(1.0 - momentum);
  for (int64_t o = 0; o < filters; o++) {
    const Statistics s = statistics_of(moments, filters, o, rows);
    const double by = or_one(scale, o), part = by / std::sqrt(by * by * s.var + eps);
    const float new_mean = float(s.mean * by * momentum);
    const float new_var = float(s.var * (rows / (rows - 1.0)) * by * by * momentum);
    centre[o] = float(s.mean);
    for (int64_t c = o; c < channels; c += filters) {
      factor[c] = float(part * or_one(gamma, c));
      offset[c] = (beta ? beta[c] : 0.0f) + (shift_in ? shift_in[c] : 0.0f);
      if (!running_mean) continue;
      running_mean[c] = running_mean[c] * keep + new_mean;
      running_var[c] = running_var[c] * keep + new_var;
    }
  }
}

// With r = 1 / sqrt(scale^2 var + eps) the derivatives of scale * r are eps r^3 by scale and -(scale r)^3 / 2 by var.
API void esbnn_norm_gradients(const int64_t *n, void *const *p, double eps) {
  const int64_t filters = n[0], copies = n[1], channels = filters * copies;
  const double rows = double(n[2]);
  const auto *moments = static_cast<const int64_t *>(p[0]);
  const auto *scale = static_cast<const float *>(p[1]), *gamma = static_cast<const float *>(p[2]);
  const auto *totals = static_cast<const double *>(p[3]);
  auto *constant = static_cast<float *>(p[4]), *slope = constant + filters, *scale_grad = slope + filters;
  auto *gamma_grad = scale_grad + filters, *others = gamma_grad + channels;
  const double *of_offset = totals, *of_factor = totals + channels;
  for (int64_t o = 0; o < filters; o++) {
    const Statistics s = statistics_of(moments, filters, o, rows);
    const double by = or_one(scale, o), root = 1.0 / std::sqrt(by * by * s.var + eps), part = root * by;
    double total = 0.0, mean_grad = 0.0;
    for (int64_t c = o; c < channels; c += filters) {
      gamma_grad[c] = float(of_factor[c] * part);
      total += of_factor[c] * or_one(gamma, c);
      mean_grad += part * or_one(gamma, c) * of_offset[c];
    }
    scale_grad[o] = float(total * (root * root * root * eps));
    constant[o] = float(-mean_grad / rows);
    slope[o] = float(2.0 * (total * (part * part * part * -0.5)) / rows);
  }
  for (int64_t c = 0; c < channels; c++) others[c] = float(of_offset[c]);
  for (int64_t at = 0; at < 4 * channels; at++) others[channels + at] = float(totals[2 * channels + at]);
}
