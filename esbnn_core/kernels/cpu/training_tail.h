// The loops of a unit's tail, forward and backward (included inside namespace esbnn::ISA by training_body.h).

// Flags of a loop, so that its innermost part has no branch. ANY decides at run time: partial groups, partial vectors
// and narrow types.
enum TailFlag { WITH_INNER = 1, WITH_RESIDUAL = 2, WITH_PRELU = 4, WITH_HARDTANH = 8, ANY_TAIL = 16, TAIL_FLAGS = 32 };

static inline Floats centred(const Tail &t, const Place &p, int r, int lanes, const Floats &centre) {
  const int64_t at = (p.sums_row + r) * t.filters + p.filter;
  ahead(t.sums, at, t.filters, t.sums_kind == INT16 ? FLOAT16 : FLOAT32);
  return load_sums(t.sums, t.sums_kind, at, lanes) - centre;
}

template <int FLAGS> static void forward_vector(const Tail &given, const Place &p, float *) {
  constexpr bool any = (FLAGS & ANY_TAIL) != 0;
  const Tail t = given; // a copy, which no store can alias
  const int lanes = any ? p.lanes : LANES, rows = any ? p.rows : GROUP;
  const Kind residual_kind = any ? t.residual_kind : FLOAT32, y_kind = any ? t.y_kind : FLOAT32;
  const Floats centre = t.centre ? vector_of(t.centre, p.filter, lanes) : zeros();
  const Floats low = zeros() + t.low, high = zeros() + t.high;
  Floats d[GROUP];
  for (int r = 0; r < rows; r++) d[r] = centred(t, p, r, lanes, centre);
  for (int64_t copy = 0; copy < t.copies; copy++) {
    const int64_t channel = copy * t.filters + p.filter;
    const Floats factor = vector_of(t.factor, channel, lanes), offset = vector_of(t.offset, channel, lanes);
    const Floats inner = FLAGS & WITH_INNER ? vector_of(t.inner, channel, lanes) : zeros();
    const Floats in = vector_of(t.shift_in, channel, lanes), slope = vector_of(t.slope, channel, lanes);
    const Floats out = vector_of(t.shift_out, channel, lanes);
    for (int r = 0; r < rows; r++) {
      const int64_t at = (p.row + r) * t.channels() + channel;
      if (FLAGS & WITH_RESIDUAL) ahead(t.residual, at, t.channels(), residual_kind);
      ahead<1>(t.y, at, t.channels(), y_kind);
      Floats z = d[r] * factor + offset;
      if (FLAGS & WITH_INNER) z = positive_or(z, inner * z);
      if (FLAGS & WITH_RESIDUAL) z = z + load(t.residual, at, residual_kind, lanes);
      z = z + in;
      if (FLAGS & WITH_PRELU) z = positive_or(z, slope * z) + out;
      if (FLAGS & WITH_HARDTANH) z = choose(z < low, low, choose(high < z, high, z));
      store(t.y, at, y_kind, lanes, z);
    }
  }
}

