// Training on bits with AVX2.
#define ISA training_avx2
#include "training_body.h"

const esbnn::Training esbnn::avx2_training = {
    esbnn::ISA::forward,   esbnn::ISA::backward, esbnn::ISA::statistics,
    esbnn::ISA::estimator, esbnn::ISA::signs,    esbnn::ISA::moments,
    {esbnn::ISA::x_to_tiles, esbnn::ISA::grad_to_tiles, esbnn::ISA::tiles_to_x, esbnn::ISA::weight_to_tiles,
     esbnn::ISA::tiles_to_weight}};
