#define TG_ISA baseline
#define TG_BYTES 16
#include "kernels.h"