// totals: (TOTALS, channels)
template <int FLAGS> static void backward_vector(const Tail &given, const Place &p, float *totals) {
  constexpr bool any = (FLAGS & ANY_TAIL) != 0, acts = (FLAGS & (WITH_PRELU | WITH_HARDTANH)) != 0;
  constexpr bool inner_act = (FLAGS & WITH_INNER) != 0;
  const Tail t = given;
  const int lanes = any ? p.lanes : LANES, rows = any ? p.rows : GROUP;
  const Kind residual_kind = any ? t.residual_kind : FLOAT32, y_kind = any ? t.y_kind : FLOAT32;
  const Floats centre = t.centre ? vector_of(t.centre, p.filter, lanes) : zeros();
  const Floats low = zeros() + t.low, high = zeros() + t.high;
  Floats d[GROUP], sums_grad[GROUP];
  for (int r = 0; r < rows; r++) d[r] = centred(t, p, r, lanes, centre), sums_grad[r] = zeros();
  for (int64_t copy = 0; copy < t.copies; copy++) {
    const int64_t channels = t.channels(), channel = copy * t.filters + p.filter;
    const Floats factor = vector_of(t.factor, channel, lanes), offset = vector_of(t.offset, channel, lanes);
    const Floats inner = inner_act ? vector_of(t.inner, channel, lanes) : zeros();
    const Floats in = vector_of(t.shift_in, channel, lanes), slope = vector_of(t.slope, channel, lanes);
    Floats total[TOTALS] = {};
    for (int r = 0; r < rows; r++) {
      const int64_t at = (p.row + r) * channels + channel;
      ahead(t.y, at, channels, y_kind);
      if (acts && FLAGS & WITH_RESIDUAL) ahead(t.residual, at, channels, residual_kind);
      if (t.residual_grad) ahead<1>(t.residual_grad, at, channels, FLOAT32);
      Floats g = load(t.y, at, y_kind, lanes);
      const Floats affine = d[r] * factor + offset;
      if (acts) {
        Floats z = inner_act ? positive_or(affine, inner * affine) : affine;
        if (FLAGS & WITH_RESIDUAL) z = z + load(t.residual, at, residual_kind, lanes);
        z = z + in;
        total[SHIFT_OUT] = total[SHIFT_OUT] + g;
        if (FLAGS & WITH_PRELU) {
          const Ints above = zeros() < z;
          total[SLOPE] = total[SLOPE] + choose(above, zeros(), g * z);
          g = choose(above, g, g * slope);
        } else {
          g = as<Floats>(as<Words>(g) & as<Words>((low < z) & (z < high))); // strictly inside, as in torch
        }
        if (inner_act) total[SHIFT_IN] = total[SHIFT_IN] + g;
      }
      if (t.residual_grad) store(t.residual_grad, at, FLOAT32, lanes, g);
      if (inner_act) {
        const Ints above = zeros() < affine;
        total[INNER_SLOPE] = total[INNER_SLOPE] + choose(above, zeros(), g * affine);
        g = choose(above, g, g * inner);
      }
      total[OFFSET] = total[OFFSET] + g;
      total[FACTOR] = total[FACTOR] + g * d[r];
      sums_grad[r] = sums_grad[r] + g * factor;
    }
    const auto add = [&](Total which) { add_to(totals + which * channels + channel, total[which], lanes); };
    add(OFFSET), add(FACTOR);
    if (FLAGS & WITH_PRELU) add(SLOPE);
    if (acts) add(SHIFT_OUT);
    if (inner_act) add(INNER_SLOPE), add(SHIFT_IN);
  }
  for (int r = 0; r < rows; r++) {
    const int64_t at = (p.sums_row + r) * t.filters + p.filter;
    ahead<1>(t.sums_grad, at, t.filters, FLOAT32);
    store(t.sums_grad, at, FLOAT32, lanes, sums_grad[r]);
  }
}

using TailLoop = void (*)(const Tail &, const Place &, float *);
struct TailLoops {
  TailLoop forward[TAIL_FLAGS], backward[TAIL_FLAGS];
  TailLoops() { fill<TAIL_FLAGS - 1>(); }

private:
  template <int FLAGS> void fill() {
    if constexpr (FLAGS >= 0) {
      if constexpr ((FLAGS & WITH_PRELU) && (FLAGS & WITH_HARDTANH)) {
        forward[FLAGS] = backward[FLAGS] = nullptr;
      } else {
        forward[FLAGS] = forward_vector<FLAGS>;
        backward[FLAGS] = backward_vector<FLAGS>;
      }
      fill<FLAGS - 1>();
    }
  }
};

