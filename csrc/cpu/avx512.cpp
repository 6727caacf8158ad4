#define TG_ISA avx512
#define TG_BYTES 64
#include "kernels.h"
