#define ISA real_portable_code
#include "real.h"

const esbnn::RealKernels esbnn::real_portable = {
    esbnn::ISA::conv,    esbnn::ISA::pool, esbnn::ISA::extremes,
    esbnn::ISA::average, esbnn::ISA::tail, esbnn::ISA::sum};