// Calls the loop for every channel vector of up to GROUP rows.
static void walk(const TailLoop *loops, const Tail &t, int64_t row, int64_t sums_row, int rows, float *totals) {
  const int flags = (t.inner ? WITH_INNER : 0) | (t.residual ? WITH_RESIDUAL : 0) |
                    (t.act == PRELU_ACT ? WITH_PRELU : 0) | (t.act == HARDTANH ? WITH_HARDTANH : 0);
  const bool narrow = t.y_kind != FLOAT32 || (t.residual && t.residual_kind != FLOAT32);
  for (int64_t filter = 0; filter < t.filters; filter += LANES) {
    const int lanes = t.filters - filter < LANES ? int(t.filters - filter) : LANES;
    const bool any = narrow || rows < GROUP || lanes < LANES;
    loops[flags | (any ? ANY_TAIL : 0)](t, Place{row, sums_row, filter, rows, lanes}, totals);
  }
}

// Where vectors of filters would be partial the sums are tiled first, and vectors of channels walk the tiled ones.
// buffers: twice (GROUP, channels), for the tiled sums and for the gradients of each of them.
static void walk_tiled(const TailLoop *loops, const Tail &t, int64_t row, int rows, float *totals, float *buffers) {
  const int64_t channels = t.channels();
  Tail wide = t;
  wide.filters = channels, wide.copies = 1;
  wide.sums = buffers, wide.sums_kind = CENTRED, wide.centre = nullptr, wide.sums_grad = buffers + GROUP * channels;
  for (int r = 0; r < rows; r++) {
    float *to = buffers + r * channels;
    for (int64_t f = 0; f < t.filters; f++) {
      const int64_t at = (row + r) * t.filters + f;
      const float sum = t.sums_kind == INT32 ? float(static_cast<const int32_t *>(t.sums)[at])
                                             : float(static_cast<const int16_t *>(t.sums)[at]);
      to[f] = sum - (t.centre ? t.centre[f] : 0.0f);
    }
    for (int64_t copy = 1; copy < t.copies; copy++) std::memcpy(to + copy * t.filters, to, t.filters * sizeof(float));
  }
  walk(loops, wide, row, 0, rows, totals);
  if (!totals) return;
  for (int r = 0; r < rows; r++) {
    const float *from = wide.sums_grad + r * channels;
    float *to = t.sums_grad + (row + r) * t.filters;
    std::memcpy(to, from, t.filters * sizeof(float));
    for (int64_t copy = 1; copy < t.copies; copy++)
      for (int64_t f = 0; f < t.filters; f++) to[f] += from[copy * t.filters + f];
  }
}

static void rows_of_tail(const TailLoop *loops, const Tail &t, int64_t row0, int64_t row1, float *totals,
                         float *buffers) {
  for (int64_t row = row0; row < row1; row += GROUP) {
    const int rows = row1 - row < GROUP ? int(row1 - row) : GROUP;
    if (t.filters % LANES == 0 || t.copies == 1)
      walk(loops, t, row, row, rows, totals);
    else
      walk_tiled(loops, t, row, rows, totals, buffers);
  }
}

static const TailLoops &tail_loops() {
  static const TailLoops all;
  return all;
}

static void forward(const Tail &t, int64_t row0, int64_t row1, float *scratch) {
  rows_of_tail(tail_loops().forward, t, row0, row1, nullptr, scratch);
}

// Adds `few` to `total` and sets it to 0 again.
static void flush(float *few, int64_t count, double *total) {
  for (int64_t i = 0; i < count; i++) total[i] += few[i];
  std::memset(few, 0, count * sizeof(float));
}

static void backward(const Tail &t, int64_t row0, int64_t row1, double *totals, float *scratch) {
  const int64_t count = TOTALS * t.channels();
  std::memset(scratch, 0, count * sizeof(float));
  for (int64_t row = row0; row < row1; row += FLUSH) {
    rows_of_tail(tail_loops().backward, t, row, row1 - row < FLUSH ? row1 : row + FLUSH, scratch, scratch + count);
    flush(scratch, count, totals);
  }
}
