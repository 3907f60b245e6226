// The steps after the exact sum (included inside namespace esbnn::ISA). The source that includes it defines the sum
// that a count of its kernel gives:
//   Ints exact(const int32_t *bases, const int *kind, const int32_t *count, int64_t i);   sums of pixel i of a block

// Sets bits [first, first + lanes) of a pixel's packed channels from `mask`; in the slow case threads share a word.
static void put_signs(uint32_t *pixel, const Epilogue &e, int64_t channels, int64_t first, int lanes, unsigned mask) {
  const int64_t size = channels / e.sign_groups, within = first % size;
  if (lanes == LANES && within % LANES == 0 && within + LANES <= size) {
    reinterpret_cast<uint16_t *>(pixel + first / size * e.sign_words)[within / LANES] = uint16_t(mask);
    return;
  }
  if (within % 32 + lanes <= 32 && within + lanes <= size) { // a single word
    mask &= (1u << lanes) - 1;
    if (mask) __atomic_fetch_or(pixel + first / size * e.sign_words + within / 32, mask << within % 32, __ATOMIC_RELAXED);
    return;
  }
  for (int l = 0; l < lanes; l++)
    if (mask >> l & 1) {
      const int64_t at = (first + l) % size;
      uint32_t *word = pixel + (first + l) / size * e.sign_words + at / 32;
      __atomic_fetch_or(word, uint32_t(1) << at % 32, __ATOMIC_RELAXED);
    }
}

// The steps of an epilogue as template flags: a branch for each in the innermost loop costs more than the steps. NARROW:
// residual and y are bfloat16, else float32. ANY decides at run time, for partial blocks and other types.
enum Step { PRELU = 1, RESIDUAL = 2, RPRELU = 4, SIGNS = 8, NARROW = 16, ANY = 32 };

struct Place {
  int64_t channels, filters, first; // of the output, of one copy, of this block
  int lanes;                        // filters of this block
  const int32_t *bases;             // (kinds, LANES): the sum without differing bits
  const int *kind;                  // of each pixel; null where all are of the first
};

// All copies of one block of `pixels` neighbours; the counts of pixel i are sums[i * step].
template <int FLAGS>
static void finish(const Epilogue &e, const Place &at, const int32_t (*counts)[LANES], int64_t step, int64_t pixel,
                   int64_t pixels) {
  constexpr bool any = (FLAGS & ANY) != 0;
  constexpr Kind kind = FLAGS & NARROW ? BFLOAT16 : FLOAT32;
  const int lanes = any ? at.lanes : LANES;
  const Kind y_kind = any ? e.y_kind : kind, residual_kind = any ? e.residual_kind : kind;
  // copies, which no store can alias
  const int64_t channels = at.channels, sign_words = e.sign_groups * e.sign_words;
  const int32_t *const bases = at.bases;
  const int *const border_kind = at.kind;
  const void *const residuals = e.residual;
  void *const ys = e.y;
  for (int64_t copy = 0; copy < e.copies; copy++) {
    const int64_t channel = copy * at.filters + at.first;
    const auto of = [&](const float *vector, int64_t row) {
      return load(vector, row * at.channels + channel, FLOAT32, lanes);
    };
    const bool prelu = any ? e.prelu != nullptr : (FLAGS & PRELU) != 0;
    const bool rprelu = any ? e.rprelu != nullptr : (FLAGS & RPRELU) != 0;
    const bool signs = any ? e.bits != nullptr : (FLAGS & SIGNS) != 0;
    const bool residual = any ? e.residual != nullptr : (FLAGS & RESIDUAL) != 0;
    const Floats none{}, scale = of(e.scale, 0), bias = of(e.bias, 0), slope = prelu ? of(e.prelu, 0) : none;
    const Floats in = rprelu ? of(e.rprelu, 0) : none, bend = rprelu ? of(e.rprelu, 1) : none;
    const Floats out = rprelu ? of(e.rprelu, 2) : none, shift = signs && e.sign_shift ? of(e.sign_shift, 0) : none;
    for (int64_t i = 0; i < pixels; i++) {
      const int64_t place = (pixel + i) * channels + channel;
      Floats y = convert<float>(exact(bases, border_kind, counts[i * step], i)) * scale;
      y = y + bias;
      if (prelu) y = positive_or(y, slope * y);
      if (residual) y = y + load(residuals, place, residual_kind, lanes);
      if (rprelu) {
        y = y + in;
        y = positive_or(y, bend * y);
        y = y + out;
      }
      y = store(ys, place, y_kind, lanes, y);
      if (signs) {
        if (e.sign_shift) y = y + shift;
        put_signs(e.bits + (pixel + i) * sign_words, e, channels, channel, lanes, not_negative(y));
      }
    }
  }
}

// The bare sums instead of all steps.
static void copy_sums(const Epilogue &e, const Place &at, const int32_t (*counts)[LANES], int64_t step, int64_t pixel,
                      int64_t pixels) {
  for (int64_t copy = 0; copy < e.copies; copy++)
    for (int64_t i = 0; i < pixels; i++) {
      const Ints sums = exact(at.bases, at.kind, counts[i * step], i);
      int32_t *const to = e.sums + (pixel + i) * at.channels + copy * at.filters + at.first;
      if (at.lanes == LANES)
        store_vector(to, sums);
      else if (at.lanes == LANES / 2)
        std::memcpy(to, &sums, sizeof(sums) / 2); // a known size is no call
      else
        std::memcpy(to, &sums, at.lanes * sizeof(int32_t));
    }
}

using Finish = void (*)(const Epilogue &, const Place &, const int32_t (*)[LANES], int64_t, int64_t, int64_t);

template <int FLAGS> struct Finishers {
  static void fill(Finish *table) {
    table[FLAGS] = finish<FLAGS>;
    Finishers<FLAGS - 1>::fill(table);
  }
};
template <> struct Finishers<-1> {
  static void fill(Finish *) {}
};

static Finish finisher(const Epilogue &e, int lanes) {
  static const struct Table {
    Finish of[ANY];
    Table() { Finishers<ANY - 1>::fill(of); }
  } table;
  if (e.sums) return copy_sums;
  const bool same = !e.residual || e.residual_kind == e.y_kind;
  if (lanes < LANES || !same || e.y_kind == FLOAT16) return finish<ANY>;
  return table.of[(e.prelu ? PRELU : 0) | (e.residual ? RESIDUAL : 0) | (e.rprelu ? RPRELU : 0) |
                  (e.bits ? SIGNS : 0) | (e.y_kind == BFLOAT16 ? NARROW : 0)];
}
